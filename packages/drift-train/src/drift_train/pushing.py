"""Sending an exported policy to the Hub: looked through, then one commit, private unless told otherwise."""

from __future__ import annotations

import getpass
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from drift_train.model_card import CARD, is_hub_id
from drift_weights.hub import (
    Api,
    HubError,
    RemoteFile,
    asked,
    commit,
    create,
    files_of,
    hub_api,
    publish_to_all,
    set_tag,
)
from drift_weights.leaks import Leak, leaks_in_text, private_in_json
from drift_weights.names import check_repo_id, check_tag

KIND = "model"
_ADAPTER = "adapter_config.json"
_OPENED = re.compile(
    r"(?:adapter_)?model(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?"
    r"|(?:adapter_|generation_|tokenizer_)?config\.json"
    r"|(?:tokenizer|vocab|added_tokens|special_tokens_map)\.json|merges\.txt|chat_template\.jinja"
)
"""What from_pretrained reads, wherever it comes from: none may be left of a policy pushed before."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
"""Words of a public corpus may look like anything."""
_STALE = 412
"""HTTP status: the parent is not the newest commit."""
_SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PushPlan:
    """What a push would do."""

    folder: Path
    repo_id: str
    public: bool
    tag: str | None
    parent: str | None
    """The newest commit there; None where the repository is still to be made."""
    private: bool
    """Whether the repository is private now; one that is still to be made will be."""
    uploads: tuple[str, ...]
    deletions: tuple[str, ...]
    unchanged: tuple[str, ...]
    tagged: str | None
    """The commit of the tag, which holds exactly this; None where there is no such tag yet."""

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        tags = self.tag is not None and self.tagged is None
        return bool(self.uploads or self.deletions) or tags or (self.public and self.private)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """Where a policy can be found."""

    commit: str
    fresh: bool
    """False where all of it was there already."""


def prepare_push(
    folder: Path, repo_id: str, *, public: bool = False, tag: str | None = None, api: Api | None = None
) -> PushPlan:
    """Look through a policy and at the Hub, and say what a push would do; nothing is changed.

    Args:
        folder: what `export` wrote.
        repo_id: org/name.
        public: whether the repository may be, and is made, public.
        tag: a name for the commit; tags are never moved.

    Raises:
        FileNotFoundError: `folder` is no exported policy.
        ValueError: a secret or a private path in a file (place and kind are named), an adapter of a base
            that is on this machine alone, a name that is none, a public one without a licence, a
            repository that is public where none was asked for, or a tag that names something else.
        HubError: the Hub refused or did not answer.
    """
    check_repo_id(repo_id)
    if tag is not None:
        check_tag(tag)
    files = _files(folder)
    if public:
        _check_license(folder / CARD)
    _refuse_local_base(folder, files)
    _refuse_leaks(folder, files, repo_id)
    api = api or hub_api()
    newest, private = _look(api, repo_id)
    if not private and not public:
        raise ValueError(f"{repo_id} is public; pass --public to push into it")
    there = {} if newest is None else files_of(api, repo_id, newest, kind=KIND)
    tagged = None if newest is None or tag is None else _tagged(api, folder, repo_id, tag, files)
    same = _unchanged(folder, files, there)
    return PushPlan(
        folder=folder,
        repo_id=repo_id,
        public=public,
        tag=tag,
        parent=newest,
        private=private,
        uploads=() if tagged else tuple(name for name in files if name not in same),
        deletions=() if tagged else _stale(files, there),
        unchanged=tuple(files if tagged else same),
        tagged=tagged,
    )


def push(plan: PushPlan, *, api: Api | None = None) -> Pushed:
    """Carry out a plan: one commit, then the tag, then `public`.

    Interrupted anywhere, the Hub has the old policy or the new one, and pushing again finishes.

    Raises:
        HubError: the Hub refused or did not answer, or the repository was changed meanwhile: nothing
            is overwritten.
    """
    api = api or hub_api()
    changes = plan.changes
    if plan.parent is None:
        create(api, plan.repo_id, kind=KIND)
        plan = prepare_push(plan.folder, plan.repo_id, public=plan.public, tag=plan.tag, api=api)
    if plan.parent is None:
        raise HubError(f"{plan.repo_id} was made, and the Hub does not show it yet; push again")
    newest = plan.tagged or plan.parent
    if plan.uploads or plan.deletions:
        newest = _commit(api, plan, plan.parent)
    if plan.tag is not None and plan.tagged is None:
        set_tag(api, plan.repo_id, plan.tag, newest, kind=KIND)
    if plan.public and plan.private:
        publish_to_all(api, plan.repo_id, kind=KIND)
    return Pushed(commit=newest, fresh=changes)


def print_push(plan: PushPlan, console: Console, *, card: bool) -> None:
    """Print what a push would do: the repository, each file and, if wanted, the model card."""
    state = "private" if plan.private and not plan.public else "public"
    made = "to be made" if plan.parent is None else f"at {plan.parent[:12]}"
    console.print(f"{plan.repo_id}: {state}, {made}", markup=False, highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for what, names in (("send", plan.uploads), ("take away", plan.deletions), ("keep", plan.unchanged)):
        for name in names:
            path = plan.folder / name
            table.add_row(what, Text(name), decimal(path.stat().st_size) if path.is_file() else "")
    console.print(table)
    if plan.tag is not None:
        console.print(f"tag {plan.tag}", markup=False, highlight=False)
    if card:
        text = (plan.folder / CARD).read_text(encoding="utf-8")
        console.print(text.strip(), markup=False, highlight=False, soft_wrap=True)


def _files(folder: Path) -> list[str]:
    """The names of a policy's files.

    Raises:
        FileNotFoundError: it is no policy that `export` wrote.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; write one with drift-train export")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    config = _ADAPTER if _ADAPTER in names else "config.json"
    lacking = [name for name in (config, "tokenizer_config.json", CARD) if name not in names]
    if not any(name.endswith(".safetensors") for name in names):
        lacking.append("*.safetensors")
    if lacking:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(lacking)}; a policy is what drift-train export writes"
        )
    return names


