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

from collections.abc import Iterator
from pathlib import Path

import msgspec

from drift_weights.columns import Columns
from drift_weights.logs.documents import json_document, json_object
from drift_weights.logs.exchange import count_responses, require, terminal_message
from drift_weights.logs.messages import assistant_turns, trailing_note
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed

NEEDED = ("task_id", "trial", "reward", "traj")


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
            # The run broke off ('info' says why), so its reward is no verdict.
            return Outcome(row["task_id"], None, sample=row["trial"], unscored=True)
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
    array=True,
)
