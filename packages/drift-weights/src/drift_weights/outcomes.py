"""What a return is made of, read from trajectories or weighted turns.

Suffix legend: N rows, T turns.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift_weights.checking import check_trajectories
from drift_weights.returns import trajectory_return
from drift_weights.types import UNSCORED, Malformed
from drift_weights.weights import group_codes

GROUP_KEY = ("prompt_id", "round", "policy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """Group, success, L, E and counted turns of each row; or, in their place, the return itself."""

    group_N: Sequence[Hashable]
    solved_N: NDArray[np.bool_] | None
    length_N: NDArray[np.float64] | None = None
    unique_N: NDArray[np.float64] | None = None
    counted_N: NDArray[np.float64] | None = None
    return_N: NDArray[np.float64] | None = None

    def returns(self, *, gamma: float, lam: float) -> NDArray[np.float64]:
        """R of eq. 12, or the return that the log brought along, shape [N]."""
        if self.return_N is not None:
            return self.return_N
        assert self.solved_N is not None
        assert self.length_N is not None
        assert self.unique_N is not None
        return trajectory_return(
            self.solved_N,
            self.length_N,
            self.unique_N,
            counted_N=self.counted_N,
            gamma=gamma,
            lam=lam,
        )


def outcomes_of_trajectories(table: pa.Table, malformed: Malformed = "count") -> Outcomes:
    """Outcomes of a TRAJECTORIES table that `whole_trajectories` returned."""
    turns_list = table.column("turns").combine_chunks()
    length_N = pc.list_value_length(turns_list).to_numpy().astype(np.int64)
    turns = turns_list.flatten()
    row_T = np.repeat(np.arange(len(length_N)), length_N)
    correct_T = pc.equal(turns.field("verdict"), "correct").to_numpy(zero_copy_only=False)
    # A null answer is a malformed one; as code −1 it is one more value, or it is left out.
    codes = turns.field("answer").dictionary_encode().indices
    code_T = pc.fill_null(codes, -1).to_numpy().astype(np.int64)
    if malformed == "skip":
        readable_T = code_T >= 0
        row_T, code_T = row_T[readable_T], code_T[readable_T]
    pairs = np.unique(np.stack([row_T, code_T]), axis=1)
    return Outcomes(
        group_N=group_keys(table),
        solved_N=correct_T[np.cumsum(length_N) - 1],
        length_N=length_N.astype(np.float64),
        unique_N=np.bincount(pairs[0], minlength=len(length_N)).astype(np.float64),
        counted_N=np.bincount(row_T, minlength=len(length_N)).astype(np.float64),
    )


def outcomes_of_weighted(table: pa.Table) -> Outcomes:
    """Outcomes of a WEIGHTED table, as they were counted when it was made."""
    named = {name: table.column(name).to_numpy() for name in ("length", "unique_answers", "counted")}
    return Outcomes(
        group_N=group_keys(table),
        solved_N=table.column("solved").to_numpy(),
        length_N=named["length"].astype(np.float64),
        unique_N=named["unique_answers"].astype(np.float64),
        counted_N=named["counted"].astype(np.float64),
    )


def group_keys(table: pa.Table) -> list[tuple[str, int, str]]:
    """(prompt_id, round, policy) of each row of a TRAJECTORIES or WEIGHTED table."""
    return list(zip(*(table.column(name).to_pylist() for name in GROUP_KEY), strict=True))


def whole_trajectories(trajectories: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Hold a TRAJECTORIES table to its rules, and leave out, whole, every group with an unscored row.

    Returns:
        The rest in the same order, and the groups left out.

    Raises:
        ValueError: what `check_trajectories` refuses, or nothing left.
    """
    table = check_trajectories(trajectories)
    keys = group_keys(table)
    ended = table.column("ended").to_pylist()
    unscored = {key for key, reason in zip(keys, ended, strict=True) if reason == "error"}
    if not unscored:
        return table, []
    keep = [key not in unscored for key in keys]
    if not any(keep):
        raise ValueError(
            f"every one of {len(unscored)} groups holds an unscored trajectory "
            f"({', '.join(sorted(UNSCORED))}); sample them again before weighting"
        )
    listed = [dict(zip(GROUP_KEY, key, strict=True)) for key in sorted(unscored)]
    return table.filter(pa.array(keep)), listed


def refuse_other_sizes(group_N: Sequence[Hashable], size: int | None) -> None:
    """Refuse groups that do not have the declared K rows.

    Raises:
        ValueError: with the number of such groups and the first of them.
    """
    if size is None:
        return
    code_N, keys = group_codes(group_N)
    sizes = np.bincount(code_N)
    wrong = np.flatnonzero(sizes != size)
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {len(keys)} groups do not have the declared {size} rows, first "
            f"{keys[wrong[0]]!r} with {sizes[wrong[0]]}; complete them, or leave the group size undeclared"
        )