def _look(api: Api, repo_id: str) -> tuple[str | None, bool]:
    """The newest commit, None where nothing is to be seen, and whether the repository is private."""
    try:
        info = asked(lambda: api.model_info(repo_id), repo_id)
    except HubError as error:
        if error.missing:
            # One that is still to be made will be.
            return None, True
        raise
    return str(info.sha), bool(info.private)


def _check_license(card: Path) -> None:
    """Refuse a card without a licence."""
    try:
        said = ModelCard.load(card).data.get("license")
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{card}: between its first two lines --- is no YAML: {error}") from error
    if not said:
        raise ValueError(
            f"what everybody sees needs a licence, and {card} names none; export with --license, such as "
            "apache-2.0, or write `license:` between its first two lines ---"
        )


def _unchanged(folder: Path, files: list[str], there: Mapping[str, RemoteFile]) -> list[str]:
    return [name for name in files if name in there and _is_same(folder / name, there[name])]


def _stale(files: list[str], there: Mapping[str, RemoteFile]) -> tuple[str, ...]:
    return tuple(name for name in there if name not in files and _OPENED.fullmatch(name))


def _tagged(api: Api, folder: Path, repo_id: str, tag: str, files: list[str]) -> str | None:
    """The commit of a tag, which holds these files; None where there is no such tag.

    Raises:
        ValueError: it holds others.
    """
    refs = asked(lambda: api.list_repo_refs(repo_id, repo_type=KIND), repo_id)
    named = {found.name: found.target_commit for found in refs.tags}
    if tag not in named:
        return None
    there = files_of(api, repo_id, named[tag], kind=KIND)
    other = {*files} - {*_unchanged(folder, files, there)} | {*_stale(files, there)}
    if other:
        raise ValueError(
            f"{repo_id} has a tag {tag} with other content ({', '.join(sorted(other)[:_SHOWN])}); tags are "
            "not moved, choose another one"
        )
    return str(named[tag])


def _commit(api: Api, plan: PushPlan, parent: str) -> str:
    try:
        return commit(
            api,
            plan.repo_id,
            parent=parent,
            add={name: plan.folder / name for name in plan.uploads},
            delete=plan.deletions,
            message="Add a policy trained with DRIFT",
            kind=KIND,
        )
    except HubError as error:
        if error.status != _STALE:
            raise
        now = prepare_push(plan.folder, plan.repo_id, public=plan.public, tag=plan.tag, api=api)
        if now.parent is not None and not now.uploads and not now.deletions:
            # Ours: its answer was lost on the way.
            return now.parent
        raise HubError(
            f"{plan.repo_id} was changed while this was being pushed; nothing was overwritten: look at it, "
            "and push again",
            status=_STALE,
        ) from error


def _is_same(path: Path, there: RemoteFile) -> bool:
    if path.stat().st_size != there.size:
        return False
    with path.open("rb") as file:
        if there.sha256 is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == there.sha256
        # Git's own name of a small file.
        head = b"blob %d\0" % there.size
        return hashlib.sha1(head + file.read(), usedforsecurity=False).hexdigest() == there.blob


def _refuse_local_base(folder: Path, files: list[str]) -> None:
    """Refuse an adapter that nobody else can put on its base."""
    if _ADAPTER not in files:
        return
    said = _json(folder / _ADAPTER, _ADAPTER)
    base = said.get("base_model_name_or_path") if isinstance(said, dict) else None
    if not isinstance(base, str) or not is_hub_id(base):
        raise ValueError(
            f"{folder / _ADAPTER}, base_model_name_or_path: the adapter's base is no model of the Hub but "
            "an absolute path or another folder of this machine, which nobody else has; export without "
            "--keep-adapter, or write the base's id on the Hub (org/name) there"
        )


def _refuse_leaks(folder: Path, names: list[str], repo_id: str) -> None:
    leaks = [leak for name in names for leak in _leaks(folder, name, repo_id)]
    if leaks:
        lines = [f"{leak.place}: {leak.what} ({leak.shown})" for leak in leaks[:_SHOWN]]
        more = [f"… and {len(leaks) - _SHOWN} more"] if len(leaks) > _SHOWN else []
        listed = "\n  ".join([*lines, *more])
        raise ValueError(f"this must not be pushed; take it out of {folder}:\n  {listed}")


def _leaks(folder: Path, name: str, repo_id: str) -> Iterator[Leak]:
    """The secrets in a text file, and the paths and user names of this machine."""
    if name.endswith(".safetensors") or name in _VOCABULARIES:
        return
    content = (folder / name).read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        # No text, such as a sentencepiece model; a secret's letters are the same in any encoding.
        yield from leaks_in_text(content.decode("latin-1"), name)
        return
    yield from leaks_in_text(text, name)
    if name.endswith(".json"):
        parts = {name: _json(folder / name, name)}
    else:
        parts = {f"{name}, line {number}": line for number, line in enumerate(text.splitlines(), start=1)}
    for place, part in parts.items():
        owner = {repo_id.partition("/")[0]}
        yield from private_in_json(part, place, user=_login(), home=str(Path.home()), known=owner)


def _json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.parent}: {name} is not JSON: {error}") from error


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        # A container's user may have no name, and then none can be told.
        return ""
