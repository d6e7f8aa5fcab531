"""writers: an output is whole or not there; a log written again differs by its weights alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from drift_weights.writers import SIDE, whole_file, write_array, write_jsonl, write_parquet, write_side

Portions = list[tuple[np.ndarray | None, np.ndarray]]
WEIGHTS = st.floats(0.0, 16.0) | st.sampled_from([0.0, 1.0, 5e-324, 1e-300, 0.1 + 0.2, 16.0])
few = settings(max_examples=25)


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_block_that_ends_well_puts_its_file_in_the_targets_place(
    tmp_path: Path, before: bytes | None
) -> None:
    target = tmp_path / "new folder" / "out.jsonl"
    if before is not None:
        target.parent.mkdir()
        target.write_bytes(before)
    with whole_file(target) as scratch:
        assert scratch.parent == target.parent
        scratch.write_bytes(b"new")
        assert (target.read_bytes() if target.exists() else None) == before
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["out.jsonl"]


def write_half(target: Path, error: type[BaseException]) -> None:
    with whole_file(target) as scratch:
        scratch.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(b"old")

    with pytest.raises(error):
        write_half(target, error)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_what_an_earlier_process_left_is_no_hindrance(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with whole_file(target) as scratch:
        scratch.write_bytes(b"old")
        name = scratch.name
    # One process has one name for it, so the same name is there after a kill and a repeated process id.
    (tmp_path / name).write_bytes(b"a half file, longer than what is to come")
    with whole_file(target) as scratch, scratch.open("wb") as out:
        out.write(b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_bytes_are_on_disk_before_the_name_is_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, events = tmp_path / "out.jsonl", []
    rename = Path.rename

    def synced(handle: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{handle}"))

    def renamed(self: Path, other: Path) -> Path:
        events.append("rename")
        return rename(self, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    with whole_file(target) as scratch:
        scratch.write_bytes(b"new")
    assert events == [str(scratch), "rename", str(tmp_path)]


@st.composite
def portions(draw: st.DrawFn, rows: int) -> Portions:
    """Weights of so many rows, in batches of any size; of some batches all rows stay."""
    found: Portions = []
    while rows:
        size = draw(st.integers(1, rows))
        rows -= size
        weights = np.array(draw(st.lists(WEIGHTS, min_size=size, max_size=size)))
        keep = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        found.append((draw(st.sampled_from([None, keep])), weights))
    return found


def each_row(batches: Portions) -> Iterator[float | None]:
    """The weight of every row; None where it is dropped."""
    for keep_N, weight_N in batches:
        for row, weight in enumerate(weight_N.tolist()):
            yield weight if keep_N is None or keep_N[row] else None


ROWS = st.integers(1, 12).flatmap(lambda rows: st.tuples(st.just(rows), portions(rows)))


@few
@given(ROWS)
def test_weights_alone_say_which_rows_they_are_of(case) -> None:
    _, batches = case
    with TemporaryDirectory() as name:
        write_side(Path(name) / "side.parquet", batches)
        table = pq.read_table(Path(name) / "side.parquet")
    assert table.schema.equals(SIDE)
    kept = [(row, weight) for row, weight in enumerate(each_row(batches)) if weight is not None]
    assert [(row["row"], row["weight"]) for row in table.to_pylist()] == kept


@few
@given(ROWS, st.booleans(), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_lines_stay_but_for_their_weight(case, weighted, end, torn) -> None:
    rows, batches = case
    old = b', "weight": 3' if weighted else b""
    lines = [b'{"n": %d, "text": "}\\u00e9"%b }' % (row, old) + end for row in range(rows)]
    if torn:
        lines[-1] = lines[-1].removesuffix(end)
    with TemporaryDirectory() as name:
        source, target = Path(name) / "log.jsonl", Path(name) / "out.jsonl"
        source.write_bytes(b"".join(lines))
        write_jsonl(source, target, batches, replace=weighted)
        found = target.read_bytes()
    expected = []
    for line, weight in zip(lines, each_row(batches), strict=True):
        value = json.dumps(weight).encode()
        if weight is not None and weighted:
            expected.append(line.replace(b'"weight": 3', b'"weight": ' + value))
        elif weight is not None:
            expected.append(line.replace(b" }", b' ,"weight":' + value + b"}"))
    # A float has several spellings; its value is what counts.
    assert [json.loads(line) for line in found.splitlines()] == [json.loads(line) for line in expected]
    if all(weight == int(weight) for weight in each_row(batches) if weight is not None):
        assert found == b"".join(expected)


@few
@given(ROWS, st.sampled_from([b",", b" ,\n  ", b",\r\n"]))
def test_an_array_stays_an_array(case, comma) -> None:
    rows, batches = case
    elements = [b'{"n": %d, "text": "],["}' % row for row in range(rows)]
    with TemporaryDirectory() as name:
        source, target = Path(name) / "log.json", Path(name) / "out.json"
        source.write_bytes(b" [\n" + comma.join(elements) + b" ]\n")
        write_array(source, target, batches)
        found = target.read_bytes()
    kept = [(row, weight) for row, weight in enumerate(each_row(batches)) if weight is not None]
    assume(kept)
    assert json.loads(found) == [{"n": row, "text": "],[", "weight": weight} for row, weight in kept]
    assert found.startswith(b" [\n")
    assert found.endswith(b" ]\n")


def table(rows: int) -> pa.Table:
    """Columns of many types, with metadata of the table and of a field."""
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))
    columns: dict[str, Any] = {
        "id": pa.array(range(rows), pa.uint32()),
        "text": pa.array([None if row == 1 else f"text {row}" for row in range(rows)]),
        "messages": pa.array([[{"role": "user", "content": "?" * row}] for row in range(rows)], messages),
        "kind": pa.array(["a", "b", "c"] * rows, pa.string())[:rows].dictionary_encode(),
        "at": pa.array([row * 10**9 for row in range(rows)], pa.timestamp("ns", "UTC")),
        "a.b": pa.array([row / 3 for row in range(rows)], pa.float32()),
    }
    made = pa.table(columns)
    field = made.schema.field("id").with_metadata({b"unit": b"none"})
    schema = made.schema.set(0, field).with_metadata({b"made by": b"a trainer"})
    return made.cast(schema)


@few
@given(
    ROWS,
    st.sampled_from(["NONE", "SNAPPY", "ZSTD", "GZIP"]),
    st.integers(1, 12),
    st.sampled_from([None, "first", "last"]),
)
def test_a_table_keeps_columns_types_codecs_and_metadata(case, codec, group, weight) -> None:
    rows, batches = case
    source_table = table(rows)
    old = pa.array([-1.0] * rows)
    if weight is not None:
        place = 0 if weight == "first" else source_table.num_columns
        source_table = source_table.add_column(place, "weight", old)
    with TemporaryDirectory() as name:
        source, target = Path(name) / "log.parquet", Path(name) / "out.parquet"
        pq.write_table(source_table, source, compression=codec, row_group_size=group)
        write_parquet(source, target, batches)
        found, written = pq.read_table(target), pq.ParquetFile(target).metadata
        before = pq.read_table(source)
    keep = [weight is not None for weight in each_row(batches)]
    plain = before.drop_columns(["weight"]) if weight is not None else before
    assert found.column_names == [*plain.column_names, "weight"]
    assert found.drop_columns(["weight"]).equals(plain.filter(pa.array(keep)), check_metadata=True)
    assert found.column("weight").to_pylist() == [w for w in each_row(batches) if w is not None]
    for number in range(written.num_row_groups):
        chunks = [written.row_group(number).column(place) for place in range(written.num_columns)]
        codecs = {chunk.compression for chunk in chunks if chunk.path_in_schema != "weight"}
        assert codecs == {"UNCOMPRESSED" if codec == "NONE" else codec}


def test_every_column_keeps_its_own_codec(tmp_path: Path) -> None:
    codecs = {"id": "GZIP", "text": "SNAPPY", "messages.list.element.role": "ZSTD"}
    whole = table(5).select(["id", "text", "messages"])
    pq.write_table(whole, tmp_path / "log.parquet", compression=codecs)
    write_parquet(tmp_path / "log.parquet", tmp_path / "out.parquet", [(None, np.ones(5))])
    group = pq.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0)
    found = {group.column(n).path_in_schema: group.column(n).compression for n in range(group.num_columns)}
    assert {name: found[name] for name in codecs} == codecs


def test_a_log_that_has_another_number_of_rows_than_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"a":1}\n{"a":2}\n')
    for weights in (np.ones(1), np.ones(3)):
        with pytest.raises(ValueError, match="zip"):
            write_jsonl(tmp_path / "log.jsonl", tmp_path / "out", [(None, weights)], replace=False)
