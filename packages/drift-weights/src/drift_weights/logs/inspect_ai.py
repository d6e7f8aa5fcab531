"""Inspect's evaluation logs: one JSON object, or the `.eval` archive of the same.

A log, shortened:
    {"version": 2, "status": "success", "eval": {"task": "arithmetic", "model": "mine/model"},
     "samples": [{"id": "sum-3", "epoch": 1, "input": "What is 3 + 4?", "target": "7",
       "messages": [{"role": "user", "content": "What is 3 + 4?", "source": "input"},
                    {"role": "assistant", "content": "8", "source": "generate"},
                    {"role": "user", "content": "Wrong, try again."},
                    {"role": "assistant", "content": "7", "source": "generate"}],
       "output": {"choices": [{"stop_reason": "stop"}]},
       "scores": {"match": {"value": "C", "answer": "7"}}}]}

Source: inspect_ai, `log/_log.py`, `EvalLog` and `EvalSample`; the letters: `scorer/_metric.py`,
`value_to_float`. Archives are read by Inspect itself, a few samples at a time.

- Prompt: `messages` before the last that was generated. Turns: the assistant messages whose `source` is not
  the input. The scorer's `answer` is the last turn's alone, so there is none for the others.
- Verdict and reward: the value of the only scorer. C counts 1 and I 0, as in Inspect's own metrics; N, no
  answer, is wrong; P, partial, is 0.5 and like every score between 0 and 1 needs a threshold or to be the
  return. Scores can be named: `scores.match`, and `scores.rubric.style` where one scorer gives several.
- A group is `id`; `epoch` tells its samples apart.
- A sample without scores broke off: it is unscored, so its whole group is left out.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drift_weights.columns import Columns
from drift_weights.logs.documents import json_document, json_object
from drift_weights.logs.exchange import count_responses, require, terminal_message
from drift_weights.logs.messages import assistant_turns, trailing_note
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed

_LETTERS = {"C": 1, "I": 0, "N": 0, "P": 0.5}
_KEPT = {"id", "epoch", "messages", "output", "scores", "error", "attachments"}
_LEFT_OUT = {"events", "events_data", "store", "timelines", "metadata"}
_ATTACHMENT = "attachment://"
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, LookupError, OSError, RuntimeError, ValueError),
)
"""What Inspect and its libraries raise on a broken archive."""
_CHUNK = 32
"""Samples of an archive in memory at once."""


class _Log(msgspec.Struct):
    samples: list[msgspec.Raw] | None = None


def _sniff(row: Row) -> bool:
    # Of an archive nothing is known but its ending.
    return not row or {"eval", "samples"} <= row.keys()


def _trajectories(path: Path) -> Iterator[Row]:
    samples = _archive(path) if path.suffix == ".eval" else _document(path)
    for sample in samples:
        yield {**sample, **_values(sample.get("scores"))}


def _document(path: Path) -> Iterator[dict[str, Any]]:
    samples = json_document(path, _Log).samples
    if not samples:
        raise ValueError(f"{path} has no samples; write the whole log, not its header alone")
    for number, raw in enumerate(samples):
        yield json_object(raw, f"{path}, trajectory {number}")


def _archive(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from inspect_ai.log import read_eval_log_sample_summaries, read_eval_log_samples_by_id
        from zstandard import ZstdError
    except ModuleNotFoundError as error:
        raise ImportError("to read .eval logs, pip install 'drift-weights[inspect]'") from error
    try:
        # Inspect compares no checksums, and a flipped byte would be another id or text.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not match its checksum")
        keys = [(each.id, each.epoch) for each in read_eval_log_sample_summaries(path)]
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            for sample in read_eval_log_samples_by_id(path, chunk, exclude_fields=_LEFT_OUT):
                yield sample.model_dump(include=_KEPT)
    except (*_BROKEN, ZstdError) as error:
        raise ValueError(f"{path} is no readable Inspect log: {error}") from error


def _values(scores: Any) -> dict[str, Any]:
    """The scores by the names that column options have for them, letters as numbers."""
    values: dict[str, Any] = {}
    for name, score in scores.items() if isinstance(scores, Mapping) else ():
        value = score.get("value") if isinstance(score, Mapping) else None
        if isinstance(value, Mapping):
            values |= {f"scores.{name}.{key}": _number(each) for key, each in value.items()}
        else:
            values[f"scores.{name}"] = _number(value)
    return values


def _number(value: Any) -> Any:
    return _LETTERS.get(value, value) if isinstance(value, str) else value


def _why(row: Row) -> str:
    error = row.get("error")
    return f" ({error.get('message')})" if isinstance(error, Mapping) else ""


def _only_score(row: Row) -> str:
    names = list(_values(row.get("scores")))
    if not names:
        raise ValueError(
            f"the first sample was not scored{_why(row)}; name the score that says correct (--correct "
            "scores.NAME)"
        )
    if len(names) > 1:
        raise ValueError(
            f"there are several scores: {', '.join(names)}; name the one that says correct (--correct), or "
            "the return itself (--return-column)"
        )
    return names[0]


def _turns(messages: Any) -> list[int]:
    turns = [n for n in assistant_turns(messages, "messages") if messages[n].get("source") != "input"]
    if not turns:
        raise ValueError("'messages' holds no generated message; a trajectory needs a response")
    return turns


def _with_attachments(messages: Sequence[Row], attachments: Any) -> list[Row]:
    """Messages with the long texts that Inspect stored apart put back."""
    texts = attachments if isinstance(attachments, Mapping) else {}

    def whole(content: Any) -> Any:
        if isinstance(content, str) and content.startswith(_ATTACHMENT):
            return texts.get(content.removeprefix(_ATTACHMENT))
        if isinstance(content, list):
            return [
                {**part, "text": whole(part.get("text"))} if isinstance(part, Mapping) else part
                for part in content
            ]
        return content

    return [{**message, "content": whole(message.get("content"))} for message in messages]


def _dialogue(row: Row) -> Dialogue:
    messages = row["messages"][: _turns(row["messages"])[-1] + 1]
    choices = (row.get("output") or {}).get("choices") or [{}]
    truncated = choices[0].get("stop_reason") in ("max_tokens", "model_length")
    whole = _with_attachments(messages, row.get("attachments"))
    return terminal_message(whole, "messages", truncated=truncated)


def _score(row: Row, name: str) -> Any:
    value = row.get(name)
    if not isinstance(value, int | float):
        raise ValueError(f"{name!r} is {value!r}, expected C, I, P, N or a number; drop its group")
    return value


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    require(row, ("id", "epoch", "messages"), "inspect")
    named = columns.correct or columns.return_column
    taken = named or _only_score(row)

    def outcome(row: Row) -> Outcome:
        if not row.get("scores"):
            return Outcome(row["id"], None, sample=row["epoch"], unscored=True)
        messages = row["messages"]
        at = _turns(messages)
        said = [messages[turn] for turn in at]
        turns = count_responses(said, columns.answers, malformed, trailing_note(messages, at))
        reward = None if named else _score(row, taken)
        return Outcome(row["id"], reward, *turns[:3], sample=row["epoch"], note=turns.note)

    return LogReader(
        fields=("id", "epoch", "messages", "scores", "error"),
        outcome=outcome,
        dialogue=_dialogue,
        took={
            "prompt": "messages before the last generated one",
            "turns": "assistant messages that are not input",
            "verdict": f"{taken}: C is 1, I and N are 0, P is 0.5",
            "group": "id",
            "reward": taken,
        },
    )


INSPECT = LogFormat(
    name="inspect",
    source="Inspect (inspect_ai), .json and .eval logs",
    suffixes=(".json", ".eval"),
    sniff=_sniff,
    bind=_bind,
    trajectories=_trajectories,
)
