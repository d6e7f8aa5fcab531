"""A small published data set on the loopback Hub, and requests as they are; for the tests of that Hub."""

from __future__ import annotations

import http.client
import io
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from loopback_hub import LoopbackHub

DATA = "org/data"
CARD = b"""---
configs:
- config_name: one
  default: true
  data_files: one/*.parquet
- config_name: two
  data_files: two/*.parquet
---
# Two configs
"""


def shard(*numbers: int) -> bytes:
    """A Parquet file with one column."""
    file = io.BytesIO()
    pq.write_table(pa.table({"n": pa.array(numbers, pa.int64())}), file)
    return file.getvalue()


FILES = {"one/0.parquet": shard(1, 2, 3), "two/0.parquet": shard(7), "README.md": CARD}


def commit(
    api: HfApi, files: dict[str, bytes], repo: str = DATA, kind: str = "dataset", **more: str
) -> str:
    """Commit files; the id of what is there then."""
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(repo, operations, commit_message="add", repo_type=kind, **more).oid


def publish(api: HfApi, repo: str = DATA, kind: str = "dataset", *, private: bool = False) -> str:
    """A repository with FILES and the tag v1."""
    api.create_repo(repo, repo_type=kind, private=private)
    made = commit(api, FILES, repo, kind)
    api.create_tag(repo, tag="v1", repo_type=kind)
    return made


def raw(hub: LoopbackHub, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Status and body of a request that no client made nicer."""
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=5)
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def refused(call: Callable[..., object], *arguments: object, **named: object) -> int:
    """The status with which the Hub declines."""
    with pytest.raises(HfHubHTTPError) as refusal:
        call(*arguments, **named)
    return refusal.value.response.status_code
