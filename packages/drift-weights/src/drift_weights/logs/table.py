"""Any table with the columns that weights need, and no text that anybody asks for.

A row, as JSONL:
    {"prompt_id": "q1", "sample": 0, "correct": 1, "length": 3, "unique": 2}

Ours: the names are the contract's, and options name others. Parquet files have the same columns.
"""

from __future__ import annotations

from drift_weights.columns import Columns
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    plain = columns.plain(list(row))
    turns = f"{plain.length}, distinct answers from {plain.unique}" if plain.length else "one a row"
    return LogReader(
        fields=plain.names,
        outcome=_outcome,
        dialogue=_dialogue,
        took={
            "prompt": "nothing",
            "turns": turns,
            "verdict": plain.correct or "nothing",
            "group": " and ".join(plain.group),
            "reward": plain.returns or f"computed from {plain.correct} (eq. 12)",
        },
    )


def _outcome(row: Row) -> Outcome:
    raise AssertionError("a table's columns are read as they are")


def _dialogue(row: Row) -> Dialogue:
    raise ValueError("the table has no dialogue; write the log with its weight, or a side file")


TABLE = LogFormat(
    name="table",
    source="any tool",
    suffixes=(".jsonl", ".ndjson", ".parquet", ".pq"),
    sniff=lambda row: True,
    bind=_bind,
)
