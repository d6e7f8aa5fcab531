"""Resampling of weighted folders: what is drawn follows the key, and every copy is its row.

`weights.resample`, whose own laws are in test_resample.py, is the oracle of the counts.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_weights import (
    WeightConfig,
    read_folder,
    resample,
    to_table,
    weighted_turns,
    write_folder,
)
from drift_weights.draws import Draw
from drift_weights.outcomes import RowError
from drift_weights.resampling import resample_file
from drift_weights.schema import WEIGHTED
from rows import trajectory

KEY = ("prompt_id", "round", "policy", "sample")
Row = dict[str, Any]


def turns() -> list[Row]:
    """Groups of 1, 2, 5 and 16 with dialogues of several lengths; samples neither from 0 nor in order."""
    generator = random.Random(3)
    data = [
        trajectory(
            f"q{size}",
            17 * sample - 4,
            generator.choices(["a", "b", None], k=generator.randint(1, 4)),
            ended=generator.choice(["solved", "budget"]),
        )
        for size in (1, 2, 5, 16)
        for sample in range(size)
    ]
    table, _ = weighted_turns(to_table(data), WeightConfig(beta=0.4))
    return list(table.to_pylist())


def folder(path: Path, rows: Iterable[Row], **manifest: Any) -> Path:
    return write_folder(path, pa.Table.from_pylist(list(rows), WEIGHTED), "weighted", manifest)


def drawn(path: Path, **settings: Any) -> list[Row]:
    """The rows that resampling a folder gives."""
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        resample_file(path, out, **settings)
        return list(read_folder(out, "weighted")[0].to_pylist())


def drawn_rows(rows: Iterable[Row], **settings: Any) -> list[Row]:
    with TemporaryDirectory() as scratch:
        return drawn(folder(Path(scratch) / "in", rows), **settings)


def key(row: Row, sample: str = "sample") -> tuple[Any, ...]:
    return (row["prompt_id"], row["round"], row["policy"], row[sample])


def by_key(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    found = {key(row): row for row in rows}
    return found


def oracle(rows: list[Row], *, seed: int, epoch: int = 0) -> dict[tuple[Any, ...], int]:
    """Counts by key, from the arrays alone; no zeros."""
    counts = resample(
        [row["weight"] for row in rows],
        [key(row)[:3] for row in rows],
        [row["sample"] for row in rows],
        seed=seed,
        epoch=epoch,
    )
    return {key(row): int(count) for row, count in zip(rows, counts, strict=True) if count}


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 0), (7, 3)])
def test_a_folders_rows_are_drawn_as_often_as_the_arrays_say(seed: int, epoch: int) -> None:
    rows = turns()
    found = drawn_rows(rows, seed=seed, epoch=epoch)
    assert Counter(key(row, "drawn_sample") for row in found) == oracle(rows, seed=seed, epoch=epoch)


def test_a_whole_group_yields_as_many_rows_as_it_has() -> None:
    rows = turns()
    sizes = Counter(row["prompt_id"] for row in rows)
    for seed in range(5):
        assert Counter(row["prompt_id"] for row in drawn_rows(rows, seed=seed)) == sizes


def test_each_row_stands_there_its_weight_rounded_down_or_up() -> None:
    rows = turns()
    counts = Counter(key(row, "drawn_sample") for row in drawn_rows(rows, seed=4))
    for row in rows:
        assert math.floor(row["weight"] - 1e-9) <= counts[key(row)] <= math.ceil(row["weight"] + 1e-9)


@pytest.mark.parametrize("varied", ["seed", "epoch"])
def test_the_mean_count_over_many_draws_is_the_weight(tmp_path: Path, varied: str) -> None:
    """Over draws, and over groups that are alike but for their name."""
    group = [row for row in turns() if row["prompt_id"] == "q16"]
    copies, draws = 60, 8
    rows = [row | {"prompt_id": f"p{number}"} for number in range(copies) for row in group]
    source = folder(tmp_path / "in", rows)
    total: Counter[int] = Counter()
    for number in range(draws):
        total.update(row["drawn_sample"] for row in drawn(source, **({"seed": 1} | {varied: number})))
    for row in group:
        # A count is a rounding, so its variance is at most 1/4.
        mean = total[row["sample"]] / (copies * draws)
        assert abs(mean - row["weight"]) < 4.5 * 0.5 / math.sqrt(copies * draws)


def test_a_copy_is_its_row_but_for_weight_and_sample() -> None:
    rows = by_key(turns())
    for copy in drawn_rows(rows.values(), seed=2):
        row = rows[key(copy, "drawn_sample")]
        assert copy["weight"] == 1.0
        changed = ("weight", "sample", "drawn_sample")
        assert {n: v for n, v in copy.items() if n not in changed} == {
            n: v for n, v in row.items() if n not in changed
        }


def test_keys_stay_unique_and_samples_count_the_draws_of_a_group() -> None:
    found = drawn_rows(turns(), seed=2)
    groups: dict[Any, list[tuple[int, int]]] = {}
    for row in found:
        groups.setdefault(row["prompt_id"], []).append((row["sample"], row["drawn_sample"]))
    for pairs in groups.values():
        numbers, own = zip(*sorted(pairs), strict=True)
        assert numbers == tuple(range(len(pairs)))
        # Draws are numbered in the order of the rows that they are of.
        assert list(own) == sorted(own)


@given(st.permutations(range(24)), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**40))
@settings(max_examples=25)
def test_order_shards_and_portions_do_not_matter(
    order: list[int], shard: int, portion: int, seed: int
) -> None:
    rows = turns()
    expected = by_key(drawn_rows(rows, seed=seed))
    shuffled = [rows[i] for i in order]
    with TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        source = Path(scratch) / "in"
        (source / "data").mkdir(parents=True)
        shards = [shuffled[i : i + shard] for i in range(0, len(rows), shard)]
        sharded(source, shards)
        patch.setattr("drift_weights.sources.TABLE_ROWS", portion)
        patch.setattr("drift_weights.draws._PARTS", portion)
        found = drawn(source, seed=seed)
    assert by_key(found) == expected
    assert len(found) == len(expected)


def sharded(path: Path, shards: list[list[Row]]) -> None:
    """A folder of several shards, made by hand of folders of one."""
    entries, manifest = [], {}
    for number, rows in enumerate(shards):
        one = folder(path.with_name(f"one-{number}"), rows)
        manifest = json.loads((one / "drift.json").read_text())
        name = f"data/part-{number:05d}.parquet"
        shutil.move(one / "data" / "part-00000.parquet", path / name)
        entries.append(manifest["shards"][0] | {"file": name})
    manifest |= {"shards": entries, "rows": sum(map(len, shards))}
    (path / "drift.json").write_text(json.dumps(manifest))


def test_files_of_other_groups_are_drawn_alike_alone_and_together() -> None:
    rows = turns()
    some = [row for row in rows if row["prompt_id"] in ("q2", "q16")]
    rest = [row for row in rows if row not in some]
    parts = by_key(drawn_rows(some, seed=5)) | by_key(drawn_rows(rest, seed=5))
    assert by_key(drawn_rows(rows, seed=5)) == parts


def test_the_same_draw_is_the_same_bytes(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", turns(), weighting={"beta": 0.4}, omitted_groups=[])
    for name in ("one", "two"):
        resample_file(source, tmp_path / name, seed=3, epoch=1)
    first, second = (
        {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        for path in (tmp_path / "one", tmp_path / "two")
    )
    assert first == second
    assert len(first) == 2


def test_the_manifest_says_source_seed_and_epoch(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", turns(), weighting={"beta": 0.4}, omitted_groups=[{"prompt_id": "x"}])
    resample_file(source, tmp_path / "out", seed=3, epoch=1)
    manifest = read_folder(tmp_path / "out", "weighted")[1]
    assert manifest["resampling"] == {"seed": 3, "epoch": 1}
    assert manifest["selection"] == "resampled"
    assert manifest["source"] == {"path": "in", "manifest": read_folder(source, "weighted")[1]}
    assert manifest["weighting"] == {"beta": 0.4}
    assert manifest["omitted_groups"] == [{"prompt_id": "x"}]


def refused(says: str, source: Path, output: Path, **settings: Any) -> None:
    before = sorted(output.parent.rglob("*"))
    with pytest.raises((ValueError, OSError), match=says):
        resample_file(source, output, **({"seed": 0} | settings))
    assert sorted(output.parent.rglob("*")) == before


def test_what_is_no_weighted_folder_or_log_is_refused(tmp_path: Path) -> None:
    trajectories = to_table([trajectory("g", 0, ["a"])])
    write_folder(tmp_path / "t", trajectories, "trajectories", {})
    refused("run drift-weights reweight on it first", tmp_path / "t", tmp_path / "out")
    refused("is no file", tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "log.json").write_text("[]")
    refused("expected a file ending in", tmp_path / "log.json", tmp_path / "out.json")


@pytest.mark.parametrize("selection", ["rft", "sft-5turn", "resampled"])
def test_rows_that_count_once_are_refused(tmp_path: Path, selection: str) -> None:
    source = folder(tmp_path / "in", turns(), selection=selection)
    refused(f"holds the selection {selection}", source, tmp_path / "out")


def test_a_file_is_no_output_for_a_folder(tmp_path: Path) -> None:
    refused("a folder becomes a folder", folder(tmp_path / "in", turns()), tmp_path / "out.parquet")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_bad_weight_is_named(tmp_path: Path, weight: float) -> None:
    rows = turns()
    rows[7]["weight"] = weight
    refused("row 7: weight must be finite", folder(tmp_path / "in", rows), tmp_path / "out")


def test_a_sample_that_a_group_holds_twice_is_named(tmp_path: Path) -> None:
    rows = turns()
    rows[9]["sample"] = rows[12]["sample"]
    refused(
        "row 12: sample .* of its group is there twice", folder(tmp_path / "in", rows), tmp_path / "out"
    )


def test_a_bad_weight_of_a_later_batch_is_counted_from_the_first_row() -> None:
    draw, samples = Draw(0, 0), pa.array([0, 1, 2])
    draw.add([pa.array(["a"] * 3)], samples, np.ones(3))
    with pytest.raises(RowError) as refusal:
        draw.add([pa.array(["b"] * 3)], samples, np.array([1.0, float("nan"), 1.0]))
    assert refusal.value.row == 4


def test_weights_that_draw_nothing_are_refused(tmp_path: Path) -> None:
    rows = [row | {"weight": 0.0} for row in turns()]
    refused("no row is drawn", folder(tmp_path / "in", rows), tmp_path / "out")


def test_rows_are_reported_as_they_are_read_and_written(tmp_path: Path) -> None:
    told: list[int] = []
    found = resample_file(folder(tmp_path / "in", turns()), tmp_path / "out", seed=0, advance=told.append)
    assert sum(told) == 2 * found.rows
