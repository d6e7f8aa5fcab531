"""verifiers' `results.jsonl`, one rollout a line.

A row, shortened; reward functions and metrics stand beside `reward` by their names:
    {"example_id": 3, "prompt": [{"role": "user", "content": "What is 3 + 4?"}],
     "completion": [{"role": "assistant", "content": "8"}, {"role": "user", "content": "Try again."},
                    {"role": "assistant", "content": "7"}],
     "task": "arith", "answer": "7", "reward": 1.0, "error": null, "is_completed": true,
     "is_truncated": false, "stop_condition": "solved", "metrics": {"correct": 1.0}, "correct": 1.0}

Prompt and completion are strings in completion-style environments. Source: verifiers,
`save_utils.py`, `state_to_output`. Its first releases wrote `id` for `example_id` and no `error`.

- A group is `example_id`, and `task` where it is there: environments that hold several may number each
  from 0. `example_id` is a position in the run's data set: keep runs over other data in another file.
- The rollouts of an example are not numbered, so a repeated line cannot be told from an equal sample.
- A rollout that failed (`error`) has reward 0, which says nothing about its answer: it is unscored, so its
  whole group is left out.
- `is_truncated` is set by any cut turn, or by a prompt that outgrew the context.
- Messages of the environment behind the last response are no turn. A turn that calls a tool is one.
"""

from __future__ import annotations

from typing import Any

from drift_weights.columns import Columns
from drift_weights.logs.exchange import Turns, count_turns, counts_from_text, last_exchange, require
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed


def _sniff(row: Row) -> bool:
    return {"prompt", "completion", "reward"} <= row.keys() and _id_field(row) in row


def _id_field(row: Row) -> str:
    # An `id` alone is common; the first releases wrote it next to the time that generation took.
    return "id" if "example_id" not in row and "generation_ms" in row else "example_id"


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    identity = _id_field(row)
    require(row, (identity, "prompt", "completion", "reward"), "verifiers")
    group = (identity, "task") if isinstance(row.get("task"), str) else (identity,)
    counting = counts_from_text(columns)

    def outcome(row: Row) -> Outcome:
        turns, failed = Turns(1, 1, None, None), bool(row.get("error"))
        if counting and not failed and not isinstance(row["completion"], str):
            turns = count_turns(row["completion"], "completion", columns.answers, malformed)
        return Outcome(
            group=tuple(row[name] for name in group),
            reward=row["reward"],
            length=turns.length,
            unique=turns.unique,
            counted=turns.counted,
            unscored=failed,
            note=turns.note,
        )

    optional = (["completion"] if counting else []) + (["error"] if "error" in row else [])
    return LogReader(
        fields=(*group, "reward", *optional),
        outcome=outcome,
        dialogue=_dialogue,
        took={
            "prompt": "prompt, as one user message" if isinstance(row["prompt"], str) else "prompt",
            "turns": "assistant messages of completion; a string is one",
            "verdict": "reward",
            "group": " and ".join(group),
            "reward": "reward",
        },
    )


def _refuse_failed(error: Any) -> None:
    if error:
        shown = error.get("error", error) if isinstance(error, dict) else error
        raise ValueError(
            f"'error' is {str(shown)[:80]!r}: the rollout failed, so its reward says nothing; sample it "
            "again, or drop its group"
        )


def _dialogue(row: Row) -> Dialogue:
    _refuse_failed(row.get("error"))
    truncated = row.get("is_truncated") is True
    return last_exchange(row["prompt"], row["completion"], ("prompt", "completion"), truncated=truncated)


VERIFIERS = LogFormat(
    name="verifiers",
    source="verifiers, results.jsonl",
    suffixes=(".jsonl",),
    sniff=_sniff,
    bind=_bind,
)
