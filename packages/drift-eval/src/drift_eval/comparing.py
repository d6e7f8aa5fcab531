"""Two policies on the same problems: is the difference more than chance?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa

from drift_eval.intervals import (
    CONFIDENCE,
    Estimate,
    McNemar,
    Rate,
    mcnemar,
    paired_bootstrap,
    wilson,
)
from drift_eval.outcomes import Outcomes, Unscored, outcomes


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two policies on the same problems, at multi@k."""

    first: str
    second: str
    k: int
    problems: int
    """N, with those of the benchmark that neither policy's table holds."""
    first_rate: Rate
    second_rate: Rate
    difference: Estimate
    """multi@k of the first minus that of the second; bootstrap over problems, paired."""
    mcnemar: McNemar


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparisons:
    """The pairs of policies that can be compared, and why the others cannot."""

    pairs: tuple[Comparison, ...]
    refused: tuple[str, ...]


def compare(
    table: pa.Table,
    first: str,
    second: str,
    *,
    k: int | None = None,
    size: int | None = None,
    unscored: Unscored = "refuse",
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare two policies of a TRAJECTORIES table on the same problems, at multi@k.

    Args:
        table: as for `score`, holding both policies.
        first: a policy.
        second: another one.
        k: turns that count; by default the turn budget, which must then be the same for both.
        size: N of the benchmark; problems that are missing count as wrong for both policies. By
            default the problems that are there.
        unscored: as for `score`; policies that omit different problems cannot be paired.
        seed: of the bootstrap.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: as for `score`; a policy that is not there; problems or, without `k`, turn
            budgets that differ; with a size, numbers of omitted dialogues that differ.
    """
    by_policy = {outcome.policy: outcome for outcome in outcomes(table, unscored=unscored)}
    for policy in (first, second):
        if policy not in by_policy:
            raise ValueError(f"policy {policy!r} is not in the table; it has {', '.join(by_policy)}")
    return compare_outcomes(
        by_policy[first], by_policy[second], k=k, size=size, seed=seed, confidence=confidence
    )


def compare_all(
    table: pa.Table,
    *,
    size: int | None = None,
    unscored: Unscored = "refuse",
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Comparisons:
    """Compare every two policies of a table, each pair at the smaller of their turn budgets.

    Args and errors as in `compare`; pairs without the same problems, or with only one, are listed.
    """
    pairs, refused = [], []
    for first, second in combinations(outcomes(table, unscored=unscored), 2):
        reason = _unpaired(first, second, size)
        if reason is not None:
            refused.append(reason)
            continue
        k = min(first.max_turns, second.max_turns)
        pairs.append(compare_outcomes(first, second, k=k, size=size, seed=seed, confidence=confidence))
    return Comparisons(pairs=tuple(pairs), refused=tuple(refused))


def compare_outcomes(
    first: Outcomes,
    second: Outcomes,
    *,
    k: int | None = None,
    size: int | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """As `compare`, from outcomes that are there already; they may come from two tables."""
    reason = _unpaired(first, second, size)
    if reason is not None:
        raise ValueError(reason)
    turns = _common_turns(first, second, k)
    place = {prompt_id: row for row, prompt_id in enumerate(second.prompt_ids)}
    order = [place[prompt_id] for prompt_id in first.prompt_ids]
    missing = _missing(first, size)
    first_N = np.pad(first.solved_within(turns), (0, missing))
    second_N = np.pad(second.solved_within(turns)[order], (0, missing))
    problems = len(first_N)
    return Comparison(
        first=first.policy,
        second=second.policy,
        k=turns,
        problems=problems,
        first_rate=wilson(int(first_N.sum()), problems, confidence=confidence),
        second_rate=wilson(int(second_N.sum()), problems, confidence=confidence),
        difference=paired_bootstrap(first_N, second_N, seed=seed, confidence=confidence),
        mcnemar=mcnemar(first_N, second_N),
    )


def refuse_same_policy(first: pa.Table, second: pa.Table) -> None:
    """Refuse two tables that are to be compared and hold dialogues of one policy.

    Raises:
        ValueError: names the policy.
    """
    shared = set(first.column("policy").to_pylist()) & set(second.column("policy").to_pylist())
    if shared:
        raise ValueError(
            f"both tables hold the same policy, {min(shared)!r}, and two policies are compared; what "
            "another verifier changes in the dialogues of one, before and after, is printed by "
            "drift-rollout reverify"
        )


def _common_turns(first: Outcomes, second: Outcomes, k: int | None) -> int:
    if k is None and first.max_turns != second.max_turns:
        raise ValueError(
            f"the turn budgets differ ({first.policy!r} {first.max_turns}, {second.policy!r} "
            f"{second.max_turns}); say at which k to compare them"
        )
    turns = first.max_turns if k is None else k
    if not 1 <= turns <= min(first.max_turns, second.max_turns):
        raise ValueError(f"k must lie within both turn budgets, got {turns}")
    return turns


def _missing(outcome: Outcomes, size: int | None) -> int:
    """How many problems of the benchmark the table does not hold."""
    if size is None:
        return 0
    there = len(outcome.prompt_ids) + outcome.omitted
    if size < there:
        raise ValueError(f"size must cover all {there} problems, got {size}")
    return size - there


def _unpaired(first: Outcomes, second: Outcomes, size: int | None) -> str | None:
    """Why two policies cannot be compared problem by problem; None if they can."""
    names = f"{first.policy!r} and {second.policy!r}"
    ours, theirs = set(first.prompt_ids), set(second.prompt_ids)
    if ours != theirs:
        # The id is a hash of the whole prompt.
        asked = "" if ours & theirs else " and with the same prompt, which is part of a problem's id"
        return (
            f"{names} cannot be paired, their problems differ: {_some(ours - theirs)} only of the "
            f"first, {_some(theirs - ours)} only of the second; evaluate both on the same problems{asked}"
        )
    if size is not None and first.omitted != second.omitted:
        return (
            f"{names} omit {first.omitted} and {second.omitted} dialogues, so of {size} problems they do "
            "not answer the same; count unscored dialogues as wrong, or compare without a size"
        )
    return f"{names} share one problem only; a paired test needs 2" if len(ours) < 2 else None


def _some(prompt_ids: set[str]) -> str:
    if not prompt_ids:
        return "0"
    shown = ", ".join(sorted(prompt_ids)[:3])
    return f"{len(prompt_ids)} ({shown}{', …' if len(prompt_ids) > 3 else ''})"
