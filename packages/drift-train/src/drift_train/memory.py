"""The memory of one device at its peak, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from drift_train.head import has_body, head_weights, positions_at_once
from drift_train.strategies import blocks

SHARDED = ("fsdp2", "fsdp")
"""Strategies under which parameters, gradients and moments lie in shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes of one device at their peak, without CUDA's context and what the allocator wastes."""

    parameters: int
    gradients: int
    """In float32 where those of half precision are summed over micro-batches."""
    passing: int
    """Those of one micro-batch, where they are summed elsewhere: they come as activations go."""
    moments: int
    """AdamW's two."""
    working: int
    """About: what is whole for a while under fsdp2 and fsdp; ddp's buckets; autocast's copies."""
    activations: int
    """About: what the largest micro-batch keeps for its backward."""
    again: int
    """About: under checkpointing, the block that is computed again; the loss is over by then."""
    logits: int
    """About: logits of one piece of the loss, their log-probabilities, and the gradients of both."""
    head: int
    """About: the gradient of the head, summed over the pieces, and that of one; and of what it is given."""
    host: int
    """Parameters, gradients and moments of one process in host memory, under cpu_offload."""

    @property
    def device(self) -> int:
        """All that lies on the device."""
        states = self.parameters + self.gradients + self.moments
        passes = self.activations + max(self.again, self.logits + self.head)
        return states + self.working + max(passes, self.passing)


@dataclass(frozen=True, kw_only=True, slots=True)
class Micro:
    """The shape of one micro-batch."""

    positions: int
    """Padding included, shared tokens once."""
    longest: int
    """Tokens of the longest example."""
    tokens: int
    """Of all examples, shared ones with each."""
    computed: int
    """Shared ones once."""
    supervised: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bytes:
    """Bytes a number takes in activations."""

    residual: int
    """Between the blocks; autocast leaves it in float32."""
    computed: int
    """In the matrix products."""


