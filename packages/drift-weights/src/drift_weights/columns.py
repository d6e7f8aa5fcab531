"""Outcomes of any table: which columns say what, and what their values may be. Suffix legend: N rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift_weights.arrays import strings_or_numbers, to_numpy
from drift_weights.outcomes import GROUP_KEY, Outcomes, RowError


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns of a foreign log say what; None is the format's own choice.

    Give `return_column`, or let the return be computed from `correct`, `length` and `unique`. Where a
    table has neither `length` nor `unique` nor a dialogue, every row is one turn (L = E = 1).
    """

    group: str | tuple[str, ...] | None = None
    """Column or columns that name a row's group. None is the format's own; in a plain table the
    contract's key: `prompt_id`, and `round` and `policy` where the table has them. A log that mixes
    policies on purpose names `prompt_id`."""
    correct: str | None = None
    """Column with 0 or 1, or with a score that `threshold` explains; `correct` in a plain table."""
    length: str | None = None
    """Column with L; `length` in a plain table."""
    unique: str | None = None
    """Column with E; `unique` in a plain table."""
    return_column: str | None = None
    """Column with the return itself, in place of eq. 12."""
    threshold: float | None = None
    """A `correct` value from here on is a success; without it only 0, 1, true and false are taken."""
    answers: Literal["responses"] | None = None
    """`responses` takes the responses themselves as answers, where a log of several turns has none."""
    messages: str = "messages"
    """Column of a chat log with the whole dialogue."""
    prompt: str = "prompt"
    """Column of a chat log with what comes before the response."""
    completion: str = "completion"
    """Column of a chat log with the response."""

    def plain(self, present: Sequence[str]) -> Plain:
        """What to read from a table that has the columns `present`.

        Raises:
            ValueError: a column that is missing, or one of `length` and `unique` without the other.
        """
        correct, length = self.correct or "correct", self.length or "length"
        unique = self.unique or "unique"
        group = self.groups(present)
        sample = "sample" if self.group is None and "sample" in present else None
        if self.return_column is not None:
            solved = correct if self.correct or correct in present else None
            needed = [*group, self.return_column, *([solved] if solved else [])]
            found = Plain(group=group, sample=sample, correct=solved, returns=self.return_column)
        else:
            pair = [name for name in (length, unique) if name in present]
            if len(pair) == 1:
                other = unique if pair[0] == length else length
                raise ValueError(
                    f"column {pair[0]!r} is there but {other!r} is not; name both or neither: without the "
                    "number of distinct answers the penalty of eq. 12 cannot be computed"
                )
            needed = [*group, correct, *pair]
            lengths, uniques = pair or (None, None)
            found = Plain(group=group, sample=sample, correct=correct, length=lengths, unique=uniques)
        missing = [name for name in needed if name not in present]
        if missing:
            raise ValueError(
                f"no column {', '.join(map(repr, missing))}; there are {', '.join(present)}; name the "
                "columns that hold the group (--group) and either the return (--return-column) or the "
                "outcome (--correct, --length, --unique)"
            )
        return found

    def groups(self, present: Sequence[str]) -> tuple[str, ...]:
        """The columns that name the group in a table with the columns `present`."""
        if self.group is None:
            return ("prompt_id", *(name for name in GROUP_KEY[1:] if name in present))
        return (self.group,) if isinstance(self.group, str) else self.group


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """The columns of one table that hold the parts of an outcome as they are."""

    group: tuple[str, ...]
    sample: str | None = None
    correct: str | None = None
    returns: str | None = None
    length: str | None = None
    unique: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every column, once."""
        named = (*self.group, self.sample, self.correct, self.returns, self.length, self.unique)
        return tuple(dict.fromkeys(name for name in named if name is not None))


def outcomes_of_columns(
    values: Mapping[str, pa.Array], plain: Plain, threshold: float | None = None
) -> Outcomes:
    """Outcomes of a batch of a foreign table.

    Args:
        values: the columns that `plain` names, as Arrow arrays (`arrow_values` makes them of lists).
        threshold: from here on a value of `correct`, or without it a return, is a success.

    Raises:
        RowError: a null or a foreign value, a `correct` other than 0 and 1 while no threshold is named.
    """
    rows = len(values[plain.group[0]])
    length_N = unique_N = np.ones(rows, np.int64)
    if plain.length is not None and plain.unique is not None:
        length_N = _whole(values[plain.length], plain.length)
        unique_N = _whole(values[plain.unique], plain.unique)
    returns = None if plain.returns is None else numbers(values[plain.returns], plain.returns)
    solved = None
    if plain.correct is not None:
        solved = solved_rows(values[plain.correct], plain.correct, threshold)
    elif returns is not None and threshold is not None:
        solved = returns >= threshold
    return Outcomes(
        key_columns=tuple(key_column(values[name], name) for name in plain.group),
        solved_N=solved,
        length_N=length_N,
        unique_N=unique_N,
        counted_N=length_N,
        return_N=returns,
        sample=None if plain.sample is None else _samples(values[plain.sample], plain.sample),
    )


def arrow_values(values: Sequence[Any], name: str) -> pa.Array:
    """Python values as one Arrow array.

    Raises:
        RowError: values of several kinds; the first that is unlike its predecessors is named.
    """
    found = strings_or_numbers(values)
    if found is not None:
        return found
    try:
        return pa.array(values, from_pandas=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, pa.ArrowNotImplementedError):
        pass
    if all(isinstance(value, bool | int | float | Decimal | np.number | np.bool_) for value in values):
        return pa.array([_real(row, value, name) for row, value in enumerate(values)], pa.float64())
    raise _mixture(values, name)


def key_values(values: Sequence[Any], name: str) -> pa.Array:
    """Python values as a part of a group key: strings, or numbers of one type.

    Raises:
        RowError: a null, values of several types, a number beyond 64 bits.
    """
    found = strings_or_numbers(values)
    if found is not None:
        return key_column(found, name)
    if set(map(type, values)) == {int}:
        if min(values) >= 0 and max(values) < 2**64:
            return pa.array(values, pa.uint64())
        row = next(row for row, value in enumerate(values) if not -(2**63) <= value < 2**63)
        raise RowError(row, f"{name!r} is {_shown(values[row])}, beyond 64 bits; give such keys as text")
    for row, value in enumerate(values):
        if value is None:
            raise RowError(row, f"{name!r} is null; every row needs its group")
    if len(set(map(type, values))) == 1:
        return key_column(arrow_values(values, name), name)
    raise _mixture(values, name)


def _real(row: int, value: Any, name: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise RowError(row, f"{name!r} is {_shown(value)}, beyond what a number can hold") from error


def _mixture(values: Sequence[Any], name: str) -> RowError:
    kinds = [_kind(value) for value in values]
    first = next(kind for kind in kinds if kind != "null")
    row = next((row for row, kind in enumerate(kinds) if kind not in (first, "null")), 0)
    return RowError(
        row, f"{name!r} is {_shown(values[row])} ({kinds[row]}), earlier rows hold {first}; use one type"
    )


def key_column(column: pa.Array, name: str) -> pa.Array:
    """A column as part of a group key: strings, or whole numbers.

    Raises:
        RowError: a null or NaN, a value that is neither a string nor a number.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count or pa.types.is_floating(column.type):
        missing_N = column.is_null(nan_is_null=pa.types.is_floating(column.type))
        row = pc.index(missing_N, True).as_py()
        if row >= 0:
            raise RowError(row, f"{name!r} is null; every row needs its group")
    kind = column.type
    if kind == pa.uint64():
        return column
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.int64())
    if pa.types.is_floating(kind):
        return column.cast(pa.float64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise RowError(
            0, f"{name!r} is {_shown(column[0].as_py())}; a group key must be a string or a number"
        )
    return column.cast(pa.string())


def key_kind(kind: pa.DataType) -> str:
    """What a part of a group key holds, for people."""
    if pa.types.is_integer(kind):
        return "a whole number"
    return "a float" if pa.types.is_floating(kind) else "a string"


def numbers(column: pa.Array, name: str) -> NDArray[np.float64]:
    """A column of numbers or booleans as floats, shape [N].

    Raises:
        RowError: a null, or a value that is no number.
    """
    kind = column.type
    known = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )
    if column.null_count or not known:
        row = pc.index(column.is_null(), True).as_py() if column.null_count and known else 0
        shown = "null" if column[row].as_py() is None else repr(column[row].as_py())
        raise RowError(row, f"{name!r} is {shown}, expected a number; fix or drop its group")
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    return np.asarray(to_numpy(column.cast(pa.float64(), safe=False)))


