"""Intervals and paired tests: how much of a difference is chance. Suffix: N problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
_CELLS = 4_000_000
"""Numbers that a bootstrap holds in memory at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A share with its Wilson interval."""

    successes: int
    trials: int
    value: float
    """successes / trials."""
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean, or a difference of means, with its percentile bootstrap interval."""

    value: float
    low: float
    high: float
    confidence: float
    resamples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class McNemar:
    """McNemar's exact test: the problems that one policy alone solved."""

    only_first: int
    """Solved by the first policy and not by the second."""
    only_second: int
    """The other way round."""
    p_value: float
    """Two-sided; 1 where the policies solved the same problems."""


def wilson(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> Rate:
    """A share and its Wilson score interval.

    (p̂ + z²/2n ± z·√(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n), without continuity correction.

    Args:
        successes: in 0…trials.
        trials: n ≥ 1.
        confidence: in (0, 1).

    Raises:
        ValueError: a value out of its range.

    Source: Wilson (1927), by scipy.
    """
    _check_confidence(confidence)
    if not (trials >= 1 and 0 <= successes <= trials):
        raise ValueError(f"0 ≤ successes ≤ trials and trials ≥ 1 must hold, got {successes} of {trials}")
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Rate(
        successes=successes,
        trials=trials,
        value=successes / trials,
        low=float(interval.low),
        high=float(interval.high),
        confidence=confidence,
    )


def bootstrap_mean(
    value_N: ArrayLike,
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A mean and its percentile bootstrap interval, problems drawn with replacement.

    Args:
        value_N: one finite number a problem, at least two.
        seed: of the draws; equal seeds give equal intervals.
        confidence: in (0, 1).
        resamples: bootstrap draws, ≥ 1.

    Raises:
        ValueError: fewer than two values, one that is not finite, or an argument out of its range.
    """
    values = _values("value", value_N)

    def mean(sample: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(sample.mean(axis=axis))

    return _bootstrap((values,), mean, seed, confidence, resamples)


def paired_bootstrap(
    first_N: ArrayLike,
    second_N: ArrayLike,
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """mean(first) − mean(second) on the same problems, with its percentile bootstrap interval.

    Problems are drawn, not results: both policies' results on a problem stay together.

    Args:
        first_N: one finite number a problem (for multi@k: 1 if solved within k turns, else 0).
        second_N: the other policy's, on the same problems in the same order.
        seed: of the draws; equal seeds give equal intervals.
        confidence: in (0, 1).
        resamples: bootstrap draws, ≥ 1.

    Raises:
        ValueError: columns of different length, fewer than two problems, or a value not finite.
    """
    first, second = _values("first", first_N), _values("second", second_N)
    _check_pairs(len(first), len(second))

    def difference(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(a.mean(axis=axis) - b.mean(axis=axis))

    return _bootstrap((first, second), difference, seed, confidence, resamples)


def mcnemar(first_N: ArrayLike, second_N: ArrayLike) -> McNemar:
    """McNemar's exact test on the problems that exactly one of two policies solved.

    With b and c such problems, b ~ Binomial(b + c, ½) if neither policy is better; two-sided.

    Args:
        first_N: 1 or True where the first policy solved the problem.
        second_N: the other policy's, on the same problems in the same order.

    Raises:
        ValueError: columns of different length, or a value that is neither 0 nor 1.

    Source: McNemar (1947); the exact form, by scipy's binomial test.
    """
    first, second = _flags("first", first_N), _flags("second", second_N)
    _check_pairs(len(first), len(second))
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_value = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first=only_first, only_second=only_second, p_value=p_value)


def _bootstrap(
    samples: tuple[NDArray[np.float64], ...],
    statistic: Callable[..., NDArray[np.float64]],
    seed: int,
    confidence: float,
    resamples: int,
) -> Estimate:
    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    rows = len(samples[0])
    if rows < 2:
        raise ValueError(f"a bootstrap needs at least 2 problems, got {rows}")
    result = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        n_resamples=resamples,
        batch=max(1, _CELLS // rows),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = (float(end) for end in result.confidence_interval)
    value = float(samples[0].mean() - (samples[1].mean() if len(samples) > 1 else 0.0))
    return Estimate(value=value, low=low, high=high, confidence=confidence, resamples=resamples)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")


def _check_pairs(first: int, second: int) -> None:
    if first != second:
        raise ValueError(f"first has {first} problems and second {second}; pair them by prompt_id")


def _values(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}")
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array)))
        raise ValueError(f"row {row}: {name} must be finite, got {array[row]}")
    return array


def _flags(name: str, values: ArrayLike) -> NDArray[np.bool_]:
    array = _values(name, values)
    bad_N = (array != 0) & (array != 1)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(f"row {row}: {name} must be 0 or 1, got {array[row]}")
    return array.astype(bool)
