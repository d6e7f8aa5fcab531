"""A finished trajectory in short, as a journal's row holds it beside the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from drift_rollout.unscored import Failures, settled_turns
from drift_weights.types import Trajectory, Verdict

KEY = "prompt_id, round, policy, sample"
SUMMARY = "scored, solved, length, unique_answers, malformed, tokens, finished"
"""Columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What a status needs of one trajectory, without its text."""

    prompt_id: str
    round: int
    policy: str
    sample: int
    scored: bool
    unscored: Verdict | None
    """The last verdict, timeout or error, if it is not scored."""
    solved: bool
    length: int
    unique_answers: int
    """Malformed answers together count as one."""
    malformed: int
    """Turns without a readable answer."""
    tokens: int
    """Sampled; 0 where the engine gave no ids."""
    finished: float
    """When it was committed, in seconds since 1970."""
    settled: int
    """Turns that are wrong because their verification failed in three runs."""

    @property
    def key(self) -> tuple[str, int, str, int]:
        """(prompt_id, round, policy, sample), unique everywhere."""
        return (*self.group, self.sample)

    @property
    def group(self) -> tuple[str, int, str]:
        """(prompt_id, round, policy), what its K samples share."""
        return (self.prompt_id, self.round, self.policy)


class _Judged(msgspec.Struct):
    """Of a stored turn all that a status needs."""

    verdict: Verdict


class _Turns(msgspec.Struct):
    """Likewise of a trajectory."""

    turns: list[_Judged]


def in_short(row: Sequence[Any], record: bytes | None, failures: Failures) -> Finished:
    """What a journal's row says in short.

    Args:
        row: key and summary.
        record: the trajectory; of a scored one it is not needed.
        failures: of all trajectories.
    """
    values: dict[str, Any] = dict(zip(f"{KEY}, {SUMMARY}".split(", "), row, strict=True))
    values |= {"scored": bool(values["scored"]), "solved": bool(values["solved"])}
    unscored = None
    if not values["scored"] and record is not None:
        unscored = msgspec.msgpack.decode(record, type=_Turns).turns[-1].verdict
    settled = settled_turns(failures.get((row[0], row[1], row[2], row[3]), {}))
    return Finished(**values, unscored=unscored, settled=settled)


def row_of(trajectory: Trajectory, now: float) -> tuple[Any, ...]:
    """A row of the journal: key, summary, record."""
    return (
        *trajectory.key,
        int(trajectory.scored),
        int(trajectory.solved),
        trajectory.length,
        trajectory.unique_answers(),
        sum(turn.verdict == "malformed" for turn in trajectory.turns),
        sum(end - start for start, end in trajectory.response_spans or ()),
        now,
        msgspec.msgpack.encode(trajectory),
    )
