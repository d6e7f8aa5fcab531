"""Rows of JSONL and Parquet files."""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")
_STEP = 256
"""Rows of text or lists decoded at once: a few hundred bytes of Parquet can say that every row holds
the same megabyte."""
_BATCH_BYTES = 1 << 26
"""Decoded bytes from which on a batch is handed out with fewer rows than asked for."""


def file_format(path: Path) -> str:
    """`jsonl` or `parquet`, by the file's ending.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another ending.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    if path.suffix in JSONL_SUFFIXES:
        return "jsonl"
    if path.suffix in PARQUET_SUFFIXES:
        return "parquet"
    raise ValueError(f"{path}: expected a file ending in .jsonl or .parquet")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL or Parquet file as dicts.

    Raises:
        ValueError: a line that is no JSON object, with file and line number; a broken Parquet file.
    """
    if file_format(path) == "jsonl":
        for number, line in enumerate(file_lines(path), start=1):
            yield decode_line(path, number, line)
        return
    yield from parquet_rows(path)


def decode_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """One JSONL line as a dict.

    Raises:
        ValueError: no JSON object; the message says where, and that the last line may be torn.
    """
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    if not line.strip():
        raise ValueError(f"{path}, line {number}: the line is empty; remove it")
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: {_why(line, error)}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
    return row


def _why(line: bytes, error: Exception) -> str:
    """What is wrong with a line, in a user's words."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply to be read"
    if isinstance(error, UnicodeDecodeError):
        return f"not valid UTF-8 ({error.reason})"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        torn = "" if line.endswith(b"\n") else "; the file ends without a line end, it may be torn"
        return f"not valid JSON ({error}){torn}"
    if not isinstance(row, dict):
        return f"expected a JSON object, got {type(row).__name__}"
    # Python writes NaN and Infinity, which JSON does not have.
    fields = [name for name, value in row.items() if value != value or value in (math.inf, -math.inf)]
    if not fields and b"NaN" not in line and b"Infinity" not in line:
        return f"not valid JSON ({error})"
    where = f"field {', '.join(map(repr, fields))} is" if fields else "a value is"
    return f"{where} NaN or infinite, which JSON does not have; fix or drop its group"


def file_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends."""
    with path.open("rb", buffering=1 << 20) as file:
        yield from file


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file.

    Raises:
        ValueError: it is none, or broken.
    """
    try:
        # Page by page, so that memory does not hold whole column chunks.
        parquet = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        names = parquet.schema_arrow.names
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has several columns {twice[0]!r}; rename them")
    return parquet


def parquet_batches(path: Path, rows: int, names: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, at most `rows` at a time, and only the columns named.

    Batches hold fewer rows where those are large; the same file gives the same batches.

    Raises:
        ValueError: a broken file, or one that asks for more memory than there is.
    """
    columns = None if names is None else list(names)
    parquet = open_parquet(path)
    step = rows if _fixed_width(parquet.schema_arrow, columns) else min(rows, _STEP)
    try:
        batches = parquet.iter_batches(batch_size=step, columns=columns, use_threads=False)
        yield from batches if step == rows else _joined(batches, rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise ValueError(
            f"{path} is no readable Parquet file, or asks for too much memory: {error}"
        ) from error


def _fixed_width(schema: pa.Schema, columns: Sequence[str] | None) -> bool:
    names = schema.names if columns is None else columns
    kinds = (schema.field(name).type for name in names if name in schema.names)
    return all(pa.types.is_primitive(kind) for kind in kinds)


def _joined(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Batches put together until they have `rows` rows or are large."""
    held: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        if held and (count + batch.num_rows > rows or size + batch.nbytes > _BATCH_BYTES):
            yield pa.concat_batches(held)
            held, count, size = [], 0, 0
        held.append(batch)
        count, size = count + batch.num_rows, size + batch.nbytes
    if held:
        yield pa.concat_batches(held)


def parquet_rows(
    path: Path, rows: int = 1024, names: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file as dicts, `rows` of them read at a time, and only the columns named.

    Raises:
        ValueError: a broken file, or text that is no UTF-8.
    """
    for batch in parquet_batches(path, rows, names):
        try:
            found = batch.to_pylist()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} holds text that is no UTF-8: {error}") from error
        yield from found
