"""Weighted turns in files and Arrow tables → the rows that encode reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from drift_weights import files
from drift_weights.folder import is_folder, read_folder
from drift_weights.schema import MESSAGES

_TYPES = {
    "prompt": MESSAGES,
    "completion": MESSAGES,
    "finish_reason": pa.string(),
    "tokenizer": pa.string(),
    "weight": pa.float64(),
}
_NAMES = ("prompt_id", "policy", "group")
"""Columns of names, which a foreign log may write as text or as numbers."""
_NUMBERS = ("input_ids", "response_spans", "round", "sample")
"""Columns of whole numbers; encode looks at each, because Arrow would cut a fraction off."""
COLUMNS = frozenset({*_TYPES, *_NAMES, *_NUMBERS})
"""All that training reads of a table; any other column may hold anything."""
_BATCH = 4096
_SHOWN = 60
"""Characters of a bad value that a message shows."""


def read_rows(path: Path) -> pa.Table:
    """A WEIGHTED folder, a Parquet file or a JSONL file as a table; of a file, only what training reads.

    Raises:
        FileNotFoundError: nothing there, or a folder without a manifest.
        ValueError: another kind of file, one that does not parse, or a JSONL value of the wrong type
            (line and column are named).
    """
    if path.is_dir() or is_folder(path):
        return read_folder(path, "weighted")[0]
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if files.file_format(path) == "jsonl":
        return _read_jsonl(path)
    try:
        wanted = [name for name in pyarrow.parquet.read_schema(path).names if name in COLUMNS]
        return pyarrow.parquet.read_table(path, columns=wanted)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error


def require_columns(table: pa.Table, source: str) -> None:
    """Refuse a table that lacks what training needs, and name all of it.

    Raises:
        ValueError: a column that is missing, there twice, or of a type that cannot be meant.
    """
    names = table.column_names
    twice = sorted({name for name in names if name in COLUMNS and names.count(name) > 1})
    if twice:
        raise ValueError(f"{source} has the columns {', '.join(twice)} more than once; keep one of each")
    needed = (
        {"weight"} if {"input_ids", "response_spans"} <= set(names) else {"weight", "prompt", "completion"}
    )
    missing = sorted(needed - set(names))
    if missing:
        raise ValueError(f"{source} lacks the columns {', '.join(missing)}; reweight the log first")
    kind = table.schema.field("weight").type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise ValueError(f"{source}: column 'weight' is {kind}, expected a number")
    kind = table.schema.field("input_ids").type if "input_ids" in names else pa.null()
    if not (pa.types.is_null(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise ValueError(f"{source}: column 'input_ids' is {kind}, expected lists of token ids")


def each_row(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dicts; token ids stay numpy, because millions of Python ints are slow and large."""
    wanted = [name for name in table.column_names if name in COLUMNS]
    for batch in table.select(wanted).to_batches(max_chunksize=_BATCH):
        ids_N = _id_arrays(batch.column("input_ids")) if "input_ids" in wanted else None
        rest = batch.select([name for name in wanted if name != "input_ids"])
        for number, row in enumerate(rest.to_pylist()):
            row["input_ids"] = None if ids_N is None else ids_N[number]
            yield row


def holds_text(table: pa.Table) -> bool:
    """Whether a row has no token ids and must be rendered."""
    return "input_ids" not in table.column_names or table.column("input_ids").null_count > 0


def names_tokenizer(table: pa.Table) -> bool:
    """Whether a row says which tokenizer its token ids are of."""
    if not {"input_ids", "tokenizer"} <= set(table.column_names):
        return False
    return bool(table.column("tokenizer").null_count < table.num_rows)


def _id_arrays(column: pa.Array) -> list[Any]:
    if pa.types.is_null(column.type):
        return [None] * len(column)
    if column.values.null_count:
        # Rare, and wrong: as lists, the row with the null can be told from the others.
        return list(column.to_pylist())
    flat, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    bounds = zip(offsets[:-1], offsets[1:], column.is_valid().to_pylist(), strict=True)
    return [flat[start:end] if valid else None for start, end, valid in bounds]


def _read_jsonl(path: Path) -> pa.Table:
    rows = [{name: row[name] for name in row.keys() & COLUMNS} for row in files.read_rows(path)]
    if not rows:
        raise ValueError(f"{path} has no rows")
    present = set[str]().union(*rows)
    names = [name for name in (*_TYPES, *_NAMES, *_NUMBERS) if name in present]
    return pa.table({name: _column([row.get(name) for row in rows], name, path) for name in names})


def _column(values: Sequence[Any], name: str, path: Path) -> pa.Array:
    """One column in its type; only those of numbers are taken as they come."""
    kind = _TYPES.get(name)
    if name in _NAMES:
        whole = all(value is None or type(value) is int for value in values)
        kind = pa.int64() if whole else pa.string()
        values = values if whole else [None if value is None else str(value) for value in values]
    if _fits(values, kind):
        column = pa.array(values, kind)
        if name != "input_ids" or not _holds_floats(column):
            return column
        number = next(n for n, ids in enumerate(values) if any(type(i) is float for i in ids or ()))
    else:
        number = bisect_left(range(len(values)), True, key=lambda n: not _fits(values[: n + 1], kind))
    wanted = "whole numbers" if kind is None else kind
    shown = repr(values[number])[:_SHOWN]
    raise ValueError(f"{path}, line {number + 1}: column {name!r} must hold {wanted}, got {shown}")


def _holds_floats(column: pa.Array) -> bool:
    kind = column.type
    return bool(pa.types.is_list(kind) and pa.types.is_floating(kind.value_type))


def _fits(values: Sequence[Any], kind: pa.DataType | None) -> bool:
    try:
        pa.array(values, kind)
    except (ValueError, TypeError, OverflowError):
        return False
    return True
