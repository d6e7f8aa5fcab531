"""What the pages of a Parquet file say of themselves, before anything is decoded.

Arrow believes a page: it takes as much memory as the page claims to need. So claims are looked at first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

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
_ENCODING = {DATA: 2, DICTIONARY: 2, DATA_V2: 4}
_SLICE = 1 << 16


class PageError(ValueError):
    """A page that cannot be what it says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page's header, and where its bytes are."""

    kind: int
    size: int
    """Bytes once decompressed."""
    held: int
    """Bytes in the file."""
    values: int
    """Of a list's column, the elements and the empty lists."""
    encoding: int
    starts: int
    """Bytes at the front that say where rows begin, of the second version of pages; never compressed."""
    at: int


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
    """The decompressed bytes of a dictionary or of a data page of the first version.

    Raises:
        PageError: they are not what the header says.
    """
    data = os.pread(file, page.held, page.at)
    if codec == "UNCOMPRESSED":
        return data
    # Parquet's own LZ4 has no frame.
    name = "lz4_raw" if codec == "LZ4" else codec.lower()
    try:
        return bytes(pa.Codec(name).decompress(data, page.size, asbytes=True))
    except (OSError, pa.ArrowException) as error:
        raise PageError(f"a page is broken: {error}") from error


def row_starts(file: int, page: Page, codec: str) -> bytes:
    """The levels of a page of lists that say where rows begin.

    Raises:
        PageError: the page is broken.
    """
    if page.kind == DATA_V2:
        return os.pread(file, page.starts, page.at)
    data = content(file, page, codec)
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size > len(data) - 4:
        raise PageError("a page ends before its levels do")
    return data[4 : 4 + size]


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
        """One page's levels: runs of one level, and levels packed bit by bit.

        Raises:
            PageError: levels that end before the values do.
        """
        at = 0
        while values > 0:
            try:
                run, at = _varint(levels, at)
            except IndexError as error:
                raise PageError("a page ends before its levels do") from error
            count = min(values, run >> 1 << (3 if run & 1 else 0))
            if run & 1:
                size = (run >> 1) * self.bits
                self._packed(levels[at : at + size], count)
            else:
                size = (self.bits + 7) // 8
                self._run(any(levels[at : at + size]), count)
            if count == 0 or at + size > len(levels):
                raise PageError("a page ends before its levels do")
            at += size
            values -= count

    def _run(self, inside: bool, count: int) -> None:
        if inside:
            self.current += count
        else:
            self.current = 1
        self.longest = max(self.longest, self.current)

    def _packed(self, packed: bytes, count: int) -> None:
        for first in range(0, count, 8 * _SLICE):
            begin = first // 8 * self.bits
            part = np.frombuffer(packed[begin : begin + _SLICE * self.bits], np.uint8)
            level_N = np.unpackbits(part, bitorder="little").reshape(-1, self.bits)[: count - first]
            start_N = np.flatnonzero(~level_N.any(axis=1))
            before = self.current
            self.current = before + len(level_N)
            if len(start_N):
                self.longest = max(self.longest, before + int(start_N[0]))
                self.longest = max(self.longest, int(np.diff(start_N).max(initial=0)))
                self.current = len(level_N) - int(start_N[-1])
            self.longest = max(self.longest, self.current)


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
    if not isinstance(header, dict):
        raise PageError("a page lacks the header of its kind")
    starts = header.get(6, 0) if kind == DATA_V2 else 0
    said = (fields.get(2), fields.get(3), header.get(1), header.get(_ENCODING.get(kind, 2)), starts)
    numbers = [number for number in said if isinstance(number, int) and number >= 0]
    if len(numbers) < len(said):
        raise PageError("a page's header lacks a number")
    size, held, values, encoding, starts = numbers
    if held > end - at or starts > held:
        raise PageError(f"a page claims {held} bytes where {end - at} are left")
    return Page(kind=kind, size=size, held=held, values=values, encoding=encoding, starts=starts, at=at)


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol: its 32-bit numbers and structs by field, and where it ends.

    Raises:
        IndexError: the data end before it does.
        PageError: it is none that a page's header has.
    """
    if depth > 8:
        raise PageError("a page's header is nested too deeply")
    found: dict[int, Any] = {}
    field = 0
    while data[at]:
        kind, step = data[at] & 15, data[at] >> 4
        at += 1
        before = field
        if step:
            field += step
        else:
            number, at = _varint(data, at)
            field = number >> 1 ^ -(number & 1)
        if field <= before:
            raise PageError("a page's header has a field twice")
        if kind == 12:
            found[field], at = _struct(data, at, depth + 1)
        elif kind in (4, 5, 6):
            number, at = _varint(data, at)
            if kind == 5:
                if number >> 32:
                    raise PageError("a page's header has a number of more than 32 bits")
                found[field] = number >> 1 ^ -(number & 1)
        elif kind == 8:
            number, at = _varint(data, at)
            at += number
        elif kind in (3, 7):
            at += 1 if kind == 3 else 8
        elif kind not in (1, 2):
            raise PageError("a page's header is broken")
    return found, at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
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
