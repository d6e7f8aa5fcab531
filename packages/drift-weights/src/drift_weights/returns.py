"""Trajectory returns. Suffix legend: N rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

GAMMA = 0.9
LAM = 0.5


def trajectory_return(
    solved_N: ArrayLike,
    length_N: ArrayLike,
    unique_N: ArrayLike,
    *,
    counted_N: ArrayLike | None = None,
    penalty_N: ArrayLike = 0.0,
    gamma: float = GAMMA,
    lam: float = LAM,
) -> NDArray[np.float64]:
    """Discounted success minus the repetition penalty, for each trajectory.

    R = 1[y_L correct]·γ^(L−1) − λ(1 − E/C) + penalty (eq. 12; C = L in the paper).

    Args:
        solved_N: 1 or True where the terminal turn is correct.
        length_N: L ≥ 1, turns of the trajectory.
        unique_N: E, distinct answers, 1 ≤ E ≤ C (0 only where C is 0).
        counted_N: C, the turns that E speaks about; L by default. The released code counts only
            readable turns; C = 0 gives the whole penalty λ.
        penalty_N: added to R, e.g. the released code's −0.1 a malformed turn; 0 in the paper.
        gamma: γ in (0, 1].
        lam: λ ≥ 0.

    Returns:
        R, shape [N], in [−λ, 1] where no penalty is given.

    Raises:
        ValueError: an empty or misshapen input, or a value out of range, naming the first such row.

    Source: arXiv 2605.31455, eq. 12; γ = 0.9 and λ = 0.5 from D.2.
    """
    check_gamma(gamma)
    check_lam(lam)
    length = _whole("length", length_N)
    rows = len(length)
    if rows == 0:
        raise ValueError("no rows: a return needs at least one trajectory")
    solved = binary("solved", solved_N, rows)
    unique = _whole("unique", unique_N, rows)
    counted = length if counted_N is None else _whole("counted", counted_N, rows)
    penalty = np.asarray(penalty_N, dtype=np.float64)
    if penalty.shape not in ((), (rows,)):
        raise ValueError(f"penalty has shape {penalty.shape}, expected one number or {rows} rows")
    penalty = np.broadcast_to(penalty, (rows,))
    _refuse(length < 1, "length", length, "must be at least 1")
    _refuse((counted < 0) | (counted > length), "counted", counted, "must lie in 0…length")
    _refuse(unique > counted, "unique", unique, "must not exceed the turns it counts")
    _refuse((unique < 1) & (counted > 0), "unique", unique, "must be at least 1")
    _refuse(unique < 0, "unique", unique, "must not be negative")
    _refuse(~np.isfinite(penalty), "penalty", penalty, "must be finite")
    share = np.divide(unique, counted, out=np.zeros(rows), where=counted > 0)
    success = solved * np.power(float(gamma), length - 1.0)
    return np.asarray(success - lam * (1.0 - share) + penalty, dtype=np.float64)


def check_gamma(gamma: float) -> None:
    """Refuse a discount outside (0, 1].

    Raises:
        ValueError: γ is not in (0, 1].
    """
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"gamma must lie in (0, 1], got {gamma}")


def check_lam(lam: float) -> None:
    """Refuse a repetition penalty that is negative or not finite.

    Raises:
        ValueError: λ is negative, NaN or infinite.
    """
    if not (np.isfinite(lam) and lam >= 0.0):
        raise ValueError(f"lam must be finite and not negative, got {lam}")


def _whole(name: str, values: ArrayLike, rows: int | None = None) -> NDArray[np.int64]:
    array = _column(name, values, rows)
    if array.dtype.kind not in "iu":
        numbers = array.astype(np.float64)
        _refuse(~(np.isfinite(numbers) & (numbers == np.floor(numbers))), name, array, "must be whole")
        array = numbers
    return array.astype(np.int64)


def binary(name: str, values: ArrayLike, rows: int | None = None) -> NDArray[np.float64]:
    """A column of 0 and 1 (or booleans) as floats, shape [N].

    Raises:
        ValueError: any other value, naming the first such row, or another number of rows.
    """
    array = _column(name, values, rows).astype(np.float64)
    _refuse((array != 0) & (array != 1), name, array, "must be 0 or 1")
    return array


def _column(name: str, values: ArrayLike, rows: int | None) -> NDArray[np.generic]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}")
    if rows is not None and len(array) != rows:
        raise ValueError(f"{name} has {len(array)} rows, expected {rows}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numeric without nulls, got dtype {array.dtype}")
    return array


def _refuse(bad_N: NDArray[np.bool_], name: str, values: ArrayLike, rule: str) -> None:
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(f"row {row}: {name} {rule}, got {np.asarray(values)[row]}; fix or drop its group")
