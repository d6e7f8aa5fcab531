"""How weights fall on a log, and how they would under other β, γ, λ, without new rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from drift_weights.diagnostics import (
    GroupComposition,
    UpweightedWrong,
    group_composition,
    hoeffding_epsilon,
    partition_relative_error,
    upweighted_wrong,
)
from drift_weights.outcomes import Outcomes
from drift_weights.weights import effective_sample_size, group_codes, group_weights

HISTOGRAM_EDGES = (0.0, 1e-3, 1e-2, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, float("inf"))
"""Edges of the weight histogram; a bin holds lower ≤ w < upper."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What one (β, γ, λ) makes of a log."""

    beta: float
    gamma: float
    lam: float
    ess_mean: float
    """Mean effective sample size of a group, in [1, K]."""
    ess_median: float
    largest: float
    """The largest weight."""
    partition_error: float | None
    """Median estimated relative error of Ẑ; None where every group has one row."""
    hoeffding_epsilon: float | None
    """The ε that Prop. 7 guarantees for Ẑ at δ = 0.05, for the smallest group; None without spread."""
    hoeffding_range: float | None
    """Δ = exp(R_max/β) − exp(R_min/β), to hold ε against."""
    upweighted_wrong: UpweightedWrong | None
    """None where the log does not say which rows are right."""
    histogram: tuple[int, ...]
    """Rows a bin of HISTOGRAM_EDGES."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """A log's groups, and its weights under each setting."""

    rows: int
    group_sizes: dict[int, int]
    """Size → number of groups of that size."""
    composition: GroupComposition | None
    """None where the log does not say which rows are right."""
    settings: tuple[Setting, ...]


def inspect_outcomes(
    outcomes: Outcomes,
    *,
    betas: Sequence[float],
    gammas: Sequence[float],
    lams: Sequence[float],
    weight_N: NDArray[np.float64] | None = None,
) -> Inspection:
    """Composition of the groups, and ESS, alarms and histogram for each combination of β, γ, λ.

    Args:
        weight_N: weights as they are stored, shown instead of computed ones; a single setting then.

    Raises:
        ValueError: an outcome or a parameter out of range.
    """
    code_N, keys = group_codes(outcomes.group_N)
    sizes = np.bincount(code_N, minlength=len(keys))
    grid = product(betas, gammas, lams)
    composition = None if outcomes.solved_N is None else group_composition(outcomes.solved_N, code_N)
    return Inspection(
        rows=len(code_N),
        group_sizes=dict(sorted(Counter(sizes.tolist()).items())),
        composition=composition,
        settings=tuple(_setting(outcomes, code_N, sizes, *point, weight_N) for point in grid),
    )


def _setting(
    outcomes: Outcomes,
    code_N: NDArray[np.int64],
    sizes: NDArray[np.int64],
    beta: float,
    gamma: float,
    lam: float,
    weight_N: NDArray[np.float64] | None,
) -> Setting:
    returns = outcomes.returns(gamma=gamma, lam=lam)
    weights = group_weights(returns, code_N, beta=beta) if weight_N is None else weight_N
    _, ess_G = effective_sample_size(weights, code_N)
    _, error_G = partition_relative_error(returns, code_N, beta=beta)
    errors = error_G[np.isfinite(error_G)]
    epsilon, spread = _hoeffding(returns, int(sizes.min()), beta)
    wrong = None if outcomes.solved_N is None else upweighted_wrong(weights, outcomes.solved_N)
    counts = np.histogram(weights, bins=np.asarray(HISTOGRAM_EDGES))[0]
    return Setting(
        beta=beta,
        gamma=gamma,
        lam=lam,
        ess_mean=float(ess_G.mean()),
        ess_median=float(np.median(ess_G)),
        largest=float(weights.max()),
        partition_error=float(np.median(errors)) if len(errors) else None,
        hoeffding_epsilon=epsilon,
        hoeffding_range=spread,
        upweighted_wrong=wrong,
        histogram=tuple(int(count) for count in counts),
    )


def _hoeffding(returns: NDArray[np.float64], k: int, beta: float) -> tuple[float | None, float | None]:
    """ε and Δ from the log's own range of returns; None without spread or where they leave float64."""
    low, high = float(returns.min()), float(returns.max())
    if low == high or high / beta > 700:
        return None, None
    epsilon = hoeffding_epsilon(k, r_min=low, r_max=high, beta=beta)
    return epsilon, float(np.exp(high / beta) - np.exp(low / beta))
