"""Rows of weighted terminal turns → token ids, and the spans of them that carry loss."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift_train.render import ChatRenderer
from drift_train.rows import each_row, holds_text, names_tokenizer, require_columns
from drift_weights.fingerprint import tokenizer_fingerprint
from drift_weights.types import Message
from drift_weights.types import prompt_id as hash_prompt

Supervise = Literal["terminal", "all"]
TooLong = Literal["refuse", "drop"]
Span = tuple[int, int]
Ids = Sequence[int] | NDArray[Any]

_NAMED = 8
"""Rows that a message names one by one."""
_SHORT = 12
"""Characters of a fingerprint that a message shows."""
_KEY = ("prompt_id", "round", "policy", "sample")


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
        tokenizer: the model's; needed for rows of text alone, and held against the `tokenizer` of rows
            with ids. Without one, whose ids they are is not checked.
        max_length: most tokens of a row, ≥ 2; None for no limit.
        supervise: `terminal` (the paper) or `all` turns, which needs token spans.
        too_long: `refuse` the table, or `drop` the rows and name them. Nothing is ever truncated.

    Returns:
        The examples in table order, and the dropped rows.

    Raises:
        ValueError: a missing column; a bad weight, span, id or message, ids of another tokenizer, a key
            (prompt_id, round, policy, sample) that another row has (the row is named); rows that are
            too long under `refuse`; no row left.

    Source: sec. 4.2 (terminal retention), eq. 15.
    """
    require_columns(table, source)
    reader = _reader(table, vocab_size, tokenizer, supervise)
    keys = _Keys()
    examples, long_rows = [], []
    for number, row in enumerate(each_row(table)):
        try:
            example = reader.example(row, number)
            keys.add(row, example)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """What every row of a table is read with."""

    vocab_size: int
    supervise: Supervise
    renderer: ChatRenderer | None
    tokenizer: str | None
    """Fingerprint of the model's; None where it is not to be held against the rows'."""

    def example(self, row: Mapping[str, Any], number: int) -> Example:
        """A row as an example.

        Raises:
            ValueError: anything wrong with the row; the field is named.
        """
        if row["input_ids"] is None:
            ids, spans = _text(row, self.renderer, self.supervise)
        else:
            _check_tokenizer(row, self.tokenizer)
            ids, spans = _tokens(row, self.supervise)
        prompt_id = _prompt_id(row)
        return Example(
            spans=_checked_spans(spans, len(ids)),
            input_ids=_checked_ids(ids, self.vocab_size),
            weight=_weight(row["weight"]),
            prompt_id=prompt_id,
            group=_group(row, prompt_id),
            sample=number if row.get("sample") is None else _whole(row["sample"], "sample"),
            row=number,
        )


def _reader(table: pa.Table, vocab_size: int, tokenizer: Any, supervise: Supervise) -> _Reader:
    """Ask of the tokenizer only what the table needs: it may have no chat template."""
    renders = tokenizer is not None and holds_text(table)
    compares = tokenizer is not None and names_tokenizer(table)
    return _Reader(
        vocab_size=vocab_size,
        supervise=supervise,
        renderer=ChatRenderer(tokenizer) if renders else None,
        tokenizer=tokenizer_fingerprint(tokenizer) if compares else None,
    )


class _Keys:
    """The keys seen so far; rows without a whole key are not held against each other."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, int] = {}

    def add(self, row: Mapping[str, Any], example: Example) -> None:
        """Refuse a key that another row has.

        Raises:
            ValueError: the key was there before.
        """
        if any(row.get(name) is None for name in _KEY):
            return
        first = self._seen.setdefault((example.group, example.sample), example.row)
        if first != example.row:
            key = ", ".join(f"{name} {row[name]!r}" for name in _KEY)
            raise ValueError(f"row {first} has the same key ({key}); drop one of the two")


def _check_tokenizer(row: Mapping[str, Any], known: str | None) -> None:
    found = row.get("tokenizer")
    if known is not None and found is not None and found != known:
        raise ValueError(
            f"tokenizer {str(found)[:_SHORT]} made input_ids, the model's is {known[:_SHORT]}; train the "
            "model that was sampled from, or set input_ids to null to have the text rendered anew"
        )


def _tokens(row: Mapping[str, Any], supervise: Supervise) -> tuple[Ids, list[Span]]:
    spans = row.get("response_spans")
    if spans is None or len(spans) == 0:
        raise ValueError("input_ids without response_spans; add them, or drop the ids to render text")
    kept = spans[-1:] if supervise == "terminal" else spans
    bounds = [_bounds(span) for span in kept]
    return np.asarray(row["input_ids"]), [(start, end) for start, end in bounds if start < end]


def _bounds(span: object) -> Span:
    if not isinstance(span, Mapping) or not {"start", "end"} <= span.keys():
        raise ValueError(f"response_spans must be such as {{'start': 3, 'end': 7}}, got {span!r}")
    start, end = (_whole(span[name], f"{name} of response_spans") for name in ("start", "end"))
    return start, end


def _whole(value: object, name: str) -> int:
    """A whole number; pandas writes those of a column with gaps as floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return value


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


def _checked_ids(ids: Ids, vocab_size: int) -> NDArray[np.int32]:
    """Held against the vocabulary as wide as they come: an id that wrapped would look like another."""
    wide = np.asarray(ids)
    if wide.dtype.kind not in "iu":
        raise ValueError("input_ids must be whole numbers, none of them null")
    low, high = int(wide.min()), int(wide.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"token id {low if low < 0 else high} is outside the model's {vocab_size} tokens; "
            "the row was tokenized for another model"
        )
    return wide.astype(np.int32)


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
        return (prompt_id, _whole(row["round"], "round"), str(row["policy"]))
    group = row.get("group")
    if group is None:
        return prompt_id
    if not isinstance(group, Hashable):
        raise ValueError(f"group must be text or a whole number, got {group!r}")
    return group
