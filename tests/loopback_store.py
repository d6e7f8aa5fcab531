"""What the loopback Hub keeps: repositories, each with a history of immutable snapshots. No HTTP here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

ATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in ("arrow", "parquet", "safetensors")
)


class RefusalError(Exception):
    """A request that the Hub declines."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        """What the client makes its exception class of (X-Error-Code)."""
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """Whose a token is, and in which namespaces it may write or read what is private."""

    name: str
    writes: frozenset[str]
    reads: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """The bytes of a file and the names that git and LFS give them."""

    data: bytes
    lfs: bool
    sha256: str
    oid: str
    """The sha1 of the git object; for LFS that of the pointer."""

    @classmethod
    def of(cls, data: bytes, *, lfs: bool) -> Blob:
        """Name some bytes."""
        sha256 = hashlib.sha256(data).hexdigest()
        kept = pointer(sha256, len(data)) if lfs else data
        oid = hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()
        return cls(data=data, lfs=lfs, sha256=sha256, oid=oid)

    @property
    def etag(self) -> str:
        """The name by which a client keeps and compares the file."""
        return self.sha256 if self.lfs else self.oid


def pointer(sha256: str, size: int) -> bytes:
    """What git keeps of a file that LFS keeps."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A snapshot, and where it came from."""

    sha: str
    parent: str
    title: str
    message: str
    date: str
    files: Mapping[str, Blob]


@dataclass(kw_only=True, slots=True)
class Repo:
    """Commits by id, and the names that point to them."""

    kind: str
    repo_id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded to LFS, committed or not, by sha256."""

    @property
    def namespace(self) -> str:
        """The user or organisation that owns it."""
        return self.repo_id.partition("/")[0]

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a full id names."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def commit(self, branch: str, title: str, files: Mapping[str, Blob], message: str = "") -> Commit:
        """Put a snapshot on top of a branch."""
        parent = self.branches.get(branch, "")
        date = f"2026-01-01T{len(self.commits) // 60 % 24:02}:{len(self.commits) % 60:02}:00.000Z"
        listed = [f"{path}\0{blob.oid}" for path, blob in sorted(files.items())]
        sha = hashlib.sha1(
            "\n".join([self.kind, self.repo_id, parent, title, date, *listed]).encode()
        ).hexdigest()
        snapshot = MappingProxyType(dict(files))
        commit = Commit(sha=sha, parent=parent, title=title, message=message, date=date, files=snapshot)
        self.commits[sha] = commit
        self.branches[branch] = sha
        self.large.update({blob.sha256: blob.data for blob in files.values() if blob.lfs})
        return commit

    def history(self, revision: str) -> list[Commit]:
        """The commits of a revision, the newest first."""
        found = [self.at(revision)]
        while found[-1].parent:
            found.append(self.commits[found[-1].parent])
        return found


class Store:
    """All repositories, by kind (model or dataset) and id."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}

    def create(self, kind: str, repo_id: str, *, private: bool) -> Repo:
        """A new repository with a first commit, which holds .gitattributes as on the Hub."""
        repo = self.repos[kind, repo_id] = Repo(kind=kind, repo_id=repo_id, private=private)
        repo.commit("main", "initial commit", {".gitattributes": Blob.of(ATTRIBUTES.encode(), lfs=False)})
        return repo

    def reach(self, kind: str, repo_id: str, user: User | None, *, write: bool) -> Repo:
        """The repository, if a user may read it, or write to it, refused as the Hub refuses.

        To those without a right to read, a private repository looks like one that is not there.
        """
        repo = self.repos.get((kind, repo_id))
        names = user.writes | user.reads if user else frozenset()
        if repo is None or (repo.private and repo.namespace not in names):
            message = "Repository not found" if user else "Invalid username or password."
            raise RefusalError(404 if user else 401, message, "RepoNotFound")
        if write:
            may_write(repo.namespace, user)
        return repo


def may_write(namespace: str, user: User | None) -> None:
    """Refuse a user who does not own a namespace."""
    if user is None:
        raise RefusalError(401, "Invalid username or password.")
    if namespace not in user.writes:
        raise RefusalError(403, f"Forbidden: you must use a token that may write to {namespace}.")


def folders(commit: Commit) -> set[str]:
    """Every folder of a snapshot."""
    return {
        path[:place]
        for path in commit.files
        for place, letter in enumerate(path)
        if letter == "/" and place
    }


def entry(commit: Commit, path: str, *, expand: bool) -> dict[str, Any]:
    """A file or folder, as lists have it."""
    blob = commit.files.get(path)
    if blob is None:
        inside = "".join(
            sorted(file.oid for name, file in commit.files.items() if name.startswith(f"{path}/"))
        )
        described = {
            "type": "directory",
            "path": path,
            "size": 0,
            "oid": hashlib.sha1(inside.encode()).hexdigest(),
        }
    else:
        described = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
        if blob.lfs:
            described["lfs"] = {"oid": blob.sha256, **sizes(blob)}
    last = {"lastCommit": {"id": commit.sha, "title": commit.title, "date": commit.date}}
    return described | (last if expand else {})


def sizes(blob: Blob) -> dict[str, int]:
    """How long a large file and its pointer are."""
    return {"size": len(blob.data), "pointerSize": len(pointer(blob.sha256, len(blob.data)))}
