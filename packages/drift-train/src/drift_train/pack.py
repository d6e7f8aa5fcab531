"""The batch plan: which examples a step holds, who gets them, and how they are padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_train.encode import Example
from drift_train.loss import IGNORED
from drift_weights.weights import resample

Weighting = Literal["loss", "resample", "none"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """Examples padded on the right: causal attention never looks there, so they need no mask.

    Padding on the left leaves queries that see nothing, whose gradient is NaN on CUDA.
    """

    input_ids: Tensor
    """Shape [B, T]."""
    labels: Tensor
    """Token ids where there is loss, −100 elsewhere, not shifted, shape [B, T]."""
    weight: Tensor
    """What multiplies each row's loss, shape [B]."""
    logits_to_keep: int
    """Last positions whose logits the loss needs, the one before the first target included."""
    tokens: int
    """Of the examples, padding left out."""
    idle: bool = False
    """Only there to keep a rank in step with the others: counted nowhere."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MicroBatch:
        """The same on another device."""
        # Apple's devices know no float64.
        weight = self.weight.float() if torch.device(device).type == "mps" else self.weight
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            weight=weight.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepBatch:
    """One rank's share of one optimizer step."""

    micro_batches: tuple[MicroBatch, ...]
    """As many on every rank, because sharded models meet in each forward."""
    num_examples: int
    """Planned examples of the whole step, over all micro-batches and ranks."""
    seed: int = 0
    """Of what this rank draws in this step, such as dropout: a function of (seed, step, rank)."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> StepBatch:
        """The same on another device."""
        moved = tuple(micro.to(device, non_blocking=non_blocking) for micro in self.micro_batches)
        return replace(self, micro_batches=moved)


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

    Raises:
        ValueError: no examples, a batch size below 1, a negative seed, an unknown weighting, or
            weights that sum to less than 1 under `resample`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        seed: int,
        weighting: Weighting = "loss",
    ) -> None:
        if not examples:
            raise ValueError("there is nothing to train on")
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size must be ≥ 1 and seed ≥ 0, got {batch_size} and {seed}")
        if weighting not in get_args(Weighting):
            names = ", ".join(get_args(Weighting))
            raise ValueError(f"weighting {weighting!r} is not one of {names}")
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
            bits = np.random.PCG64(np.random.SeedSequence((self.seed, epoch))).random_raw(len(rows))
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


def step_batch(
    examples: Sequence[Example],
    weight_N: NDArray[np.float64],
    indices: NDArray[np.int64],
    *,
    micro_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
) -> StepBatch:
    """One rank's share of a step, `indices[rank::world_size]`, as padded micro-batches.

    A rank with fewer micro-batches than another adds idle ones of weight zero and keeps in step.

    Args:
        examples: what the plan was made of.
        weight_N: what multiplies each example's loss.
        indices: the whole step's, over all ranks.
        micro_tokens: most tokens of a micro-batch, padding included, ≥ 1; a longer row goes alone.
        rank: in [0, world_size).
        world_size: ranks that share the step.
        seed: of what this rank draws in the step.
    """
    shares = [indices[other::world_size] for other in range(world_size)]
    bins = [bins_by_length([len(examples[i].input_ids) for i in part], micro_tokens) for part in shares]
    share = shares[rank]
    micro_batches = [pad([examples[i] for i in share[rows]], weight_N[share[rows]]) for rows in bins[rank]]
    missing = max(map(len, bins)) - len(micro_batches)
    if missing:
        idle = replace(pad([examples[indices[0]]], np.zeros(1)), idle=True)
        micro_batches += [idle] * missing
    return StepBatch(micro_batches=tuple(micro_batches), num_examples=len(indices), seed=seed)


def pad(examples: Sequence[Example], weight_B: NDArray[np.float64]) -> MicroBatch:
    """Examples side by side, padded on the right with id 0."""
    lengths = [len(example.input_ids) for example in examples]
    longest = max(lengths)
    shape = (len(examples), longest)
    input_ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    for b, example in enumerate(examples):
        input_ids[b, : lengths[b]] = example.input_ids
        for start, end in example.spans:
            labels[b, start:end] = example.input_ids[start:end]
    first = min(example.spans[0][0] for example in examples)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        weight=torch.from_numpy(np.asarray(weight_B, np.float64)),
        logits_to_keep=longest - first + 1,
        tokens=sum(lengths),
    )


def bins_by_length(lengths: Sequence[int], micro_tokens: int) -> list[list[int]]:
    """Positions in bins of like lengths, longest first, rows × longest ≤ micro_tokens."""
    if micro_tokens < 1:
        raise ValueError(f"micro_tokens must be at least 1, got {micro_tokens}")
    bins: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if bins and (len(bins[-1]) + 1) * lengths[bins[-1][0]] <= micro_tokens:
            bins[-1].append(position)
        else:
            bins.append([position])
    return bins
