"""The Hub of the tests does to the real clients what the Hub does."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import get_hf_file_metadata
from huggingface_hub.utils.sha import git_hash

from hub.published import DATA, FILES, commit, publish, raw, refused, shard
from loopback_hub import OWNER, READER, STRANGER, LoopbackHub, patient_clients, serve


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub, empty, and clients that do not wait."""
    with serve() as running, patient_clients():
        yield running


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    """A client that may write to org."""
    return hub.api(OWNER)


LOAD = """
import json, socket, sys

asked, look_up = set(), socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: asked.add(str(host)) or look_up(host, *rest, **more)

from datasets import load_dataset

streaming = sys.argv[1] == "streaming"
rows = []
for config in (None, "two"):
    loaded = load_dataset("org/data", config, revision="v1", split="train", streaming=streaming)
    rows.append([row["n"] for row in loaded])
print(json.dumps([rows, sorted(asked)]))
"""


@pytest.mark.parametrize("mode", ["whole", "streaming"])
def test_datasets_loads_a_private_revision_and_speaks_to_nobody_else(
    hub: LoopbackHub, api: HfApi, tmp_path: Path, mode: str
) -> None:
    publish(api, private=True)
    commit(api, {"one/0.parquet": shard(100)})
    done = subprocess.run(
        [sys.executable, "-c", LOAD, mode],
        env=hub.env(tmp_path, OWNER),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[[1, 2, 3], [7]], ["127.0.0.1"]]


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_what_was_committed_comes_back_by_every_way_of_reading(
    hub: LoopbackHub, api: HfApi, tmp_path: Path, kind: str
) -> None:
    publish(api, kind=kind)
    files = {
        **FILES,
        "model.safetensors": b"weights",
        "notes/größe.txt": "ü".encode(),
        "big.bin": bytes(2**20 + 1),
    }
    made = commit(api, files, kind=kind)
    snapshot = Path(api.snapshot_download(DATA, repo_type=kind, revision="main", cache_dir=tmp_path))
    folder = Path(api.snapshot_download(DATA, repo_type=kind, revision=made, local_dir=tmp_path / "folder"))
    system = HfFileSystem(endpoint=hub.endpoint, token=OWNER, skip_instance_cache=True)
    root = f"{'datasets/' if kind == 'dataset' else ''}{DATA}"
    for path, data in files.items():
        single = api.hf_hub_download(DATA, path, repo_type=kind, local_dir=tmp_path / "single")
        assert {
            (snapshot / path).read_bytes(),
            (folder / path).read_bytes(),
            Path(single).read_bytes(),
        } == {data}
        assert system.read_bytes(f"{root}/{path}", revision=made) == data
    assert snapshot.name == made == api.repo_info(DATA, repo_type=kind, revision="main").sha
    assert hub.files(DATA, kind=kind).keys() == {*files, ".gitattributes"}


def test_names_of_contents_are_those_of_git_and_lfs(hub: LoopbackHub, api: HfApi) -> None:
    made = publish(api)
    siblings = {file.rfilename: file for file in api.dataset_info(DATA, files_metadata=True).siblings or []}
    tree = {
        file.path: file
        for file in api.list_repo_tree(DATA, repo_type="dataset", recursive=True, expand=True)
    }
    assert set(tree) == {*FILES, ".gitattributes", "one", "two"}
    for path, data in FILES.items():
        found = get_hf_file_metadata(f"{hub.endpoint}/datasets/{DATA}/resolve/v1/{path}", token=OWNER)
        sha256 = hashlib.sha256(data).hexdigest()
        assert (found.commit_hash, found.size) == (made, len(data))
        for file in (siblings[path], tree[path]):
            assert (file.size, file.blob_id) == (len(data), tree[path].blob_id)
            if path.endswith(".parquet"):
                pointer = (
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n"
                )
                assert (found.etag, file.lfs.sha256, file.lfs.size) == (sha256, sha256, len(data))
                assert (file.blob_id, file.lfs.pointer_size) == (git_hash(pointer.encode()), len(pointer))
            else:
                assert (found.etag, file.blob_id, file.lfs) == (git_hash(data), git_hash(data), None)


def test_listing_by_pages_and_folders_is_the_whole(hub: LoopbackHub, api: HfApi) -> None:
    publish(api)
    hub.page_size = 2
    everything = [item.path for item in api.list_repo_tree(DATA, repo_type="dataset", recursive=True)]
    assert everything == sorted({*FILES, ".gitattributes", "one", "two"})
    assert sum("/tree/" in asked.path for asked in hub.requests) == 3
    assert [item.path for item in api.list_repo_tree(DATA, "one", repo_type="dataset")] == ["one/0.parquet"]
    assert {item.path for item in api.list_repo_tree(DATA, repo_type="dataset")} == {
        ".gitattributes", "README.md", "one", "two"
    }  # fmt: skip
    asked = ["two", "one/0.parquet", "nowhere"]
    assert [item.path for item in api.get_paths_info(DATA, asked, repo_type="dataset")] == asked[:2]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(DATA, "nowhere", repo_type="dataset"))


