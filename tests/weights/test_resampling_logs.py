"""Resampling of logs that `reweight` wrote: lines and rows are repeated as they are, with the weight one.

`weights.resample`, whose own laws are in test_resample.py, is the oracle of the counts.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_weights import (
    Columns,
    WeightConfig,
    resample,
)
from drift_weights.outputs import reweight_file
from drift_weights.resampling import resample_file
from strategies import keyed_returns

Row = dict[str, Any]

LINES = [
    b'{"prompt_id": "a", "sample": 0, "correct":1,\t"length":2, "unique": 1, "x": 1.50, "y":"\\u00e9"}\r\n',
    b'{"prompt_id":"b","sample":1,"correct":1,"length":5,"unique":5,"note":{"weight":[1,2]} }\n',
    b'{ "sample": 1, "prompt_id": "a", "correct": 0, "length": 5, "unique": 3}\n',
    '{"prompt_id": "b", "sample": 0, "correct": 1, "length": 4, "unique": 2, "z": "é"}\n'.encode(),
    b'{"prompt_id": "a", "sample": 2, "correct": 1, "length": 3, "unique": 3}',
]


def weighed(folder: Path, lines: Iterable[bytes] = LINES, **options: Any) -> Path:
    """A log that reweight wrote."""
    (folder / "log.jsonl").write_bytes(b"".join(lines))
    reweight_file(folder / "log.jsonl", folder / "w.jsonl", WeightConfig(beta=0.6), **options)
    return folder / "w.jsonl"


def log_counts(path: Path, group: Callable[[Row], Any], *, sample: str | None, seed: int) -> list[int]:
    """Counts of a log's rows, from its values alone."""
    rows = [json.loads(line) for line in path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()]
    keys, places, seen = [group(row) for row in rows], [], Counter[Any]()
    for name in keys:
        places.append(seen[name])
        seen[name] += 1
    numbers = places if sample is None else [row[sample] for row in rows]
    return list(resample([row["weight"] for row in rows], keys, numbers, seed=seed))


@pytest.mark.parametrize("seed", range(6))
def test_a_logs_lines_are_repeated_with_the_weight_one_and_no_other_change(
    tmp_path: Path, seed: int
) -> None:
    source = weighed(tmp_path)
    counts = log_counts(source, lambda row: row["prompt_id"], sample="sample", seed=seed)
    resample_file(source, tmp_path / "out.jsonl", seed=seed)
    expected = b""
    for line, count in zip(source.read_bytes().splitlines(keepends=True), counts, strict=True):
        weight = json.dumps(json.loads(line)["weight"]).encode()
        head, tail = line.rsplit(b'"weight":' + weight, 1)
        copy = head + b'"weight":1.0' + tail
        expected += (copy if copy.endswith(b"\n") else copy + b"\n") * count
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert sum(counts) == len(LINES)


def test_seeds_and_epochs_are_different_draws_of_a_log(tmp_path: Path) -> None:
    lines = [b'{"prompt_id": %d, "r": %.1f}\n' % (n // 2, n % 2 / 4) for n in range(60)]
    source = weighed(tmp_path, lines, columns=Columns(return_column="r"))
    found = set()
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)]:
        resample_file(source, tmp_path / "out.jsonl", seed=seed, epoch=epoch, overwrite=True)
        found.add((tmp_path / "out.jsonl").read_bytes())
    assert len(found) == 4


def test_a_byte_order_mark_stays_the_files_first_bytes_and_nobody_elses(tmp_path: Path) -> None:
    source = weighed(tmp_path, [codecs.BOM_UTF8, *LINES])
    for seed in range(8):
        resample_file(source, tmp_path / "out.jsonl", seed=seed, overwrite=True)
        found = (tmp_path / "out.jsonl").read_bytes()
        assert found.startswith(codecs.BOM_UTF8)
        assert found.count(codecs.BOM_UTF8) == 1


def test_the_side_file_says_how_the_rows_are_grouped(tmp_path: Path) -> None:
    lines = [
        b'{"task": "%c", "try": %d, "r": 0.%d, "sample": 0}\n' % (b"ab"[n % 2], n % 3, n % 7)
        for n in range(36)
    ]
    columns = Columns(group=("task", "try"), return_column="r")
    source = weighed(tmp_path, lines, columns=columns)
    counts = log_counts(source, lambda row: (row["task"], row["try"]), sample=None, seed=3)
    resample_file(source, tmp_path / "out.jsonl", seed=3)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    rows = [json.loads(line) for line in lines]
    expected = [
        row | {"weight": 1.0} for row, count in zip(rows, counts, strict=True) for _ in range(count)
    ]
    assert found == expected
    assert len(set(counts)) > 1


