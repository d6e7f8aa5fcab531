"""Repositories that lie or attack: refused before anything of them is seen, opened or run."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_weights.hub import Api
from drift_weights.manifest import read_manifest
from drift_weights.publishing import prepare, publish
from drift_weights.pulling import pull
from drift_weights.repository import PublishConfig
from hub_data import downloads, rows_of, weighted
from loopback_hub import Fault, LoopbackHub

REPO = "org/corrections"
NAME = "x"
SHARD = "x/part-00000.parquet"


@pytest.fixture
def manifest(hub: LoopbackHub, api: Api, tmp_path: Path) -> dict[str, Any]:
    """The manifest of an honest data set that is on the Hub."""
    config = PublishConfig(tag="v1", subset=NAME)
    publish(prepare(weighted(tmp_path / "w"), REPO, config, api=api), api=api)
    found: dict[str, Any] = json.loads(hub.files(REPO)["drift.json"])
    return found


def replaced(hub: LoopbackHub, manifest: Any, **files: bytes) -> None:
    hub.put(REPO, {"drift.json": json.dumps(manifest).encode(), **files})


def refused(api: Api, out: Path, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pull(REPO, out, revision="main", api=api)
    assert not out.exists()
    assert not list(out.parent.glob(".got*"))


def with_shard(manifest: dict[str, Any], content: bytes, rows: int) -> None:
    """Let the manifest vouch for another shard."""
    digest = hashlib.sha256(content).hexdigest()
    entry = {"file": SHARD, "rows": rows, "bytes": len(content), "sha256": digest}
    manifest["configs"][NAME] |= {"shards": [entry], "rows": rows}


LIES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m["shards"][0].update(sha256="0" * 64), "another sha256 than drift.json says"),
    (lambda m: m["shards"][0].update(bytes=5), r"bytes, drift\.json says 5"),
    (lambda m: m["shards"][0].update(rows=7), "says 6 rows, and 7 in its shards"),
    (lambda m: (m["shards"][0].update(rows=7), m.update(rows=7)), "has 6 rows, drift.json says 7"),
    (lambda m: m["shards"][0].update(rows=True), "rows is True, expected a number from 1 on"),
    (lambda m: m["shards"][0].update(rows=-1), "rows is -1"),
    (lambda m: m["shards"][0].update(sha256="XYZ"), "'XYZ' is no hash"),
    (lambda m: m["shards"].append(m["shards"][0]), "lists a shard twice"),
    (lambda m: m["shards"][0].update(file="x/../../evil.parquet"), "is no shard"),
    (lambda m: m["shards"][0].update(file="..\\evil.parquet"), "is no shard"),
    (lambda m: m["shards"][0].update(file="/etc/passwd.parquet"), "is no shard"),
    (lambda m: m["shards"][0].update(file="x/evil.pkl"), "is no shard"),
    (lambda m: m["shards"][0].update(file="y/part-00000.parquet"), "lies outside of the folder x"),
    (lambda m: m["shards"][0].update(file="x/part-00009.parquet"), "is not there"),
    (lambda m: m["shards"][0].update(file=["x"]), "is no shard"),
    (lambda m: m.update(kind="models"), "kind 'models' is not one of"),
    (lambda m: m.update(shards={}), "lists no shards"),
    (lambda m: m.update(shards=[7]), "a shard needs file, rows and sha256"),
    (lambda m: m["weighting"].update(beta=0.2), "weight is .*, and .* by its return and group"),
    (lambda m: m["weighting"].update(beta=-1), "beta must be finite and above 0"),
    (lambda m: m.update(selection="sft-5turn"), r"weight is .*, and 1\.0 by"),
    (lambda m: m["statistics"].update(groups=9), "statistics.groups is 9, and the rows give 2"),
    (lambda m: m["statistics"].update(ess_mean=3.0), "statistics.ess_mean is 3.0, and the rows give"),
    (lambda m: m["statistics"]["composition"].update(all_wrong=2), "composition.all_wrong is 2"),
    (lambda m: m["statistics"]["histogram"].update(rows=[6]), r"histogram.rows is \[6\]"),
    (lambda m: m.update(statistics=7), "statistics must be an object"),
]


@pytest.mark.parametrize(("lie", "says"), LIES, ids=[says for _, says in LIES])
def test_a_manifest_that_lies_is_refused(
    hub: LoopbackHub,
    api: Api,
    manifest: dict[str, Any],
    tmp_path: Path,
    lie: Callable[[dict[str, Any]], Any],
    says: str,
) -> None:
    lie(manifest["configs"][NAME])
    replaced(hub, manifest)
    refused(api, tmp_path / "got", says)


def test_another_file_behind_the_right_hash_is_refused_after_two_tries(
    hub: LoopbackHub, api: Api, manifest: dict[str, Any], tmp_path: Path
) -> None:
    """The Hub itself lies about what it sends."""
    hub.arm(Fault(kind="wrong-hash", on=r"GET .*\.parquet", times=None))
    refused(api, tmp_path / "got", "is not the file that drift.json vouches for")
    assert downloads(hub)[-2:] == [SHARD, SHARD]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[]", "is no manifest"),
        (b"{", "is not valid JSON"),
        (b'{"format": "1.0"}', "lists no configs"),
        (b'{"format": "1.0", "configs": {"../x": {}}}', "is no name of a subset"),
        (b'{"format": "1.0", "configs": {"x": 7}}', "expected an object, got int"),
        (b'{"format": 1, "configs": {}}', "is no version"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
    ],
)
def test_what_is_no_manifest_is_refused(
    hub: LoopbackHub, api: Api, tmp_path: Path, content: bytes, says: str
) -> None:
    hub.put(REPO, {"drift.json": content}, private=True)
    refused(api, tmp_path / "got", says)


@pytest.mark.parametrize(("version", "do"), [("2.0", "upgrade drift-weights"), ("0.9", "an older drift")])
def test_another_major_format_says_what_to_do(
    hub: LoopbackHub, api: Api, manifest: dict[str, Any], tmp_path: Path, version: str, do: str
) -> None:
    replaced(hub, manifest | {"format": version})
    refused(api, tmp_path / "got", f"has format {version}; .*{do}")
    manifest["configs"][NAME]["format"] = version
    replaced(hub, manifest)
    refused(api, tmp_path / "other", f"has format {version}; .*{do}")


def test_an_older_minor_format_is_read(
    hub: LoopbackHub, api: Api, manifest: dict[str, Any], tmp_path: Path
) -> None:
    """Format 1.0 had no statistics and no bytes, and a newer minor may have more."""
    entry = manifest["configs"][NAME]
    del entry["statistics"], entry["shards"][0]["bytes"], manifest["card"]
    replaced(hub, manifest | {"format": "1.0"})
    assert pull(REPO, tmp_path / "got", revision="main", api=api).fresh
    replaced(hub, manifest | {"format": "1.99", "later": {"x": 1}})
    assert rows_of(pull(REPO, tmp_path / "b", revision="main", api=api).path) == rows_of(tmp_path / "w")


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickles_and_scripts_are_neither_downloaded_nor_run(
    hub: LoopbackHub, api: Api, manifest: dict[str, Any], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    script = f"import pathlib; pathlib.Path({str(canary)!r}).touch()".encode()
    evil = pickle.dumps(Canary(canary))
    files = {"corrections.py": script, "dataset.py": script, "x/data.pkl": evil, "x/model.bin": evil}
    replaced(hub, manifest, **files)
    before = len(downloads(hub))
    got = pull(REPO, tmp_path / "got", revision="main", api=api)
    assert set(downloads(hub)[before:]) == {"drift.json", SHARD}
    assert sorted(path.name for path in got.path.rglob("*")) == ["data", "drift.json", "part-00000.parquet"]
    assert not canary.exists()


def test_a_pickle_under_a_shards_name_is_no_parquet_file(
    hub: LoopbackHub, api: Api, manifest: dict[str, Any], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    evil = pickle.dumps(Canary(canary))
    with_shard(manifest, evil, 6)
    replaced(hub, manifest, **{SHARD: evil})
    refused(api, tmp_path / "got", "is no readable Parquet file")
    assert not canary.exists()


def test_no_code_of_ours_trusts_remote_code_and_data_are_never_unpickled() -> None:
    packages = Path(__file__).parents[2] / "packages"
    everywhere = [path.read_text(encoding="utf-8") for path in packages.rglob("*.py")]
    weights = [path.read_text(encoding="utf-8") for path in (packages / "drift-weights").rglob("*.py")]
    assert len(everywhere) > len(weights) > 40
    assert not any("trust_remote_code=True" in text for text in everywhere)
    for word in ("import pickle", "pickle.load", "allow_pickle"):
        assert not any(word in text for text in weights)


def test_weights_that_are_not_numbers_are_refused(
    hub: LoopbackHub, api: Api, manifest: dict[str, Any], tmp_path: Path
) -> None:
    table = pq.read_table(io.BytesIO(hub.files(REPO)[SHARD]))
    place = table.schema.get_field_index("weight")
    for value in (float("nan"), float("inf"), -1.0):
        spoiled = table.set_column(place, table.schema.field("weight"), pa.array([value] * 6))
        file = io.BytesIO()
        pq.write_table(spoiled, file)
        with_shard(manifest, file.getvalue(), 6)
        replaced(hub, manifest, **{SHARD: file.getvalue()})
        refused(api, tmp_path / "got", "row 0: weight is")


BOMB = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import pyarrow.parquet  # its libraries, before the limit
from drift_weights.audit import audit
audit(Path({honest!r}))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700_000_000,) * 2)
try:
    audit(Path({bomb!r}))
except ValueError as error:
    print("refused:", error)
"""


