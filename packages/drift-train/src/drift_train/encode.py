"""Rows of weighted terminal turns → token ids, and the spans of them that carry loss."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift_train.fields import (
    Span,
    Supervise,
    check_tokenizer,
    checked_ids,
    checked_spans,
    checked_weight,
    group_of,
    ids_and_spans,
    is_of_another,
    prompt_of,
    rendered,
    whole_number,
)
from drift_train.render import ChatRenderer
from drift_train.rows import each_row, holds_text, names_tokenizer, require_columns
from drift_weights.fingerprint import tokenizer_fingerprint

TooLong = Literal["refuse", "drop", "truncate"]

_NAMED = 8
"""Rows that a message names one by one."""
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
    """The examples of a table, and the rows that are not as they came."""

    examples: tuple[Example, ...]
    too_long: tuple[int, ...]
    """Rows that were left out for their length."""
    truncated: tuple[int, ...] = ()
    """Rows whose prompt lost its first tokens."""
    reencoded: tuple[int, ...] = ()
    """Rows with ids of another tokenizer, rendered anew from their text."""

    def changes(self) -> Iterator[str]:
        """What became of the rows that are not as they came, one sentence a kind."""
        if self.too_long:
            yield f"left out {name_rows(self.too_long)} that are too long"
        if self.truncated:
            yield f"cut the first tokens of the prompt off {name_rows(self.truncated)}"
        if self.reencoded:
            yield (
                f"rendered {name_rows(self.reencoded)} anew from their text, since another tokenizer made "
                "their ids: the tokens are not those that were sampled"
            )


def encode(
    table: pa.Table,
    *,
    vocab_size: int,
    tokenizer: Any = None,
    max_length: int | None = None,
    supervise: Supervise = "terminal",
    too_long: TooLong = "refuse",
    reencode: bool = False,
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
        too_long: `refuse` the table, `drop` the rows and name them, or `truncate`: a prompt loses its first
            tokens, a supervised token never.
        reencode: render rows whose ids another tokenizer made from their text; else they are refused.

    Returns:
        The examples in table order, and the rows that were dropped, truncated or rendered anew.

    Raises:
        ValueError: a missing column; a bad weight, span, id or message, ids of another tokenizer, a key
            (prompt_id, round, policy, sample) that another row has (the row is named); rows that are
            too long under `refuse`, or whose supervised tokens alone are under `truncate`; no row left.

    Source: sec. 4.2 (terminal retention), eq. 15.
    """
    require_columns(table, source)
    reader = _reader(table, vocab_size, tokenizer, supervise, reencode)
    keys = _Keys()
    examples, reencoded = [], []
    for number, row in enumerate(each_row(table)):
        try:
            example = reader.example(row, number)
            keys.add(row, example)
        except ValueError as error:
            raise ValueError(f"{source}, row {number}: {error}") from error
        examples.append(example)
        if reader.renders_anew(row):
            reencoded.append(number)
    fitting = _fitting(examples, max_length, too_long, source)
    if not fitting.examples:
        raise ValueError(f"{source}: no row left of {table.num_rows}")
    return replace(fitting, reencoded=tuple(reencoded))


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
    reencode: bool
    """Whether ids of another tokenizer give way to the text."""

    def example(self, row: Mapping[str, Any], number: int) -> Example:
        """A row as an example.

        Raises:
            ValueError: anything wrong with the row; the field is named.
        """
        if row["input_ids"] is None or self.renders_anew(row):
            ids, spans = rendered(row, self.renderer, self.supervise)
        else:
            check_tokenizer(row, self.tokenizer)
            ids, spans = ids_and_spans(row, self.supervise)
        prompt_id = prompt_of(row)
        return Example(
            spans=checked_spans(spans, len(ids)),
            input_ids=checked_ids(ids, self.vocab_size),
            weight=checked_weight(row["weight"]),
            prompt_id=prompt_id,
            group=group_of(row, prompt_id),
            sample=number if row.get("sample") is None else whole_number(row["sample"], "sample"),
            row=number,
        )

    def renders_anew(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has ids that give way to its text."""
        return self.reencode and row["input_ids"] is not None and is_of_another(row, self.tokenizer)


def _reader(
    table: pa.Table, vocab_size: int, tokenizer: Any, supervise: Supervise, reencode: bool
) -> _Reader:
    """Ask of the tokenizer only what the table needs: it may have no chat template."""
    compares = tokenizer is not None and names_tokenizer(table)
    own = tokenizer_fingerprint(tokenizer) if compares else None
    anew = reencode and compares and set(table.column("tokenizer").unique().to_pylist()) - {None, own}
    renders = tokenizer is not None and (anew or holds_text(table))
    return _Reader(
        vocab_size=vocab_size,
        supervise=supervise,
        renderer=ChatRenderer(tokenizer) if renders else None,
        tokenizer=own,
        reencode=reencode,
    )


def _fitting(
    examples: Sequence[Example], max_length: int | None, too_long: TooLong, source: str
) -> Encoded:
    """The examples, and what became of those over the limit."""
    if max_length is None:
        return Encoded(examples=tuple(examples), too_long=())
    long = [example for example in examples if len(example.input_ids) > max_length]
    named = f"{name_rows([example.row for example in long])} of {len(examples)}" if long else ""
    if long and too_long == "refuse":
        raise ValueError(
            f"{source}: {named} longer than {max_length} tokens; raise max_length, cut their prompts with "
            "too_long=truncate, or leave them out with too_long=drop"
        )
    if too_long == "truncate":
        fitting = tuple(_truncated(example, max_length, source) for example in examples)
        return Encoded(examples=fitting, too_long=(), truncated=tuple(example.row for example in long))
    kept = tuple(example for example in examples if len(example.input_ids) <= max_length)
    return Encoded(examples=kept, too_long=tuple(example.row for example in long))


def _truncated(example: Example, max_length: int, source: str) -> Example:
    """Without its first tokens, so that it fits; at least one stays before the first with loss."""
    cut = len(example.input_ids) - max_length
    if cut <= 0:
        return example
    first = example.spans[0][0]
    if cut >= first:
        raise ValueError(
            f"{source}, row {example.row}: from its first supervised token on it has "
            f"{len(example.input_ids) - first} tokens, and one must stand before them; raise max_length "
            f"{max_length}, or leave such rows out with too_long=drop"
        )
    spans = tuple((start - cut, end - cut) for start, end in example.spans)
    return replace(example, input_ids=example.input_ids[cut:], spans=spans)


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
