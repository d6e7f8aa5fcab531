"""The batch plan: which examples a step holds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from drift_train.encode import Example
from drift_weights.weights import resample

Weighting = Literal["loss", "resample", "none"]
Order = Literal["rows", "groups"]


class BatchPlan:
    """Which examples each optimizer step holds: a pure function of (seed, step).

    An epoch is a permutation by (seed, epoch) of every example once, or under `resample` of each as
    often as `drift_weights.resample` draws it. Steps cut the endless row of epochs into equal
    pieces and may cross an epoch's end. The world size plays no part.

    Args:
        examples: what is trained on, at least one.
        batch_size: examples of an optimizer step, over all ranks, ≥ 1.
        seed: ≥ 0.
        weighting: `loss`: each w multiplies its loss (the paper). `resample`: each example is drawn
            about w times an epoch and counts 1 (ours). `none`: each once, w = 1.
        order: `rows`: an epoch is a permutation of the examples. `groups`: of the groups, whose examples
            follow on each other, so that a step can compute what they begin with once.

    Raises:
        ValueError: no examples, a batch size below 1, a negative seed, an unknown weighting or order,
            or weights that sum to less than 1 under `resample`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        seed: int,
        weighting: Weighting = "loss",
        order: Order = "rows",
    ) -> None:
        if not examples:
            raise ValueError("there is nothing to train on")
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size must be ≥ 1 and seed ≥ 0, got {batch_size} and {seed}")
        if weighting not in get_args(Weighting):
            names = ", ".join(get_args(Weighting))
            raise ValueError(f"weighting {weighting!r} is not one of {names}")
        if order not in get_args(Order):
            raise ValueError(f"order {order!r} is not one of {', '.join(get_args(Order))}")
        self.batch_size = batch_size
        self.seed = seed
        self.weighting = weighting
        self._rows = len(examples)
        self._weight_N = np.array([example.weight for example in examples])
        if weighting == "resample":
            if self._weight_N.sum() < 1:
                raise ValueError("the weights sum to less than 1; resampling has nothing to draw")
            self._group_N = [example.group for example in examples]
            self._sample_N = np.array([example.sample for example in examples])
        self._order = order
        numbers: dict[Hashable, int] = {}
        self._number_N = np.array([numbers.setdefault(e.group, len(numbers)) for e in examples])
        self._starts = [0]
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def step(self, step: int) -> NDArray[np.int64]:
        """Indices of the examples of one step (from 0), shape [batch_size]."""
        if step < 0:
            raise ValueError(f"a step is counted from 0, got {step}")
        wanted, stop = step * self.batch_size, (step + 1) * self.batch_size
        epoch = int(np.searchsorted(self._starts, wanted, side="right")) - 1
        parts = []
        while wanted < stop:
            order = self._epoch(epoch)
            start = self._starts[epoch]
            parts.append(order[wanted - start : stop - start])
            wanted = max(wanted, min(stop, start + len(order)))
            epoch += 1
        return np.concatenate(parts)

    def examples_of(self, epochs: int) -> int:
        """Examples in the first `epochs` epochs; under `resample` an epoch draws its own number."""
        return sum(len(self._drawn(epoch)) for epoch in range(epochs))

    def loss_weights(self) -> NDArray[np.float64]:
        """What multiplies each example's loss: w under `loss`, else 1. Shape [N]."""
        return self._weight_N if self.weighting == "loss" else np.ones(self._rows)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """The order of one epoch; only the two last used are kept."""
        if epoch not in self._epochs:
            rows = self._drawn(epoch)
            # Raw bits and a stable sort: unlike its permutations, numpy promises to keep these.
            draws = np.random.PCG64(np.random.SeedSequence((self.seed, epoch)))
            place = np.arange(len(rows)) if self._order == "rows" else self._number_N[rows]
            bits = draws.random_raw(int(place.max(initial=-1)) + 1)[place]
            self._epochs[epoch] = rows[np.argsort(bits, kind="stable")]
            if epoch + 1 == len(self._starts):
                self._starts.append(self._starts[-1] + len(rows))
            while len(self._epochs) > 2:
                self._epochs.pop(next(iter(self._epochs)))
        return self._epochs[epoch]

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        if self.weighting != "resample":
            return np.arange(self._rows)
        count_N = resample(self._weight_N, self._group_N, self._sample_N, seed=self.seed, epoch=epoch)
        return np.repeat(np.arange(self._rows), count_N)
