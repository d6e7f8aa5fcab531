"""A log again with a weight in each row, or the weights alone. Suffix legend: N rows of a batch."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drift_weights.arrays import to_arrow
from drift_weights.files import file_lines, open_parquet, parquet_batches
from drift_weights.json_bytes import append_value, array_elements, put_value

Kept = tuple[NDArray[np.bool_] | None, NDArray[np.float64]]
"""For a batch of rows of the log, in order: which of them stay (None for all), and the weight of each."""

_BATCH_BYTES = 1 << 25

SIDE = pa.schema(
    [pa.field("row", pa.int64(), nullable=False), pa.field("weight", pa.float64(), nullable=False)]
)
"""Weights alone: `row` counts the log's trajectories from 0."""


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, which becomes `target` when the block ends well.

    The bytes are on disk before the name is: a kill or a power cut leaves the old file or the new one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.writing-{os.getpid()}")
    try:
        yield scratch
        sync(scratch)
        scratch.rename(target)
        sync(target.parent)
    finally:
        scratch.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_side(target: Path, batches: Iterable[Kept]) -> None:
    """Write the weights alone, as Parquet with the columns `row` and `weight`."""
    with pq.ParquetWriter(target, SIDE, compression="zstd", use_dictionary=["weight"]) as writer:
        first = 0
        for keep_N, weight_N in batches:
            row_N = np.arange(first, first + len(weight_N))
            first += len(weight_N)
            if keep_N is not None:
                row_N, weight_N = row_N[keep_N], weight_N[keep_N]
            writer.write_batch(pa.record_batch([to_arrow(row_N), to_arrow(weight_N)], schema=SIDE))


def write_jsonl(source: Path, target: Path, batches: Iterable[Kept], *, replace: bool) -> None:
    """Write each line with `weight` before its closing brace; every other byte stays.

    Args:
        replace: the lines may have a `weight`, whose value is replaced where it stands.

    Raises:
        ValueError: a name that a line has twice, where a value is replaced.
    """
    put = put_value if replace else append_value
    with target.open("wb", buffering=1 << 20) as out:
        rows = zip(file_lines(source), _encoded(batches), strict=True)
        for number, (line, value) in enumerate(rows, start=1):
            if value is None:
                continue
            try:
                out.write(put(line, value))
            except ValueError as error:
                raise ValueError(f"{source}, line {number}: {error}") from error


def write_array(source: Path, target: Path, batches: Iterable[Kept]) -> None:
    """Write a JSON array with `weight` in each of its objects; every other byte of a kept object stays."""
    values = _encoded(batches)
    with source.open("rb") as file, target.open("wb", buffering=1 << 20) as out:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        kept = 0
        for number, (gap, element) in enumerate(array_elements(data)):
            value = next(values) if element else None
            if number == 0 or not element:
                out.write(gap)
            elif value is not None:
                # Where nothing was kept so far, there is nothing to part.
                out.write(gap if kept else gap.replace(b",", b""))
            if value is not None:
                out.write(put_value(element, value))
                kept += 1


def write_parquet(source: Path, target: Path, batches: Iterable[Kept]) -> None:
    """Write the same columns, codecs and metadata with `weight` behind them, a row group at a time."""
    parquet = open_parquet(source)
    names = [name for name in parquet.schema_arrow.names if name != "weight"]
    fields = [parquet.schema_arrow.field(name) for name in names]
    fields.append(pa.field("weight", pa.float64(), nullable=False))
    schema = pa.schema(fields, metadata=parquet.schema_arrow.metadata)
    take = _Taken(batches)
    try:
        codecs = codecs_of(parquet)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is no readable Parquet file: {error}") from error
    with pq.ParquetWriter(target, schema, compression=codecs) as writer:
        for batch in parquet_batches(source, batch_rows(parquet), names):
            keep_N, weight_N = take(batch.num_rows)
            columns = [batch.column(name) for name in names]
            found = pa.record_batch([*columns, to_arrow(weight_N)], schema=schema)
            writer.write_batch(found if keep_N is None else found.filter(to_arrow(keep_N)))


def _encoded(batches: Iterable[Kept]) -> Iterator[bytes | None]:
    """Each weight as JSON, None for a row that is dropped."""
    for keep_N, weight_N in batches:
        values: list[bytes | None] = [*msgspec.json.encode(weight_N.tolist())[1:-1].split(b",")]
        if keep_N is not None:
            for row in np.flatnonzero(~keep_N).tolist():
                values[row] = None
        yield from values


class _Taken:
    """Weights handed out in other portions than they come in."""

    def __init__(self, batches: Iterable[Kept]) -> None:
        self._batches = iter(batches)
        self._keep_N = np.zeros(0, bool)
        self._weight_N = np.zeros(0)

    def __call__(self, rows: int) -> Kept:
        while len(self._weight_N) < rows:
            keep_N, weight_N = next(self._batches)
            keep_N = np.ones(len(weight_N), bool) if keep_N is None else keep_N
            self._keep_N = np.concatenate([self._keep_N, keep_N])
            self._weight_N = np.concatenate([self._weight_N, weight_N])
        keep_N, self._keep_N = np.split(self._keep_N, [rows])
        weight_N, self._weight_N = np.split(self._weight_N, [rows])
        return (None if keep_N.all() else keep_N), weight_N


def codecs_of(parquet: pq.ParquetFile) -> dict[str, str]:
    """Column → codec as the file has them."""
    if parquet.metadata.num_row_groups == 0:
        return {}
    group = parquet.metadata.row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    found = {chunk.path_in_schema: chunk.compression for chunk in chunks}
    return {name: "NONE" if codec == "UNCOMPRESSED" else codec for name, codec in found.items()}


def batch_rows(parquet: pq.ParquetFile) -> int:
    """Rows of about 32 MB, so that memory does not grow with the rows' width."""
    groups = range(parquet.metadata.num_row_groups)
    size = sum(int(parquet.metadata.row_group(group).total_byte_size) for group in groups)
    rows = _BATCH_BYTES * int(parquet.metadata.num_rows) // max(size, 1)
    return max(256, min(1 << 17, rows))
