"""Weighted data sets from the Hub, at a pinned commit, verified before anybody sees them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift_weights.audit import LARGEST_SHARD, audit
from drift_weights.folder import (
    file_sha256,
    folder_shards,
    is_folder,
    refuse_replacing,
    swap_folder,
    write_json,
)
from drift_weights.hub import (
    Api,
    RemoteFile,
    cache_folder,
    download,
    files_of,
    hub_api,
    locked,
    repository_at,
    resolve,
)
from drift_weights.manifest import MANIFEST, read_manifest
from drift_weights.names import check_repo_id, check_revision, not_here
from drift_weights.repository import Repository, chosen, pulled

_LARGEST_MANIFEST = 64_000_000
"""Bytes; a million shards would not need as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """A data set that was fetched, verified, and is a folder now."""

    path: Path
    subset: str
    commit: str
    manifest: dict[str, Any]
    fresh: bool
    """False where it was there already."""


def pull(
    repo_id: str,
    out: Path,
    *,
    revision: str = "main",
    subset: str | None = None,
    overwrite: bool = False,
    api: Api | None = None,
) -> Pulled:
    """Fetch one data set of a repository into a folder that appears verified and whole, or not at all.

    Only the manifest and the shards that it lists are downloaded. A killed pull goes on where it was.

    Args:
        revision: tag, branch or commit; whatever it is, one commit is fetched, and written down.
        subset: the name of the data set in its repository; None takes the default.
        overwrite: replace a folder that holds something else.

    Raises:
        HubError: the Hub refused or did not answer.
        ValueError: names that are none, a manifest of another major format or that lies.
        FileExistsError: the folder holds something else and `overwrite` is off.
    """
    check_revision(revision)
    api = api or hub_api()
    commit = resolve(api, check_repo_id(repo_id), revision)
    files = files_of(api, repo_id, commit)
    repository = _repository(api, repo_id, commit, files)
    name = chosen(repository, subset, repo_id)
    entry = repository.configs[name]
    source = {"repo": repo_id, "revision": revision, "commit": commit, "subset": name}
    manifest = pulled(entry) | {"hub": source}
    out.parent.mkdir(parents=True, exist_ok=True)
    place = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
    with locked(cache_folder(repo_id, commit), place):
        there = _already(out, manifest)
        if not there:
            refuse_replacing(out, overwrite=overwrite)
            _check_remote(files, entry, repo_id)
            _fetch(api, repo_id, commit, entry, manifest, out)
    return Pulled(path=out, subset=name, commit=commit, manifest=manifest, fresh=not there)


def fetch(repo_id: str, revision: str, *, subset: str | None = None, api: Api | None = None) -> Pulled:
    """As `pull`, into the cache of huggingface_hub; a commit that is there already needs no Hub."""
    api = api or hub_api()
    commit = resolve(api, check_repo_id(repo_id), check_revision(revision))
    home = cache_folder(repo_id, commit) / (subset or "_default")
    manifest = _intact(home)
    if manifest is not None:
        name = manifest["hub"]["subset"]
        return Pulled(path=home, subset=name, commit=commit, manifest=manifest, fresh=False)
    return pull(repo_id, home, revision=commit, subset=subset, overwrite=True, api=api)


def located(path: Path, revision: str | None, subset: str | None, *, say: Callable[[str], None]) -> Path:
    """A path that exists, or the folder into which a data set of the Hub was fetched at its revision.

    Args:
        path: a path, or org/name; a path that exists wins.
        revision: of the Hub's data set; without one nothing is asked of the Hub.
        say: told what was taken, where it could have been either.

    Raises:
        FileNotFoundError: no such path, and no revision.
        HubError: the Hub refused or did not answer.
        ValueError: a subset of a local path, names that are none, or a data set that is not what it says.
    """
    if path.exists():
        if revision is not None:
            say(f"took {path} as it is here, not the Hub's data set of that name")
        elif subset is not None:
            raise ValueError(f"{path} is a folder here; a subset is part of a Hub repository")
        return path
    if revision is None:
        raise not_here(path)
    found = fetch(path.as_posix(), revision, subset=subset)
    say(f"took {path.as_posix()} from the Hub: {found.subset} at {revision} (commit {found.commit})")
    return found.path


