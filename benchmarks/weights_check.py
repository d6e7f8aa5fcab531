"""Whether what the contenders of one task wrote is the log that they were given, with the right weights.

python weights_check.py FORM SOURCE CONTENDER=OUTPUT...     exit code 1 and a message unless all agree

Rows are found again by a fingerprint of everything they hold, so that an output may have any order. Each
weight is compared with the one known from how the log was made, and with ours. Suffix legend: N rows,
M messages.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq
from numpy.typing import NDArray
from weights_data import mix, truth_file

TOLERANCE = 1e-9
"""Relative."""
ROWS = 1 << 18


def check_outputs(form: str, source: Path, outputs: Mapping[str, Path]) -> None:
    """Refuse an output that is not `source` with its weights.

    Raises:
        ValueError: other rows, a weight that is off, or one that is not ours; contender and row are named.
    """
    truth_N = np.load(truth_file(source))
    key_N = np.arange(len(truth_N), dtype=np.uint64) if form == "side" else fingerprints(source)
    place_N = np.argsort(key_N, kind="stable")
    found = {}
    for name, output in outputs.items():
        own_key_N = _column(output, "row").astype(np.uint64) if form == "side" else fingerprints(output)
        order_N = np.argsort(own_key_N, kind="stable")
        if not np.array_equal(own_key_N[order_N], key_N[place_N]):
            raise ValueError(f"{name}: {output.name} does not hold the rows of {source.name}")
        found[name] = np.empty(len(truth_N))
        found[name][place_N] = _column(output, "weight")[order_N]
        _refuse_other(name, found[name], truth_N, "the true weight")
    for name, weight_N in found.items():
        _refuse_other(name, weight_N, found.get("ours", truth_N), "our weight")


def fingerprints(path: Path) -> NDArray[np.uint64]:
    """A number for all that a row holds but its weight; of messages, their roles' and contents' lengths."""
    return np.concatenate([_fingerprint(batch) for batch in _batches(path)])


def _column(path: Path, name: str) -> NDArray[Any]:
    return np.concatenate([batch.column(0).to_numpy() for batch in _batches(path, [name])])


def _refuse_other(
    name: str, weight_N: NDArray[np.float64], wanted_N: NDArray[np.float64], what: str
) -> None:
    bad_N = ~(np.abs(weight_N - wanted_N) <= TOLERANCE * wanted_N)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(
            f"{name}: {np.count_nonzero(bad_N)} weights differ from {what}, the first in row {row}: "
            f"{weight_N[row]!r} against {wanted_N[row]!r}"
        )


def _batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path, pre_buffer=False).iter_batches(batch_size=ROWS, columns=columns)
    else:
        # A line may not straddle three blocks.
        table = pj.read_json(path, read_options=pj.ReadOptions(block_size=1 << 24))
        yield from (table if columns is None else table.select(columns)).to_batches()


def _fingerprint(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    found_N = np.zeros(batch.num_rows, np.uint64)
    for name in sorted(set(batch.schema.names) - {"weight"}):
        for word_N in _words(batch.column(name)):
            found_N = mix(found_N ^ word_N)
    return found_N


def _words(column: pa.Array) -> Iterator[NDArray[np.uint64]]:
    if pa.types.is_integer(column.type):
        yield column.to_numpy().astype(np.uint64)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        messages, row_M = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
        for name in ("role", "content"):
            length_M = pc.binary_length(messages.field(name)).to_numpy()
            yield np.bincount(row_M, length_M, len(column)).astype(np.uint64)
    else:
        yield from _text_words(column.cast(pa.binary()))


def _text_words(column: pa.Array) -> Iterator[NDArray[np.uint64]]:
    """The hexadecimal digits of each row, eight in a word."""
    start_N = np.frombuffer(column.buffers()[1], np.int32)[column.offset :][: len(column) + 1]
    digits = np.frombuffer(column.buffers()[2], np.uint8)[start_N[0] : start_N[-1]]
    yield from np.ascontiguousarray(digits).view(np.uint64).reshape(len(column), -1).T


if __name__ == "__main__":
    pairs = (word.split("=", 1) for word in sys.argv[3:])
    check_outputs(sys.argv[1], Path(sys.argv[2]), {name: Path(output) for name, output in pairs})
