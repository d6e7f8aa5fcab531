"""Chat messages as logs write them: which of them are turns, and which one is terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drift_weights.logs.reader import Dialogue

TRAILING = "messages behind the last assistant message are no turn; the terminal turn is that message"


def assistant_turns(messages: Any, name: str) -> list[int]:
    """Positions of the assistant messages.

    Raises:
        ValueError: not a list of messages with a role, or none by the assistant (`name` is the field).
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError(f"{name!r} is {_kind(messages)}, expected a list of messages")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"{name}[{number}] is {_kind(message)}, expected a message with role and content"
            )
    found = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not found:
        raise ValueError(f"{name!r} holds no assistant message; a trajectory needs a response")
    return found


def trailing_note(messages: Sequence[Any], turns: Sequence[int]) -> str | None:
    """What to tell a user whose dialogue goes on after its last assistant message."""
    return TRAILING if turns[-1] != len(messages) - 1 else None


def text(content: Any, name: str) -> str:
    """The text of a message's content: a string, or parts that are all text.

    Raises:
        ValueError: null, or parts that are not text (`name` is the field).
    """
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and content:
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise ValueError(f"{name} is {_kind(content)}, expected text; drop the group, or write a side file")


def terminal_turn(messages: Any, name: str, *, truncated: bool = False) -> Dialogue:
    """x_L and y_L of a list of messages: the last assistant message, and all before it.

    Raises:
        ValueError: no assistant message, a content that is not text, or tool calls, which
            {role, content} cannot hold.
    """
    turns = assistant_turns(messages, name)
    kept = []
    for number, message in enumerate(messages[: turns[-1] + 1]):
        if message.get("tool_calls"):
            raise ValueError(
                f"{name}[{number}] calls tools, which role and content cannot hold; write the log with its "
                "weight, or a side file"
            )
        content = text(message.get("content"), f"{name}[{number}].content")
        kept.append({"role": message["role"], "content": content})
    last = kept.pop()
    return Dialogue(kept, last["content"], "length" if truncated else "stop")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((str, "a string"), (Mapping, "an object"), (Sequence, "a list")):
        if isinstance(value, kind):
            return name
    return type(value).__name__
