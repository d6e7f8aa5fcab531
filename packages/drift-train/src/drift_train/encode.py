"""Rows of weighted terminal turns → token ids, and the spans of them that carry loss."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift_train.render import ChatRenderer
from drift_weights.types import Message
from drift_weights.types import prompt_id as hash_prompt

Supervise = Literal["terminal", "all"]
TooLong = Literal["refuse", "drop"]
Span = tuple[int, int]
Ids = Sequence[int] | NDArray[np.int64]

_NAMED = 8
"""Rows that a message names one by one."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Example:
    """One dialogue as token ids, the spans in it that carry loss, and its weight."""

    input_ids: NDArray[np.int32]
    """x_L and y_L end to end, shape [T]."""
    spans: tuple[Span, ...]
    """[start, end) of the supervised tokens, in order, 1 ≤ start < end ≤ T."""
    weight: float
    """w ≥ 0, finite."""
    prompt_id: str
    """What a held-out split goes by."""
    group: Hashable
    """What resampling goes by: (prompt_id, round, policy) where the row has them."""
    sample: int
    """Unique within the group."""
    row: int
    """Position in the table, for messages."""

    @property
    def supervised(self) -> int:
        """Tokens that carry loss, ≥ 1."""
        return sum(end - start for start, end in self.spans)


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The examples of a table, and the rows that were left out for their length."""

    examples: tuple[Example, ...]
    too_long: tuple[int, ...]


def encode(
    table: pa.Table,
    *,
    vocab_size: int,
    tokenizer: Any = None,
    max_length: int | None = None,
    supervise: Supervise = "terminal",
    too_long: TooLong = "refuse",
    source: str = "table",
) -> Encoded:
    """Turn a table of weighted turns into examples; tokens in the table are used as they are.

    A row with `input_ids` and `response_spans` is supervised on its last span (or on all). A row of
    text alone is rendered with the tokenizer's chat template; its completion is supervised, with
    the template's turn end unless `finish_reason` is `length`. Positions decide, never token ids.

    Args:
        table: a WEIGHTED table, or any with `prompt`, `completion`, `weight`.
        vocab_size: of the model; larger ids are refused.
        tokenizer: needed for rows of text alone.
        max_length: most tokens of a row, ≥ 2; None for no limit.
        supervise: `terminal` (the paper) or `all` turns, which needs token spans.
        too_long: `refuse` the table, or `drop` the rows and name them. Nothing is ever truncated.

    Returns:
        The examples in table order, and the dropped rows.

    Raises:
        ValueError: a missing column; a bad weight, span, id or message (the row is named); rows
            that are too long under `refuse`; no row left.

    Source: sec. 4.2 (terminal retention), eq. 15.
    """
    renderer = None if tokenizer is None else ChatRenderer(tokenizer)
    _require_columns(table, source)
    examples, long_rows = [], []
    for number, row in enumerate(_rows(table)):
        try:
            example = _example(row, number, renderer, supervise)
            _check_ids(example, vocab_size)
        except ValueError as error:
            raise ValueError(f"{source}, row {number}: {error}") from error
        if max_length is not None and len(example.input_ids) > max_length:
            long_rows.append(number)
        else:
            examples.append(example)
    if long_rows and too_long == "refuse":
        raise ValueError(
            f"{source}: {name_rows(long_rows)} of {table.num_rows} longer than {max_length} tokens; "
            "raise max_length, or leave them out with too_long=drop"
        )
    if not examples:
        raise ValueError(f"{source}: no row left of {table.num_rows}")
    return Encoded(examples=tuple(examples), too_long=tuple(long_rows))


def name_rows(rows: Sequence[int]) -> str:
    """A count and the first few row numbers, for messages."""
    listed = ", ".join(map(str, rows[:_NAMED])) + (", …" if len(rows) > _NAMED else "")
    return f"{len(rows)} row{'s' if len(rows) > 1 else ''} ({listed})"


def _require_columns(table: pa.Table, source: str) -> None:
    has_tokens = {"input_ids", "response_spans"} <= set(table.column_names)
    needed = {"weight"} if has_tokens else {"weight", "prompt", "completion"}
    missing = sorted(needed - set(table.column_names))
    if missing:
        raise ValueError(f"{source} lacks the columns {', '.join(missing)}; reweight the log first")
    kind = table.schema.field("weight").type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise ValueError(f"{source}: column 'weight' is {kind}, expected a number")


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dicts; token ids stay numpy, because millions of Python ints are slow and large."""
    wanted = [name for name in table.column_names if name in _COLUMNS]
    for batch in table.select(wanted).to_batches(max_chunksize=4096):
        ids_N = _id_arrays(batch.column("input_ids")) if "input_ids" in wanted else None
        rest = batch.select([name for name in wanted if name != "input_ids"])
        for number, row in enumerate(rest.to_pylist()):
            row["input_ids"] = None if ids_N is None else ids_N[number]
            yield row