def memory_plan(
    policy: PreTrainedModel,
    micro_batches: Sequence[Micro],
    *,
    strategy: str,
    devices: int,
    precision: str,
    cpu_offload: bool,
    checkpointing: bool,
    several: bool,
    device: str,
) -> MemoryPlan:
    """What one device holds at its peak.

    Args:
        policy: with shapes, its numbers may be missing (the meta device).
        micro_batches: all that any device may get, at least one.
        strategy: `fsdp2`, `fsdp`, `ddp` or `single`.
        devices: that shards lie on, ≥ 1.
        precision: of the trainer.
        cpu_offload: shards lie in host memory.
        checkpointing: of gradients.
        several: a step has more than one micro-batch on a device.
        device: `cuda` or `cpu`, which takes the loss in smaller pieces.
    """
    sharded = strategy in SHARDED
    size = _bytes(policy.dtype, precision, sharded)
    parts = devices if sharded else 1
    parameters = -(-bytes_of(policy) // parts)
    trained = -(-bytes_of(policy, trained=True) // parts)
    summed = several and any(p.requires_grad and p.dtype.itemsize < 4 for p in policy.parameters())
    gradients = -(-_summed(policy) // parts) if summed else trained
    here = 0 if cpu_offload else 1
    passes = [
        {
            "activations": _activations(policy, micro, size, checkpointing),
            "again": _again(policy, micro, size, sharded) if checkpointing else 0,
            "logits": _logits(policy, micro, size, device),
            "head": _head(policy, micro, size, sharded, device),
        }
        for micro in micro_batches
    ]
    largest = max(passes, key=lambda p: p["activations"] + max(p["again"], p["logits"] + p["head"]))
    return MemoryPlan(
        parameters=here * parameters,
        gradients=here * gradients,
        passing=here * trained if summed else 0,
        moments=here * 2 * trained,
        working=_working(policy, strategy, size),
        **largest,
        host=(1 - here) * (parameters + gradients + 2 * trained),
    )


def _bytes(dtype: torch.dtype, precision: str, sharded: bool) -> _Bytes:
    computed = 2 if precision == "bf16-mixed" else dtype.itemsize
    # The sharded strategies gather weights in the arithmetic's precision.
    return _Bytes(residual=computed if sharded else dtype.itemsize, computed=computed)


def _working(policy: PreTrainedModel, strategy: str, size: _Bytes) -> int:
    """What comes on top of a device's own share of parameters and gradients.

    Under fsdp2 and fsdp what is outside the blocks (embedding, head) stays whole from the forward to
    the end of the backward, with its gradient; of the blocks one is computed with, its gradient
    included, while the next is gathered. ddp keeps its gradients a second time, in buckets. Under
    autocast a copy of the weights in half precision lasts the step.
    """
    if strategy in SHARDED:
        each = [2 * parameters_of(b) + parameters_of(b, trained=True) for b in blocks(policy)]
        inside = sum(parameters_of(b) for b in blocks(policy))
        inside_trained = sum(parameters_of(b, trained=True) for b in blocks(policy))
        outside = parameters_of(policy) - inside + parameters_of(policy, trained=True) - inside_trained
        return (outside + max(each)) * size.computed
    copies = parameters_of(policy) * size.computed if size.computed < policy.dtype.itemsize else 0
    return copies + (bytes_of(policy, trained=True) if strategy == "ddp" else 0)


def _activations(policy: PreTrainedModel, micro: Micro, size: _Bytes, checkpointing: bool) -> int:
    """What a forward keeps for its backward: all of each block, or under checkpointing its input, r·h."""
    config: PreTrainedConfig = policy.config.get_text_config()
    if checkpointing:
        return micro.positions * int(config.num_hidden_layers * size.residual * config.hidden_size)
    return int(config.num_hidden_layers * _block(policy, micro, size))


def _again(policy: PreTrainedModel, micro: Micro, size: _Bytes, sharded: bool) -> int:
    """All of a block, with the gradients of the two widest states of its MLP.

    The gradient of a head that is the embedding as well waits meanwhile for the embedding's.
    """
    table = cast(Tensor, policy.get_input_embeddings().weight)
    tied = any(weight is table for weight in head_weights(policy) if weight.requires_grad)
    waits = table.numel() * max(4, _stored(policy, size, sharded)) if tied else 0
    inner = 2 * size.computed * _inner(policy.config.get_text_config())
    return _block(policy, micro, size) + micro.positions * int(inner) + waits


def _block(policy: PreTrainedModel, micro: Micro, size: _Bytes) -> int:
    """What a block keeps for its backward, counted by operation as in Korthikanti et al. 2022, sec. 4.1.

    Theirs is 34·h bytes a token and block, for a 4·h MLP with GELU and dropout. Ours has a gated MLP of
    width f, no dropout, norms in float32, attention that stores no scores, and q numbers each of queries,
    and of keys and values once repeated. With r and c bytes a number (see
    `_Bytes`), n = 2 copies of normed states, or 5 where autocast makes one for each matrix:

        2·(4 + r)·h + c·(n·h + 4·q + 4·f)

    Eager attention, and one with capped scores, adds 4 + c bytes for each head and position.
    """
    config: PreTrainedConfig = policy.config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    queries = (getattr(config, "head_dim", None) or hidden // heads) * heads
    copies = 2 if size.residual == size.computed else 5
    numbers = copies * hidden + 4 * queries + 4 * _inner(config)
    token = 2 * (4 + size.residual) * hidden + size.computed * numbers
    # A cap on scores is computed on all of them, as in Gemma 2.
    if policy.config._attn_implementation == "eager" or getattr(config, "attn_logit_softcapping", None):
        token += (4 + size.computed) * heads * micro.longest
    return micro.positions * int(token)


def _inner(config: PreTrainedConfig) -> int:
    """Numbers of a token's widest state in the MLP."""
    return int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)


def _stored(policy: PreTrainedModel, size: _Bytes, sharded: bool) -> int:
    """Bytes of a number of the weights that are multiplied with, and of its gradient."""
    return size.computed if sharded else policy.dtype.itemsize


def _summed(policy: PreTrainedModel) -> int:
    """Bytes of the gradients as `drift_train.precision` sums them: in float32 at least."""
    return sum(max(4, p.dtype.itemsize) * p.numel() for p in policy.parameters() if p.requires_grad)


def _logits(policy: PreTrainedModel, micro: Micro, size: _Bytes, device: str) -> int:
    """What a piece of the loss holds, in float32 at least: logits, log-probabilities, gradients of both.

    A policy whose head cannot be told from its body makes all its logits, with their gradient.
    """
    precise = max(4, size.computed)
    vocab = _vocab(policy)
    piece = vocab * min(micro.supervised, positions_at_once(device, vocab))
    # In half precision the logits are there a second time.
    held = 4 * precise if precise == size.computed else 4 * precise + 2 * size.computed
    whole = 0 if has_body(policy) else 2 * micro.positions * vocab * size.computed
    return whole + piece * held


def _head(policy: PreTrainedModel, micro: Micro, size: _Bytes, sharded: bool, device: str) -> int:
    """What a loss in pieces sums up: in float32 at least, while another piece's own gradient is there.

    Under autocast the product that this is comes in half precision, and is copied. Hidden states with
    loss, and their gradient, come on top.
    """
    weights = sum(weight.numel() for weight in head_weights(policy) if weight.requires_grad)
    own = _stored(policy, size, sharded)
    product = size.computed if size.computed < own else 0
    other = own if micro.supervised > positions_at_once(device, _vocab(policy)) else 0
    states = 2 * micro.supervised * int(policy.config.get_text_config().hidden_size) * size.residual
    return weights * (max(4, own) + other + product) + states


def _vocab(policy: PreTrainedModel) -> int:
    return int(policy.config.get_text_config().vocab_size)


def parameters_of(module: torch.nn.Module, *, trained: bool = False) -> int:
    """Parameters, tied ones once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def bytes_of(module: torch.nn.Module, *, trained: bool = False) -> int:
    """Bytes of the parameters, tied ones once."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad or not trained)
