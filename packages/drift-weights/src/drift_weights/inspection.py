"""How weights fall on a log, and how they would under other β, γ, λ, without new rollouts.

Suffix legend: N rows of a batch, G groups, B bins of the histogram.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from drift_weights.diagnostics import GroupComposition, UpweightedWrong, hoeffding_epsilon
from drift_weights.ledger import Ledger
from drift_weights.weighing import WeighedBatch, Weighing, WeightConfig

HISTOGRAM_EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, float("inf"))
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
    mass: tuple[float, ...]
    """Share of all weight a bin; sums to 1."""
    tokens: tuple[int, ...] | None
    """Tokens of prompts and responses a bin; None where the log has none."""

    def below(self, edge: float) -> tuple[int, float, int | None]:
        """Rows, share of weight and tokens of the rows with w < edge, an edge of the histogram."""
        bins = HISTOGRAM_EDGES.index(edge)
        tokens = None if self.tokens is None else sum(self.tokens[:bins])
        return sum(self.histogram[:bins]), math.fsum(self.mass[:bins]), tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """A log's groups, and its weights under each setting."""

    rows: int
    """Rows that are weighted; left out groups do not count."""
    group_sizes: dict[int, int]
    """Size → number of groups of that size."""
    composition: GroupComposition | None
    """None where the log does not say which rows are right."""
    settings: tuple[Setting, ...]


