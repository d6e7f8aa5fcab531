"""What the pages of a Parquet file say of themselves, before anything is decoded.

Arrow believes a page: it takes as much memory as the page claims to need. So claims are looked at first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DATA, DICTIONARY, DATA_V2 = 0, 2, 3
"""Types of pages; any other is passed over."""

BY_DICTIONARY = (2, 8)
"""Encodings of values as numbers of a dictionary's entries."""
BY_LENGTH = (6, 7)
"""Encodings of text as lengths; all lengths of a page are decoded at once."""
BY_PREFIX = 7
"""The encoding of text as what differs from the text before."""

_WINDOWS = (512, 1 << 16, 1 << 24)
"""Bytes that may hold a header: its statistics are as long as the values are. Arrow reads no longer one."""
_HEADERS = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}
_PLAIN_SIZES = {3: 1, 7: 8}
"""Bytes of Thrift's types of one size: a byte, a double."""
_SLICE = 1 << 16


class PageError(ValueError):
    """A page that cannot be what it says."""


class Page(NamedTuple):
    """One page's header, and where its bytes are."""

    kind: int
    size: int
    """Bytes once decompressed."""
    held: int
    """Bytes in the file."""
    values: int
    """Of a list's column, the elements and the empty lists."""
    encoding: int
    at: int
    levels: tuple[int, int] = (0, 0)
    """Of a page of the second version: bytes of the levels that say where rows begin, and what is null."""
    packed: bool = True
    """Whether it is compressed, where its column is."""


def pages(file: int, start: int, held: int, values: int) -> Iterator[Page]:
    """The pages of a column chunk, up to `values` values, which is where Arrow ends, too.

    Args:
        file: descriptor.
        start: where the chunk begins.
        held: its bytes in the file.
        values: that it claims.

    Raises:
        PageError: a header that is none, or pages that do not hold `values` values.
    """
    at, end, seen = start, start + held, 0
    while seen < values:
        if at >= end:
            raise PageError(f"its pages hold {seen} values and {values} are claimed")
        page = _page(file, at, end)
        yield page
        at = page.at + page.held
        if page.kind in (DATA, DATA_V2):
            seen += page.values
    if seen != values:
        raise PageError(f"its pages claim {seen} values and {values} are claimed for all of them")


def content(file: int, page: Page, codec: str) -> bytes:
    """A page's bytes, decompressed; of the second version, without its levels.

    Raises:
        PageError: they are not what the header says.
    """
    front = sum(page.levels)
    data = os.pread(file, page.held - front, page.at + front)
    if codec == "UNCOMPRESSED" or not page.packed:
        return data
    # Parquet's own LZ4 has no frame.
    name = "lz4_raw" if codec == "LZ4" else codec.lower()
    try:
        return bytes(pa.Codec(name).decompress(data, page.size - front, asbytes=True))
    except (OSError, pa.ArrowException) as error:
        raise PageError(f"a page is broken: {error}") from error


def row_starts(file: int, page: Page, codec: str) -> bytes:
    """The levels of a page of lists that say where rows begin.

    Raises:
        PageError: the page is broken.
    """
    if page.kind == DATA_V2:
        return os.pread(file, page.levels[0], page.at)
    data = content(file, page, codec)
    return data[4 : _after_levels(data, 0)]


def entry_numbers(
    file: int, page: Page, codec: str, levels: int
) -> Iterator[tuple[NDArray[np.uint32], int]]:
    """The numbers of the dictionary's entries that a page's values are, each with how often it stands.

    Args:
        levels: how many kinds of levels stand before the values, 0 to 2.

    Raises:
        PageError: the page is broken.
    """
    data, at = content(file, page, codec), 0
    for _ in range(levels if page.kind == DATA else 0):
        at = _after_levels(data, at)
    # A page of nulls may end here.
    bits = data[at] if at < len(data) else 0
    if bits > 32:
        raise PageError(f"its numbers have {bits} bits")
    if bits == 0:
        yield np.zeros(1, np.uint32), page.values
        return
    yield from runs(memoryview(data)[at + 1 :], bits, page.values, whole=False)


def _after_levels(data: bytes, at: int) -> int:
    size = int.from_bytes(data[at : at + 4], "little")
    if at + 4 + size > len(data):
        raise PageError("a page ends before its levels do")
    return at + 4 + size


def runs(
    data: bytes | memoryview, bits: int, values: int, *, whole: bool = True
) -> Iterator[tuple[NDArray[np.uint32], int]]:
    """Numbers in Parquet's mixture of runs of one number and numbers packed bit by bit, some at a time.

    Args:
        bits: of a number, 1 to 32.
        values: numbers at most.
        whole: there must be as many.

    Yields:
        Numbers, and how often they stand: once each where there are several.

    Raises:
        PageError: the data end too early.
    """
    at, size = 0, (bits + 7) // 8
    while values > 0 and (whole or at < len(data)):
        try:
            head, at = _varint(data, at)
        except IndexError as error:
            raise PageError("a page ends before its numbers do") from error
        length = (head >> 1) * bits if head & 1 else size
        if head < 2 or at + length > len(data):
            raise PageError("a page ends before its numbers do")
        if head & 1:
            count = min(values, head >> 1 << 3)
            yield from ((part_N, 1) for part_N in _unpacked(data[at : at + length], bits, count))
        else:
            count = min(values, head >> 1)
            yield np.array([int.from_bytes(data[at : at + length], "little")], np.uint32), count
        at += length
        values -= count