@pytest.mark.parametrize("sample", ["null", '"s%d"', None, "%d.5"])
@pytest.mark.parametrize("batch", [1 << 16, 5])
def test_rows_without_a_whole_sample_are_numbered_by_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: str | None, batch: int
) -> None:
    """Across batches, too; what stands there instead falls from row to row, and that does not matter."""
    lines = []
    for n in range(24):
        value = sample % (50 - n) if sample is not None and "%" in sample else sample
        text = "" if value is None else f'"sample": {value}, '
        lines.append(f'{{{text}"prompt_id": "{"ab"[n % 2]}", "correct": {n % 3 % 2}}}\n'.encode())
    source = weighed(tmp_path, lines)
    counts = log_counts(source, lambda row: row["prompt_id"], sample=None, seed=1)
    monkeypatch.setattr("drift_weights.logs.opened.BATCH", batch)
    found = resample_file(source, tmp_path / "out.jsonl", seed=1)
    copies = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    rows = [json.loads(line) | {"weight": 1.0} for line in source.read_bytes().splitlines()]
    assert found.drawn == sum(counts)
    assert copies == [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]


def test_a_place_may_be_another_rows_sample(tmp_path: Path) -> None:
    """Then the row that stands first comes first; nothing is refused."""
    lines = [b'{"prompt_id": "a", "sample": %s, "correct": 1}\n' % n for n in (b"1", b"null", b"0", b"9")]
    lines[3] = lines[3].replace(b'"correct": 1', b'"correct": 0')
    source = weighed(tmp_path, lines)
    weights = [json.loads(line)["weight"] for line in source.read_bytes().splitlines()]
    for seed in range(8):
        resample_file(source, tmp_path / "out.jsonl", seed=seed, overwrite=True)
        found = Counter(json.loads(line)["sample"] for line in (tmp_path / "out.jsonl").open())
        counts = resample(weights, ["a"] * 4, [1, 2, 0, 9], seed=seed)
        assert [found[sample] for sample in (1, None, 0, 9)] == counts.tolist()


def test_a_tables_whole_floats_are_samples(tmp_path: Path) -> None:
    """As pandas writes numbers with a gap."""
    table = pa.table({"prompt_id": ["a"] * 4, "correct": [1, 0, 1, 0], "sample": [3.0, 2.0, 1.0, 0.0]})
    pq.write_table(table, tmp_path / "log.parquet")
    reweight_file(tmp_path / "log.parquet", tmp_path / "w.parquet", WeightConfig(beta=0.6))
    weights = pq.read_table(tmp_path / "w.parquet").column("weight").to_pylist()
    for seed in range(10):
        resample_file(tmp_path / "w.parquet", tmp_path / "out.parquet", seed=seed, overwrite=True)
        counts = resample(weights, ["a"] * 4, [3, 2, 1, 0], seed=seed)
        found = pq.read_table(tmp_path / "out.parquet").column("sample").to_pylist()
        assert found == np.repeat([3.0, 2.0, 1.0, 0.0], counts).tolist()


@given(keyed_returns(), st.integers(0, 2**32), st.data())
@settings(max_examples=25)
def test_jsonl_and_parquet_in_any_order_draw_the_same_rows(
    table: Any, seed: int, data: st.DataObject
) -> None:
    names = list(dict.fromkeys(map(repr, table.group_N)))
    rows = [
        {"g": names.index(repr(group)), "sample": n, "r": r}
        for n, (group, r) in enumerate(zip(table.group_N, table.return_N, strict=True))
    ]
    rows = [{"prompt_id": f"p{row['g']}", "round": row["g"] % 2} | row for row in rows]
    shuffled = data.draw(st.permutations(rows))
    columns = Columns(return_column="r")
    with TemporaryDirectory() as scratch:
        here = Path(scratch)
        (here / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pq.write_table(pa.Table.from_pylist(shuffled), here / "log.parquet")
        found = []
        for kind in ("jsonl", "parquet"):
            reweight_file(here / f"log.{kind}", here / f"w.{kind}", columns=columns)
            said = resample_file(here / f"w.{kind}", here / f"out.{kind}", seed=seed)
            assert said.drawn == said.rows == len(rows)
            assert said.groups == len({row["prompt_id"] for row in rows})
        found.append(Counter(json.loads(line)["sample"] for line in (here / "out.jsonl").open()))
        found.append(Counter(pq.read_table(here / "out.parquet").column("sample").to_pylist()))
    assert found[0] == found[1]


def test_a_parquet_log_keeps_its_columns_types_codecs_and_metadata(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt_id": pa.array(["a", "a", "b"], pa.large_string()),
            "correct": [1, 0, 0],
            "extra": [[1], [], None],
        }
    ).replace_schema_metadata({"who": "me"})
    pq.write_table(table, tmp_path / "log.parquet", compression="gzip")
    reweight_file(tmp_path / "log.parquet", tmp_path / "w.parquet")
    resample_file(tmp_path / "w.parquet", tmp_path / "out.parquet", seed=0)
    found, before = (pq.ParquetFile(tmp_path / name) for name in ("out.parquet", "w.parquet"))
    assert found.schema_arrow.equals(before.schema_arrow, check_metadata=True)
    assert found.metadata.row_group(0).column(0).compression == "GZIP"
    # The wrong row of a group with a right one weighs next to nothing: the right one is there twice.
    assert found.read().drop_columns(["weight"]).to_pylist() == table.take([0, 0, 2]).to_pylist()
    assert found.read().column("weight").to_pylist() == [1.0] * 3


