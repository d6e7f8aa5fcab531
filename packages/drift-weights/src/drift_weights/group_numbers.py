"""Numbers for group keys that come in batches, without keeping the keys.

Suffix legend: N rows of a batch, G groups so far, W words of a key.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift_weights.arrays import to_arrow, to_numpy

_LONG = 256
"""Bytes from which on a key is hashed one by one; most keys are shorter and hashed in columns."""
_LOOK = 256
"""Rows looked at to see whether groups stand together."""
_CHUNK = 1 << 15
"""Rows hashed at a time, so that their words stay in the processor's cache."""


class GroupNumbers:
    """Gives every distinct key the next number; equal keys get equal numbers in any later batch.

    A key is remembered as a 128-bit hash under a random seed, 16 bytes however long it is, in an
    open-addressing table of 32-bit numbers. Two keys of a log share a hash with probability below
    G²/2^129, about 10⁻²⁴ for ten million groups; no result depends on the seed.
    """

    def __init__(self) -> None:
        self._count = 0
        self._hash_G2 = np.empty((1024, 2), np.uint64)
        self._slots = np.full(4096, -1, np.int32)
        random = np.frombuffer(secrets.token_bytes(3 * (_LONG + 24)), np.uint64)
        # Odd, so that multiplying by them loses nothing.
        self._seeds = random.reshape(3, -1) | np.uint64(1)

    def __len__(self) -> int:
        return self._count

    def number(self, columns: Sequence[pa.Array]) -> NDArray[np.int32]:
        """The number of each row's key, shape [N]; a key is one value or one of each column.

        The columns of every batch must have the same types, without nulls.
        """
        hash_N2 = self.hash(columns)
        starts = _run_starts(hash_N2)
        if starts is None:
            self._reserve(len(hash_N2))
            return self._find(hash_N2)
        self._reserve(len(starts))
        return _repeated(self._find(hash_N2[starts]), starts, len(hash_N2))

    def hash(self, columns: Sequence[pa.Array]) -> NDArray[np.uint64]:
        """The 128-bit hash of each row's key as two words, shape [N, 2]; the same seed for every call."""
        hash_N2 = self._hash(columns[0])
        for column in columns[1:]:
            hash_N2 = _mix(hash_N2 * np.uint64(0x9E3779B97F4A7C15) + self._hash(column))
        return hash_N2

    def _find(self, hash_N2: NDArray[np.uint64]) -> NDArray[np.int32]:
        code_N = np.empty(len(hash_N2), np.int32)
        todo = np.arange(len(hash_N2))
        slot = self._slot(hash_N2)
        mask = len(self._slots) - 1
        while len(todo):
            self._claim(hash_N2, todo, slot)
            found = self._slots[slot]
            same = (self._hash_G2[found] == hash_N2[todo]).all(axis=1)
            code_N[todo[same]] = found[same]
            todo, slot = todo[~same], (slot[~same] + 1) & mask
        return code_N

    def _claim(self, hash_N2: NDArray[np.uint64], todo: NDArray[np.int64], slot: NDArray[np.int64]) -> None:
        """Give each empty slot to one of the rows that ask for it."""
        asking = np.flatnonzero(self._slots[slot] < 0)
        if not len(asking):
            return
        # The last write to a slot stays; who reads its own mark back has won it.
        self._slots[slot[asking]] = asking
        won = asking[self._slots[slot[asking]] == asking]
        numbers = np.arange(self._count, self._count + len(won), dtype=np.int32)
        self._slots[slot[won]] = numbers
        self._hash_G2[numbers] = hash_N2[todo[won]]
        self._count += len(won)

    def _slot(self, hash_N2: NDArray[np.uint64]) -> NDArray[np.int64]:
        return (hash_N2[:, 0] & np.uint64(len(self._slots) - 1)).astype(np.int64)

    def _reserve(self, rows: int) -> None:
        """Room for a batch of new keys, with the table at most half full."""
        needed = self._count + rows
        if needed > len(self._hash_G2):
            grown = np.empty((max(needed, self._count + self._count // 4), 2), np.uint64)
            grown[: self._count] = self._hash_G2[: self._count]
            self._hash_G2 = grown
        if 2 * needed <= len(self._slots):
            return
        self._slots = np.full(1 << int(2 * needed - 1).bit_length(), -1, np.int32)
        self._put_back()

    def _put_back(self) -> None:
        todo = np.arange(self._count, dtype=np.int32)
        slot = self._slot(self._hash_G2[: self._count])
        while len(todo):
            empty = self._slots[slot] < 0
            self._slots[slot[empty]] = todo[empty]
            lost = self._slots[slot] != todo
            todo, slot = todo[lost], (slot[lost] + 1) & (len(self._slots) - 1)

    def _hash(self, column: pa.Array) -> NDArray[np.uint64]:
        """Two 64-bit hashes a row, shape [N, 2]."""
        hash_N2 = np.empty((len(column), 2), np.uint64)
        for start in range(0, len(column), _CHUNK):
            words_NW = _words(column.slice(start, _CHUNK))
            rows = slice(start, start + len(words_NW))
            starts = _run_starts(words_NW)
            if starts is None:
                hash_N2[rows] = self._mixed(words_NW)
            else:
                hash_N2[rows] = _repeated(self._mixed(words_NW[starts]), starts, len(words_NW))
        return _mix(hash_N2)

    def _mixed(self, words_NW: NDArray[np.uint64]) -> NDArray[np.uint64]:
        spread, first, second = self._seeds[:, : words_NW.shape[1]]
        # A zero word adds nothing, so that a key's hash does not depend on its neighbours' lengths.
        mixed_NW = _mix(words_NW * spread)
        sums = [(mixed_NW * seeds).sum(axis=1, dtype=np.uint64) for seeds in (first, second)]
        return np.stack(sums, axis=1)


def _run_starts(key_NW: NDArray[np.uint64]) -> NDArray[np.int64] | None:
    """Where a key differs from the one before; None where a look at the first rows says that most do."""
    if len(key_NW) < 2 * _LOOK or (key_NW[1:_LOOK] != key_NW[: _LOOK - 1]).any(axis=1).mean() > 0.5:
        return None
    changed_N = (key_NW[1:] != key_NW[:-1]).any(axis=1)
    return np.concatenate([[0], np.flatnonzero(changed_N) + 1])


def _repeated(values: NDArray[Any], starts: NDArray[np.int64], rows: int) -> NDArray[Any]:
    """One value a run as one a row."""
    return np.repeat(values, np.diff(starts, append=rows), axis=0)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over its word; a bijection that leaves 0 as it is."""
    words ^= words >> np.uint64(32)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(29)
    return words


def _words(column: pa.Array) -> NDArray[np.uint64]:
    """Keys as rows of 64-bit words, shape [N, W]; different keys of one type have different rows."""
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        whole_N = to_numpy(column if column.type == pa.uint64() else column.cast(pa.int64()))
        words_N1 = np.asarray(whole_N.astype(np.uint64)[:, None])
        if column.type != pa.uint64():
            return words_N1
        # Beyond 2⁶³ the bits are those of a negative number; a second word tells them apart.
        return np.column_stack([words_N1, words_N1 >> np.uint64(63)])
    if pa.types.is_floating(column.type):
        # −0.0 + 0.0 is 0.0: equal numbers, equal bits.
        real_N = to_numpy(column.cast(pa.float64())) + 0.0
        return np.asarray(real_N.view(np.uint64)[:, None])
    binary = column.cast(pa.large_string()).cast(pa.large_binary())
    length_N = to_numpy(pc.binary_length(binary))
    long = np.flatnonzero(length_N > _LONG)
    if len(long):
        digests = [
            hashlib.blake2b(binary[row].as_buffer(), digest_size=16).digest() for row in long.tolist()
        ]
        short = pc.if_else(to_arrow(length_N > _LONG), pa.scalar(b"", pa.large_binary()), binary)
        words_NW = _padded(short, length_N)
        words_NW[long, 1:3] = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        return words_NW
    return _padded(binary, length_N)


def _padded(binary: pa.Array, length_N: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The length, then the bytes padded with zeros, as words."""
    offsets = np.frombuffer(binary.buffers()[1], np.int64, len(binary) + 1, 8 * binary.offset)
    data = np.frombuffer(binary.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    size_N = np.diff(offsets)
    longest = int(size_N.max(initial=0))
    words_NW = np.zeros((len(binary), max(3, 1 + (longest + 7) // 8)), np.uint64)
    words_NW[:, 0] = length_N.astype(np.uint64)
    if longest and longest % 8 == 0 and longest * len(binary) == len(data):
        words_NW[:, 1 : 1 + longest // 8] = data.reshape(len(binary), longest).view("<u8")
    else:
        bytes_NB = words_NW[:, 1:].copy().view(np.uint8)
        bytes_NB[np.arange(bytes_NB.shape[1]) < size_N[:, None]] = data
        words_NW[:, 1:] = bytes_NB.view("<u8")
    return words_NW
