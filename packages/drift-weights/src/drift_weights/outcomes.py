"""What a return is made of, read from trajectories, weighted turns or any table.

Suffix legend: N rows, T turns.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift_weights.returns import trajectory_return
from drift_weights.schema import TRAJECTORIES, check
from drift_weights.types import UNSCORED, Malformed
from drift_weights.weights import group_codes

GROUP_KEY = ("prompt_id", "round", "policy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """Group, success, L, E and counted turns of each row; or, in their place, the return itself."""

    group_N: list[Hashable]
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns of a foreign table say what.

    Give `return_column`, or let the return be computed from `correct`, `length` and `unique`. Where a
    table has neither `length` nor `unique`, every row is one turn (L = E = 1).
    """

    group: str = "prompt_id"
    correct: str = "correct"
    length: str = "length"
    unique: str = "unique"
    return_column: str | None = None
    threshold: float | None = None
    """A `correct` value from here on is a success; without it only 0, 1, true and false are taken."""

    def needed(self, present: Sequence[str]) -> list[str]:
        """The columns to read from a table that has the columns `present`.

        Raises:
            ValueError: a column that is missing, or one of `length` and `unique` without the other.
        """
        if self.return_column is not None:
            also = [self.correct] if self.correct in present else []
            return self._present([self.group, self.return_column, *also], present)
        pair = [name for name in (self.length, self.unique) if name in present]
        if len(pair) == 1:
            other = self.unique if pair[0] == self.length else self.length
            raise ValueError(
                f"column {pair[0]!r} is there but {other!r} is not; name both or neither: without the "
                "number of distinct answers the penalty of eq. 12 cannot be computed"
            )
        return self._present([self.group, self.correct, *pair], present)

    def _present(self, names: list[str], present: Sequence[str]) -> list[str]:
        missing = [name for name in names if name not in present]
        if missing:
            raise ValueError(
                f"no column {', '.join(map(repr, missing))}; there are {', '.join(present)}; name the "
                "columns that hold the group and either the return or the outcome"
            )
        return names


def outcomes_of_columns(values: Mapping[str, list[Any]], columns: Columns) -> Outcomes:
    """Outcomes of a foreign table.

    Args:
        values: the columns that `Columns.needed` names, as Python values.

    Raises:
        ValueError: no rows, a null or a foreign value (row and column are named), group keys of
            several types, a `correct` other than 0 and 1 while no threshold is named.
    """
    group_N = values[columns.group]
    if not group_N:
        raise ValueError("there are no rows")
    _refuse_mixed_keys(group_N, columns.group)
    if columns.return_column is not None:
        returns = _numbers(values[columns.return_column], columns.return_column)
        solved = _solved(values, columns) if columns.correct in values else None
        return Outcomes(group_N=group_N, solved_N=solved, return_N=returns)
    ones = np.ones(len(group_N))
    return Outcomes(
        group_N=group_N,
        solved_N=_solved(values, columns),
        length_N=_numbers(values[columns.length], columns.length) if columns.length in values else ones,
        unique_N=_numbers(values[columns.unique], columns.unique) if columns.unique in values else ones,
    )


def outcomes_of_trajectories(table: pa.Table, malformed: Malformed = "count") -> Outcomes:
    """Outcomes of a TRAJECTORIES table without unscored rows."""
    turns_list = table.column("turns").combine_chunks()
    length_N = pc.list_value_length(turns_list).to_numpy().astype(np.int64)
    if (length_N < 1).any():
        raise ValueError(f"row {int(np.argmax(length_N < 1))}: the trajectory has no turns")
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


def group_keys(table: pa.Table) -> list[Hashable]:
    """(prompt_id, round, policy) of each row of a TRAJECTORIES or WEIGHTED table."""
    return list(zip(*(table.column(name).to_pylist() for name in GROUP_KEY), strict=True))


def whole_trajectories(trajectories: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Hold a TRAJECTORIES table to its key, and leave out, whole, every group with an unscored row.

    Returns:
        The rest in the same order, and the groups left out.

    Raises:
        ValueError: the table does not fit, a duplicate key, or nothing left.
    """
    table = check(trajectories, TRAJECTORIES, source="the trajectories")
    _refuse_duplicate_keys(table)
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
    listed = [dict(zip(GROUP_KEY, key, strict=True)) for key in sorted(unscored)]  # type: ignore[type-var, call-overload]
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


def _solved(values: Mapping[str, list[Any]], columns: Columns) -> NDArray[np.bool_]:
    correct = _numbers(values[columns.correct], columns.correct)
    if columns.threshold is not None:
        return np.asarray(correct >= columns.threshold)
    strange_N = (correct != 0) & (correct != 1)
    if strange_N.any():
        row = int(np.argmax(strange_N))
        raise ValueError(
            f"row {row}: {columns.correct!r} is {correct[row]:g}, neither 0 nor 1; name it as the return "
            "column, or give the threshold from which it counts as correct"
        )
    return np.asarray(correct == 1)


def _refuse_duplicate_keys(table: pa.Table) -> None:
    names = [*GROUP_KEY, "sample"]
    counted = table.select(names).group_by(names).aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted.column("count_all"), 1))
    if twice.num_rows:
        first = {name: twice.column(name)[0].as_py() for name in names}
        raise ValueError(f"{twice.num_rows} keys appear more than once, first {first}; keep one row each")


def _refuse_mixed_keys(group_N: Sequence[Any], name: str) -> None:
    first = type(group_N[0])
    for row, key in enumerate(group_N):
        if key is None or key != key:
            raise ValueError(f"row {row}: {name!r} is null; every row needs its group")
        if type(key) is not first:
            raise ValueError(
                f"row {row}: {name!r} is {type(key).__name__} {key!r}, earlier rows hold "
                f"{first.__name__}; give every group key one type"
            )
        if isinstance(key, (dict, list)):
            raise ValueError(f"row {row}: {name!r} is {key!r}; a group key must be a string or a number")


def _numbers(values: list[Any], name: str) -> NDArray[np.float64]:
    for row, value in enumerate(values):
        if not isinstance(value, (bool, int, float)):
            found = "null" if value is None else repr(value)
            raise ValueError(f"row {row}: {name!r} is {found}, expected a number; fix or drop its group")
    return np.asarray(values, dtype=np.float64)
