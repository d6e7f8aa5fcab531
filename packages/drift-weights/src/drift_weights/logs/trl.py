"""TRL's `completions_*.parquet`, which GRPOTrainer writes a logging step with `log_completions`.

A row, shortened; one column a reward function, by its name:
    {"step": 12, "prompt": [{"role": "user", "content": "What is 3 + 4?"}],
     "completion": [{"role": "assistant", "content": "It is 7."}],
     "accuracy_reward": 1.0, "format_reward": 0.5, "advantage": 0.7}

Prompt and completion are strings where the data set is not conversational. Source: trl 1.16,
`GRPOTrainer.log`; functions may add columns of their own (`log_extra`). Tables of its first releases have
`reward` and no `advantage`, and `step` as a string: `--format trl` reads them.

- A policy changes with each step, so a group is a step and a prompt.
- With several reward columns one has to be named; `advantage` is normalised within the group and is
  neither verdict nor return.
- A file holds the last generation batch: with `steps_per_generation` above 1 several files hold the same
  rows under several steps, which nothing in a row gives away.
- Tool calls make a completion of several assistant messages: each is a turn.
"""

from __future__ import annotations

from drift_weights.columns import Columns
from drift_weights.logs.exchange import (
    Turns,
    count_turns,
    counts_from_text,
    last_exchange,
    prompt_key,
    require,
)
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed

NEEDED = ("step", "prompt", "completion")
NO_REWARD = {*NEEDED, "advantage", "image", "images", "weight"}


def _sniff(row: Row) -> bool:
    return {*NEEDED, "advantage"} <= row.keys()


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    require(row, NEEDED, "trl")
    reward = columns.correct or columns.return_column or _only_reward(row)
    textual = isinstance(row["completion"], str)
    # A Parquet column has one type: a first row with a string speaks for all.
    counting = counts_from_text(columns) and not textual

    def outcome(row: Row) -> Outcome:
        turns = Turns(1, 1, None, None)
        if counting:
            turns = count_turns(row["completion"], "completion", columns.answers, malformed)
        return Outcome(
            group=(row["step"], prompt_key(row["prompt"], "prompt")),
            reward=row.get(reward),
            length=turns.length,
            unique=turns.unique,
            counted=turns.counted,
            note=turns.note,
        )

    return LogReader(
        fields=(
            "step",
            "prompt",
            *([reward] if reward in row else []),
            *(["completion"] if counting else []),
        ),
        key=("round", "prompt"),
        outcome=outcome,
        dialogue=_dialogue,
        took={
            "prompt": "prompt, as one user message" if isinstance(row["prompt"], str) else "prompt",
            "turns": "one: completion" if textual else "assistant messages of completion",
            "verdict": reward,
            "group": "step and prompt: the policy changes with each step, so a step is a round",
            "reward": reward,
        },
    )


def _only_reward(row: Row) -> str:
    """The one column that can be a reward; a null may be one that a function did not give."""
    kinds = (bool, int, float, type(None))
    found = [name for name, value in row.items() if name not in NO_REWARD and isinstance(value, kinds)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(f"no reward column; there are {', '.join(row)}; name the verdict with --correct")
    raise ValueError(
        f"several columns could be the verdict: {', '.join(found)}; name one with --correct (and "
        "--threshold where it is not 0 or 1), or the return with --return-column"
    )


def _dialogue(row: Row) -> Dialogue:
    return last_exchange(row["prompt"], row["completion"], ("prompt", "completion"), truncated=False)


TRL = LogFormat(
    name="trl",
    source="TRL GRPOTrainer, log_completions",
    suffixes=(".parquet",),
    sniff=_sniff,
    bind=_bind,
)
