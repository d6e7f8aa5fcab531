"""The fields of a row, each checked: what is wrong is named with its remedy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drift_train.render import ChatRenderer
from drift_weights.types import Message
from drift_weights.types import prompt_id as hash_prompt

Supervise = Literal["terminal", "all"]
Span = tuple[int, int]
Ids = Sequence[int] | NDArray[Any]

_SHORT = 12
"""Characters of a fingerprint that a message shows."""


def check_tokenizer(row: Mapping[str, Any], known: str | None) -> None:
    """Refuse ids of another tokenizer than the model's."""
    if known is not None and is_of_another(row, known):
        raise ValueError(
            f"tokenizer {str(row['tokenizer'])[:_SHORT]} made input_ids, the model's is {known[:_SHORT]}; "
            "train the model that was sampled from, or have the text rendered anew with reencode=true"
        )


def is_of_another(row: Mapping[str, Any], known: str | None) -> bool:
    """Whether the row names another tokenizer than the known one."""
    found = row.get("tokenizer")
    return known is not None and found is not None and found != known


def ids_and_spans(row: Mapping[str, Any], supervise: Supervise) -> tuple[Ids, list[Span]]:
    """The row's own token ids, and the spans of them that carry loss."""
    spans = row.get("response_spans")
    if spans is None or len(spans) == 0:
        raise ValueError("input_ids without response_spans; add them, or drop the ids to render text")
    kept = spans[-1:] if supervise == "terminal" else spans
    bounds = [_bounds(span) for span in kept]
    # A turn without a token is nothing to learn from; an end before its start is a mistake.
    spans = [(start, end) for start, end in bounds if start != end]
    if not spans:
        raise ValueError("response_spans hold no token to learn from; drop the row")
    return np.asarray(row["input_ids"]), spans


def _bounds(span: object) -> Span:
    if not isinstance(span, Mapping) or not {"start", "end"} <= span.keys():
        raise ValueError(f"response_spans must be such as {{'start': 3, 'end': 7}}, got {span!r}")
    start, end = (whole_number(span[name], f"{name} of response_spans") for name in ("start", "end"))
    return start, end


def whole_number(value: object, name: str) -> int:
    """A whole number; pandas writes those of a column with gaps as floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return value


def rendered(
    row: Mapping[str, Any], renderer: ChatRenderer | None, supervise: Supervise
) -> tuple[Ids, list[Span]]:
    """The ids of the row's text, and the span of its completion."""
    if supervise == "all":
        raise ValueError("supervise=all needs input_ids and response_spans, not text alone")
    if renderer is None:
        raise ValueError("text without input_ids needs a tokenizer")
    prompt, completion = _messages(row, "prompt"), _messages(row, "completion")
    if len(completion) != 1 or completion[0].role != "assistant":
        raise ValueError("completion must be one assistant message")
    if not completion[0].content:
        raise ValueError("completion is empty, so there is nothing to learn from; drop the row")
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


def checked_spans(spans: Sequence[Span], length: int) -> tuple[Span, ...]:
    """Spans in order, each with a token, within the row, and with a prompt before them."""
    before = 1
    for start, end in spans:
        if not before <= start < end <= length:
            raise ValueError(
                f"response span [{start}, {end}) is empty, out of order, beyond the {length} tokens, "
                "or has no prompt before it"
            )
        before = end
    return tuple(spans)


def checked_weight(value: float | None) -> float:
    """A finite weight that is not negative."""
    weight = float("nan") if value is None else float(value)
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight must be finite and not negative, got {value}; drop the row")
    return weight


def checked_ids(ids: Ids, vocab_size: int) -> NDArray[np.int32]:
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


def prompt_of(row: Mapping[str, Any]) -> str:
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


def group_of(row: Mapping[str, Any], prompt_id: str) -> Hashable:
    """(prompt_id, round, policy), else the column `group`, else the prompt."""
    if row.get("round") is not None and row.get("policy") is not None:
        return (prompt_id, whole_number(row["round"], "round"), str(row["policy"]))
    group = row.get("group")
    if group is None:
        return prompt_id
    if not isinstance(group, Hashable):
        raise ValueError(f"group must be text or a whole number, got {group!r}")
    return group
