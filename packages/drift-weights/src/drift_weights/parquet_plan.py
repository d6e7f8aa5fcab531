"""How many rows of a Parquet file may be decoded at once, from what its pages claim.

A page of some bytes can stand for gigabytes: one long text of a dictionary that a million rows repeat, one
row of a billion elements, a size that nothing stands behind. Suffix legend: G row groups.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from drift_weights.parquet_pages import (
    BY_DICTIONARY,
    BY_LENGTH,
    BY_PREFIX,
    DATA,
    DATA_V2,
    DICTIONARY,
    Page,
    PageError,
    RowLengths,
    content,
    entry_numbers,
    longest_text,
    pages,
    row_starts,
)

BATCH_BYTES = 1 << 27
"""Decoded at once without a closer look."""
FREE_BYTES = 1 << 28
"""What one row may need however small the file is."""
RATIO = 64
"""What one row may need a byte of the file; real data need 10, and 40 where texts repeat themselves."""
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 8}
CLOSER = BATCH_BYTES >> 5
"""What a column may need of a batch without a look at its texts."""
_LONG_TEXT = 512


@dataclass(kw_only=True, slots=True)
class Chunk:
    """What one column of one row group claims."""

    file: int
    codec: str
    text: bool
    lists: int
    """Depth of lists around a value."""
    levels: int
    """Kinds of levels before the values of a page, 0 to 2."""
    rows: int
    values: int
    width: int
    """Bytes in memory a value, beside its text."""
    held: int
    """Bytes in the file."""
    most: int
    """At most the values of one row."""
    coded: int = 0
    """Values by dictionary."""
    longest: int = 0
    """At most the bytes of a text of the dictionary."""
    from_dictionary: int | None = None
    """At most the bytes of all values by dictionary, once they have been looked at."""
    prefixed: int = 0
    """Values that are told by what differs from the one before."""
    prefix: int = 0
    """At most the bytes of such a one."""
    plain: int = 0
    """Bytes of the other texts."""
    dictionary: Page | None = None
    largest: int = 0
    """Bytes to read a page of data."""
    data: list[Page] = field(default_factory=list)
    """The pages that may have to be looked into, of lists and of texts by dictionary."""

    def add(self, page: Page) -> None:
        """Take in what a page claims."""
        if page.kind == DICTIONARY:
            if page.values > (page.size // 4 if self.text else page.size):
                raise PageError(f"{page.values} entries are claimed of a dictionary of {page.size} bytes")
            self.dictionary = page
            self.longest = max(self.longest, page.size)
            return
        # The lengths of all texts of such a page are decoded at once.
        lengths = 8 * page.values if page.encoding in BY_LENGTH else 0
        self.largest = max(self.largest, page.size + lengths)
        by_dictionary = page.encoding in BY_DICTIONARY
        if page.kind in (DATA, DATA_V2) and (self.lists or (self.text and by_dictionary)):
            self.data.append(page)
        if by_dictionary:
            self.coded += page.values
        elif page.encoding == BY_PREFIX:
            self.prefixed += page.values
            self.prefix = max(self.prefix, page.size)
        else:
            self.plain += page.size

    def needs(self, rows: int) -> int:
        """Bytes of `rows` rows in memory, at most."""
        values = min(self.values, rows * self.most)
        if not self.text:
            return values * self.width
        others = max(self.values - self.coded - self.prefixed, 1)
        plain = min(self.plain, -(-values * self.plain // others))
        coded = min(self.coded, values) * self.longest
        if self.from_dictionary is not None:
            coded = min(coded, self.from_dictionary)
        return values * self.width + coded + min(self.prefixed, values) * self.prefix + plain

    @property
    def pages_need(self) -> int:
        """Bytes to read its pages, compressed and not."""
        entries = self.dictionary.size + 16 * self.dictionary.values if self.dictionary else 0
        return 2 * self.largest + entries

    def look_closer(self, rows: int) -> None:
        """Replace what could be at most by what is.

        Raises:
            PageError: pages that are broken.
        """
        if self.text and self.dictionary is not None:
            coded = [page for page in self.data if page.encoding in BY_DICTIONARY]
            # Of long texts the numbers are less to read than the texts are.
            if self.coded * _LONG_TEXT < self.dictionary.size:
                self.from_dictionary = self.dictionary.size * self._most_often(coded)
            if self.needs(rows) > CLOSER:
                self.longest = longest_text(content(self.file, self.dictionary, self.codec))
        if not self.lists:
            return
        if self.needs(self.rows) <= RATIO * self.held:
            self.most = -(-self.values // max(self.rows, 1))
            return
        lengths = RowLengths(bits=self.lists.bit_length())
        for page in self.data:
            lengths.add(row_starts(self.file, page, self.codec), page.values)
        self.most = lengths.longest

    def _most_often(self, coded: Sequence[Page]) -> int:
        """How often the most frequent text of the dictionary stands."""
        assert self.dictionary is not None
        times_E = np.zeros(self.dictionary.values, np.int64)
        for page in coded:
            for number_N, times in entry_numbers(self.file, page, self.codec, self.levels):
                # What fills up the last bits may be any number.
                known_N = number_N[number_N < len(times_E)]
                times_E += times * np.bincount(known_N, minlength=len(times_E))
        return int(times_E.max(initial=0))


def rows_at_once(path: Path, parquet: pq.ParquetFile, rows: int, names: Sequence[str] | None) -> int:
    """How many rows of the columns named may be decoded at once: `rows`, or less where they may be large.

    Args:
        rows: at least 1.
        names: columns, None for all.

    Raises:
        ValueError: broken pages, or such as claim what a file of this size cannot be believed to hold.
    """
    schema = parquet.schema
    columns = [
        column
        for column in range(len(schema))
        if names is None or _stands_under(schema.column(column).path, names)
    ]
    groups = range(parquet.metadata.num_row_groups)
    with path.open("rb") as file:
        claims = [_claims(path, file.fileno(), parquet, group, columns) for group in groups]
        if _largest_batch(claims, rows) > BATCH_BYTES:
            for group, chunks in enumerate(claims):
                _look_closer(path, group, chunks, rows)
    for group, chunks in enumerate(claims):
        _refuse_unbelievable(path, group, chunks)
    return _most_rows(claims, rows)


def _claims(
    path: Path, file: int, parquet: pq.ParquetFile, group: int, columns: Sequence[int]
) -> list[Chunk]:
    """What the columns of a row group claim, refused where it cannot be read in bounded memory."""
    found = []
    try:
        for column in columns:
            found.append(_chunk(file, parquet, group, column))
    except PageError as error:
        where = parquet.schema.column(column).path
        raise ValueError(f"{path}, row group {group}, column {where!r}: {error}; fetch it again") from error
    _refuse_unbelievable(path, group, found, rows=0)
    return found


def _chunk(file: int, parquet: pq.ParquetFile, group: int, column: int) -> Chunk:
    of_group, kind = parquet.metadata.row_group(group), parquet.schema.column(column)
    of_chunk = of_group.column(column)
    start, size = of_chunk.data_page_offset, of_chunk.total_compressed_size
    if of_chunk.has_dictionary_page and 0 < of_chunk.dictionary_page_offset < start:
        start = of_chunk.dictionary_page_offset
    if min(start, size) < 0 or start + size > os.fstat(file).st_size:
        raise PageError(f"its bytes {start} to {start + size} are outside the file")
    lists = kind.max_repetition_level
    chunk = Chunk(
        file=file,
        codec=of_chunk.compression,
        text=kind.physical_type == "BYTE_ARRAY",
        lists=lists,
        levels=(lists > 0) + (kind.max_definition_level > 0),
        rows=of_group.num_rows,
        values=of_chunk.num_values,
        width=_WIDTHS.get(kind.physical_type, kind.length) + 4 + 8 * lists,
        held=size,
        most=of_chunk.num_values if lists else 1,
    )
    if not lists and chunk.values != chunk.rows:
        raise PageError(f"it claims {chunk.values} values for {chunk.rows} rows")
    for page in pages(file, start, size, chunk.values):
        chunk.add(page)
    return chunk


def _look_closer(path: Path, group: int, chunks: Sequence[Chunk], rows: int) -> None:
    for chunk in chunks:
        if chunk.needs(rows) > CLOSER:
            try:
                chunk.look_closer(rows)
            except PageError as error:
                raise ValueError(f"{path}, row group {group}: {error}; fetch it again") from error


def _most_rows(claims: Sequence[Sequence[Chunk]], rows: int) -> int:
    """`rows`, halved until no batch of so many needs more than is free."""
    while rows > 1 and _largest_batch(claims, rows) > BATCH_BYTES:
        rows = rows // 2
    return rows


def _largest_batch(claims: Sequence[Sequence[Chunk]], rows: int) -> int:
    """Bytes of the largest batch, which may begin in one row group and end in a later one."""
    row_G = np.cumsum([0, *(chunks[0].rows if chunks else 0 for chunks in claims)])
    need_G = [sum(chunk.needs(rows) for chunk in chunks) for chunks in claims]
    total_G = np.cumsum([0, *(min(need, BATCH_BYTES + 1) for need in need_G)])
    # From a group's last row on.
    end_G = np.searchsorted(row_G, row_G[1:] - 1 + rows, side="left")
    end_G = np.minimum(end_G, len(claims))
    return int((total_G[end_G] - total_G[:-1]).max(initial=0))


def _refuse_unbelievable(path: Path, group: int, chunks: Sequence[Chunk], rows: int = 1) -> None:
    need = sum(chunk.pages_need + chunk.needs(rows) for chunk in chunks)
    held = sum(chunk.held for chunk in chunks)
    if need > FREE_BYTES and need > RATIO * held:
        what = "for a single row" if rows else "for a page of each column"
        raise ValueError(
            f"{path}, row group {group}: its {held} bytes claim to take {need >> 20} MB of memory {what}; "
            "do not trust the file, fetch it again"
        )


def _stands_under(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)
