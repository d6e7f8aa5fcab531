"""tau-bench's result files: one JSON array with every run of every task.

An element, shortened:
    {"task_id": 7, "trial": 0, "reward": 1.0, "info": {"task": {"user_id": "ava_lee_1"}},
     "traj": [{"role": "system", "content": "Help customers with orders."},
              {"role": "user", "content": "Where is order W12?"},
              {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
               "function": {"name": "get_order", "arguments": "{\\"id\\": \\"W12\\"}"}}]},
              {"role": "tool", "tool_call_id": "call_1", "name": "get_order", "content": "shipped"},
              {"role": "assistant", "content": "It is on its way."},
              {"role": "user", "content": "###STOP###"}]}

Source: tau-bench, `run.py`, `run` (an `EnvRunResult` each).

- Prompt: `traj` before its last assistant message. The user's last word stands behind that, and is no turn.
- Turns: the assistant messages of `traj`, those that call tools included. There are no answers.
- Verdict and reward: `reward`, 0 or 1, given once, at the end.
- A group is `task_id`; `trial` tells its samples apart, so a run that was written twice is seen.
- A run that broke off has an empty `traj` and a reward of 0 that is no verdict: it is refused.
"""

from __future__ import annotations

import codecs
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from drift_weights.columns import Columns
from drift_weights.logs.exchange import Turns, require, terminal_message
from drift_weights.logs.messages import assistant_turns, trailing_note
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed

_Document = TypeVar("_Document")

NEEDED = ("task_id", "trial", "reward", "traj")


def json_document(path: Path, kind: type[_Document]) -> _Document:
    """A file that is one JSON value, mapped rather than read; `msgspec.Raw` parts stay bytes of the file.

    Raises:
        ValueError: an empty file, or no JSON of this shape.
    """
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            raise ValueError(f"{path} is empty")
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    body = view[3:] if bytes(view[:3]) == codecs.BOM_UTF8 else view
    return _decoded(body, kind, str(path))


def json_object(raw: msgspec.Raw, place: str) -> dict[str, Any]:
    """One part of a document as a dict.

    Raises:
        ValueError: not valid JSON, or no object (`place` says where it stands).
    """
    value = _decoded(raw, object, place)
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(value).__name__}")
    return value


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


def _decoded(data: Any, kind: type[_Document], place: str) -> _Document:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{place} is not the JSON expected: {error}; a torn file ends early, and NaN and Infinity, "
            "which Python writes, are no JSON"
        ) from error


def _response(message: Row) -> bytes | None:
    content, calls = message.get("content"), message.get("tool_calls")
    if not content and not calls:
        return None
    made = [{**call, "id": None} if isinstance(call, dict) else call for call in calls or ()]
    return msgspec.json.encode((content, made), order="deterministic")


def _sniff(row: Row) -> bool:
    return row.keys() >= set(NEEDED)


def _trajectories(path: Path) -> Iterator[Row]:
    for number, raw in enumerate(json_document(path, list[msgspec.Raw])):
        yield json_object(raw, f"{path}, trajectory {number}")


def _dialogue(row: Row) -> Dialogue:
    return terminal_message(row["traj"], "traj")


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    require(row, NEEDED, "tau-bench")

    def outcome(row: Row) -> Outcome:
        messages = row["traj"]
        if messages == []:
            raise ValueError(
                "'traj' is empty: the run broke off ('info' says why), so its reward is no verdict; drop "
                "its group"
            )
        at = assistant_turns(messages, "traj")
        said = [messages[turn] for turn in at]
        turns = count_responses(said, columns.answers, malformed, trailing_note(messages, at))
        return Outcome(row["task_id"], row["reward"], *turns[:3], sample=row["trial"], note=turns.note)

    return LogReader(
        fields=NEEDED,
        outcome=outcome,
        dialogue=_dialogue,
        took={
            "prompt": "traj before its last assistant message",
            "turns": "assistant messages of traj, tool calls too",
            "verdict": "reward",
            "group": "task_id",
            "reward": "reward",
        },
    )


TAU_BENCH = LogFormat(
    name="tau-bench",
    source="tau-bench, run.py",
    suffixes=(".json",),
    sniff=_sniff,
    bind=_bind,
    trajectories=_trajectories,
)
