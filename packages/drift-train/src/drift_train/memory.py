"""The memory of one device at its peak, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn
from transformers import PreTrainedModel

from drift_train.activations import activations, head_backward, head_forward
from drift_train.flops import multiplying
from drift_train.head import head_weights
from drift_train.shapes import Micro, Shape, blocks_of
from drift_train.strategies import blocks

SHARDED = ("fsdp2", "fsdp")
"""Strategies under which parameters, gradients and moments lie in shards."""
Moment = Literal["head", "last block", "first block", "embedding"]
"""The head's loss, behind the forward; of the backward its first block, its last one, and its end."""
WHEN: dict[Moment, str] = {
    "head": "in the loss",
    "last block": "as the backward begins",
    "first block": "as the backward ends",
    "embedding": "behind the backward",
}
"""The moments in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes of one device at its peak, without CUDA's context and what the allocator wastes."""

    moment: Moment
    """When that is."""
    parameters: int
    gradients: int
    """Those that are there at that moment; a step's first micro-batch begins without any."""
    moments: int
    """AdamW's two."""
    working: int
    """About: what is whole for a while under fsdp2 and fsdp; ddp's buckets; autocast's copies."""
    activations: int
    """About: what the forward keeps for its backward, and its gradients."""
    head: int
    """About: logits of one piece of the loss, the gradients of its hidden states and weights."""
    host: int
    """Parameters, gradients and moments of one process in host memory, under cpu_offload."""

    @property
    def device(self) -> int:
        """All that lies on the device."""
        states = self.parameters + self.gradients + self.moments
        return states + self.working + self.activations + self.head


