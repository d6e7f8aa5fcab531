"""How often each row of a stream is drawn, by its weight and without keeping the rows.

Suffix legend: N rows of a batch, P rows of a part of the groups, G groups.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift_weights.arrays import to_arrow
from drift_weights.group_numbers import GroupNumbers
from drift_weights.outcomes import RowError
from drift_weights.weights import offset_of, systematic

_PARTS = 64
"""Parts of the groups, whose counts are worked out one after the other."""
_ROW = np.dtype(
    [
        ("code", np.int32),
        ("named", np.bool_),
        ("sample", np.int64),
        ("weight", np.float64),
        ("row", np.int64),
    ]
)
_DRAW = np.dtype([("count", np.int32), ("first", np.int32)])
"""How often a row is drawn, and the number of its first draw within its group."""


class Draw:
    """The counts of rows that come in batches; a few bytes a row, on disk once they are many."""

    def __init__(self, seed: int, epoch: int) -> None:
        self.seed, self.epoch = seed, epoch
        self.rows = 0
        self._numbers = GroupNumbers()
        self._offset_G = array("q")
        self._size_G = np.zeros(0, np.int64)
        # Closed with the draw.
        self._files = [SpooledTemporaryFile(max_size=1 << 18) for _ in range(_PARTS)]  # noqa: SIM115

    @property
    def groups(self) -> int:
        """Groups so far."""
        return len(self._numbers)

    def add(
        self, key_columns: Sequence[pa.Array], sample: pa.Array | None, weight_N: NDArray[np.float64]
    ) -> None:
        """Note a batch of rows.

        Args:
            key_columns: as `GroupNumbers.number` takes them; one value, or a tuple of them, is the key.
            sample: numbers the rows of a group; where it is no whole number a row's place counts.

        Raises:
            RowError: a weight that is negative or not finite; its row counts from the first of all.
        """
        refuse_bad_weights(weight_N, self.rows)
        code_N = self._numbers.number(key_columns)
        self._note_offsets(key_columns, code_N)
        found_N = np.empty(len(code_N), _ROW)
        found_N["code"], found_N["weight"] = code_N, weight_N
        found_N["row"] = np.arange(self.rows, self.rows + len(code_N))
        found_N["named"], found_N["sample"] = _numbered(sample, self._places(code_N))
        part_N = code_N % len(self._files)
        ends = np.cumsum(np.bincount(part_N, minlength=len(self._files)))
        parts = np.split(found_N[np.argsort(part_N, kind="stable")], ends[:-1])
        for file, rows_P in zip(self._files, parts, strict=True):
            file.write(rows_P.tobytes())
        self.rows += len(code_N)

    def counts(self) -> NDArray[Any]:
        """`count` and `first` of every row, in the order they came.

        Raises:
            RowError: a group holds a sample twice.
            ValueError: no row is drawn at all.
        """
        # Closed with the array.
        drawn = np.memmap(TemporaryFile(), _DRAW, mode="w+", shape=max(self.rows, 1))  # noqa: SIM115
        for file in self._files:
            file.seek(0)
            rows_P = np.frombuffer(file.read(), _ROW)
            drawn[rows_P["row"]] = _drawn(rows_P, self._offset_G)
        if not drawn["count"].any():
            raise ValueError("no row is drawn: the weights of each group sum to less than 1")
        return np.asarray(drawn[: self.rows])

    def _note_offsets(self, key_columns: Sequence[pa.Array], code_N: NDArray[np.int32]) -> None:
        """The offsets of groups that are new, so that their keys need not be kept."""
        new = np.flatnonzero(code_N >= len(self._offset_G))
        code, first = np.unique(code_N[new], return_index=True)
        assert not len(code) or code[0] == len(self._offset_G)
        rows = to_arrow(new[first])
        keys = zip(*(column.take(rows).to_pylist() for column in key_columns), strict=True)
        for key in keys:
            self._offset_G.append(offset_of(self.seed, self.epoch, key[0] if len(key) == 1 else key))

    def _places(self, code_N: NDArray[np.int32]) -> NDArray[np.int64]:
        """How many rows of its group came before each row."""
        if self.groups > len(self._size_G):
            more = np.zeros(self.groups - len(self._size_G) + self.groups // 8, np.int64)
            self._size_G = np.concatenate([self._size_G, more])
        order = np.argsort(code_N, kind="stable")
        sorted_N = code_N[order]
        place_N = np.empty(len(code_N), np.int64)
        place_N[order] = np.arange(len(code_N)) - np.searchsorted(sorted_N, sorted_N)
        place_N += self._size_G[code_N]
        np.add.at(self._size_G, code_N, 1)
        return place_N


def refuse_bad_weights(weight_N: NDArray[np.float64], first_row: int = 0) -> None:
    """Refuse weights that no trainer can use.

    Raises:
        RowError: a weight that is negative or not finite.
    """
    bad_N = ~(np.isfinite(weight_N) & (weight_N >= 0))
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise RowError(
            first_row + row, f"weight must be finite and not negative, got {weight_N[row]}; weigh it again"
        )


def _drawn(rows_P: NDArray[Any], offset_G: Sequence[int]) -> NDArray[Any]:
    """The draws of whole groups, in the order of the rows."""
    order_P = np.lexsort((rows_P["sample"], rows_P["code"]))
    sorted_P = rows_P[order_P]
    code_P, weight_P = sorted_P["code"], sorted_P["weight"]
    starts = np.flatnonzero(np.diff(code_P, prepend=-1))
    _refuse_repeated(sorted_P)
    drawn_P = np.empty(len(rows_P), _DRAW)
    for start, end in pairwise([*starts.tolist(), len(rows_P)]):
        drawn_P["count"][start:end] = systematic(weight_P[start:end], offset_G[code_P[start]])
    before_P = np.cumsum(drawn_P["count"]) - drawn_P["count"]
    drawn_P["first"] = before_P - np.repeat(before_P[starts], np.diff(starts, append=len(rows_P)))
    found_P = np.empty_like(drawn_P)
    found_P[order_P] = drawn_P
    return found_P


def _refuse_repeated(sorted_P: NDArray[Any]) -> None:
    earlier, later = sorted_P[:-1], sorted_P[1:]
    twice = (earlier["code"] == later["code"]) & (earlier["sample"] == later["sample"])
    twice &= earlier["named"] & later["named"]
    if twice.any():
        row = later[twice][0]
        raise RowError(
            int(row["row"]), f"sample {row['sample']} of its group is there twice; keep one of them"
        )


def _numbered(
    sample: pa.Array | None, place_N: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which rows have a whole number, and every row's number: its own, or its place."""
    if sample is None or not (pa.types.is_integer(sample.type) or pa.types.is_floating(sample.type)):
        return np.zeros(len(place_N), bool), place_N
    if pa.types.is_integer(sample.type):
        named_N = sample.is_valid().to_numpy(zero_copy_only=False)
        own_N = sample.cast(pa.int64()).fill_null(0).to_numpy()
    else:
        float_N = sample.cast(pa.float64()).to_numpy(zero_copy_only=False)
        named_N = np.abs(float_N) < 2**53
        named_N &= float_N == np.floor(float_N)
        own_N = np.where(named_N, float_N, 0).astype(np.int64)
    return named_N, np.where(named_N, own_N, place_N)