def solved_rows(column: pa.Array, name: str, threshold: float | None) -> NDArray[np.bool_]:
    """Which rows are a success: 1, or at least `threshold`, shape [N].

    Raises:
        RowError: a null, no number, NaN, or neither 0 nor 1 while there is no threshold.
    """
    correct = numbers(column, name)
    if threshold is not None:
        if np.isnan(correct).any():
            raise RowError(int(np.argmax(np.isnan(correct))), f"{name!r} is NaN; fix or drop its group")
        return np.asarray(correct >= threshold)
    strange_N = (correct != 0) & (correct != 1)
    if strange_N.any():
        row = int(np.argmax(strange_N))
        raise RowError(
            row,
            f"{name!r} is {correct[row]:g}, neither 0 nor 1; name it as the return column "
            "(--return-column), or give the threshold from which it counts as correct (--threshold)",
        )
    return np.asarray(correct == 1)


def _whole(column: pa.Array, name: str) -> NDArray[np.int64]:
    values = numbers(column, name)
    broken_N = ~(np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < 2**53))
    if broken_N.any():
        row = int(np.argmax(broken_N))
        raise RowError(row, f"{name!r} is {values[row]:g}, expected a whole number; fix or drop its group")
    return values.astype(np.int64)


def sample_values(values: Sequence[Any], name: str = "sample") -> pa.Array | None:
    """What tells the rows of a group apart; null where a row has nothing, None where no row has.

    Raises:
        RowError: values of several types, or one that is neither a string nor a number.
    """
    known = [row for row, value in enumerate(values) if value is not None]
    if not known:
        return None
    try:
        found = key_values([values[row] for row in known], name)
    except RowError as error:
        raise RowError(known[error.row], error.says) from None
    place = np.full(len(values), -1)
    place[known] = np.arange(len(known))
    return found if len(known) == len(values) else found.take(pa.array(place, mask=place < 0))


def _samples(column: pa.Array, name: str) -> pa.Array:
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise RowError(0, f"{name!r} is {_shown(column[0].as_py())}, expected a number or a string")
    if pa.types.is_floating(kind):
        missing_N = to_numpy(pc.is_nan(column).fill_null(False))
        if missing_N.any():
            raise RowError(int(np.argmax(missing_N)), f"{name!r} is NaN, expected a number or a string")
    return column


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((str, "str"), (bool, "bool"), (int, "int"), (float, "float")):
        if isinstance(value, kind):
            return name
    return type(value).__name__


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
