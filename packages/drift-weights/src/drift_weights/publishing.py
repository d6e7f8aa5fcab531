"""Publishing a data set: looked through, put together, and sent to the Hub as one commit and a tag."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drift_weights.audit import Audited, audit
from drift_weights.card import make_card
from drift_weights.files import parquet_batches
from drift_weights.hub import (
    CARD,
    Api,
    HubError,
    Remote,
    RemoteFile,
    commit,
    create,
    files_of,
    hub_api,
    look,
    publish_to_all,
    repository_at,
    set_tag,
)
from drift_weights.leaks import Leak, leaks_in_batch, leaks_in_json, leaks_in_text, private_in_json
from drift_weights.manifest import MANIFEST
from drift_weights.names import check_repo_id
from drift_weights.repository import (
    PublishConfig,
    Repository,
    added,
    config_name,
    differences,
    entry_of,
)
from drift_weights.sources import Advance

_STALE = 412
"""HTTP status: the parent is not the newest commit."""
_SHOWN = 8
"""Findings and differences that a message names."""
_ROWS = 1024
"""Rows that are looked through at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What publishing would do, or that everything is there."""

    audited: Audited
    repo_id: str
    config: PublishConfig
    subset: str
    remote: Remote | None
    """None where the repository is still to be made."""
    card: str
    kept: tuple[str, ...]
    """Parts of the card that a user edited, and that stay as they are."""
    uploads: Mapping[str, Path | bytes]
    deletions: tuple[str, ...]
    unchanged: tuple[str, ...]
    """Files that are there with this content."""
    tagged: bool
    """Whether the tag names exactly this already."""

    @property
    def changes(self) -> bool:
        """Whether a commit is needed."""
        return bool(self.uploads or self.deletions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Where a data set can be found."""

    commit: str
    fresh: bool
    """False where all of it was there already."""


def prepare(
    folder: Path,
    repo_id: str,
    config: PublishConfig,
    *,
    api: Api | None = None,
    advance: Advance | None = None,
) -> Plan:
    """Look through a data set and at the Hub, and say what publishing would do; nothing is changed.

    Args:
        folder: trajectories or weighted turns.
        advance: called with the number of rows of each batch that was read.

    Raises:
        ValueError: a folder that is not what its manifest says, a secret or a private path in it (row
            and field are named), a name that is none, another data set under this name or tag (the
            difference is named), or a repository that is public where none was asked for.
        HubError: the Hub refused or did not answer.
    """
    check_repo_id(repo_id)
    audited = audit(folder, advance=advance)
    _refuse_leaks(_leaks_of_rows(audited, advance))
    return _plan(audited, repo_id, config, api or hub_api())


def publish(made: Plan, *, api: Api | None = None) -> Published:
    """Carry out a plan: one commit with shards, card and manifest, then the tag, then `public`.

    Interrupted anywhere, readers see the old state or the new one, and publishing again finishes. Where
    somebody else committed meanwhile, nothing is overwritten: if their commit holds the same, it is
    taken; else it is refused.

    Raises:
        HubError: the Hub refused or did not answer, or the repository was changed meanwhile.
    """
    api = api or hub_api()
    if made.remote is None:
        create(api, made.repo_id)
        made = _plan(made.audited, made.repo_id, made.config, api)
    if made.remote is None:
        raise HubError(f"{made.repo_id} was made, and the Hub does not show it yet; publish again")
    found = _committed(api, made, made.remote)
    if not made.tagged:
        set_tag(api, made.repo_id, made.config.tag, found)
    if made.config.public and made.remote.private:
        publish_to_all(api, made.repo_id)
    return Published(commit=found, fresh=made.changes or not made.tagged)


def _plan(audited: Audited, repo_id: str, config: PublishConfig, api: Api) -> Plan:
    name = config.subset or config_name(audited.manifest)
    remote = look(api, repo_id)
    if remote is not None and not remote.private and not config.public:
        raise ValueError(f"{repo_id} is public; pass --public to publish into it")
    before = None if remote is None else remote.repository
    entry = entry_of(audited, name, **_licenses(config, audited.manifest, before, name))
    tagged = remote is not None and _is_tagged(api, repo_id, config.tag, remote, name, entry)
    if before is not None and not config.overwrite and not tagged:
        _refuse_other(repo_id, before, name, entry)
    _refuse_leaks(_leaks_of_manifest(entry, repo_id))
    repository = added(before, name, entry, default=config.default)
    files = _files(audited, repo_id, config, remote, repository, name)
    return Plan(
        audited=audited,
        repo_id=repo_id,
        config=config,
        subset=name,
        remote=remote,
        card=files.card,
        kept=files.kept,
        uploads={} if tagged else files.uploads,
        deletions=() if tagged else files.deletions,
        unchanged=files.unchanged,
        tagged=tagged,
    )


def _committed(api: Api, made: Plan, remote: Remote) -> str:
    """The commit that holds the data set."""
    if made.tagged:
        return remote.tags[made.config.tag]
    if not made.changes:
        return remote.commit
    try:
        return commit(
            api,
            made.repo_id,
            parent=remote.commit,
            add=made.uploads,
            delete=made.deletions,
            message=f"Add {made.subset}, {made.config.tag}",
        )
    except HubError as error:
        if error.status != _STALE:
            raise
        return _taken(api, made, remote, error)