_COLUMNS = frozenset(
    {"input_ids", "response_spans", "prompt", "completion", "weight", "finish_reason"}
    | {"prompt_id", "round", "policy", "sample", "group"}
)


def _id_arrays(column: pa.Array) -> list[NDArray[np.int64] | None]:
    if pa.types.is_null(column.type):
        return [None] * len(column)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise ValueError(f"column 'input_ids' is {column.type}, expected lists of token ids")
    values = column.values.cast(pa.int64())
    if values.null_count:
        raise ValueError("column 'input_ids' holds a null token id")
    flat, offsets = values.to_numpy(), column.offsets.to_numpy()
    bounds = zip(offsets[:-1], offsets[1:], column.is_valid().to_pylist(), strict=True)
    return [flat[start:end] if valid else None for start, end, valid in bounds]


def _example(
    row: Mapping[str, Any], number: int, renderer: ChatRenderer | None, supervise: Supervise
) -> Example:
    if row["input_ids"] is None:
        ids, spans = _text(row, renderer, supervise)
    else:
        ids, spans = _tokens(row, supervise)
    prompt_id = _prompt_id(row)
    sample = row.get("sample")
    return Example(
        input_ids=np.array(ids, dtype=np.int32),
        spans=_checked_spans(spans, len(ids)),
        weight=_weight(row["weight"]),
        prompt_id=prompt_id,
        group=_group(row, prompt_id),
        sample=number if sample is None else int(sample),
        row=number,
    )


def _tokens(row: Mapping[str, Any], supervise: Supervise) -> tuple[Ids, list[Span]]:
    spans = row.get("response_spans")
    if not spans:
        raise ValueError("input_ids without response_spans; add them, or drop the ids to render text")
    kept = spans[-1:] if supervise == "terminal" else spans
    bounds = [(span["start"], span["end"]) for span in kept]
    return row["input_ids"], [(start, end) for start, end in bounds if start < end]


def _text(
    row: Mapping[str, Any], renderer: ChatRenderer | None, supervise: Supervise
) -> tuple[Ids, list[Span]]:
    if supervise == "all":
        raise ValueError("supervise=all needs input_ids and response_spans, not text alone")
    if renderer is None:
        raise ValueError("text without input_ids needs a tokenizer")
    prompt, completion = _messages(row, "prompt"), _messages(row, "completion")
    if len(completion) != 1 or completion[0].role != "assistant":
        raise ValueError("completion must be one assistant message")
    prompt_ids = renderer.prompt_ids(prompt)
    ends = row.get("finish_reason") != "length"
    answer_ids = renderer.completion_ids(completion[0].content, ended=ends)
    start = len(prompt_ids)
    return prompt_ids + answer_ids, [(start, start + len(answer_ids))]


def _messages(row: Mapping[str, Any], name: str) -> list[Message]:
    value = row.get(name)
    if not isinstance(value, list) or not value or not all(map(_is_message, value)):
        raise ValueError(f"{name} must be messages such as {{'role': 'user', 'content': '…'}}")
    return [Message(role=m["role"], content=m["content"]) for m in value]


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )


def _checked_spans(spans: Sequence[Span], length: int) -> tuple[Span, ...]:
    if not spans:
        raise ValueError("no supervised token; drop the row")
    before = 1
    for start, end in spans:
        if not before <= start < end <= length:
            raise ValueError(
                f"response span [{start}, {end}) is empty, out of order, beyond the {length} tokens, "
                "or has no prompt before it"
            )
        before = end
    return tuple(spans)


def _weight(value: float | None) -> float:
    weight = float("nan") if value is None else float(value)
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight must be finite and not negative, got {value}; drop the row")
    return weight


def _check_ids(example: Example, vocab_size: int) -> None:
    low, high = int(example.input_ids.min()), int(example.input_ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"token id {low if low < 0 else high} is outside the model's {vocab_size} tokens; "
            "the row was tokenized for another model"
        )


def _prompt_id(row: Mapping[str, Any]) -> str:
    """The row's own, or a hash of the messages before the first response."""
    if row.get("prompt_id") is not None:
        return str(row["prompt_id"])
    if not row.get("prompt"):
        raise ValueError("prompt_id is missing, and there is no prompt to make one from")
    first: list[Message] = []
    for message in _messages(row, "prompt"):
        if message.role == "assistant":
            break
        first.append(message)
    return hash_prompt(first, None)


def _group(row: Mapping[str, Any], prompt_id: str) -> Hashable:
    if row.get("round") is not None and row.get("policy") is not None:
        return (prompt_id, int(row["round"]), str(row["policy"]))
    group: Hashable = row.get("group")
    return prompt_id if group is None else group
