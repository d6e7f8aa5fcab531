"""Rows of little weight: out of the forward passes, not out of a step's N."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift_train.encode import Example
from drift_train.pack import Weighting


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pruning:
    """Which examples a step computes nothing for; its plan and its N still hold them."""

    min_weight: float | None
    pruned_N: NDArray[np.bool_]
    """Whether w < min_weight, shape [N]."""
    mass: float
    """Share of Σw that the objective loses, in [0, 1)."""
    tokens: float
    """Share of the tokens that no pass sees, in [0, 1)."""

    def kept(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """What of a step is computed: at least one, so that there is a gradient, if of zeros."""
        left = indices[~self.pruned_N[indices]]
        return left if len(left) else indices[:1]

    def weights(self, weight_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """What multiplies each loss, zero where it is pruned."""
        return np.where(self.pruned_N, 0.0, weight_N)

    def __str__(self) -> str:
        """For people: what is left out, and what that costs and saves."""
        count, rows = int(self.pruned_N.sum()), len(self.pruned_N)
        return (
            f"w < {self.min_weight:g}: {count:,} of {rows:,} examples stay out of the forward passes, "
            f"with {self.mass:.3%} of Σw and {self.tokens:.1%} of the tokens"
        )


def check_min_weight(min_weight: float | None, weighting: Weighting) -> None:
    """Refuse a threshold that cannot be meant.

    Raises:
        ValueError: not above 0 and finite, or a weighting under which w multiplies no loss.
    """
    if min_weight is None:
        return
    if not 0 < min_weight < math.inf:
        raise ValueError(f"min_weight must be above 0 and finite, or null (off), got {min_weight}")
    if weighting != "loss":
        raise ValueError(
            f"min_weight belongs to weighting loss, not to {weighting}, under which every example that a "
            "step holds counts 1; leave one of the two out"
        )


def prune(examples: Sequence[Example], min_weight: float | None) -> Pruning:
    """Mark the examples with w < min_weight; None marks none.

    Raises:
        ValueError: no example would be left.
    """
    weight_N = np.array([example.weight for example in examples])
    pruned_N = np.zeros(len(examples), bool) if min_weight is None else weight_N < min_weight
    if pruned_N.all():
        raise ValueError(
            f"min_weight {min_weight} leaves none of {len(examples)} examples; the largest weight is "
            f"{weight_N.max():g}"
        )
    tokens_N = np.array([len(example.input_ids) for example in examples])
    whole = weight_N.sum()
    return Pruning(
        min_weight=min_weight,
        pruned_N=pruned_N,
        mass=float(weight_N[pruned_N].sum() / whole) if whole else 0.0,
        tokens=float(tokens_N[pruned_N].sum() / tokens_N.sum()),
    )
