"""A data set on disk appears whole or not at all, and is what its manifest vouches for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_weights.folder import is_folder, read_folder, write_folder
from drift_weights.manifest import MANIFEST, read_manifest
from drift_weights.schema import FORMAT_VERSION, from_table, to_table
from drift_weights.types import Message, Trajectory, Turn
from strategies import trajectories

SHARD = Path("data") / "part-00000.parquet"


def rows(number: int = 3) -> pa.Table:
    """A small TRAJECTORIES table."""
    return to_table(
        Trajectory(
            prompt_id="p",
            sample=sample,
            policy="π",
            prompt=(Message(role="user", content="2 + 2?"),),
            target="4",
            turns=(Turn(response="4", answer="4", verdict="correct"),),
            max_turns=5,
            ended="solved",
        )
        for sample in range(number)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three trajectories."""
    return write_folder(tmp_path / "rollouts", rows(), "trajectories", {"seed": 7})


def edited(folder: Path, **changes: Any) -> Path:
    """The folder with fields of its manifest changed behind its back."""
    file = folder / MANIFEST
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def everything(path: Path) -> dict[str, bytes]:
    """Every file below a path, hidden ones too, with its bytes."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@settings(max_examples=20)
@given(written=st.lists(trajectories(), min_size=1, max_size=4))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[Trajectory]
) -> None:
    path = tmp_path_factory.mktemp("folder") / "rollouts"
    assert write_folder(path, to_table(written), "trajectories", {"π": [1, None]}) == path
    table, manifest = read_folder(path, "trajectories")
    assert list(from_table(table)) == written
    assert manifest["π"] == [1, None]
    assert manifest == read_manifest(path)


def test_the_manifest_vouches_for_format_kind_counts_and_bytes(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert (manifest["format"], manifest["kind"], manifest["seed"]) == (
        FORMAT_VERSION,
        "trajectories",
        7,
    )
    digest = hashlib.sha256((folder / SHARD).read_bytes()).hexdigest()
    size = (folder / SHARD).stat().st_size
    assert manifest["shards"] == [{"file": str(SHARD), "rows": 3, "bytes": size, "sha256": digest}]
    assert manifest["rows"] == 3 == pq.read_metadata(folder / SHARD).num_rows
    assert "drift-weights" in manifest["made_by"]
    assert is_folder(folder)
    assert not is_folder(folder.parent)


def test_equal_content_is_written_to_equal_bytes(folder: Path) -> None:
    again = write_folder(folder.with_name("again"), rows(), "trajectories", {"seed": 7})
    assert everything(again) == everything(folder)


def test_what_the_writer_found_out_is_not_overruled_by_an_older_manifest(tmp_path: Path) -> None:
    """A manifest that is carried on from the input says what the input was."""
    older = {"kind": "weighted", "format": "0.1", "rows": 99, "shards": [], "made_by": {}}
    path = write_folder(tmp_path / "x", rows(), "trajectories", older)
    manifest = read_folder(path, "trajectories")[1]
    found = {name: manifest[name] for name in ("kind", "format", "rows")}
    assert found == {"kind": "trajectories", "format": FORMAT_VERSION, "rows": 3}
    assert manifest["made_by"]


def test_a_shard_that_was_changed_is_refused_by_name(folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / SHARD).write_bytes(content)
    with pytest.raises(ValueError, match=r"part-00000\.parquet .*sha256 differs"):
        read_folder(folder, "trajectories")


def test_a_shard_that_is_a_valid_table_of_other_rows_is_refused(folder: Path) -> None:
    pq.write_table(rows(4), folder / SHARD)
    with pytest.raises(ValueError, match="sha256 differs"):
        read_folder(folder, "trajectories")


def test_a_missing_shard_is_refused_by_name(folder: Path) -> None:
    (folder / SHARD).unlink()
    with pytest.raises(ValueError, match=f"rollouts: shard {SHARD} is missing"):
        read_folder(folder, "trajectories")


def test_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="rollouts holds trajectories, expected weighted"):
        read_folder(folder, "weighted")


def test_several_shards_are_read_in_the_manifests_order(folder: Path) -> None:
    second = folder / "data" / "part-00001.parquet"
    pq.write_table(rows(2), second)
    digest = hashlib.sha256(second.read_bytes()).hexdigest()
    shards = read_manifest(folder)["shards"]
    edited(
        folder, shards=[{"file": "data/part-00001.parquet", "rows": 2, "sha256": digest}, *shards], rows=5
    )
    table, _ = read_folder(folder, "trajectories")
    assert table.column("sample").to_pylist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0"])
def test_another_major_format_is_refused(folder: Path, version: str) -> None:
    with pytest.raises(ValueError, match=f"has format {version}"):
        read_folder(edited(folder, format=version), "trajectories")


def test_another_minor_format_is_read(folder: Path) -> None:
    major = FORMAT_VERSION.split(".")[0]
    assert read_folder(edited(folder, format=f"{major}.99"), "trajectories")[0].num_rows == 3


@pytest.mark.parametrize("content", ["[]", '{"kind": "trajectories"}', '{"torn'])
def test_a_file_that_is_no_manifest_is_refused_by_name(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"drift\.json"):
        read_manifest(folder)


def test_a_folder_without_a_manifest_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path.name} has no drift\.json"):
        read_folder(tmp_path, "trajectories")


def wrong_table(path: Path) -> None:
    write_folder(path, rows().drop_columns(["ended"]), "trajectories", {}, overwrite=True)


def empty_table(path: Path) -> None:
    write_folder(path, rows().slice(0, 0), "trajectories", {}, overwrite=True)


def manifest_with_nan(path: Path) -> None:
    write_folder(path, rows(), "trajectories", {"accuracy": float("nan")}, overwrite=True)


@pytest.mark.parametrize("write", [wrong_table, empty_table, manifest_with_nan])
def test_an_error_leaves_nothing_behind(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(ValueError, match=r"."):
        write(tmp_path / "rollouts")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [wrong_table, empty_table, manifest_with_nan])
def test_an_error_leaves_what_was_there_as_it_was(folder: Path, write: Callable[[Path], None]) -> None:
    before = everything(folder.parent)
    with pytest.raises(ValueError, match=r"."):
        write(folder)
    assert everything(folder.parent) == before


def test_nothing_is_written_over_without_being_told(folder: Path) -> None:
    before = everything(folder)
    with pytest.raises(FileExistsError, match=r"rollouts exists; .* --overwrite"):
        write_folder(folder, rows(1), "trajectories", {})
    assert everything(folder) == before


def test_overwriting_leaves_nothing_of_the_old(folder: Path) -> None:
    (folder / "data" / "part-00001.parquet").write_bytes(b"old")
    write_folder(folder, rows(1), "trajectories", {}, overwrite=True)
    table, manifest = read_folder(folder, "trajectories")
    assert (table.num_rows, "seed" in manifest) == (1, False)
    assert sorted(everything(folder.parent)) == [f"rollouts/{SHARD}", f"rollouts/{MANIFEST}"]


@pytest.mark.parametrize("in_the_way", ["file", "folder of something else"])
def test_what_is_not_ours_is_never_overwritten(tmp_path: Path, in_the_way: str) -> None:
    path = tmp_path / "rollouts"
    if in_the_way == "folder of something else":
        path.mkdir()
    mine = path if in_the_way == "file" else path / "thesis.txt"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="rollouts exists"):
        write_folder(path, rows(), "trajectories", {})
    with pytest.raises(FileExistsError, match="no folder of drift data"):
        write_folder(path, rows(), "trajectories", {}, overwrite=True)
    assert mine.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["rollouts"]


def test_an_empty_folder_and_missing_parents_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b"):
        write_folder(path, rows(), "trajectories", {})
        assert read_folder(path, "trajectories")[0].num_rows == 3


def test_a_kill_between_the_two_moves_of_an_overwrite_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rollouts"
    write_folder(path, rows(), "trajectories", {"generation": 1})
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if self.name.startswith(".rollouts.writing"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        write_folder(path, rows(), "trajectories", {"generation": 2}, overwrite=True)
    assert read_folder(tmp_path / ".rollouts.old", "trajectories")[1]["generation"] == 1
    monkeypatch.undo()
    write_folder(path, rows(), "trajectories", {"generation": 3}, overwrite=True)
    assert read_folder(path, "trajectories")[1]["generation"] == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["rollouts"]


def test_what_killed_writers_left_is_removed_and_a_living_ones_work_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [tmp_path / f".rollouts.writing-{name}" for name in (gone.pid, os.getppid(), "notes")]
    for folder in [*left, tmp_path / f".others.writing-{gone.pid}"]:
        (folder / "data").mkdir(parents=True)
    write_folder(tmp_path / "rollouts", rows(), "trajectories", {})
    assert [folder.exists() for folder in left] == [False, True, True]
    assert (tmp_path / f".others.writing-{gone.pid}").exists()


@pytest.mark.parametrize(
    ("shards", "says"), [([], "is no manifest"), ([{"file": "data/part-00000.parquet"}], "a shard needs")]
)
def test_a_manifest_without_hashes_vouches_for_nothing(
    tmp_path: Path, shards: list[Any], says: str
) -> None:
    path = write_folder(tmp_path / "rollouts", rows(), "trajectories", {})
    manifest = json.loads((path / "drift.json").read_text())
    (path / "drift.json").write_text(json.dumps(manifest | {"shards": shards}))
    with pytest.raises(ValueError, match=says):
        read_folder(path, "trajectories")
