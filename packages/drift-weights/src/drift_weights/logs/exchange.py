"""A prompt and its completion, each a string or a list of messages, as most logs keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec

from drift_weights.columns import Columns
from drift_weights.logs.messages import assistant_turns, terminal_turn, text, trailing_note
from drift_weights.logs.reader import Dialogue, Row
from drift_weights.types import Malformed


class Turns(NamedTuple):
    """What the messages of one trajectory say of its turns."""

    length: int
    """L, the assistant messages."""
    unique: int | None
    """E, the distinct responses; None where L > 1 and responses are not to be taken as answers."""
    counted: int | None
    """The turns that E speaks about; None for L."""
    note: str | None


def require(row: Row, names: Sequence[str], name: str) -> None:
    """Refuse a first row that lacks what the format `name` needs.

    Raises:
        ValueError: with the fields that are missing and those that are there.
    """
    missing = [field for field in names if field not in row]
    if missing:
        raise ValueError(
            f"no field {', '.join(map(repr, missing))}, which the format {name!r} needs; there are "
            f"{', '.join(row)}; name the log's own with --format"
        )


def counts_from_text(columns: Columns) -> bool:
    """Whether L and E have to come from the text: neither they nor the return are in columns."""
    return columns.return_column is None and not (columns.length and columns.unique)


def prompt_key(prompt: Any, name: str) -> str:
    """A short name for a prompt, the same wherever its text is the same.

    Raises:
        ValueError: no text and no messages, which would put strangers into one group.
    """
    if not prompt or not isinstance(prompt, str | Sequence):
        raise ValueError(
            f"{name!r} is {prompt!r}, so the group is unknown; name what its rows share (--group)"
        )
    return blake2b(msgspec.json.encode(prompt, order="deterministic"), digest_size=16).hexdigest()


def count_turns(
    messages: Any, name: str, answers: Literal["responses"] | None, malformed: Malformed
) -> Turns:
    """L and E of a trajectory's messages, as `count_responses` counts them.

    Raises:
        ValueError: no list of messages, or none by the assistant.
    """
    turns = assistant_turns(messages, name)
    said = [messages[turn] for turn in turns]
    return count_responses(said, answers, malformed, trailing_note(messages, turns))


def count_responses(
    said: Sequence[Row], answers: Literal["responses"] | None, malformed: Malformed, note: str | None
) -> Turns:
    """L and E of the messages that a policy said, where a tool call is a response as good as a text.

    A message with neither is malformed. Equal calls differ in their ids, which are not compared.
    """
    if answers is None:
        return Turns(len(said), 1 if len(said) == 1 else None, None, note)
    keys = [_response(message) for message in said]
    if malformed == "count":
        return Turns(len(said), len(set(keys)), None, note)
    readable = [key for key in keys if key is not None]
    return Turns(len(said), len(set(readable)), len(readable), note)


def _response(message: Row) -> bytes | None:
    content, calls = message.get("content"), message.get("tool_calls")
    if not content and not calls:
        return None
    if content and not calls:
        # Text in parts is the same answer as the text in one piece.
        content = text(content, "content")
    made = [{**call, "id": None} if isinstance(call, dict) else call for call in calls or ()]
    return msgspec.json.encode((content, made), order="deterministic")


def last_exchange(prompt: Any, completion: Any, names: tuple[str, str], *, truncated: bool) -> Dialogue:
    """x_L and y_L of a prompt and a completion; a string is one message, by the user or the assistant.

    Args:
        names: the two fields.

    Raises:
        ValueError: what `terminal_message` refuses; no response in the completion.
    """
    before, after = _messages(prompt, "user", names[0]), _messages(completion, "assistant", names[1])
    assistant_turns(after, names[1])
    return terminal_message([*before, *after], f"{names[0]} + {names[1]}", truncated=truncated)


def terminal_message(messages: Any, name: str, *, truncated: bool = False) -> Dialogue:
    """The terminal turn of a list of messages, whose response has text.

    Raises:
        ValueError: what `terminal_turn` refuses, or an empty response.
    """
    dialogue = terminal_turn(messages, name, truncated=truncated)
    if not dialogue.completion:
        raise ValueError(
            f"the last response in {name!r} is empty: there is nothing to train on; drop its group"
        )
    return dialogue


def _messages(value: Any, role: str, name: str) -> Sequence[Mapping[str, Any]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Sequence) and all(isinstance(message, Mapping) for message in value):
        return value
    shown = "null" if value is None else repr(value)[:60]
    raise ValueError(f"{name!r} is {shown}, expected text or a list of messages")