def test_a_parquet_log_is_copied_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"prompt_id": ["a", "b"] * 20, "sample": range(40), "correct": [1, 1, 0, 0, 1] * 8})
    pq.write_table(table, tmp_path / "log.parquet")
    reweight_file(tmp_path / "log.parquet", tmp_path / "w.parquet", WeightConfig(beta=0.6))
    rows = pq.read_table(tmp_path / "w.parquet").to_pylist()
    counts = resample([r["weight"] for r in rows], [r["prompt_id"] for r in rows], range(40), seed=2)
    monkeypatch.setattr("drift_weights.resampling.batch_rows", lambda parquet: 3)
    resample_file(tmp_path / "w.parquet", tmp_path / "out.parquet", seed=2)
    found = pq.read_table(tmp_path / "out.parquet").column("sample").to_pylist()
    assert found == np.repeat(range(40), counts).tolist()


def test_the_side_file_says_source_seed_and_epoch_and_vouches_for_no_weight(tmp_path: Path) -> None:
    source = weighed(tmp_path)
    resample_file(source, tmp_path / "out.jsonl", seed=3, epoch=2)
    beside = json.loads((tmp_path / "out.jsonl.drift.json").read_text())
    assert beside["resampling"] == {"seed": 3, "epoch": 2}
    assert beside["source"] == {
        "path": "w.jsonl",
        "manifest": json.loads((tmp_path / "w.jsonl.drift.json").read_text()),
    }
    assert "sha256" not in beside
    with pytest.raises(ValueError, match="resampled already; draw again from the log"):
        resample_file(tmp_path / "out.jsonl", tmp_path / "again.jsonl", seed=0)


def test_reweight_does_not_take_drawn_rows_for_samples(tmp_path: Path) -> None:
    """They are no i.i.d. samples any more, with a sample column or without."""
    for name, lines in (
        ("with", LINES),
        ("without", [line.replace(b'"sample"', b'"s"') for line in LINES]),
    ):
        (tmp_path / name).mkdir()
        resample_file(weighed(tmp_path / name, lines), tmp_path / name / "out.jsonl", seed=0)
        with pytest.raises(ValueError, match=r"not ours|already; keep one"):
            reweight_file(tmp_path / name / "out.jsonl", tmp_path / name / "again.jsonl")


def refused(says: str, source: Path, output: Path, **settings: Any) -> None:
    before = sorted(output.parent.rglob("*"))
    with pytest.raises((ValueError, OSError), match=says):
        resample_file(source, output, **({"seed": 0} | settings))
    assert sorted(output.parent.rglob("*")) == before


def test_a_log_whose_weight_is_not_ours_is_refused(tmp_path: Path) -> None:
    source = weighed(tmp_path)
    refused("no log.jsonl.drift.json beside it", tmp_path / "log.jsonl", tmp_path / "out.jsonl")
    source.write_bytes(source.read_bytes().replace(b"1.50", b"1.51"))
    refused("not the file that w.jsonl.drift.json vouches for", source, tmp_path / "out.jsonl")


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b"".join(LINES))
    reweight_file(tmp_path / "log.jsonl", tmp_path / "side.parquet", form="side")
    refused("holds weights alone", tmp_path / "side.parquet", tmp_path / "out.parquet")


def test_outputs_of_another_format_are_refused(tmp_path: Path) -> None:
    source = weighed(tmp_path)
    refused("keeps the input's format", source, tmp_path / "out.parquet")
    refused("keeps the input's format", source, tmp_path / "out")


def test_an_existing_output_is_kept_unless_told(tmp_path: Path) -> None:
    source = weighed(tmp_path)
    (tmp_path / "out.jsonl").write_text("mine")
    refused("exists", source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    resample_file(source, tmp_path / "out.jsonl", seed=0, overwrite=True)
    assert (tmp_path / "out.jsonl").read_text() != "mine"


def test_a_failure_half_way_leaves_the_old_output(tmp_path: Path) -> None:
    source = weighed(tmp_path)
    resample_file(source, tmp_path / "out.jsonl", seed=0)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    seen = 0

    def stop(rows: int) -> None:
        nonlocal seen
        seen += rows
        if seen > len(LINES) + 2:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        resample_file(source, tmp_path / "out.jsonl", seed=1, overwrite=True, advance=stop)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_rows_are_reported_as_they_are_read_and_written(tmp_path: Path) -> None:
    told: list[int] = []
    found = resample_file(weighed(tmp_path), tmp_path / "out.jsonl", seed=0, advance=told.append)
    assert sum(told) == 2 * found.rows
