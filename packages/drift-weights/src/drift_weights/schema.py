"""The contract between packages: two Arrow schemas, and the way from records to tables and back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from drift_weights.types import Message, Trajectory, Turn

FORMAT_VERSION = "1.2"
"""Major.minor of both schemas and of drift.json; readers refuse another major."""

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
SPANS = pa.list_(pa.struct([pa.field("start", pa.int32()), pa.field("end", pa.int32())]))
TURNS = pa.list_(
    pa.struct(
        [
            pa.field("response", pa.string()),
            pa.field("answer", pa.string()),
            pa.field("verdict", pa.string()),
            pa.field("finish_reason", pa.string()),
            pa.field("feedback", pa.string()),
        ]
    )
)


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_KEY = [
    _required("prompt_id", pa.string()),
    _required("round", pa.int32()),
    _required("policy", pa.string()),
    _required("sample", pa.int64()),
]
_TOKENS = [
    pa.field("response_spans", SPANS),
    pa.field("logprobs", pa.list_(pa.float32())),
    pa.field("tokenizer", pa.string()),
]

TRAJECTORIES = pa.schema(
    [
        *_KEY,
        _required("prompt", MESSAGES),
        pa.field("target", pa.string()),
        _required("turns", TURNS),
        _required("max_turns", pa.int32()),
        _required("ended", pa.string()),
        _required("metadata", pa.string()),
        pa.field("token_ids", pa.list_(pa.int32())),
        *_TOKENS,
    ]
)
"""One row a trajectory; `metadata` is a JSON object."""

WEIGHTED = pa.schema(
    [
        *_KEY,
        _required("prompt", MESSAGES),
        _required("completion", MESSAGES),
        _required("weight", pa.float64()),
        _required("return", pa.float64()),
        _required("length", pa.int32()),
        _required("unique_answers", pa.int32()),
        _required("counted", pa.int32()),
        _required("penalty", pa.float64()),
        _required("solved", pa.bool_()),
        _required("group_size", pa.int32()),
        _required("finish_reason", pa.string()),
        pa.field("input_ids", pa.list_(pa.int32())),
        *_TOKENS,
    ]
)
"""One row a terminal turn (x_L, y_L, w) and what w was made of; the last span is the completion."""

SCHEMAS = {"trajectories": TRAJECTORIES, "weighted": WEIGHTED}


def check(table: pa.Table, schema: pa.Schema, *, source: str = "table") -> pa.Table:
    """Hold a table against a schema and name every wrong column at once.

    Large and plain strings and lists count as the same type; columns that the schema does not know
    are kept behind its own.

    Returns:
        The table with the schema's columns first, in its order and types.

    Raises:
        ValueError: empty table; missing columns, wrong types or nulls, all named in one message.
    """
    counts = Counter(table.column_names)
    problems = [f"column {name!r} is there {count} times" for name, count in counts.items() if count > 1]
    if problems:
        raise ValueError(f"{source} does not fit the schema:\n  " + "\n  ".join(problems))
    for field in schema:
        if field.name not in table.column_names:
            problems.append(f"column {field.name!r} is missing (expected {field.type})")
            continue
        column = table.column(field.name)
        # A writer that saw only nulls in an optional column may have left it without a type.
        untyped = field.nullable and pa.types.is_null(column.type)
        if not untyped and not _same_type(column.type, field.type):
            problems.append(f"column {field.name!r} is {column.type}, expected {field.type}")
        elif column.null_count and not field.nullable:
            row = pc.index(column.is_null(), True).as_py()
            problems.append(f"column {field.name!r} is null in row {row}")
    if problems:
        raise ValueError(f"{source} does not fit the schema:\n  " + "\n  ".join(problems))
    if table.num_rows == 0:
        raise ValueError(f"{source} has no rows")
    known = table.select(schema.names).cast(schema)
    for name in table.column_names:
        if name not in schema.names:
            known = known.append_column(table.schema.field(name), table.column(name))
    return known


def to_table(trajectories: Iterable[Trajectory]) -> pa.Table:
    """Trajectories as a TRAJECTORIES table, one row each, in the order given."""
    rows = [_row(trajectory) for trajectory in trajectories]
    return pa.Table.from_pylist(rows, schema=TRAJECTORIES)


def from_table(table: pa.Table, *, source: str = "table") -> Iterator[Trajectory]:
    """The trajectories of a TRAJECTORIES table, row by row.

    Raises:
        ValueError: the table does not fit the schema, or a row is no valid trajectory (the row is named).
    """
    checked = check(table, TRAJECTORIES, source=source)
    row_number = 0
    for batch in checked.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            try:
                yield _trajectory(row)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{source}, row {row_number}: {error}") from error
            row_number += 1


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
        return bool(is_list) and _same_type(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        return (
            bool(pa.types.is_struct(found))
            and [f.name for f in found] == [f.name for f in wanted]
            and all(_same_type(a.type, b.type) for a, b in zip(found, wanted, strict=True))
        )
    return bool(found == wanted)


def _row(trajectory: Trajectory) -> dict[str, Any]:
    row = {name: getattr(trajectory, name) for name in TRAJECTORIES.names}
    row["prompt"] = [{"role": m.role, "content": m.content} for m in trajectory.prompt]
    row["turns"] = [{f.name: getattr(turn, f.name) for f in TURNS.value_type} for turn in trajectory.turns]
    row["metadata"] = json.dumps(
        dict(trajectory.metadata), sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    if trajectory.response_spans is not None:
        row["response_spans"] = [{"start": a, "end": b} for a, b in trajectory.response_spans]
    return row


def _trajectory(row: dict[str, Any]) -> Trajectory:
    fields = {name: row[name] for name in TRAJECTORIES.names}
    fields["prompt"] = tuple(Message(**message) for message in row["prompt"])
    fields["turns"] = tuple(Turn(**turn) for turn in row["turns"])
    fields["metadata"] = json.loads(row["metadata"])
    if not isinstance(fields["metadata"], dict):
        raise ValueError(f"metadata must be a JSON object, got {row['metadata']!r}")
    for name in ("token_ids", "logprobs"):
        fields[name] = None if row[name] is None else tuple(row[name])
    if row["response_spans"] is not None:
        fields["response_spans"] = tuple((s["start"], s["end"]) for s in row["response_spans"])
    return Trajectory(**fields)
