"""Rows of JSONL and Parquet files, and the same file again with one column added."""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")


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
        for number, line in enumerate(_lines(path), start=1):
            yield decode_line(path, number, line)
        return
    for batch in _open_parquet(path).iter_batches():
        yield from batch.to_pylist()


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Some columns of a JSONL or Parquet file, whole, as lists of Python values.

    Raises:
        ValueError: a column that is missing (all of them are named, with what there is), a broken file.
    """
    if file_format(path) == "parquet":
        parquet = _open_parquet(path)
        _refuse_missing(path, names, parquet.schema_arrow.names)
        return {name: parquet.read([name]).column(0).to_pylist() for name in names}
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for number, line in enumerate(_lines(path), start=1):
        row = decode_line(path, number, line)
        _refuse_missing(path, names, row, where=f"line {number}")
        for name in names:
            columns[name].append(row[name])
    return columns


def column_names(path: Path) -> list[str]:
    """Column names: a Parquet schema's, or the keys of all lines of a JSONL file, in order of appearance.

    Raises:
        ValueError: an empty or broken file.
    """
    if file_format(path) == "parquet":
        return list(_open_parquet(path).schema_arrow.names)
    names: dict[str, None] = {}
    for row in read_rows(path):
        names.update(dict.fromkeys(row))
    if not names:
        raise ValueError(f"{path} has no rows")
    return list(names)


def write_with_weight(source: Path, target: Path, weight_N: NDArray[np.float64]) -> None:
    """Write `source` again with a `weight` column; every other value, and every JSON byte, stays.

    The target appears whole or not at all.

    Raises:
        ValueError: source and target differ in format, or the rows are not as many as the weights.
    """
    kind = file_format(source)
    if target.suffix not in (JSONL_SUFFIXES if kind == "jsonl" else PARQUET_SUFFIXES):
        raise ValueError(f"{target}: the output keeps the input's format ({kind}); name it so")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.writing-{os.getpid()}")
    try:
        if kind == "jsonl":
            _write_jsonl(source, scratch, weight_N)
        else:
            _write_parquet(source, scratch, weight_N)
        scratch.rename(target)
    finally:
        scratch.unlink(missing_ok=True)


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
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}, line {number}: {_why(line, error)}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
    return row


def _why(line: bytes, error: msgspec.DecodeError) -> str:
    """What is wrong with a line, in a user's words."""
    try:
        row = json.loads(line)
    except ValueError:
        torn = "" if line.endswith(b"\n") else "; the file ends without a line end, it may be torn"
        return f"not valid JSON ({error}){torn}"
    # Python writes NaN and Infinity, which JSON does not have.
    fields = [name for name, value in row.items() if value != value or value in (math.inf, -math.inf)]
    where = f"field {', '.join(map(repr, fields))} is" if fields else "a value is"
    return f"{where} NaN or infinite, which JSON does not have; fix or drop its group"


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error


def _refuse_missing(path: Path, names: Sequence[str], present: Iterable[str], *, where: str = "") -> None:
    found = list(present)
    missing = [name for name in names if name not in found]
    if missing:
        place = f"{path}, {where}" if where else str(path)
        raise ValueError(f"{place}: no column {', '.join(map(repr, missing))}; it has {', '.join(found)}")


def _write_jsonl(source: Path, target: Path, weight_N: NDArray[np.float64]) -> None:
    with target.open("wb") as out:
        weights = iter(weight_N.tolist())
        for number, line in enumerate(_lines(source), start=1):
            row = decode_line(source, number, line)
            weight = msgspec.json.encode(next(weights))
            if "weight" in row:
                row["weight"] = msgspec.Raw(weight)
                out.write(msgspec.json.encode(row) + b"\n")
                continue
            body = line.rstrip()
            comma = b"," if row else b""
            end = line[len(body) :]
            out.write(body[:-1].rstrip() + comma + b'"weight":' + weight + b"}" + end)


def _write_parquet(source: Path, target: Path, weight_N: NDArray[np.float64]) -> None:
    parquet = _open_parquet(source)
    kept = [name for name in parquet.schema_arrow.names if name != "weight"]
    schema = pa.schema([parquet.schema_arrow.field(name) for name in kept])
    schema = schema.append(pa.field("weight", pa.float64(), nullable=False))
    start = 0
    with pq.ParquetWriter(target, schema.with_metadata(parquet.schema_arrow.metadata)) as writer:
        for batch in parquet.iter_batches(columns=kept):
            weights = pa.array(weight_N[start : start + batch.num_rows])
            columns = [batch.column(name) for name in kept]
            writer.write_batch(pa.record_batch([*columns, weights], schema=writer.schema))
            start += batch.num_rows