def _taken(api: Api, made: Plan, before: Remote, error: HubError) -> str:
    """The commit that came before ours, if it holds the same."""
    now = _plan(made.audited, made.repo_id, made.config, api)
    assert now.remote is not None
    if not now.changes:
        return now.remote.commit
    there, here = now.remote.files, before.files
    other = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    raise HubError(
        f"{made.repo_id} was changed while this was being published, in {', '.join(other[:_SHOWN])}; "
        "nothing was overwritten: look at it, and publish again",
        status=_STALE,
    ) from error


def _licenses(
    config: PublishConfig, manifest: Mapping[str, Any], before: Repository | None, name: str
) -> dict[str, str | None]:
    """As given, else as the folder says, else as they are there."""
    there = {} if before is None else before.configs.get(name, {})
    given = {"license": config.license, "problems_license": config.problems_license}
    return {key: value or manifest.get(key) or there.get(key) for key, value in given.items()}


def _is_tagged(
    api: Api, repo_id: str, tag: str, remote: Remote, name: str, entry: Mapping[str, Any]
) -> bool:
    """Whether the tag is there and names this data set; one that names another is never moved."""
    if tag not in remote.tags:
        return False
    there = remote.tags[tag]
    named = repository_at(api, repo_id, there, files_of(api, repo_id, there))
    other = differences(named.configs[name], entry) if name in named.configs else [f"no {name} there"]
    if other:
        raise ValueError(
            f"{repo_id} has a tag {tag} with other content; tags are not moved, choose another "
            f"one:\n  {_listed(other)}"
        )
    return True


def _refuse_other(repo_id: str, before: Repository, name: str, entry: Mapping[str, Any]) -> None:
    other = differences(before.configs[name], entry) if name in before.configs else []
    # A licence may be said later; that makes no other data set.
    other = [field for field in other if not field.startswith(("license: ", "problems_license: "))]
    if other:
        raise ValueError(
            f"{repo_id} holds another data set under the name {name}; pass --overwrite to replace it (tags "
            f"keep the old one), or choose another name with --subset:\n  {_listed(other)}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Files:
    card: str
    kept: tuple[str, ...]
    uploads: dict[str, Path | bytes]
    deletions: tuple[str, ...]
    unchanged: tuple[str, ...]


def _files(
    audited: Audited,
    repo_id: str,
    config: PublishConfig,
    remote: Remote | None,
    repository: Repository,
    name: str,
) -> _Files:
    """The files that should be there, against those that are."""
    before = None if remote is None else remote.repository
    left = {} if before is None else before.configs.get(name, {})
    if left and not differences(left, repository.configs[name]):
        # The same rows, made again with another version, say: what is there stays.
        repository = replace(repository, configs={**repository.configs, name: left})
    card = make_card(
        repo_id,
        repository.manifest(),
        revision=config.tag,
        before=None if remote is None else remote.card,
        recorded=repository.card,
    )
    _refuse_leaks(leaks_in_text(card.text, CARD))
    repository = replace(repository, card=card.recorded)
    shards = repository.configs[name]["shards"]
    wanted: dict[str, Path | bytes] = {}
    unchanged = []
    for shard, file in zip(shards, audited.files, strict=True):
        if remote is not None and _is_there(remote.files.get(shard["file"]), shard["sha256"]):
            unchanged.append(shard["file"])
        else:
            wanted[shard["file"]] = file
    texts = {MANIFEST: _text(repository), CARD: card.text}
    there = {
        MANIFEST: None if before is None else _text(before),
        CARD: None if remote is None else remote.card,
    }
    for name_there, text in texts.items():
        if text == there[name_there]:
            unchanged.append(name_there)
        else:
            wanted[name_there] = text.encode()
    stale = {shard["file"] for shard in left.get("shards", [])} - {shard["file"] for shard in shards}
    return _Files(
        card=card.text,
        kept=card.kept,
        uploads=wanted,
        deletions=tuple(sorted(stale)),
        unchanged=tuple(sorted(unchanged)),
    )


def _text(repository: Repository) -> str:
    content = repository.manifest()
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _is_there(file: RemoteFile | None, sha256: str) -> bool:
    return file is not None and file.sha256 == sha256


def _leaks_of_rows(audited: Audited, advance: Advance | None) -> list[Leak]:
    found: list[Leak] = []
    for file in audited.files:
        first = 0
        for batch in parquet_batches(file, _ROWS):
            found += leaks_in_batch(batch, first, f"{audited.path.name}/data/{file.name}")
            first += batch.num_rows
            if advance is not None:
                advance(batch.num_rows)
            if len(found) > _SHOWN:
                return found
    return found


def _leaks_of_manifest(entry: Mapping[str, Any], repo_id: str) -> list[Leak]:
    known = {repo_id.partition("/")[0]}
    private = private_in_json(entry, MANIFEST, user=_login(), home=str(Path.home()), known=known)
    return [*leaks_in_json(entry, MANIFEST), *private]


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        # A container's user may have no name, and then none can be told.
        return ""


def _refuse_leaks(leaks: list[Leak]) -> None:
    if leaks:
        lines = [f"{leak.place}: {leak.what} ({leak.shown})" for leak in leaks]
        raise ValueError(
            f"this must not be published; take it out and write the folder again:\n  {_listed(lines)}"
        )


def _listed(lines: list[str]) -> str:
    more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n  ".join([*lines[:_SHOWN], *more])
