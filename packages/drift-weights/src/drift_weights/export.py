"""Weighted terminal turns in the forms that other trainers read. Suffix legend: N rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from drift_weights.draws import refuse_bad_weights
from drift_weights.files import JSONL_SUFFIXES, PARQUET_SUFFIXES
from drift_weights.folder import folder_shards, refuse_existing
from drift_weights.outcomes import RowError
from drift_weights.schema import WEIGHTED
from drift_weights.sources import Advance, WeightedSource
from drift_weights.writers import whole_file

ExportForm = Literal["trl", "messages"]

_WEIGHT = WEIGHTED.field("weight")
TRL = pa.schema([WEIGHTED.field("prompt"), WEIGHTED.field("completion"), _WEIGHT])
"""Prompt-completion rows: only the completion is trained on."""
MESSAGES = pa.schema(
    [
        pa.field(
            "messages",
            pa.list_(
                pa.struct(
                    [
                        pa.field("role", pa.string()),
                        pa.field("content", pa.string()),
                        pa.field("weight", pa.int8()),
                    ]
                )
            ),
            nullable=False,
        ),
        _WEIGHT,
    ]
)
"""Chat rows; a response before the last one has the weight 0, any other message has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written, and what the form cannot say."""

    rows: int
    cut: int
    """Completions that the token limit cut: a chat template will end them all the same."""
    earlier: int
    """Rows with responses before the terminal one."""


def export_file(
    source: Path,
    output: Path,
    *,
    to: ExportForm,
    overwrite: bool = False,
    advance: Advance | None = None,
) -> Exported:
    """Write weighted terminal turns as `prompt`, `completion`, `weight`, or as `messages`, `weight`.

    Args:
        source: a WEIGHTED folder, read a few rows at a time.
        output: a .jsonl or .parquet file.
        to: `trl`, prompt-completion rows as TRL has them; `messages`, chat rows with the weight beside
            them, as Fireworks has them, in which earlier responses are marked with a `weight` of 0.
        advance: called with the number of rows of each batch that was written.

    Raises:
        ValueError: no WEIGHTED folder, another ending of the output, a weight that is negative or not
            finite (the row is named).
        FileExistsError: the output is there and `overwrite` is off.

    Source: docs.fireworks.ai, weighted training and supervised fine-tuning (`messages`).
    """
    if to not in get_args(ExportForm):
        raise ValueError(f"to must be one of {', '.join(get_args(ExportForm))}, got {to!r}")
    refuse_existing(output, overwrite=overwrite)
    if output.suffix not in (*JSONL_SUFFIXES, *PARQUET_SUFFIXES):
        raise ValueError(f"{output}: trainers read .jsonl or .parquet; name it so")
    files, manifest = folder_shards(source, "weighted")
    turns = WeightedSource(path=source, files=files, manifest=manifest)
    schema = TRL if to == "trl" else MESSAGES
    rows = cut = earlier = 0
    with whole_file(output) as scratch, _writer(scratch, output.suffix, schema) as write:
        for table in turns.tables():
            try:
                refuse_bad_weights(table.column("weight").to_numpy(), rows)
            except RowError as error:
                raise ValueError(f"{turns.place(error.row)}: {error.says}") from error
            write(table.select(TRL.names) if to == "trl" else _chats(table))
            rows += table.num_rows
            cut += pc.sum(pc.equal(table.column("finish_reason"), "length")).as_py()
            earlier += pc.sum(pc.greater(table.column("length"), 1)).as_py()
            if advance is not None:
                advance(table.num_rows)
    return Exported(rows=rows, cut=cut, earlier=earlier)


class _Write(Protocol):
    def __call__(self, table: pa.Table) -> None: ...


@contextmanager
def _writer(scratch: Path, suffix: str, schema: pa.Schema) -> Iterator[_Write]:
    """What appends rows to the file."""
    if suffix in PARQUET_SUFFIXES:
        with pq.ParquetWriter(scratch, schema, compression="zstd") as parquet:
            yield parquet.write_table
        return
    encode = msgspec.json.Encoder().encode
    with scratch.open("wb", buffering=1 << 20) as out:

        def write(table: pa.Table) -> None:
            for row in table.to_pylist():
                out.write(encode(_without_nulls(row)) + b"\n")

        yield write


def _chats(table: pa.Table) -> pa.Table:
    """Prompt and completion as one list, in which only the last response is to be learned."""
    rows = table.select(TRL.names).to_pylist()
    return pa.Table.from_pylist(
        [
            {"messages": [*map(_seen, row["prompt"]), *row["completion"]], "weight": row["weight"]}
            for row in rows
        ],
        schema=MESSAGES,
    )


def _seen(message: dict[str, Any]) -> dict[str, Any]:
    """A message that the response answers: if it is an earlier response, it carries no loss."""
    return message | {"weight": 0} if message["role"] == "assistant" else message


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A JSONL message says its weight or leaves it out."""
    if "messages" not in row:
        return row
    spoken = [{n: v for n, v in message.items() if v is not None} for message in row["messages"]]
    return row | {"messages": spoken}
