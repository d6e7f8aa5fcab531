"""One log of many files on a local Ray cluster: the same bits as on one machine, and no text read.

Suffix legend: N rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import weights_on_ray
from drift_weights import Columns, WeightConfig, reweight, to_table, weighted_turns, write_folder
from drift_weights.writers import SIDE
from rows import trajectory
from weights_on_ray import ray, weigh_on_ray

GROUPS, SIZE = 30, 4
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two processors, on loopback; every process that was started is gone in the end."""
    others = set(psutil.Process().children(recursive=True))
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        logging_level=logging.ERROR,
        log_to_driver=False,
        # Or each stage would end the idle workers of the last one and start its own.
        _system_config={"num_workers_soft_limit": 8},
    )
    yield
    started = list(set(psutil.Process().children(recursive=True)) - others)
    sockets = [socket for process in started for socket in process.net_connections("inet")]
    ray.shutdown()
    assert psutil.wait_procs(started, timeout=90)[1] == []
    assert {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets} == {"127.0.0.1"}


def log_rows() -> pa.Table:
    """Groups of four in an order that mixes them all; every other group has a success."""
    random = np.random.default_rng(0)
    row_N = random.permutation(GROUPS * SIZE)
    length_N = random.integers(1, 6, len(row_N))
    return pa.table(
        {
            "prompt_id": [f"question {row // SIZE % 10}" for row in row_N],
            "text": ["text " * 50] * len(row_N),
            "policy": [f"policy {row // SIZE // 10}" for row in row_N],
            "sample": row_N % SIZE,
            "correct": (row_N % SIZE == 1) * (row_N // SIZE % 2),
            "length": length_N,
            "unique": random.integers(1, length_N + 1),
        }
    )


def written(folder: Path, log: pa.Table, cuts: tuple[int, ...] = (40, 70)) -> Path:
    """The log as files of a folder, cut at these rows, with three rows a row group."""
    folder.mkdir()
    for number, (start, end) in enumerate(zip((0, *cuts), (*cuts, len(log)), strict=True)):
        pq.write_table(log.slice(start, end - start), folder / f"part-{number}.parquet", row_group_size=3)
    return folder


def changed(log: pa.Table, column: str, row: int, value: object) -> pa.Table:
    values = log.column(column).to_pylist()
    values[row] = value
    return log.set_column(log.schema.get_field_index(column), column, pa.array(values))


def sides(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """(row, weight to the last bit) of each side file, by the name of its log."""
    found = {}
    for file in folder.glob("*.weights.parquet"):
        table = pq.read_table(file)
        assert table.schema == SIDE
        weights = [weight.hex() for weight in table.column("weight").to_pylist()]
        name = file.name.removesuffix(".weights.parquet")
        found[name] = list(zip(table.column("row").to_pylist(), weights, strict=True))
    return found


def bits(log: pa.Table) -> list[str]:
    """The weight of every row on one machine, to the last bit."""
    return [weight.hex() for weight in reweight(log).column("weight").to_pylist()]


def spoil_text(file: Path) -> None:
    """Break the text of every row group but the first, which is looked at to recognise the format."""
    data = bytearray(file.read_bytes())
    metadata = pq.read_metadata(file)
    place = metadata.schema.names.index("text")
    for group in range(1, metadata.num_row_groups):
        chunk = metadata.row_group(group).column(place)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(data)
    with pytest.raises(OSError, match="page"):
        pq.read_table(file)


def test_the_same_bits_as_on_one_machine_and_no_text_is_read(tmp_path: Path) -> None:
    log = log_rows()
    source = written(tmp_path / "log", log)
    pq.write_table(log.slice(0, 0), source / "part-9.parquet")
    spoil_text(source / "part-1.parquet")
    facts = weigh_on_ray(source, tmp_path / "out")
    weights = list(enumerate(bits(log)))
    expected = {
        "part-0": [(row, weight) for row, weight in weights[:40]],
        "part-1": [(row - 40, weight) for row, weight in weights[40:70]],
        "part-2": [(row - 70, weight) for row, weight in weights[70:]],
        "part-9": [],
    }
    assert sides(tmp_path / "out") == expected
    assert facts == json.loads((tmp_path / "out" / "drift.json").read_text())
    assert (facts["rows"], facts["weighting"]["beta"], facts["form"]) == (len(log), 0.1, "side")
    assert [entry["rows"] for entry in facts["sources"]] == [40, 30, 50, 0]
    for entry in facts["sources"]:
        for file, sha256 in (("path", "sha256"), ("side", "side_sha256")):
            folder = source if file == "path" else tmp_path / "out"
            assert hashlib.sha256((folder / entry[file]).read_bytes()).hexdigest() == entry[sha256]


def test_all_wrong_groups_can_be_left_out(tmp_path: Path) -> None:
    log = log_rows().sort_by([("correct", "descending")])
    weights = bits(log)
    groups = list(zip(log.column("prompt_id").to_pylist(), log.column("policy").to_pylist(), strict=True))
    right = log.column("correct").to_pylist()
    solved = {group for group, correct in zip(groups, right, strict=True) if correct}
    # The last file holds nothing but one all-wrong group.
    last = next(group for group in groups if group not in solved)
    order = sorted(range(len(log)), key=lambda row: groups[row] == last)
    source = written(tmp_path / "log", log.take(order), (50, len(log) - SIZE))
    weigh_on_ray(source, tmp_path / "out", WeightConfig(all_wrong="drop", group_size=SIZE))
    kept = [(place, weights[row]) for place, row in enumerate(order) if groups[row] in solved]
    assert sides(tmp_path / "out") == {
        "part-0": [(place, weight) for place, weight in kept if place < 50],
        "part-1": [(place - 50, weight) for place, weight in kept if place >= 50],
        "part-2": [],
    }


def test_trajectories_are_weighed_and_vouched_for(tmp_path: Path) -> None:
    made = [
        trajectory(
            group, sample, ["1", "2", None][: 1 + sample], ended="solved" if sample == 1 else "budget"
        )
        for group in "abc"
        for sample in range(3)
    ]
    broken = trajectory("d", 0, ["1"], ended="error")
    table = to_table([broken, *made])
    source = tmp_path / "trajectories"
    write_folder(source, table, "trajectories", {"rollout": {"samples": 3}})
    weigh_on_ray(source, tmp_path / "out")
    expected = [w.hex() for w in weighted_turns(table)[0].column("weight").to_pylist()]
    assert sides(tmp_path / "out") == {"part-00000": list(enumerate(expected, start=1))}
    before = (tmp_path / "out" / "drift.json").read_bytes()
    pq.write_table(table, source / "data" / "part-00000.parquet", compression="none")
    with pytest.raises(
        ValueError, match=r"part-00000\.parquet is not the file that drift\.json vouches for"
    ):
        weigh_on_ray(source, tmp_path / "out", overwrite=True)
    write_folder(source, table.slice(0, 9), "trajectories", {"rollout": {"samples": 3}}, overwrite=True)
    with pytest.raises(ValueError, match=r"part-00000\.parquet, row [78]: its group has 2 rows"):
        weigh_on_ray(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "drift.json").read_bytes() == before


@pytest.mark.parametrize(
    ("column", "row", "value", "says"),
    [
        ("correct", 45, 2, r"part-1\.parquet, row 5: 'correct' is 2, neither 0 nor 1"),
        ("unique", 100, 9, r"part-2\.parquet, row 30: unique must not exceed"),
        ("prompt_id", 69, None, r"part-1\.parquet, row 29: 'prompt_id' is null"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(column, row, value, says, tmp_path: Path) -> None:
    source = written(tmp_path / "log", changed(log_rows(), column, row, value))
    with pytest.raises(ValueError, match=says) as refused:
        weigh_on_ray(source, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_sample_in_two_files_is_named_in_both(tmp_path: Path) -> None:
    log = log_rows()
    twice = pa.concat_tables([log, log.slice(3, 1)])
    source = written(tmp_path / "log", twice)
    first, second = r"\S*part-0\.parquet, row 3", r"\S*part-2\.parquet, row 50"
    with pytest.raises(ValueError, match=f"({first}.*{second} already)|({second}.*{first} already)"):
        weigh_on_ray(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_alike_are_refused(tmp_path: Path) -> None:
    log = log_rows()
    source = written(tmp_path / "log", log)
    numbered = log.slice(0, 5).drop_columns(["prompt_id"]).append_column("prompt_id", pa.array(range(5)))
    pq.write_table(numbered, source / "part-3.parquet")
    with pytest.raises(
        ValueError, match=r"part-3\.parquet: type of group is int64 and string, in .*part-0"
    ):
        weigh_on_ray(source, tmp_path / "out")
    pq.write_table(log.drop_columns(["policy"]), source / "part-3.parquet")
    with pytest.raises(ValueError, match=r"part-3\.parquet: group is prompt_id, in .*part-0"):
        weigh_on_ray(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_stands_in_the_way_is_not_touched(tmp_path: Path) -> None:
    source = written(tmp_path / "log", log_rows())
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="--overwrite"):
        weigh_on_ray(source, theirs)
    with pytest.raises(FileExistsError, match="no folder of drift data"):
        weigh_on_ray(source, theirs, overwrite=True)
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]
    with pytest.raises(FileNotFoundError, match="no such file"):
        weigh_on_ray(tmp_path / "*.parquet", tmp_path / "out")


def test_the_command_weighs_more_rows_than_are_read_at_once(tmp_path: Path, monkeypatch, capsys) -> None:
    random = np.random.default_rng(1)
    questions, scores = random.integers(9000, size=70_000), random.uniform(-0.5, 1, 70_000)
    scored = pa.table({"question": questions, "score": scores})
    (tmp_path / "log").mkdir()
    pq.write_table(scored.slice(0, 69_000), tmp_path / "log" / "part-0.parquet")
    pq.write_table(scored.slice(69_000), tmp_path / "log" / "part-1.parquet")
    asked = {}
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options) or nullcontext())
    options = ["--group", "question", "--return-column", "score", "--beta", "0.5"]
    command = [
        "weights_on_ray.py",
        str(tmp_path / "log" / "part-[01].parquet"),
        str(tmp_path / "out"),
        *options,
    ]
    monkeypatch.setattr(sys, "argv", command)
    weights_on_ray.main()
    columns = Columns(group="question", return_column="score")
    weighed = reweight(scored, WeightConfig(beta=0.5), columns=columns).column("weight").to_pylist()
    found = sides(tmp_path / "out")
    assert found["part-0"] == [(row, weight.hex()) for row, weight in enumerate(weighed[:69_000])]
    assert found["part-1"] == [(row, weight.hex()) for row, weight in enumerate(weighed[69_000:])]
    assert asked["address"] == "local"
    assert f"{len(scored)} weights for 2 files" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        weights_on_ray.main()
    assert "pass --overwrite" in capsys.readouterr().err
