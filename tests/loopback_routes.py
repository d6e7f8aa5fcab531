"""What the loopback Hub does at which address, as functions from a call to an answer."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

from loopback_calls import Answer, Call, decline, page, ranged, say
from loopback_store import Blob, RefusalError, Repo, entry, folders, may_write, sizes


def is_large(path: str, size: int) -> bool:
    """Whether a new file goes to LFS."""
    return path.endswith((".parquet", ".safetensors", ".arrow")) or size > 2**20


def whoami(call: Call) -> Answer:
    """The user of the token."""
    user = call.somebody
    orgs = sorted((user.writes | user.reads) - {user.name})
    return say({"type": "user", "name": user.name, "orgs": [{"name": name} for name in orgs]})


def validate(call: Call) -> Answer:
    """A card must have a YAML block."""
    there = call.json["content"].startswith("---")
    return say({"errors": [], "warnings": [] if there else [{"message": "empty or missing yaml metadata"}]})


def create(call: Call) -> Answer:
    """A new repository, or 409."""
    kind, repo_id = named(call)
    may_write(repo_id.partition("/")[0], call.user)
    url = f"{call.endpoint}/{site(kind, repo_id)}"
    if (kind, repo_id) in call.store.repos:
        return say({"error": f"You already created this {kind} repo", "url": url}, 409)
    call.store.create(kind, repo_id, private=is_private(call.json))
    return say({"url": url, "name": repo_id})


def delete(call: Call) -> Answer:
    """Drop a repository with its history."""
    kind, repo_id = named(call)
    call.store.reach(kind, repo_id, call.user, write=True)
    del call.store.repos[kind, repo_id]
    return say({})


def settings(call: Call, repo: Repo) -> Answer:
    """Private or public."""
    repo.private = is_private(call.json, repo.private)
    return say({"private": repo.private})


def info(call: Call, repo: Repo, revision: str = "main") -> Answer:
    """A repository at a revision, with the names of its files."""
    commit = repo.at(revision)
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
    for sibling in siblings if "blobs" in call.query else ():
        blob = commit.files[sibling["rfilename"]]
        sibling |= {"size": len(blob.data), "blobId": blob.oid}
        if blob.lfs:
            sibling["lfs"] = {"sha256": blob.sha256, **sizes(blob)}
    dates = {"createdAt": repo.history("main")[-1].date, "lastModified": commit.date}
    counts = {"downloads": 0, "likes": 0, "tags": [], "gated": False, "disabled": False}
    names = {"id": repo.repo_id, "author": repo.namespace, "sha": commit.sha, "private": repo.private}
    return say({**names, **dates, **counts, "siblings": siblings})


def tree(call: Call, repo: Repo, revision: str, path: str = "") -> Answer:
    """The files and folders below a folder."""
    commit = repo.at(revision)
    if path and path not in folders(commit):
        raise RefusalError(404, f"{path} is not on {revision}", "EntryNotFound", X_Repo_Commit=commit.sha)
    base, deep = f"{path}/" if path else "", call.query.get("recursive") == ["true"]
    below = (name for name in sorted({*commit.files, *folders(commit)}) if name.startswith(base))
    names = [name for name in below if deep or "/" not in name.removeprefix(base)]
    return page(call, [entry(commit, name, expand=call.query.get("expand") == ["true"]) for name in names])


def paths_info(call: Call, repo: Repo, revision: str) -> Answer:
    """The files and folders among those that were asked about."""
    commit, asked = repo.at(revision), parse_qs(call.body.decode())
    known = {*commit.files, *folders(commit)}
    expand = asked.get("expand") == ["true"]
    return say([entry(commit, name, expand=expand) for name in asked.get("paths", []) if name in known])


def refs(call: Call, repo: Repo) -> Answer:
    """Branches and tags."""

    def listed(folder: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha}
            for name, sha in names.items()
        ]

    lists = {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags)}
    return say({**lists, "converts": [], "pullRequests": []})


def commits(call: Call, repo: Repo, revision: str) -> Answer:
    """The history of a revision."""
    described = [
        {"id": made.sha, "title": made.title, "message": made.message, "authors": [], "date": made.date}
        for made in repo.history(revision)
    ]
    return page(call, described)


def add_tag(call: Call, repo: Repo, revision: str) -> Answer:
    """A name for a commit, once."""
    tag = call.json["tag"]
    if tag in repo.tags:
        raise RefusalError(409, "Tag reference exists already")
    repo.tags[tag] = repo.at(revision).sha
    return say({})


def drop_tag(call: Call, repo: Repo, revision: str) -> Answer:
    """Forget a tag."""
    if repo.tags.pop(revision, None) is None:
        raise RefusalError(404, f"Tag not found: {revision}", "RevisionNotFound")
    return say({})


def add_branch(call: Call, repo: Repo, revision: str) -> Answer:
    """A branch from a revision."""
    start = repo.at(call.json.get("startingPoint", "main"))
    if revision in repo.branches:
        raise RefusalError(409, "Reference already exists")
    repo.branches[revision] = start.sha
    return say({})


def drop_branch(call: Call, repo: Repo, revision: str) -> Answer:
    """Forget a branch."""
    if revision == "main" or repo.branches.pop(revision, None) is None:
        raise RefusalError(404, f"Branch not found: {revision}", "RevisionNotFound")
    return say({})


def preupload(call: Call, repo: Repo, revision: str) -> Answer:
    """Which files go to LFS, and what is there by their names."""
    present = repo.at(revision).files
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if is_large(file["path"], file["size"]) else "regular",
            "shouldIgnore": False,
            **({"oid": present[file["path"]].etag} if file["path"] in present else {}),
        }
        for file in call.json["files"]
    ]
    return say({"files": files})


def batch(call: Call, repo: Repo) -> Answer:
    """Where to put what is not there yet."""
    base = call.endpoint
    verify = {"href": f"{base}/{site(repo.kind, repo.repo_id)}.git/info/lfs/verify"}
    objects = []
    for wish in call.json["objects"]:
        upload = {"href": f"{base}/lfs/{repo.kind}s/{repo.repo_id}/{wish['oid']}"}
        missing = {"actions": {"upload": upload, "verify": verify}}
        objects.append(
            {"oid": wish["oid"], "size": wish["size"], **({} if wish["oid"] in repo.large else missing)}
        )
    return say({"transfer": "basic", "objects": objects})


def upload(call: Call, repo: Repo, oid: str) -> Answer:
    """Keep a large file, if it is what its name says."""
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise RefusalError(400, "The content does not have this sha256.")
    repo.large[oid] = call.body
    return Answer()


def verify(call: Call, repo: Repo) -> Answer:
    """Whether a large file arrived."""
    wish = call.json
    if len(repo.large.get(wish["oid"], b"")) != wish["size"]:
        raise RefusalError(422, "The object is not there, or has another size.")
    return say({})


def commit(call: Call, repo: Repo, revision: str) -> Answer:
    """All changes at once, on top of the parent that was named."""
    header, *changes = (json.loads(line) for line in call.body.splitlines())
    if revision not in repo.branches or "create_pr" in call.query:
        raise RefusalError(404, f"Invalid rev id: {revision}, or no branch", "RevisionNotFound")
    head = repo.at(revision)
    if header["value"].get("parentCommit", head.sha) != head.sha:
        raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for change in changes:
        apply(repo, files, change["key"], change["value"])
    made = repo.commit(revision, header["value"]["summary"], files, header["value"].get("description", ""))
    url = f"{call.endpoint}/{site(repo.kind, repo.repo_id)}/commit/{made.sha}"
    return say({"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": ""})


def resolve(call: Call, repo: Repo, revision: str, path: str) -> Answer:
    """The bytes of a file, or a range of them."""
    commit = repo.at(revision)
    blob = commit.files.get(path)
    if blob is None:
        raise RefusalError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.sha)
    headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
    headers["Content-Type"] = "application/octet-stream"
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
    return ranged(Answer(headers=headers, body=blob.data), call.headers.get("Range"))


def apply(repo: Repo, files: dict[str, Blob], key: str, change: dict[str, Any]) -> None:
    """One line of a commit."""
    path = change["path"]
    if {"", ".", ".."} & set(path.rstrip("/").split("/")):
        raise RefusalError(400, f"Invalid path in repo: {path}")
    if key == "file":
        files[path] = Blob.of(b64decode(change["content"]), lfs=False)
    elif key == "lfsFile":
        if change["oid"] not in repo.large:
            raise RefusalError(400, f"LFS pointer of {path} points to a file that does not exist")
        files[path] = Blob.of(repo.large[change["oid"]], lfs=True)
    else:
        base = f"{path.rstrip('/')}/"
        gone = [
            name for name in files if (name.startswith(base) if key == "deletedFolder" else name == path)
        ]
        if not gone:
            raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del files[name]


def named(call: Call) -> tuple[str, str]:
    """Kind and id of the repository that a body speaks about, by default one of the user's own."""
    wish = call.json
    return wish.get("type") or "model", f"{wish.get('organization') or call.somebody.name}/{wish['name']}"


