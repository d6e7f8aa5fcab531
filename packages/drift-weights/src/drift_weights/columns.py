"""Outcomes of any table: which columns say what, and what their values may be. Suffix legend: N rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_weights.outcomes import GROUP_KEY, Outcomes


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns of a foreign table say what.

    Give `return_column`, or let the return be computed from `correct`, `length` and `unique`. Where a
    table has neither `length` nor `unique`, every row is one turn (L = E = 1).
    """

    group: str | tuple[str, ...] | None = None
    """Column or columns that name a row's group. None is the contract's key: `prompt_id`, and `round`
    and `policy` where the table has them. A log that mixes policies on purpose names `prompt_id`."""
    correct: str = "correct"
    length: str = "length"
    unique: str = "unique"
    return_column: str | None = None
    threshold: float | None = None
    """A `correct` value from here on is a success; without it only 0, 1, true and false are taken."""

    def groups(self, present: Sequence[str]) -> list[str]:
        """The columns that name the group in a table with the columns `present`."""
        if self.group is None:
            return ["prompt_id", *(name for name in GROUP_KEY[1:] if name in present)]
        return [self.group] if isinstance(self.group, str) else list(self.group)

    def needed(self, present: Sequence[str]) -> list[str]:
        """The columns to read from a table that has the columns `present`.

        Raises:
            ValueError: a column that is missing, or one of `length` and `unique` without the other.
        """
        names = self.groups(present)
        if self.group is None and "sample" in present:
            names.append("sample")
        if self.return_column is not None:
            names += [self.return_column, *(name for name in [self.correct] if name in present)]
            return self._present(names, present)
        pair = [name for name in (self.length, self.unique) if name in present]
        if len(pair) == 1:
            other = self.unique if pair[0] == self.length else self.length
            raise ValueError(
                f"column {pair[0]!r} is there but {other!r} is not; name both or neither: without the "
                "number of distinct answers the penalty of eq. 12 cannot be computed"
            )
        return self._present([*names, self.correct, *pair], present)

    def _present(self, names: list[str], present: Sequence[str]) -> list[str]:
        missing = [name for name in names if name not in present]
        if missing:
            raise ValueError(
                f"no column {', '.join(map(repr, missing))}; there are {', '.join(present)}; name the "
                "columns that hold the group (--group) and either the return (--return-column) or the "
                "outcome (--correct, --length, --unique)"
            )
        return list(dict.fromkeys(names))


def outcomes_of_columns(values: Mapping[str, list[Any]], columns: Columns) -> Outcomes:
    """Outcomes of a foreign table.

    Args:
        values: the columns that `Columns.needed` names, as Python values.

    Raises:
        ValueError: no rows, a null or a foreign value (row and column are named), group keys of
            several types, a sample that a group holds twice, a `correct` other than 0 and 1 while
            no threshold is named.
    """
    names = columns.groups(list(values))
    group_N = _group_keys(values, names)
    if columns.group is None and "sample" in values:
        _refuse_repeated(group_N, values["sample"], names)
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


def _group_keys(values: Mapping[str, list[Any]], names: Sequence[str]) -> list[Hashable]:
    if not values[names[0]]:
        raise ValueError("there are no rows")
    for name in names:
        _refuse_mixed_keys(values[name], name)
    if len(names) == 1:
        return values[names[0]]
    return list(zip(*(values[name] for name in names), strict=True))


def _solved(values: Mapping[str, list[Any]], columns: Columns) -> NDArray[np.bool_]:
    correct = _numbers(values[columns.correct], columns.correct)
    if columns.threshold is not None:
        if np.isnan(correct).any():
            row = int(np.argmax(np.isnan(correct)))
            raise ValueError(f"row {row}: {columns.correct!r} is NaN; fix or drop its group")
        return np.asarray(correct >= columns.threshold)
    strange_N = (correct != 0) & (correct != 1)
    if strange_N.any():
        row = int(np.argmax(strange_N))
        raise ValueError(
            f"row {row}: {columns.correct!r} is {correct[row]:g}, neither 0 nor 1; name it as the return "
            "column (--return-column), or give the threshold from which it counts as correct (--threshold)"
        )
    return np.asarray(correct == 1)


def _refuse_mixed_keys(values: Sequence[Any], name: str) -> None:
    first = type(values[0])
    for row, key in enumerate(values):
        if key is None or key != key:
            raise ValueError(f"row {row}: {name!r} is null; every row needs its group")
        if type(key) is not first:
            raise ValueError(
                f"row {row}: {name!r} is {type(key).__name__} {key!r}, earlier rows hold "
                f"{first.__name__}; give every group key one type"
            )
        if isinstance(key, (dict, list)):
            raise ValueError(f"row {row}: {name!r} is {key!r}; a group key must be a string or a number")


def _refuse_repeated(group_N: Sequence[Hashable], samples: Sequence[Any], names: Sequence[str]) -> None:
    first: dict[tuple[Hashable, Any], int] = {}
    for row, (group, sample) in enumerate(zip(group_N, samples, strict=True)):
        if isinstance(sample, (dict, list)):
            raise ValueError(f"row {row}: 'sample' is {sample!r}, expected a number or a string")
        before = first.setdefault((group, sample), row)
        if before != row:
            raise ValueError(
                f"row {row}: sample {sample!r} of this {', '.join(names)} is in row {before} already; keep "
                "one of them"
            )


def _numbers(values: Sequence[Any], name: str) -> NDArray[np.float64]:
    for row, value in enumerate(values):
        if not isinstance(value, (bool, int, float, Decimal, np.bool_, np.number)):
            found = "null" if value is None else repr(value)
            raise ValueError(f"row {row}: {name!r} is {found}, expected a number; fix or drop its group")
    return np.asarray(values, dtype=np.float64)
