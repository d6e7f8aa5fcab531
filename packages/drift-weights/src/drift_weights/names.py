"""Names that come from outside: Hub ids, revisions, subsets and files, of which a few shapes are let in.

Every name becomes part of a path or of a URL, on systems whose rules differ. So each is held against what
is allowed, not against what is known to be bad: no form of `..`, drive, device or separator gets through.
"""

from __future__ import annotations

import re
from pathlib import Path

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"{_PART}/{_PART}")
_SUBSET = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,126}[A-Za-z0-9_+-])?")
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/+-]{0,198}[A-Za-z0-9_+-])?")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_DEVICE = re.compile(r"(?:CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(?:\..*)?", re.IGNORECASE | re.DOTALL)
_REPO_ID_LENGTH = 96
_SHOWN = 80


def check_repo_id(repo_id: str) -> str:
    """A Hub id `org/name`, as it came.

    Raises:
        ValueError: it is none.
    """
    good = (
        len(repo_id) <= _REPO_ID_LENGTH
        and _REPO_ID.fullmatch(repo_id)
        and "--" not in repo_id
        and not _strange(repo_id)
        and not repo_id.lower().endswith(".git")
    )
    if not good:
        raise ValueError(
            f"{_short(repo_id)} is no Hub id; write org/name, of letters, digits, '-', '_' and '.', "
            f"{_REPO_ID_LENGTH} characters at most"
        )
    return repo_id


def check_revision(revision: str) -> str:
    """A tag, branch or commit, as it came.

    Raises:
        ValueError: it is none that git would take, or one that this project does not let in.
    """
    if not _REVISION.fullmatch(revision) or _strange(revision):
        raise ValueError(f"{_short(revision)} is no revision; name a tag such as v0.1.0, or a commit")
    return revision


def check_tag(tag: str) -> str:
    """A name that a commit can be given for good, as it came.

    Raises:
        ValueError: no revision, a branch, or what reads as a commit.
    """
    if check_revision(tag) == "main" or _COMMIT.fullmatch(tag):
        raise ValueError(f"{_short(tag)} is no tag; a tag is a name such as v0.1.0")
    return tag


def check_subset(name: str) -> str:
    """The name of one of the data sets in a repository, which is a folder there, too; as it came.

    Raises:
        ValueError: it cannot be the name of a folder everywhere.
    """
    if not _SUBSET.fullmatch(name) or _strange(name):
        raise ValueError(
            f"{_short(name)} is no name of a subset; use letters, digits, '.', '_', '+' and '-', "
            "128 characters at most"
        )
    return name


def check_shard(file: object) -> str:
    """A shard's path inside a data set, `FOLDER/FILE.parquet`, as it came.

    Raises:
        ValueError: it may lead out of the folder, or is no Parquet file.
    """
    parts = file.split("/") if isinstance(file, str) else []
    if len(parts) != 2 or not file.endswith(".parquet"):  # type: ignore[attr-defined]  # it is text here
        raise ValueError(f"{_short(file)} is no shard; expected FOLDER/FILE.parquet")
    for part in parts:
        check_subset(part)
    return "/".join(parts)


def check_model(name: str) -> str:
    """Where a model is to be had: a folder that is there, or what can be a Hub id; as it came.

    Raises:
        FileNotFoundError: it is neither.
    """
    if not Path(name).is_dir() and not re.fullmatch(rf"(?:{_PART}/)?{_PART}", name):
        raise FileNotFoundError(f"{name}: there is no such folder, and a Hub id is org/name")
    return name


def not_here(path: Path) -> FileNotFoundError:
    """What to say of a path that does not exist, and may be meant as a Hub id."""
    pin = "; if it is a data set of the Hub, pin it with a revision (a tag, or a commit)"
    return FileNotFoundError(f"{path} does not exist{pin if _REPO_ID.fullmatch(path.as_posix()) else ''}")


def _strange(name: str) -> bool:
    """What the patterns let through and git, Windows or a URL would take for something else."""
    parts = name.split("/")
    return ".." in name or any(
        not part or part[0] == "." or part.lower().endswith(".lock") or _DEVICE.fullmatch(part)
        for part in parts
    )


def _short(name: object) -> str:
    shown = repr(name)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