def is_private(wish: dict[str, Any], before: bool = False) -> bool:
    """What a request says about who may see a repository."""
    return bool(wish["visibility"] == "private" if "visibility" in wish else wish.get("private", before))


def site(kind: str, repo_id: str) -> str:
    """The path of a repository's page."""
    return f"datasets/{repo_id}" if kind == "dataset" else repo_id


class Route(NamedTuple):
    """An address, what is done there, and what one needs for it."""

    verbs: str
    pattern: str
    act: Callable[..., Answer]
    needs: str


REPO = r"(?P<kind>model|dataset)s/(?P<repo_id>[^/]+/[^/]+)"
FILES = r"(?:(?P<kind>dataset)s/)?(?P<repo_id>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = (
    Route("GET", "/api/whoami-v2", whoami, "nothing"),
    Route("POST", "/api/validate-yaml", validate, "nothing"),
    Route("POST", "/api/repos/create", create, "nothing"),
    Route("DELETE", "/api/repos/delete", delete, "nothing"),
    Route("GET", f"/api/{REPO}(?:/revision/{REVISION})?", info, "read"),
    Route("GET", f"/api/{REPO}/tree/{REVISION}(?:/(?P<path>.+))?", tree, "read"),
    Route("GET", f"/api/{REPO}/refs", refs, "read"),
    Route("GET", f"/api/{REPO}/commits/{REVISION}", commits, "read"),
    Route("POST", f"/api/{REPO}/paths-info/{REVISION}", paths_info, "read"),
    Route("POST", f"/api/{REPO}/preupload/{REVISION}", preupload, "write"),
    Route("POST", f"/api/{REPO}/commit/{REVISION}", commit, "write"),
    Route("POST", f"/api/{REPO}/tag/{REVISION}", add_tag, "write"),
    Route("DELETE", f"/api/{REPO}/tag/{REVISION}", drop_tag, "write"),
    Route("POST", f"/api/{REPO}/branch/{REVISION}", add_branch, "write"),
    Route("DELETE", f"/api/{REPO}/branch/{REVISION}", drop_branch, "write"),
    Route("PUT", f"/api/{REPO}/settings", settings, "write"),
    Route("POST", rf"/{FILES}\.git/info/lfs/objects/batch", batch, "write"),
    Route("POST", rf"/{FILES}\.git/info/lfs/verify", verify, "write"),
    # As with a signed link to an object store, the address itself is the permission.
    Route("PUT", f"/lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})", upload, "link"),
    Route("GET HEAD", f"/{FILES}/resolve/{REVISION}/(?P<path>.+)", resolve, "read"),
)


def carry_out(call: Call) -> Answer:
    """Do what was asked, or decline."""
    try:
        for route in ROUTES:
            found = re.fullmatch(route.pattern, call.path)
            if found and call.method in route.verbs.split():
                return follow(call, route, found)
        raise RefusalError(404, "The loopback Hub has no such route.")
    except RefusalError as refusal:
        return decline(refusal)


def follow(call: Call, route: Route, found: re.Match[str]) -> Answer:
    """Act on the repository that an address names, if the user may."""
    given = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
    # A token that nobody has is refused everywhere, also where none is needed.
    user = call.user
    if route.needs == "nothing":
        return route.act(call)
    kind, repo_id = given.pop("kind", "model"), given.pop("repo_id")
    if route.needs == "link":
        return route.act(call, call.store.repos[kind, repo_id], **given)
    return route.act(call, call.store.reach(kind, repo_id, user, write=route.needs == "write"), **given)
