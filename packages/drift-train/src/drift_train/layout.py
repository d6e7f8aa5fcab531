"""How the examples of a step lie in micro-batches: packed or padded, shared beginnings, dealt to ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_train.attention import Segment, Segments
from drift_train.encode import Example

SHARED = 0.1
"""Share of a group's tokens that a common beginning has to save, or it is computed for each row."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """Examples of one forward pass, in one packed row or in padded ones, and what is predicted where."""

    input_ids: Tensor
    """Shape [B, T]; B = 1 where packed."""
    position_ids: Tensor
    """Each token's place in its example, shape [B, T]."""
    segments: Segments | None
    """Who sees whom in a row; None where padded, on the right, where causal attention never looks."""
    source_R: Tensor
    """Flat positions in [B, T] that predict a supervised token."""
    target_R: Tensor
    """The supervised tokens."""
    example_R: Tensor
    """Whose they are, an index into `weight`."""
    weight: Tensor
    """What multiplies each example's loss, shape [N]."""
    tokens: int
    """Of the examples, padding left out and shared ones counted with each."""
    computed: int
    """Tokens that the forward is made for, padding left out and shared ones counted once."""
    idle: bool = False
    """Only there to keep a rank in step with the others: counted nowhere."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MicroBatch:
        """The same on another device."""
        # Apple's devices know no float64.
        weight = self.weight.float() if torch.device(device).type == "mps" else self.weight
        names = ("input_ids", "position_ids", "source_R", "target_R", "example_R")
        if self.segments is not None:
            self.segments.to(device, non_blocking=non_blocking)
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        return replace(self, weight=weight.to(device, non_blocking=non_blocking), **moved)


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


@dataclass(frozen=True, slots=True)
class Unit:
    """Examples that stay together, because they begin with the same tokens."""

    rows: tuple[int, ...]
    """Indices of distinct examples, ≥ 1 of them."""
    shared: int
    """Tokens of the common beginning, computed once; 0 for a lone example."""
    computed: int
    """Tokens that the forward is made for."""


Bin = tuple[Unit, ...]
"""The units of one micro-batch."""


def step_batch(
    examples: Sequence[Example],
    weight_N: NDArray[np.float64],
    indices: NDArray[np.int64],
    *,
    micro_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    packed: bool = True,
) -> StepBatch:
    """One rank's share of a step. Neither rank nor micro-batch changes the sum that the step is.

    A rank with fewer micro-batches than another adds idle ones of weight zero and keeps in step.

    Args:
        examples: what the plan was made of.
        weight_N: what multiplies each example's loss.
        indices: the whole step's, over all ranks; one that comes twice counts twice.
        micro_tokens: most tokens of a micro-batch, padding included, ≥ 1; a longer row goes alone.
        rank: in [0, world_size).
        world_size: ranks that share the step.
        seed: of what this rank draws in the step.
        packed: rows end to end, for models that see segments; else side by side, padded.
    """
    bins = deal(examples, indices, micro_tokens=micro_tokens, world_size=world_size, packed=packed)
    form = pack if packed else pad
    times = dict(zip(*np.unique(indices, return_counts=True), strict=True))
    micro_batches = []
    for place in range(rank, -(-len(bins) // world_size) * world_size, world_size):
        if place < len(bins):
            micro_batches.append(form(examples, weight_N, bins[place], times))
        else:
            shortest = min(times, key=lambda i: (len(examples[i].input_ids), i))
            idle = form(examples, np.zeros_like(weight_N), (_alone(examples, shortest),), {shortest: 1})
            micro_batches.append(replace(idle, idle=True))
    return StepBatch(micro_batches=tuple(micro_batches), num_examples=len(indices), seed=seed)


def deal(
    examples: Sequence[Example],
    indices: NDArray[np.int64],
    *,
    micro_tokens: int,
    world_size: int = 1,
    packed: bool = True,
) -> list[Bin]:
    """A step's micro-batches over all ranks, costly first: rank r takes r, r + world_size, and so on.

    So micro-batches that ranks compute at the same time cost about the same.

    Raises:
        ValueError: `micro_tokens` below 1.
    """
    if micro_tokens < 1:
        raise ValueError(f"micro_tokens must be at least 1, got {micro_tokens}")
    if not packed:
        return _bins_by_length(examples, indices, micro_tokens, world_size)
    rows = [int(i) for i in np.unique(indices)]
    whole = [unit for mates in _groups(examples, rows) for unit in _shared(examples, mates)]
    fair = -(-sum(unit.computed for unit in whole) // world_size)
    units = [part for unit in whole for part in _split(examples, unit, fair, micro_tokens)]
    return _balanced(units, micro_tokens, world_size)


def pack(
    examples: Sequence[Example], weight_N: NDArray[np.float64], units: Bin, times: dict[int, int]
) -> MicroBatch:
    """Examples end to end in one row, a common beginning once.

    Args:
        examples: all of the plan.
        weight_N: what multiplies each one's loss.
        units: those of this micro-batch.
        times: how often each is in the step.
    """
    row = _Row()
    for unit in units:
        first = examples[unit.rows[0]].input_ids
        begin = row.add(first[: unit.shared], (0, 0), 0) if unit.shared else (0, 0)
        for index in unit.rows:
            example = examples[index]
            own = row.add(example.input_ids[unit.shared :], begin, unit.shared)
            places = np.concatenate([np.arange(*begin), np.arange(*own)])
            for _ in range(times[index]):
                row.supervise(example, places, float(weight_N[index]))
    return row.micro_batch(Segments(row.parts))


def pad(
    examples: Sequence[Example], weight_N: NDArray[np.float64], units: Bin, times: dict[int, int]
) -> MicroBatch:
    """Examples side by side, padded on the right with id 0; arguments as for `pack`.

    Padding on the left leaves queries that see nothing, whose gradient is NaN on CUDA.
    """
    rows = [index for unit in units for index in unit.rows]
    longest = max(len(examples[i].input_ids) for i in rows)
    row = _Row()
    for b, index in enumerate(rows):
        example = examples[index]
        ids = np.zeros(longest, np.int64)
        ids[: len(example.input_ids)] = example.input_ids
        row.add(ids, (0, 0), 0)
        for _ in range(times[index]):
            row.supervise(example, np.arange(longest) + b * longest, float(weight_N[index]))
    computed = sum(len(examples[i].input_ids) for i in rows)
    return row.micro_batch(None, width=longest, computed=computed)


class _Row:
    """Tokens end to end, and what is predicted where."""

    def __init__(self) -> None:
        self.parts: list[Segment] = []
        self._ids: list[NDArray[np.int64]] = []
        self._positions: list[NDArray[np.int64]] = []
        self._sources: list[NDArray[np.int64]] = []
        self._targets: list[NDArray[np.int64]] = []
        self._supervised: list[int] = []
        self._weights: list[float] = []
        self._tokens = 0

    def add(self, ids: NDArray[np.integer], begin: tuple[int, int], position: int) -> tuple[int, int]:
        """Put tokens at the end, seeing those of `begin`; returns where they lie."""
        start = self.parts[-1].end if self.parts else 0
        end = start + len(ids)
        if len(ids):
            self.parts.append(Segment(start, end, *begin))
            self._ids.append(np.asarray(ids, np.int64))
            self._positions.append(np.arange(position, position + len(ids)))
        return start, end

    def supervise(self, example: Example, places: NDArray[np.integer], weight: float) -> None:
        """Note an example's supervised tokens; `places` says where each of its tokens lies."""
        target = np.concatenate([np.arange(*span) for span in example.spans])
        self._sources.append(places[target - 1])
        self._targets.append(np.asarray(example.input_ids, np.int64)[target])
        self._supervised.append(len(target))
        self._weights.append(weight)
        self._tokens += len(example.input_ids)

    def micro_batch(
        self, segments: Segments | None, *, width: int | None = None, computed: int | None = None
    ) -> MicroBatch:
        """All of it as tensors, in rows of `width`."""
        ids, positions = np.concatenate(self._ids), np.concatenate(self._positions)
        shape = (-1, width or len(ids))
        examples = np.repeat(np.arange(len(self._supervised)), self._supervised)
        return MicroBatch(
            input_ids=torch.from_numpy(ids).view(shape),
            position_ids=torch.from_numpy(positions).view(shape),
            segments=segments,
            source_R=torch.from_numpy(np.concatenate(self._sources)),
            target_R=torch.from_numpy(np.concatenate(self._targets)),
            example_R=torch.from_numpy(examples),
            weight=torch.tensor(self._weights, dtype=torch.float64),
            tokens=self._tokens,
            computed=len(ids) if computed is None else computed,
        )


