"""Opening a Parquet file whose footer may claim anything."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq

_MOST_PARTS = 1 << 15
"""Row groups, or columns, of a file."""
_MOST_LEVELS = 256
_STACK_BYTES = 1 << 26
_BUFFER_BYTES = 1 << 20
"""Read at once of a column, where columns are few."""
_FREE_ROWS = 1 << 24
_ROWS_A_BYTE = 1024
"""A column of one value takes few bytes, but some for each of its pages."""


def opened(path: Path) -> pq.ParquetFile:
    """A Parquet file whose footer claims no more than a file of its size can hold.

    Raises:
        ValueError: it claims more, or contradicts itself.
        OSError: it cannot be read.
        pyarrow.ArrowException: it is broken.
    """
    # Arrow reads a schema by recursion, some 700 bytes of stack a level: a deep one would end the process.
    before = threading.stack_size(_STACK_BYTES)
    try:
        with ThreadPoolExecutor(1) as pool:
            metadata = pool.submit(_metadata, path).result()
    finally:
        threading.stack_size(before)
    _refuse_rows(path, metadata)
    # Page by page, so that memory does not hold whole column chunks.
    buffer = min(_BUFFER_BYTES, max(1 << 12, 64 * _BUFFER_BYTES // max(metadata.num_columns, 1)))
    return pq.ParquetFile(path, metadata=metadata, pre_buffer=False, buffer_size=buffer)


def _metadata(path: Path) -> pq.FileMetaData:
    parquet = pq.ParquetFile(path, pre_buffer=False, thrift_container_size_limit=_MOST_PARTS)
    metadata = parquet.metadata
    schema = metadata.schema
    levels = max((schema.column(number).path.count(".") for number in range(len(schema))), default=0)
    if levels > _MOST_LEVELS:
        # It must go where the stack is large.
        del parquet, metadata, schema
        raise ValueError(
            f"{path} nests columns {levels} levels deep, {_MOST_LEVELS} are read; flatten them"
        )
    return metadata


def _refuse_rows(path: Path, metadata: pq.FileMetaData) -> None:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    columns = metadata.num_columns
    if rows != metadata.num_rows or any(
        group.num_rows < 0 or group.num_columns != columns for group in groups
    ):
        raise ValueError(
            f"{path} claims {metadata.num_rows} rows of {columns} columns, its row groups claim others; "
            "do not trust the file: fetch it again"
        )
    size = path.stat().st_size
    if rows > _FREE_ROWS + _ROWS_A_BYTE * size:
        raise ValueError(
            f"{path} claims {rows} rows in {size} bytes; do not trust the file: fetch it again"
        )
