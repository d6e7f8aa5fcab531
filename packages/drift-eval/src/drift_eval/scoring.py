"""From a trajectories table to one record of numbers a policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from drift_eval.intervals import CONFIDENCE, Rate, wilson
from drift_eval.metrics import (
    correction_rates,
    malformed_shares,
    mean_unique_answers,
    solved_rates,
    solved_within,
    total_correction,
    unique_answers,
)
from drift_eval.outcomes import Outcomes, Unscored, outcomes
from drift_weights.types import Malformed


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What one policy did on one set of problems. Tuples run over the turns 1…T."""

    policy: str
    problems: int
    """N, the denominator of every share of problems."""
    missing: int
    """Problems of the benchmark that the table does not hold; they count as wrong."""
    unscored: int
    """Dialogues that ended in a timeout or an error."""
    unscored_as: Unscored
    """How those were taken: as wrong, or left out (then they are not among the problems)."""
    max_turns: int
    """T, the turn budget."""
    acc_at_1: Rate
    """Share of problems solved at the first turn."""
    multi_at: tuple[Rate, ...]
    """multi@k for k = 1…T (eq. 21)."""
    correction_rates: tuple[float | None, ...]
    """c_t (sec. 5.4); None where nothing was wrong any more."""
    total_correction: float | None
    """(Acc@T − Acc@1) / (1 − Acc@1) (table 6); None at Acc@1 = 1."""
    solved_rates: tuple[float, ...] | None
    """multi@t / multi@T (sec. 5.5); None where nothing was solved."""
    unique_answers_wrong: float | None
    """Mean E over the dialogues that were never solved (table 6); None where there is none."""
    unique_answers_all: float
    """Mean E over all dialogues."""
    malformed_shares: tuple[float | None, ...]
    """Of the responses at turn t, the share without a readable answer; None where there is none."""
    lengths: tuple[int, ...]
    """How many dialogues took L = 1…T turns."""

    @property
    def multi_at_max(self) -> Rate:
        """multi@T."""
        return self.multi_at[-1]


def score(
    table: pa.Table,
    *,
    size: int | None = None,
    unscored: Unscored = "refuse",
    malformed: Malformed = "count",
    confidence: float = CONFIDENCE,
) -> tuple[Scores, ...]:
    """Score every policy of a TRAJECTORIES table that holds one dialogue a problem and policy.

    Args:
        table: dialogues on one benchmark.
        size: N of the benchmark; problems that a policy lacks count as wrong. By default the
            problems that are there.
        unscored: what to do with dialogues that ended in a timeout or an error: `refuse` the table,
            count them as `wrong`, or `omit` them (N shrinks by as many).
        malformed: whether answers that could not be read are one answer value in E (`count`) or
            none (`skip`).
        confidence: of the Wilson intervals, in (0, 1).

    Returns:
        One record a policy, in order of first appearance.

    Raises:
        ValueError: a table that `outcomes` refuses, or a size below the number of problems.
    """
    found = outcomes(table, unscored=unscored)
    return tuple(score_outcomes(o, size=size, malformed=malformed, confidence=confidence) for o in found)


def score_outcomes(
    outcome: Outcomes,
    *,
    size: int | None = None,
    malformed: Malformed = "count",
    confidence: float = CONFIDENCE,
) -> Scores:
    """As `score`, for one policy whose outcomes are there already."""
    rows, max_turns = len(outcome.prompt_ids), outcome.max_turns
    size = rows if size is None else size - outcome.omitted
    first_N = outcome.first_success
    solved_T, problems = solved_within(first_N, max_turns=max_turns, size=size)
    multi_at = tuple(wilson(solved, problems, confidence=confidence) for solved in solved_T.tolist())
    unique_N = unique_answers(outcome.turns, malformed=malformed)
    unique_wrong, unique_all = mean_unique_answers(unique_N, first_N > 0)
    return Scores(
        policy=outcome.policy,
        problems=problems,
        missing=problems - rows,
        unscored=outcome.unscored,
        unscored_as=outcome.unscored_as,
        max_turns=max_turns,
        acc_at_1=multi_at[0],
        multi_at=multi_at,
        correction_rates=correction_rates(first_N, max_turns=max_turns, size=problems),
        total_correction=total_correction(multi_at[0].value, multi_at[-1].value),
        solved_rates=solved_rates(first_N, max_turns=max_turns),
        unique_answers_wrong=unique_wrong,
        unique_answers_all=unique_all,
        malformed_shares=malformed_shares(outcome.turns, max_turns=max_turns),
        lengths=tuple(np.bincount(outcome.turns.lengths, minlength=max_turns + 1)[1:].tolist()),
    )
