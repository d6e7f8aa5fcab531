"""Whether a group holds a sample twice, without keeping the samples in memory.

Suffix legend: N rows, G groups.
"""

from __future__ import annotations

from tempfile import SpooledTemporaryFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift_weights.arrays import to_arrow, to_numpy
from drift_weights.group_numbers import GroupNumbers

_SMALL = 64
"""Whole samples below this are bits of one word a group."""
_AT_ONCE = 1 << 21
"""Other samples compared at a time."""
_RECORD = np.dtype([("code", np.int32), ("hash", np.uint64, 2)])


class Repeats:
    """Remembers which samples every group has: a bit each where they are small numbers, else on disk."""

    def __init__(self) -> None:
        self._seen_G = np.zeros(0, np.uint64)
        self._count_G = np.zeros(0, np.int32)
        self._hashing = GroupNumbers()
        self._others = SpooledTemporaryFile(max_size=1 << 24)  # noqa: SIM115 closed with the ledger
        self._other_rows = 0

    def add(self, code_N: NDArray[np.int32], sample: pa.Array, first_row: int, groups: int) -> None:
        """Note the samples of a batch; null samples are not compared."""
        if groups > len(self._seen_G):
            more = groups - len(self._seen_G) + groups // 8
            self._seen_G = np.concatenate([self._seen_G, np.zeros(more, np.uint64)])
            self._count_G = np.concatenate([self._count_G, np.zeros(more, np.int32)])
        small_N = np.zeros(len(code_N), bool)
        if pa.types.is_integer(sample.type):
            known = pc.fill_null(sample, _SMALL) if sample.null_count else sample
            number_N = to_numpy(known)
            small_N = (number_N >= 0) & (number_N < _SMALL)
            bit_N = np.uint64(1) << number_N[small_N].astype(np.uint64)
            np.bitwise_or.at(self._seen_G, code_N[small_N], bit_N)
            np.add.at(self._count_G, code_N[small_N], np.int32(1))
        other_N = ~small_N & to_numpy(sample.is_valid())
        if other_N.any():
            record = np.empty(int(other_N.sum()), _RECORD)
            record["code"] = code_N[other_N]
            record["hash"] = self._hashing.hash([sample.filter(to_arrow(other_N))])
            self._others.write(record.tobytes())
            self._other_rows += len(record)

    def first_group(self) -> int | None:
        """The number of a group that holds a sample twice; None if there is none."""
        twice = np.flatnonzero(np.bitwise_count(self._seen_G) != self._count_G)
        if len(twice):
            return int(twice[0])
        parts = -(-self._other_rows // _AT_ONCE)
        for part in range(parts):
            found = self._repeated_other(part, parts)
            if found is not None:
                return found
        return None

    def _repeated_other(self, part: int, parts: int) -> int | None:
        """Compare the samples of every `parts`-th group."""
        self._others.seek(0)
        kept = []
        while chunk := self._others.read(_RECORD.itemsize * _AT_ONCE):
            records = np.frombuffer(chunk, _RECORD)
            kept.append(records[records["code"] % parts == part])
        found = np.concatenate(kept)
        code_N, hash_N2 = found["code"], found["hash"]
        order = np.lexsort((hash_N2[:, 1], hash_N2[:, 0], code_N))
        code_N, hash_N2 = code_N[order], hash_N2[order]
        twice = (code_N[1:] == code_N[:-1]) & (hash_N2[1:] == hash_N2[:-1]).all(axis=1)
        return int(code_N[1:][twice][0]) if twice.any() else None