def test_history_stays(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    first = publish(api)
    second = commit(api, {"one/0.parquet": b"new", "more.txt": b"more"})
    assert hub.files(DATA)["one/0.parquet"] == b"new"
    for revision in ("v1", first):
        file = api.hf_hub_download(
            DATA, "one/0.parquet", repo_type="dataset", revision=revision, cache_dir=tmp_path
        )
        assert Path(file).read_bytes() == FILES["one/0.parquet"]
        with pytest.raises(RemoteEntryNotFoundError):
            api.hf_hub_download(
                DATA, "more.txt", repo_type="dataset", revision=revision, cache_dir=tmp_path
            )
    gone = [CommitOperationDelete("one/"), CommitOperationDelete("more.txt")]
    third = api.create_commit(DATA, gone, commit_message="less", repo_type="dataset").oid
    assert hub.files(DATA).keys() == {"README.md", "two/0.parquet", ".gitattributes"}
    assert hub.files(DATA, second)["more.txt"] == b"more"
    assert [made.commit_id for made in api.list_repo_commits(DATA, repo_type="dataset")][:3] == [
        third,
        second,
        first,
    ]
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(DATA, gone[1:], commit_message="again", repo_type="dataset")


def test_a_stale_parent_changes_nothing(hub: LoopbackHub, api: HfApi) -> None:
    first = publish(api)
    second = commit(api, {"a.txt": b"a"}, parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as stale:
        commit(api, {"b.txt": b"b"}, parent_commit=first)
    assert stale.value.response.status_code == 412
    assert api.dataset_info(DATA).sha == second
    assert "b.txt" not in hub.files(DATA)


def test_what_is_there_is_not_uploaded_again(hub: LoopbackHub, api: HfApi) -> None:
    made = publish(api)
    assert sum(asked.method == "PUT" for asked in hub.requests) == 2
    already = len(hub.requests)
    assert commit(api, FILES) == made
    assert commit(api, {"copy.parquet": FILES["one/0.parquet"]}) != made
    assert not any(asked.method == "PUT" for asked in hub.requests[already:])


def test_tags_and_branches(hub: LoopbackHub, api: HfApi) -> None:
    first = publish(api)
    api.create_branch(DATA, branch="side/way", revision="v1", repo_type="dataset")
    second = commit(api, {"side.txt": b"s"}, revision="side/way")
    refs = api.list_repo_refs(DATA, repo_type="dataset")
    assert {ref.ref: ref.target_commit for ref in (*refs.branches, *refs.tags)} == {
        "refs/heads/main": first, "refs/heads/side/way": second, "refs/tags/v1": first
    }  # fmt: skip
    for again in (api.create_tag, api.create_branch):
        name = {"tag": "v1"} if again == api.create_tag else {"branch": "side/way"}
        again(DATA, repo_type="dataset", exist_ok=True, **name)
        with pytest.raises(HfHubHTTPError) as twice:
            again(DATA, repo_type="dataset", **name)
        assert twice.value.response.status_code == 409
    api.delete_tag(DATA, tag="v1", repo_type="dataset")
    api.delete_branch(DATA, branch="side/way", repo_type="dataset")
    for missing in ("v1", "side/way", "0" * 40, "../../api", "\r\nX-Repo-Commit: 1", "\u202eé%2e"):
        with pytest.raises(RevisionNotFoundError):
            api.dataset_info(DATA, revision=missing)
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(DATA, tag="v2", revision="nowhere", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        commit(api, {"a.txt": b"a"}, revision="nowhere")


def test_who_may_do_what(hub: LoopbackHub, api: HfApi) -> None:
    publish(api, private=True)
    nobody, stranger, reader = hub.api(None), hub.api(STRANGER), hub.api(READER)
    for client, status in ((nobody, 401), (stranger, 404)):
        with pytest.raises(RepositoryNotFoundError) as unseen:
            client.dataset_info(DATA)
        assert unseen.value.response.status_code == status
        assert not client.repo_exists(DATA, repo_type="dataset")
        assert refused(commit, client, {"a.txt": b"a"}) == status
    assert reader.dataset_info(DATA).private
    assert refused(commit, reader, {"a.txt": b"a"}) == 403
    api.update_repo_settings(DATA, private=False, repo_type="dataset")
    for client, status in ((nobody, 401), (stranger, 403), (reader, 403)):
        assert not client.dataset_info(DATA).private
        assert refused(commit, client, {"a.txt": b"a"}) == status
        assert refused(client.create_tag, DATA, tag="v2", repo_type="dataset") == status
        assert refused(client.update_repo_settings, DATA, private=True, repo_type="dataset") == status
        assert refused(client.delete_repo, DATA, repo_type="dataset") == status
    assert hub.files(DATA).keys() == {*FILES, ".gitattributes"}
    api.delete_repo(DATA, repo_type="dataset")
    assert refused(api.dataset_info, DATA) == 404


def test_names_and_tokens(hub: LoopbackHub, api: HfApi) -> None:
    assert api.whoami()["name"] == "owner"
    hub.put("org/public", {})
    assert hub.api(None).dataset_info("org/public").sha
    assert refused(hub.api("hf_unknown").dataset_info, "org/public") == 401
    assert refused(hub.api("hf_unknown").whoami) == 401
    assert refused(hub.api("hf_unknown").create_repo, "mine") == 401
    assert refused(hub.api(None).create_repo, "mine") == 401
    assert refused(hub.api(STRANGER).create_repo, DATA) == 403
    assert hub.api(STRANGER).create_repo("mine").repo_id == "stranger/mine"
    assert api.create_repo(DATA, repo_type="dataset").url == f"{hub.endpoint}/datasets/{DATA}"
    assert refused(api.create_repo, DATA, repo_type="dataset") == 409
    assert api.create_repo(DATA, repo_type="dataset", exist_ok=True).repo_id == DATA
    assert not api.repo_exists(DATA, repo_type="model")


@pytest.mark.parametrize(
    ("wish", "part"),
    [
        ("bytes=0-3", slice(0, 4)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-6", slice(-6, None)),
        ("bytes=2-999", slice(2, None)),
        ("bytes=-999", slice(None)),
        ("bytes=9-9", slice(9, 10)),
    ],
)
def test_ranges(hub: LoopbackHub, wish: str, part: slice) -> None:
    data = b"0123456789"
    hub.put(DATA, {"digits": data})
    address = f"{hub.endpoint}/datasets/{DATA}/resolve/main/digits"
    got = httpx2.get(address, headers={"Range": wish}, trust_env=False)
    places = range(10)[part]
    assert (got.status_code, got.content) == (206, data[part])
    assert got.headers["Content-Range"] == f"bytes {places[0]}-{places[-1]}/10"
    beyond = httpx2.get(address, headers={"Range": "bytes=10-"}, trust_env=False)
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */10")
    assert httpx2.get(address, trust_env=False).content == data


def test_a_large_file_is_named_by_its_link(hub: LoopbackHub) -> None:
    made = hub.put(DATA, FILES)
    for path, data in FILES.items():
        head = httpx2.head(f"{hub.endpoint}/datasets/{DATA}/resolve/main/{path}", trust_env=False).headers
        assert (head["X-Repo-Commit"], head["Content-Length"]) == (made, str(len(data)))
        linked = f'"{hashlib.sha256(data).hexdigest()}"', str(len(data))
        expected = linked if path.endswith(".parquet") else (None, None)
        assert (head.get("X-Linked-Etag"), head.get("X-Linked-Size")) == expected


def test_uploads_are_checked(hub: LoopbackHub, api: HfApi) -> None:
    publish(api)
    oid = hashlib.sha256(b"right").hexdigest()
    assert raw(hub, "PUT", f"/lfs/datasets/{DATA}/{oid}", b"wrong")[0] == 400
    assert raw(hub, "PUT", f"/lfs/datasets/{DATA}/{oid}", b"right")[0] == 200
    for path, name in (("a.bin", "0" * 64), ("../a.bin", oid)):
        lines = (
            {"key": "header", "value": {"summary": "s"}},
            {"key": "lfsFile", "value": {"path": path, "oid": name}},
        )
        body = "\n".join(map(json.dumps, lines)).encode()
        status, _ = raw(
            hub, "POST", f"/api/datasets/{DATA}/commit/main", body, Authorization=f"Bearer {OWNER}"
        )
        assert status == 400
    with pytest.raises(BadRequestError):
        api.create_commit(DATA, [_unchecked("../out.txt")], commit_message="out", repo_type="dataset")
    assert hub.files(DATA).keys() == {*FILES, ".gitattributes"}


def _unchecked(path: str) -> CommitOperationAdd:
    operation = CommitOperationAdd("in.txt", b"x")
    operation.path_in_repo = path
    return operation


def test_bodies_in_chunks_and_bodies_too_long(hub: LoopbackHub) -> None:
    hub.put(DATA, {})
    address = f"/lfs/datasets/{DATA}/{hashlib.sha256(b'abcdef').hexdigest()}"
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=5)
    connection.request("PUT", address, iter([b"abc", b"def"]), encode_chunked=True)
    assert connection.getresponse().read() == b""
    # The same connection still stands at the start of a request.
    connection.request("GET", f"/datasets/{DATA}/resolve/main/nothing")
    assert json.loads(connection.getresponse().read()) == {"error": "Entry not found"}
    connection.request("PUT", address, headers={"Content-Length": str(2**40)})
    assert connection.getresponse().status == 413
    connection.close()