def _unpacked(packed: bytes | memoryview, bits: int, count: int) -> Iterator[NDArray[np.uint32]]:
    for first in range(0, count, _SLICE):
        part = np.frombuffer(packed[first // 8 * bits : (first + _SLICE) // 8 * bits], np.uint8)
        bit_NB = np.unpackbits(part, bitorder="little").reshape(-1, bits)
        wide_NB = np.zeros((len(bit_NB), 32), np.uint8)
        wide_NB[:, :bits] = bit_NB
        number_N = np.packbits(wide_NB, axis=1, bitorder="little").view("<u4")[:, 0]
        yield number_N[: count - first]


def longest_text(entries: bytes) -> int:
    """Bytes of the longest of texts that stand behind their lengths, as a dictionary's page holds them.

    Raises:
        PageError: a length beyond the page.
    """
    size = len(entries)
    first = int.from_bytes(entries[:4], "little")
    if size % (first + 4) == 0 and _all_are(entries, first):
        return first
    at = longest = 0
    while at + 4 <= size:
        length = entries[at] | entries[at + 1] << 8 | entries[at + 2] << 16 | entries[at + 3] << 24
        longest = max(longest, length)
        at += 4 + length
    if at != size:
        raise PageError("a text of the dictionary is longer than the dictionary")
    return longest


def _all_are(entries: bytes, length: int) -> bool:
    """Whether all texts have one length, as ids have; quicker than a look at each."""
    heads = np.frombuffer(entries, np.uint8).reshape(-1, length + 4)[:, :4]
    return bool((heads == heads[0]).all())


@dataclass(kw_only=True, slots=True)
class RowLengths:
    """The values of the longest row, found from where rows begin; page by page."""

    bits: int
    """Of a level."""
    longest: int = 0
    current: int = 0
    """Values of the row that is not over yet."""

    def add(self, levels: bytes, values: int) -> None:
        """One page's levels; a row begins where the level is 0.

        Raises:
            PageError: levels that end before the values do.
        """
        for level_N, times in runs(levels, self.bits, values):
            if times > 1:
                self.current = 1 if level_N[0] == 0 else self.current + times
            else:
                self._several(np.flatnonzero(level_N == 0), len(level_N))
            self.longest = max(self.longest, self.current)

    def _several(self, start_N: NDArray[np.intp], count: int) -> None:
        if len(start_N) == 0:
            self.current += count
            return
        self.longest = max(self.longest, self.current + int(start_N[0]))
        self.longest = max(self.longest, int(np.diff(start_N).max(initial=0)))
        self.current = count - int(start_N[-1])


def _page(file: int, at: int, end: int) -> Page:
    for window in _WINDOWS:
        data = os.pread(file, min(window, end - at), at)
        try:
            fields, size = _struct(data, 0)
        except IndexError:
            if len(data) < window:
                break
            continue
        return _checked(fields, at + size, end)
    raise PageError("a page's header does not end")


def _checked(fields: dict[int, Any], at: int, end: int) -> Page:
    kind = fields.get(1, -1)
    header = fields.get(_HEADERS[kind]) if kind in _HEADERS else {1: 0, 2: 0}
    if type(header) is not dict:
        raise PageError("a page lacks the header of its kind")
    size, held, values, encoding = said = (
        fields.get(2), fields.get(3), header.get(1), header.get(4 if kind == DATA_V2 else 2)
    )  # fmt: skip
    levels = (header.get(6, 0), header.get(5, 0)) if kind == DATA_V2 else (0, 0)
    for number in (*said, *levels):
        if type(number) is not int or number < 0:
            raise PageError("a page's header lacks a number")
    if held > end - at or sum(levels) > min(held, size):
        raise PageError(f"a page claims {held} bytes where {end - at} are left")
    return Page(kind, size, held, values, encoding, at, levels, header.get(7) is not False)


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol: its 32-bit numbers, truths and structs, and where it ends.

    Raises:
        IndexError: the data end before it does.
        PageError: it is none that a page's header has.
    """
    if depth > 8:
        raise PageError("a page's header is nested too deeply")
    found: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        kind, step = head & 15, head >> 4
        at += 1
        if step:
            field += step
        else:
            # Numbers of fields rise, or one could stand twice, and which of them counts is anyone's guess.
            before = field
            number, at = _varint(data, at)
            field = number >> 1 ^ -(number & 1)
            if field <= before:
                raise PageError("a page's header has a field twice")
        if kind == 5:
            number, at = _varint(data, at)
            if number >> 32:
                raise PageError("a page's header has a number of more than 32 bits")
            found[field] = number >> 1 ^ -(number & 1)
        elif kind == 8:
            number, at = _varint(data, at)
            at += number
        elif kind in (1, 2):
            found[field] = kind == 1
        elif kind == 12:
            found[field], at = _struct(data, at, depth + 1)
        elif kind in _PLAIN_SIZES:
            at += _PLAIN_SIZES[kind]
        elif kind in (4, 6):
            _, at = _varint(data, at)
        else:
            raise PageError("a page's header is broken")
    return found, at + 1


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    found = data[at]
    at += 1
    if found < 128:
        return found, at
    found &= 127
    for shift in range(7, 64, 7):
        byte = data[at]
        at += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, at
    raise PageError("a page's header has a number without an end")