def memory_plan(
    policy: PreTrainedModel,
    steps: Sequence[Sequence[Micro]],
    *,
    strategy: str,
    devices: int,
    precision: str,
    cpu_offload: bool,
    checkpointing: bool,
    cuda: bool,
) -> MemoryPlan:
    """What one device holds at its peak.

    Four moments of each micro-batch can be that. Where the head is computed, all activations are kept, and
    gradients are there only of micro-batches before. In the last block, where the backward begins,
    gradients of activations come on top, and under checkpointing all that a block keeps. In the first block
    the gradients of all others are there; at the end the embedding's, too, beside what it is added to.

    Args:
        policy: with shapes, its numbers may be missing (the meta device); as it is dressed for training.
        steps: the micro-batches of each, over all devices; at least one.
        strategy: `fsdp2`, `fsdp`, `ddp` or `single`.
        devices: that shards lie on, ≥ 1.
        precision: of the trainer.
        cpu_offload: shards lie in host memory.
        checkpointing: of gradients.
        cuda: whether the device is one of CUDA's, which has another attention.
    """
    sharded = strategy in SHARDED
    shape = Shape.of(policy, precision=precision, sharded=sharded, cuda=cuda)
    parts = devices if sharded else 1
    here = 0 if cpu_offload else 1
    gradients = _gradients(policy, sharded, cuda)
    moments, later = 2 * -(-gradients.own // parts), _later(steps, devices)
    parameters = -(-bytes_of(policy) // parts)
    working = {m: _working(policy, strategy, shape, m, checkpointing) for m in get_args(Moment)}
    most = max(gradients.at("embedding", later=again) for _, again in later)
    plans = (
        MemoryPlan(
            moment=moment,
            parameters=here * parameters,
            gradients=here * -(-gradients.at(moment, later=again) // parts),
            moments=here * moments,
            working=working[moment],
            activations=kept,
            head=head,
            host=(1 - here) * (parameters + moments + -(-most // parts)),
        )
        for micro, again in later
        for moment, kept, head in _passing(shape, micro, checkpointing)
    )
    return max(plans, key=lambda plan: plan.device)


def _later(steps: Sequence[Sequence[Micro]], devices: int) -> set[tuple[Micro, bool]]:
    """Each shape of a micro-batch, and whether its device has gradients of the step from one before."""
    return {(micro, place >= devices) for step in steps for place, micro in enumerate(step)}


def _passing(shape: Shape, micro: Micro, checkpointing: bool) -> list[tuple[Moment, int, int]]:
    """What comes and goes with a micro-batch at each moment: activations, and what the head holds."""
    kept = activations(shape, micro, checkpointing=checkpointing)
    return [
        ("head", kept.head, head_forward(shape, micro)),
        ("last block", kept.last_block, head_backward(shape, micro)),
        ("first block", kept.first_block, 0),
        ("embedding", 0, 0),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gradients:
    """Bytes of all gradients, over all shards."""

    own: int
    """In the dtype of their parameters."""
    half: int
    """Of these, of parameters in half precision."""
    sums: int
    """In float32, of those in half precision, over micro-batches (`drift_train.precision`)."""
    cast: int
    """What a CPU makes of one in half precision before it is added to its sum."""
    block: int
    """Of these, of a block."""
    table: int
    """Of these, of the input embedding; 0 where it is frozen."""
    tied: bool
    """Whether it is the head as well."""

    def at(self, moment: Moment, *, later: bool) -> int:
        """Those that are there; `later` where a micro-batch before has left its own.

        Autograd adds to a gradient in place, but the embedding's is as large as itself, and made beside
        the one that it is added to, and beside the head's where both are one. GradientSums take what
        is in half precision away after each micro-batch.
        """
        sums, added = (self.sums, not self.half) if later else (0, False)
        if moment in ("head", "last block"):
            return sums + (self.own - self.half if later else 0)
        made = self.table * (added + self.tied)
        if moment == "embedding":
            return sums + self.own + max(made, self.cast if later else 0)
        return sums + self.own + made - self.table - (0 if added else self.block)


def _gradients(policy: PreTrainedModel, sharded: bool, cuda: bool) -> _Gradients:
    trained = [p for p in policy.parameters() if p.requires_grad]
    half = [p for p in trained if p.dtype.itemsize < 4]
    table: Any = policy.get_input_embeddings().weight
    # In shards one is whole for a while, and counted in `working`.
    whole = table.requires_grad and not sharded
    return _Gradients(
        own=sum(p.nbytes for p in trained),
        half=sum(p.nbytes for p in half),
        sums=4 * sum(p.numel() for p in half),
        cast=0 if cuda else 4 * max((p.numel() for p in half), default=0),
        block=0
        if sharded
        else max((bytes_of(block, trained=True) for block in blocks_of(policy)), default=0),
        table=table.nbytes if whole else 0,
        tied=any(table is weight for weight in head_weights(policy)),
    )


def _working(
    policy: PreTrainedModel, strategy: str, shape: Shape, moment: Moment, checkpointing: bool
) -> int:
    """What comes on top of a device's own share of parameters and gradients.

    Under fsdp2 and fsdp what is outside the blocks (embedding, head) stays whole from the forward to
    the end of the backward, with its gradient; of the blocks one is computed with, in the backward with
    its gradient, while the next is gathered. ddp keeps its gradients a second time, in buckets.
    """
    if strategy in SHARDED:
        return _gathered(policy, moment) * shape.computed
    buckets = bytes_of(policy, trained=True) if strategy == "ddp" else 0
    return buckets + (
        _copied(policy, moment, checkpointing) * shape.computed if shape.computed < shape.weights else 0
    )


def _gathered(policy: PreTrainedModel, moment: Moment) -> int:
    """Numbers that are whole: parameters, and gradients so far."""
    inside = blocks(policy)
    outside = parameters_of(policy) - sum(parameters_of(block) for block in inside)
    numbers = outside + 2 * max(parameters_of(block) for block in inside)
    if moment != "head":
        numbers += max(parameters_of(block, trained=True) for block in inside)
    if moment in ("first block", "embedding"):
        numbers += parameters_of(policy, trained=True)
        numbers -= sum(parameters_of(block, trained=True) for block in inside)
    return numbers


def _copied(policy: PreTrainedModel, moment: Moment, checkpointing: bool) -> int:
    """Numbers that autocast has a copy of: a block's from its forward, or the one before its backward."""
    if moment == "embedding" or (moment == "head" and checkpointing):
        return 0
    if moment == "first block" or checkpointing:
        return max((parameters_of(block) for block in blocks_of(policy)), default=0)
    return int(multiplying(policy).body)


def parameters_of(module: nn.Module, *, trained: bool = False) -> int:
    """Parameters, tied ones once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def bytes_of(module: nn.Module, *, trained: bool = False) -> int:
    """Bytes of the parameters, tied ones once."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad or not trained)
