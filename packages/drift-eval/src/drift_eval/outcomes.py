"""What each policy did on each problem, checked. Suffix: N rows of one policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift_eval.metrics import first_success_of
from drift_eval.turns import Turns, flatten_turns
from drift_weights.schema import TRAJECTORIES, check
from drift_weights.weights import group_codes

Unscored = Literal["refuse", "wrong", "omit"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcomes:
    """One policy's dialogues, one a problem."""

    policy: str
    max_turns: int
    """T, the same for every row."""
    prompt_ids: tuple[str, ...]
    turns: Turns
    first_success: NDArray[np.int64]
    """1-based turn of the first correct verdict, 0 for never; shape [N]."""
    unscored: int
    """Dialogues that ended in a timeout or an error, whether they are among the N or left out."""
    unscored_as: Unscored

    @property
    def omitted(self) -> int:
        """Dialogues that were left out."""
        return self.unscored if self.unscored_as == "omit" else 0

    def solved_within(self, k: int) -> NDArray[np.bool_]:
        """Whether each problem was solved within k turns; shape [N]."""
        return (self.first_success > 0) & (self.first_success <= k)


def outcomes(table: pa.Table, *, unscored: Unscored = "refuse") -> tuple[Outcomes, ...]:
    """The outcomes of every policy of a TRAJECTORIES table, in order of first appearance.

    Args:
        table: one dialogue a problem and policy, as greedy evaluation gives.
        unscored: what to do with dialogues that ended in a timeout or an error: `refuse` the table,
            count them as `wrong`, or `omit` them.

    Raises:
        ValueError: the table does not fit its schema; several dialogues of one policy on one
            problem; `max_turns` that differ within a policy or are exceeded; unscored dialogues
            under `refuse`, or a policy of which nothing else is left under `omit`.
    """
    if unscored not in get_args(Unscored):
        raise ValueError(f"unscored must be one of {', '.join(get_args(Unscored))}, got {unscored!r}")
    checked = check(table, TRAJECTORIES)
    _refuse_long(checked)
    code_N, policies = group_codes(checked.column("policy"))
    return tuple(
        _of_policy(str(policy), checked.filter(pa.array(code_N == code)), unscored)
        for code, policy in enumerate(policies)
    )


def _of_policy(policy: str, table: pa.Table, unscored: Unscored) -> Outcomes:
    _refuse_repeated(policy, table)
    budgets = np.unique(np.asarray(table.column("max_turns")))
    if len(budgets) > 1:
        found = ", ".join(map(str, budgets))
        raise ValueError(f"policy {policy!r} has dialogues of max_turns {found}; score them apart")
    turns = flatten_turns(table)
    unscored_N = np.isin(np.arange(table.num_rows), turns.rows[turns.unscored])
    count = int(unscored_N.sum())
    if count and unscored == "refuse":
        row = int(np.argmax(unscored_N))
        raise ValueError(
            f"policy {policy!r}: {count} of {table.num_rows} dialogues ended in a timeout or an "
            f"error (the first: prompt_id {table.column('prompt_id')[row]}); verify or sample them "
            "again, count them as wrong with --unscored wrong, or leave them out with --unscored omit"
        )
    if count and unscored == "omit":
        if count == table.num_rows:
            raise ValueError(f"policy {policy!r}: all {count} dialogues are unscored, none is left")
        table = table.filter(pa.array(~unscored_N))
        turns = flatten_turns(table)
    return Outcomes(
        policy=policy,
        max_turns=int(budgets[0]),
        prompt_ids=tuple(table.column("prompt_id").to_pylist()),
        turns=turns,
        first_success=first_success_of(turns),
        unscored=count,
        unscored_as=unscored,
    )


def _refuse_long(table: pa.Table) -> None:
    lengths = flatten_turns(table).lengths
    budget_N = np.asarray(table.column("max_turns"))
    if (lengths > budget_N).any():
        row = int(np.argmax(lengths > budget_N))
        raise ValueError(f"row {row}: {lengths[row]} turns, more than its max_turns {budget_N[row]}")


def _refuse_repeated(policy: str, table: pa.Table) -> None:
    code_N, prompt_ids = group_codes(table.column("prompt_id"))
    count_G = np.bincount(code_N)
    if (count_G > 1).any():
        group = int(np.argmax(count_G > 1))
        raise ValueError(
            f"policy {policy!r} has {count_G[group]} dialogues on prompt_id {prompt_ids[group]}; "
            "scores need one a problem: keep one sample and one round (greedy evaluation gives one)"
        )