class Tally:
    """What weights look like, gathered batch by batch."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._sum_G = np.zeros(ledger.groups)
        self._squares_G = np.zeros(ledger.groups)
        self._rows_B = np.zeros(len(HISTOGRAM_EDGES) - 1, np.int64)
        self._mass_B = np.zeros(len(HISTOGRAM_EDGES) - 1)
        self._tokens_B = np.zeros(len(HISTOGRAM_EDGES) - 1, np.int64)
        self._low, self._high = math.inf, -math.inf
        self._largest = self._largest_wrong = self._wrong_mass = 0.0
        self._wrong = self._wrong_above = 0

    def add(self, batch: WeighedBatch) -> None:
        """Count a batch; rows that are left out do not count."""
        keep_N, entry = batch.keep_N, batch.entry
        kept = slice(None) if keep_N is None else keep_N
        weight_N, return_N, code_N = batch.weight_N[kept], batch.return_N[kept], entry.code_N[kept]
        if not len(weight_N):
            return
        np.add.at(self._sum_G, code_N, weight_N)
        np.add.at(self._squares_G, code_N, weight_N * weight_N)
        self._low, self._high = (
            min(self._low, float(return_N.min())),
            max(self._high, float(return_N.max())),
        )
        self._largest = max(self._largest, float(weight_N.max()))
        bin_N = np.searchsorted(HISTOGRAM_EDGES[1:-1], weight_N, side="right")
        self._rows_B += np.bincount(bin_N, minlength=len(self._rows_B))
        self._mass_B += np.bincount(bin_N, weights=weight_N, minlength=len(self._rows_B))
        if entry.tokens_N is not None:
            tokens = np.bincount(bin_N, weights=entry.tokens_N[kept], minlength=len(self._rows_B))
            self._tokens_B += tokens.astype(np.int64)
        if self._ledger.knows_solved:
            self._add_wrong(weight_N[~entry.solved_N[kept]])

    def _add_wrong(self, weight_W: NDArray[np.float64]) -> None:
        above_W = weight_W[weight_W > 1.0]
        self._wrong += len(weight_W)
        self._wrong_above += len(above_W)
        self._wrong_mass += float(weight_W.sum())
        self._largest_wrong = max(self._largest_wrong, float(above_W.max(initial=0.0)))

    def setting(self, weighing: Weighing) -> Setting:
        """Everything at once."""
        config, kept_G = weighing.config, ~weighing.omitted_G
        size_G = self._ledger.size_G[kept_G].astype(np.float64)
        ess_G = self._sum_G[kept_G] ** 2 / self._squares_G[kept_G]
        total = float(self._mass_B.sum())
        epsilon, spread = _hoeffding(self._low, self._high, int(size_G.min()), config.beta)
        wrong = None
        if self._ledger.knows_solved:
            wrong = UpweightedWrong(
                rows=self._wrong_above,
                wrong_rows=self._wrong,
                largest=self._largest_wrong,
                mass=self._wrong_mass / total if total else 0.0,
            )
        return Setting(
            beta=config.beta,
            gamma=config.gamma,
            lam=config.lam,
            ess_mean=float(ess_G.mean()),
            ess_median=float(np.median(ess_G)),
            largest=self._largest,
            partition_error=_partition_error(size_G, ess_G),
            hoeffding_epsilon=epsilon,
            hoeffding_range=spread,
            upweighted_wrong=wrong,
            histogram=tuple(self._rows_B.tolist()),
            mass=tuple((self._mass_B / total).tolist()) if total else (0.0,) * len(self._mass_B),
            tokens=tuple(self._tokens_B.tolist()) if self._ledger.has_tokens else None,
        )


def inspect_ledger(ledger: Ledger, configs: Sequence[WeightConfig], *, stored: bool = False) -> Inspection:
    """Composition of the groups, and ESS, alarms and histogram for each configuration.

    Args:
        stored: show the weights as they are stored in the log; a single configuration then.

    Raises:
        ValueError: nothing is left to weigh, or groups of another size than declared.
    """
    settings = []
    for config in configs:
        weighing = Weighing(ledger, config)
        tally = Tally(ledger)
        for batch in _as_stored(weighing.batches()) if stored else weighing.batches():
            tally.add(batch)
        settings.append(tally.setting(weighing))
    return inspection(weighing, settings)


def inspection(weighing: Weighing, settings: Sequence[Setting]) -> Inspection:
    """Settings together with the groups that they speak about."""
    ledger, kept_G = weighing.ledger, ~weighing.omitted_G
    sizes, counts = np.unique(ledger.size_G[kept_G], return_counts=True)
    return Inspection(
        rows=int(ledger.size_G[kept_G].sum()),
        group_sizes=dict(zip(sizes.tolist(), counts.tolist(), strict=True)),
        composition=_composition(ledger, kept_G) if ledger.knows_solved else None,
        settings=tuple(settings),
    )


def grid(
    config: WeightConfig, betas: Iterable[float], gammas: Iterable[float], lams: Iterable[float]
) -> list[WeightConfig]:
    """One configuration for each combination of β, γ and λ, otherwise like `config`."""
    return [replace(config, beta=b, gamma=g, lam=la) for b, g, la in product(betas, gammas, lams)]


def beta_for_ess(ledger: Ledger, target: float, config: WeightConfig) -> float:
    """The β at which the mean effective sample size of a group is `target`, to a thousandth of β.

    ESS = K²/Σw² grows with β, from the number of rows that share the best return to K, so the β is
    found by bisection.

    Args:
        target: a mean ESS a group, above 1.

    Raises:
        ValueError: no β in [10⁻⁴, 10⁴] reaches it; the reachable range is named.
    """
    low, high = 1e-4, 1e4
    least, most = (_mean_ess(ledger, beta, config) for beta in (low, high))
    if not least <= target <= most:
        raise ValueError(
            f"no beta gives a mean ESS of {target:g}; this log reaches {least:.3f} to {most:.3f}"
        )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _mean_ess(ledger, middle, config) < target else (low, middle)
    return math.sqrt(low * high)


def _mean_ess(ledger: Ledger, beta: float, config: WeightConfig) -> float:
    (tried,) = grid(config, [beta], [config.gamma], [config.lam])
    weighing = Weighing(ledger, tried)
    squares_G = np.zeros(ledger.groups)
    for batch in weighing.batches():
        np.add.at(squares_G, batch.entry.code_N, batch.weight_N**2)
    kept_G = ~weighing.omitted_G
    return float((ledger.size_G[kept_G].astype(np.float64) ** 2 / squares_G[kept_G]).mean())


def _as_stored(batches: Iterable[WeighedBatch]) -> Iterable[WeighedBatch]:
    for batch in batches:
        assert batch.entry.weight_N is not None
        yield WeighedBatch(
            entry=batch.entry, keep_N=batch.keep_N, return_N=batch.return_N, weight_N=batch.entry.weight_N
        )


def _composition(ledger: Ledger, kept_G: NDArray[np.bool_]) -> GroupComposition:
    size_G, solved_G = ledger.size_G[kept_G], ledger.solved_G[kept_G]
    all_correct, all_wrong = int((solved_G == size_G).sum()), int((solved_G == 0).sum())
    return GroupComposition(
        groups=len(size_G),
        rows=int(size_G.sum()),
        all_correct=all_correct,
        all_wrong=all_wrong,
        mixed=len(size_G) - all_correct - all_wrong,
        accuracy=float(solved_G.sum() / size_G.sum()),
    )


def _partition_error(size_G: NDArray[np.float64], ess_G: NDArray[np.float64]) -> float | None:
    """Median of sd(exp(R/β))/(√K·Ẑ) = √((K/ESS − 1)/(K − 1)) over the groups of more than one row."""
    some_G = size_G > 1
    if not some_G.any():
        return None
    size, ess = size_G[some_G], ess_G[some_G]
    return float(np.median(np.sqrt(np.maximum(size / ess - 1.0, 0.0) / (size - 1.0))))


def _hoeffding(low: float, high: float, k: int, beta: float) -> tuple[float | None, float | None]:
    """ε and Δ from the log's own range of returns; None without spread or where they leave float64."""
    if low == high or high / beta > 700:
        return None, None
    epsilon = hoeffding_epsilon(k, r_min=low, r_max=high, beta=beta)
    return epsilon, float(np.exp(high / beta) - np.exp(low / beta))
