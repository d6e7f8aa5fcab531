"""verl's `rollout_data_dir` files, one JSONL a training step; `validation_data_dir` has the same rows.

A row, shortened; what the reward function returned beside its score follows by its names:
    {"input": "user\\nWhat is 3 + 4?\\nassistant\\n", "output": "It is 7.", "gts": "7", "score": 1.0,
     "step": 12, "acc": true, "pred": "7"}

Source: verl, `ray_trainer.py`, `_dump_generations`.

- The rows of one prompt share `input` and `step`; a step is a round of the contract, since the policy has
  changed since the last one.
- `input` and `output` are decoded without special tokens: the roles are left as bare words in the text,
  and the turns of a multi-turn rollout run into one `output`, which counts as one turn.
- `score` is what was trained on: ±1, or with a length penalty, for some reward functions, which then also
  give `acc`. Where both are there, one has to be named.
"""

from __future__ import annotations

from drift_weights.columns import Columns
from drift_weights.logs.exchange import last_exchange, prompt_key, require
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed

NEEDED = ("input", "output", "score", "step")


def _sniff(row: Row) -> bool:
    return row.keys() >= set(NEEDED)


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    require(row, NEEDED, "verl")
    reward = columns.correct or columns.return_column or _only_reward(row)
    return LogReader(
        fields=tuple(dict.fromkeys(("input", "step", *([reward] if reward in row else [])))),
        key=("round", "prompt"),
        outcome=lambda row: Outcome(
            group=(row["step"], prompt_key(row["input"], "input")), reward=row.get(reward)
        ),
        dialogue=_dialogue,
        took={
            "prompt": "input, as one user message",
            "turns": "one: output",
            "verdict": reward,
            "group": "step and input: the policy changes with each step, so a step is a round",
            "reward": reward,
        },
    )


def _only_reward(row: Row) -> str:
    if "acc" in row:
        raise ValueError(
            "'score' and 'acc' could both be the verdict; name one: --correct acc, or --correct score "
            "(with --threshold where it is not 0 or 1)"
        )
    return "score"


def _dialogue(row: Row) -> Dialogue:
    for name in ("input", "output"):
        if not isinstance(row[name], str):
            raise ValueError(f"{name!r} is no text; drop its group")
    return last_exchange(row["input"], row["output"], ("input", "output"), truncated=False)


VERL = LogFormat(
    name="verl",
    source="verl, trainer.rollout_data_dir",
    suffixes=(".jsonl",),
    sniff=_sniff,
    bind=_bind,
)