def _alone(examples: Sequence[Example], index: int) -> Unit:
    return Unit((index,), 0, len(examples[index].input_ids))


def _groups(examples: Sequence[Example], rows: Sequence[int]) -> list[list[int]]:
    """Rows of the same group, in order."""
    groups: dict[object, list[int]] = {}
    for row in rows:
        groups.setdefault(examples[row].group, []).append(row)
    return list(groups.values())


def _shared(examples: Sequence[Example], mates: Sequence[int]) -> list[Unit]:
    """The rows of a group, with their common beginning where that saves enough."""
    tokens = sum(len(examples[i].input_ids) for i in mates)
    shared = _common(examples, mates)
    saved = shared * (len(mates) - 1)
    if saved < SHARED * tokens:
        return [_alone(examples, i) for i in mates]
    return [Unit(tuple(mates), shared, tokens - saved)]


def _split(examples: Sequence[Example], unit: Unit, fair: int, micro_tokens: int) -> Iterator[Unit]:
    """A unit in parts of about a rank's fair share of the step, none above `micro_tokens` if it can be."""
    parts = -(-unit.computed // min(fair, micro_tokens))
    most = min(-(-(unit.computed - unit.shared) // parts), micro_tokens - unit.shared)
    rows: list[int] = []
    held = 0
    for index in unit.rows:
        own = len(examples[index].input_ids) - unit.shared
        if rows and held + own > most:
            yield Unit(tuple(rows), unit.shared, unit.shared + held)
            rows, held = [], 0
        rows.append(index)
        held += own
    yield Unit(tuple(rows), unit.shared, unit.shared + held)


def _common(examples: Sequence[Example], rows: Sequence[int]) -> int:
    """Tokens that all of the rows begin with; 0 for one row."""
    first = examples[rows[0]].input_ids
    common = len(first) if len(rows) > 1 else 0
    for index in rows[1:]:
        other = examples[index].input_ids[:common]
        common = len(other)
        differing = np.flatnonzero(np.asarray(first[:common]) != np.asarray(other))
        common = int(differing[0]) if len(differing) else common
    return common


def _balanced(units: Sequence[Unit], micro_tokens: int, world_size: int) -> list[Bin]:
    """Units in as few bins a rank as hold them, longest first into the emptiest."""
    order = sorted(units, key=lambda unit: (-unit.computed, unit.rows))
    total = sum(unit.computed for unit in units)
    count = max(1, -(-total // (micro_tokens * world_size))) * world_size
    while True:
        bins: list[list[Unit]] = [[] for _ in range(count)]
        loads = [(0, at) for at in range(count)]
        heapify(loads)
        for unit in order:
            load, at = loads[0]
            bins[at].append(unit)
            heapreplace(loads, (load + unit.computed, at))
        if count >= len(units) or all(load <= micro_tokens or len(bins[at]) == 1 for load, at in loads):
            filled = [tuple(units) for units in bins if units]
            return sorted(filled, key=lambda b: -sum(unit.computed for unit in b))
        count += world_size


def _bins_by_length(
    examples: Sequence[Example], indices: NDArray[np.int64], micro_tokens: int, world_size: int
) -> list[Bin]:
    """Examples of like lengths together, rows × longest ≤ micro_tokens, or a rank's share."""
    units = [_alone(examples, int(i)) for i in np.unique(indices)]
    longest = max(unit.computed for unit in units)
    limit = min(micro_tokens, -(-len(units) * longest // world_size))
    bins: list[list[Unit]] = []
    for unit in sorted(units, key=lambda unit: (-unit.computed, unit.rows)):
        if bins and (len(bins[-1]) + 1) * bins[-1][0].computed <= limit:
            bins[-1].append(unit)
        else:
            bins.append([unit])
    return sorted(map(tuple, bins), key=lambda b: -len(b) * b[0].computed)
