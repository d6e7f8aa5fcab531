"""What a set of returns can and cannot teach. Suffix legend: N rows, K rows of a group, G groups."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift_weights.returns import binary
from drift_weights.weights import BETA, Groups, check_beta, finite_returns, group_codes, group_sums


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupComposition:
    """How many groups are all right, all wrong or mixed; only mixed groups tell answers apart (table 8)."""

    groups: int
    rows: int
    all_correct: int
    all_wrong: int
    mixed: int
    accuracy: float
    """Share of rows that are solved, in [0, 1]."""

    @property
    def shares(self) -> dict[str, float]:
        """The three counts over the number of groups; they sum to 1."""
        counts = {"all_correct": self.all_correct, "all_wrong": self.all_wrong, "mixed": self.mixed}
        return {name: count / self.groups for name, count in counts.items()}

    @property
    def coverage(self) -> float:
        """Share of groups with a success; weighting cannot help the others (sec. 6)."""
        return (self.all_correct + self.mixed) / self.groups


def group_composition(solved_N: ArrayLike, group_N: Groups) -> GroupComposition:
    """Count all-correct, all-wrong and mixed groups (table 8).

    Args:
        solved_N: True where the terminal turn is correct.
        group_N: one key a row.

    Raises:
        ValueError: no rows, or a null key.
    """
    solved = binary("solved", solved_N)
    if len(solved) == 0:
        raise ValueError("no rows: a composition needs at least one group")
    code_N, keys = group_codes(group_N, rows=len(solved))
    size_G = np.bincount(code_N, minlength=len(keys))
    right_G = np.bincount(code_N, weights=solved, minlength=len(keys)).astype(np.int64)
    all_correct, all_wrong = int((right_G == size_G).sum()), int((right_G == 0).sum())
    return GroupComposition(
        groups=len(keys),
        rows=len(solved),
        all_correct=all_correct,
        all_wrong=all_wrong,
        mixed=len(keys) - all_correct - all_wrong,
        accuracy=float(solved.mean()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class UpweightedWrong:
    """Wrong terminal answers that training would imitate more than plain SFT does."""

    rows: int
    """Wrong rows with w > 1."""
    wrong_rows: int
    largest: float
    """The largest weight above 1 on a wrong row, 0 if there is none."""
    mass: float
    """Share of all weight that lies on wrong rows, in [0, 1]."""


def upweighted_wrong(weight_N: ArrayLike, solved_N: ArrayLike) -> UpweightedWrong:
    """Count the wrong answers that are weighted above 1.

    They come from groups without a success, where the repetition penalty alone decides (M13: one
    wrong row among 16 can weigh 12.55).
    """
    weights = np.asarray(weight_N, dtype=np.float64)
    wrong = binary("solved", solved_N, len(weights)) == 0
    above_N = wrong & (weights > 1.0)
    total = float(weights.sum())
    return UpweightedWrong(
        rows=int(above_N.sum()),
        wrong_rows=int(wrong.sum()),
        largest=float(weights[above_N].max(initial=0.0)),
        mass=float(weights[wrong].sum()) / total if total else 0.0,
    )


def partition_relative_error(
    return_N: ArrayLike, group_N: Groups, *, beta: float = BETA
) -> tuple[list[Hashable], NDArray[np.float64]]:
    """Estimated relative standard error of each group's Ẑ: sd(exp(R/β)) / (√K·Ẑ).

    This is the useful companion of Prop. 7, whose bound is true but says nothing at K = 16, β = 0.1.

    Returns:
        The G keys, and the errors, shape [G]; NaN for a group of one row.

    Raises:
        ValueError: β ≤ 0 or a null key.
    """
    check_beta(beta)
    returns = finite_returns(return_N)
    code_N, keys = group_codes(group_N, rows=len(returns))
    size_G = np.bincount(code_N, minlength=len(keys)).astype(np.float64)
    max_G = np.full(len(keys), -np.inf)
    np.maximum.at(max_G, code_N, returns)
    tilt_N = np.exp((returns - max_G[code_N]) / beta)
    mean_G = group_sums(tilt_N, code_N, len(keys)) / size_G
    squares_G = group_sums((tilt_N - mean_G[code_N]) ** 2, code_N, len(keys))
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation_G = np.sqrt(squares_G / (size_G - 1.0))
    return keys, np.where(size_G > 1, deviation_G / (np.sqrt(size_G) * mean_G), np.nan)


def hoeffding_probability(
    epsilon: float, k: int, *, r_min: float, r_max: float, beta: float = BETA
) -> float:
    """Bound on P(|Ẑ − Z| ≥ ε): 2 exp(−2Kε²/Δ²), Δ = exp(R_max/β) − exp(R_min/β) (eq. 22).

    Returns:
        The bound, at most 1.

    Raises:
        ValueError: β ≤ 0 or R_min ≥ R_max.
    """
    spread = _range(r_min, r_max, beta)
    _check_bound(k=k, epsilon=epsilon)
    ratio = epsilon / spread
    return min(1.0, 2.0 * math.exp(-2.0 * k * ratio * ratio))


def hoeffding_samples(
    epsilon: float, delta: float, *, r_min: float, r_max: float, beta: float = BETA
) -> float:
    """K from which |Ẑ − Z| ≤ ε holds with probability 1 − δ: Δ²/(2ε²)·log(2/δ) (eq. 23)."""
    _check_bound(delta=delta, epsilon=epsilon)
    with np.errstate(over="ignore"):
        ratio = np.float64(_range(r_min, r_max, beta)) / epsilon
        return float(ratio * ratio / 2.0 * math.log(2.0 / delta))


def hoeffding_epsilon(
    k: int, delta: float = 0.05, *, r_min: float, r_max: float, beta: float = BETA
) -> float:
    """The ε that K rows guarantee with probability 1 − δ: Δ·√(log(2/δ)/(2K)), eq. 23 solved for ε."""
    _check_bound(k=k, delta=delta)
    return _range(r_min, r_max, beta) * math.sqrt(math.log(2.0 / delta) / (2.0 * k))


def weight_error_bound(epsilon: float, *, r_min: float, r_max: float, beta: float = BETA) -> float:
    """Bound on |ŵ − w| given |Ẑ − Z| ≤ ε: exp(R_max/β)/exp(R_min/β)²·ε (eq. 24)."""
    _check_bound(epsilon=epsilon)
    _range(r_min, r_max, beta)
    return _exp((r_max - 2.0 * r_min) / beta) * epsilon


def _range(r_min: float, r_max: float, beta: float) -> float:
    check_beta(beta)
    if not r_min < r_max:
        raise ValueError(f"r_min must lie below r_max, got {r_min} and {r_max}")
    high, low = _exp(r_max / beta), _exp(r_min / beta)
    return math.inf if math.isinf(high) else high - low


def _exp(value: float) -> float:
    """exp, infinite where it leaves float64: a small β must not end a sweep."""
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _check_bound(*, k: int | None = None, delta: float | None = None, epsilon: float | None = None) -> None:
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if delta is not None and not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")
    if epsilon is not None and not epsilon > 0.0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
