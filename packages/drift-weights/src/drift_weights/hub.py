"""The Hub: what a repository holds, downloads from it at a pinned commit, and commits to it.

The only module that imports huggingface_hub (the extra `drift-weights[hub]`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, cached_assets_path, errors
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's, under either name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # not listed, and needed

from drift_weights.manifest import MANIFEST
from drift_weights.repository import Repository, read_repository

Api = HfApi
CARD = "README.md"
Answer = TypeVar("Answer")
_WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try."""
_LONGEST_WAIT = 60.0
"""Seconds that a Hub may ask for; one that wants more is left alone."""
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_COMMIT_LENGTH = 40


class HubError(OSError):
    """The Hub refused or did not answer; the message says what to do."""

    def __init__(self, message: str, *, status: int | None = None, missing: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.missing = missing
        """Whether there is no such repository, or none that this token may see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file of a repository."""

    size: int
    sha256: str | None
    """None for a small file that git itself holds."""
    blob: str
    """As git names the content of a small file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """What a repository holds at its newest commit."""

    commit: str
    private: bool
    files: Mapping[str, RemoteFile]
    tags: Mapping[str, str]
    """Name → commit."""
    repository: Repository | None
    card: str | None


def hub_api() -> Api:
    """The Hub of HF_ENDPOINT, as the user whose token HF_TOKEN or `hf auth login` left."""
    return HfApi(library_name="drift-weights")


def look(api: Api, repo_id: str) -> Remote | None:
    """What is on the Hub under this name; None where nothing is that this token may see.

    Raises:
        HubError: the Hub refused or did not answer.
        ValueError: a manifest there that cannot be read.
    """
    try:
        info = asked(lambda: api.dataset_info(repo_id), repo_id)
    except HubError as error:
        if error.missing:
            return None
        raise
    newest = str(info.sha)
    files = files_of(api, repo_id, newest)
    refs = asked(lambda: api.list_repo_refs(repo_id, repo_type="dataset"), repo_id)
    card = text_of(api, repo_id, newest, CARD, files) if CARD in files else None
    return Remote(
        commit=newest,
        private=bool(info.private),
        files=files,
        tags={tag.name: tag.target_commit for tag in refs.tags},
        repository=repository_at(api, repo_id, newest, files) if MANIFEST in files else None,
        card=None if card is None else card.decode(),
    )


def files_of(api: Api, repo_id: str, commit: str, *, kind: str = "dataset") -> dict[str, RemoteFile]:
    """The files of a repository at a commit."""
    tree = asked(
        lambda: list(api.list_repo_tree(repo_id, revision=commit, recursive=True, repo_type=kind)),
        repo_id,
    )
    return {
        entry.path: RemoteFile(
            size=entry.size, sha256=None if entry.lfs is None else entry.lfs.sha256, blob=entry.blob_id
        )
        for entry in tree
        if isinstance(entry, RepoFile)
    }


def repository_at(api: Api, repo_id: str, commit: str, files: Mapping[str, RemoteFile]) -> Repository:
    """The manifest of a repository at a commit.

    Raises:
        HubError: there is none, or the Hub did not answer.
        ValueError: it cannot be read.
    """
    content = text_of(api, repo_id, commit, MANIFEST, files)
    return read_repository(content, f"{MANIFEST} of {repo_id}")


def text_of(api: Api, repo_id: str, commit: str, name: str, files: Mapping[str, RemoteFile]) -> bytes:
    """The content of a small file at a commit, held to what the listing says of it.

    Raises:
        HubError: there is no such file, it comes damaged, or the Hub did not answer.
    """
    if name not in files:
        raise HubError(f"{repo_id} has no {name} at {commit[:12]}; drift-weights did not publish that")
    for again in (False, True):
        with TemporaryDirectory() as folder:
            content = download(api, repo_id, commit, name, Path(folder), again=again).read_bytes()
        if _is_whole(content, files[name]):
            return content
    raise HubError(f"{repo_id}: {name} comes damaged from the Hub; run it again")


def _is_whole(content: bytes, file: RemoteFile) -> bool:
    if file.sha256 is not None:
        return hashlib.sha256(content).hexdigest() == file.sha256
    # Git's own name of a blob, no protection against an attacker.
    head = b"blob %d\0" % len(content)
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest() == file.blob


def cache_folder(repo_id: str, commit: str) -> Path:
    """Where data sets of a commit are kept, in the cache that `hf cache` looks after."""
    return cached_assets_path("drift", namespace=repo_id, subfolder=commit)


def locked(folder: Path, name: str) -> AbstractContextManager[object]:
    """A lock of this name, so that several processes do not write the same folder."""
    lock: AbstractContextManager[object] = WeakFileLock(folder / f".{name}.lock")
    return lock


def create(api: Api, repo_id: str, *, kind: str = "dataset") -> None:
    """Make a private repository for a data set or a model."""
    asked(lambda: api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True), repo_id)


def publish_to_all(api: Api, repo_id: str, *, kind: str = "dataset") -> None:
    """Make a private repository public."""
    asked(lambda: api.update_repo_settings(repo_id, private=False, repo_type=kind), repo_id)


def commit(
    api: Api,
    repo_id: str,
    *,
    parent: str,
    add: Mapping[str, Path | bytes],
    delete: Sequence[str],
    message: str,
    kind: str = "dataset",
) -> str:
    """Everything in one commit on top of `parent`, or nothing.

    A try whose answer was lost is tried again: the parent is not the newest commit any more then, and
    the caller sees 412.

    Returns:
        The new commit.

    Raises:
        HubError: status 412 where `parent` is not the newest commit.
    """
    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in add.items()
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in delete]
    done = asked(
        lambda: api.create_commit(
            repo_id, operations, commit_message=message, repo_type=kind, parent_commit=parent
        ),
        repo_id,
    )
    return str(done.oid)


def set_tag(api: Api, repo_id: str, tag: str, commit: str, *, kind: str = "dataset") -> None:
    """Name a commit; a tag that names it already is fine.

    Raises:
        HubError: the tag names another commit.
    """
    try:
        asked(lambda: api.create_tag(repo_id, tag=tag, revision=commit, repo_type=kind), repo_id)
    except HubError as error:
        refs = asked(lambda: api.list_repo_refs(repo_id, repo_type=kind), repo_id)
        if (tag, commit) not in {(found.name, found.target_commit) for found in refs.tags}:
            raise HubError(f"{repo_id}: tag {tag} is not set: {error}", status=error.status) from error


def resolve(api: Api, repo_id: str, revision: str) -> str:
    """The commit of a tag, a branch or a commit; a commit needs no Hub.

    Raises:
        HubError: there is none, or the Hub did not answer.
    """
    if len(revision) == _COMMIT_LENGTH and set(revision) <= set("0123456789abcdef"):
        return revision
    found = asked(
        lambda: api.resolve_revision(repo_id, repo_type="dataset", revision=revision),
        f"{repo_id} at {revision}",
    )
    return str(found.resolved)


def download(api: Api, repo_id: str, commit: str, file: str, folder: Path, *, again: bool = False) -> Path:
    found = asked(
        lambda: api.hf_hub_download(
            repo_id, file, repo_type="dataset", revision=commit, local_dir=folder, force_download=again
        ),
        f"{repo_id}, {file} at {commit[:12]}",
        waits=_WAITS[:2],  # the client tries most of it again itself, and goes on where it stopped
    )
    return Path(found)


def asked(call: Callable[[], Answer], place: str, *, waits: Sequence[float] = _WAITS) -> Answer:
    """Ask the Hub, again after what may pass, and say clearly what did not.

    Raises:
        HubError: refused, or no good answer after the last try.
    """
    for wait in (*waits, None):
        try:
            return call()
        except (
            OSError,
            ValueError,
            RuntimeError,
            HTTPError,
            errors.RevisionResolutionError,
        ) as error:
            cause = _cause(error)
            if cause is None:
                raise
            pause = _pause(cause, wait)
            if pause is None:
                raise _clear(cause, place) from error
        sleep(pause)
    raise AssertionError("the last try returns or raises")


def _cause(error: BaseException | None) -> BaseException | None:
    """What the network or the Hub said, behind what the client made of it."""
    while error is not None:
        if isinstance(error, HTTPError | errors.OfflineModeIsEnabled | JSONDecodeError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _pause(cause: BaseException, wait: float | None) -> float | None:
    """Seconds until the next try; None where there is none."""
    if wait is None or isinstance(cause, errors.OfflineModeIsEnabled):
        return None
    if not isinstance(cause, errors.HfHubHTTPError):
        return wait
    if cause.response.status_code not in _TRANSIENT:
        return None
    asked_for = cause.response.headers.get("Retry-After", "")
    pause = max(wait, float(asked_for)) if asked_for.isdigit() else wait
    return pause if pause <= _LONGEST_WAIT else None


def _clear(cause: BaseException, place: str) -> HubError:
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return HubError(f"{place}: HF_HUB_OFFLINE is set and this is not in the cache")
    if not isinstance(cause, errors.HfHubHTTPError):
        return HubError(
            f"{place}: no good answer from the Hub ({type(cause).__name__}); what is done stays done, run "
            "it again"
        )
    status = cause.response.status_code
    if isinstance(cause, errors.RevisionNotFoundError):
        return HubError(f"{place}: there is no such revision", status=status)
    if isinstance(cause, errors.RemoteEntryNotFoundError):
        return HubError(
            f"{place}: there is no such file; only data sets that drift-weights published can be pulled",
            status=status,
        )
    missing = isinstance(cause, errors.RepositoryNotFoundError)
    return HubError(f"{place}: {_advice(status, missing, cause)}", status=status, missing=missing)


def _advice(status: int, missing: bool, cause: errors.HfHubHTTPError) -> str:
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if missing:
        return f"the Hub has no such repository, or none that you may see; check the name, or {login}"
    if status in _TRANSIENT:
        return f"the Hub answered {status} again and again; what is done stays done, run it later"
    said = cause.server_message or "no reason given"
    known = {
        401: f"the Hub does not know you (401); {login}",
        403: f"you may not do that (403: {said}); use a token that may write there",
        412: "it was changed meanwhile (412)",
    }
    return known.get(status, f"the Hub answered {status}: {said}")