def pinned(path: Path, revision: str | None) -> str | None:
    """The commit that a revision of `org/name` names now; None where no Hub is meant.

    Raises:
        HubError: the Hub refused or did not answer.
        ValueError: names that are none.
    """
    if path.exists() or revision is None:
        return revision
    return resolve(hub_api(), check_repo_id(path.as_posix()), check_revision(revision))


def _already(out: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether `out` holds exactly this; where it came from another commit, the new pin is written down."""
    there = _intact(out)
    if there is None:
        return False
    if {**there, "hub": None} != {**manifest, "hub": None}:
        return False
    if there != manifest:
        write_json(out / MANIFEST, manifest)
    return True


def _intact(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder whose shards are all there as it says; None where they are not."""
    if not is_folder(folder):
        return None
    try:
        manifest = read_manifest(folder)
        folder_shards(folder, manifest["kind"])
    except ValueError:
        # Damaged since; it is fetched anew, if it may be replaced.
        return None
    return manifest


def _repository(api: Api, repo_id: str, commit: str, files: Mapping[str, RemoteFile]) -> Repository:
    if MANIFEST not in files:
        raise ValueError(
            f"{repo_id} has no {MANIFEST} at {commit[:12]}: drift-weights did not publish it; load it with "
            "datasets, and name the file to drift-weights"
        )
    if files[MANIFEST].size > _LARGEST_MANIFEST:
        raise ValueError(
            f"{repo_id}: {MANIFEST} has {files[MANIFEST].size} bytes; do not trust this revision"
        )
    return repository_at(api, repo_id, commit, files)


def _fetch(
    api: Api,
    repo_id: str,
    commit: str,
    entry: Mapping[str, Any],
    manifest: Mapping[str, Any],
    out: Path,
) -> None:
    """Everything into a folder beside `out`, which takes its place once it is verified."""
    scratch = out.with_name(f".{out.name}.pulling-{commit[:12]}")
    ready = scratch / "ready"
    (ready / "data").mkdir(parents=True, exist_ok=True)
    try:
        for shard in entry["shards"]:
            _fetch_shard(api, repo_id, commit, shard, scratch / "hub", ready / "data")
        write_json(ready / MANIFEST, manifest)
        audit(ready)
    except ValueError as error:
        # What lies at this commit will lie again.
        shutil.rmtree(scratch)
        raise ValueError(str(error).replace(str(ready), repo_id)) from error
    swap_folder(ready, out)
    shutil.rmtree(scratch)


def _fetch_shard(
    api: Api, repo_id: str, commit: str, shard: Mapping[str, Any], landing: Path, data: Path
) -> None:
    target = data / Path(shard["file"]).name
    if target.is_file() and file_sha256(target) == shard["sha256"]:
        return
    for again in (False, True):
        # Damaged on its way, or a lie; the second time tells.
        file = download(api, repo_id, commit, shard["file"], landing, again=again)
        if file_sha256(file) == shard["sha256"]:
            file.replace(target)
            return
    raise ValueError(
        f"{repo_id}: {shard['file']} is not the file that {MANIFEST} vouches for (sha256 differs); do not "
        "trust this revision"
    )


def _check_remote(files: Mapping[str, RemoteFile], entry: Mapping[str, Any], repo_id: str) -> None:
    """What can be told before a byte of a shard is downloaded."""
    for shard in entry["shards"]:
        name, place = shard["file"], f"{repo_id}: {shard['file']}"
        if name not in files:
            raise ValueError(
                f"{place} is listed in {MANIFEST} and is not there; do not trust this revision"
            )
        size = files[name].size
        if size > LARGEST_SHARD or size != shard.get("bytes", size):
            raise ValueError(
                f"{place} has {size} bytes, {MANIFEST} says {shard.get('bytes')}, and "
                f"{LARGEST_SHARD} are the most; do not trust this revision"
            )
        if files[name].sha256 not in (None, shard["sha256"]):
            raise ValueError(f"{place} has another sha256 than {MANIFEST} says; do not trust this revision")