def test_a_shard_that_asks_for_gigabytes_is_refused_under_a_memory_limit(tmp_path: Path) -> None:
    """A few kilobytes: one long text, which 50,000 rows of one row group say they have: 10 GB."""
    honest, rows = weighted(tmp_path / "w"), 50_000
    table = pq.read_table(honest / "data" / "part-00000.parquet").take([0] * rows)
    words = {"role": ["assistant"], "content": ["A" * 200_000]}
    columns = [
        pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(word))
        for word in words.values()
    ]
    message = pa.StructArray.from_arrays(columns, names=list(words))
    long = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), message)
    table = table.set_column(table.schema.get_field_index("completion"), "completion", long)
    bomb = tmp_path / "bomb"
    (bomb / "data").mkdir(parents=True)
    shard = bomb / "data" / "part-00000.parquet"
    pq.write_table(table, shard, compression="zstd", store_schema=False, row_group_size=rows)
    assert shard.stat().st_size < 50_000
    manifest = read_manifest(honest) | {"rows": rows}
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    manifest["shards"] = [{"file": "data/part-00000.parquet", "rows": rows, "sha256": digest}]
    (bomb / "drift.json").write_text(json.dumps(manifest))
    code = BOMB.format(tests=str(Path(__file__).parents[1]), honest=str(honest), bomb=str(bomb))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("refused:"), done.stderr[-2000:]
