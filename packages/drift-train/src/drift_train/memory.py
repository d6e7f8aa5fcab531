"""The memory of one device at its peak, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from drift_train.head import LOGITS, has_body
from drift_train.strategies import blocks

SHARDED = ("fsdp2", "fsdp")
"""Strategies under which parameters, gradients and moments lie in shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes of one device at their peak, without CUDA's context and what the allocator wastes."""

    parameters: int
    gradients: int
    moments: int
    """AdamW's two."""
    working: int
    """About: what is whole for a while under fsdp2 and fsdp; ddp's buckets; autocast's copies."""
    activations: int
    """About: what the largest micro-batch keeps for its backward."""
    logits: int
    """About: logits of one piece of the loss, their log-probabilities, and the gradients of both."""
    host: int
    """Parameters, gradients and moments of one process in host memory, under cpu_offload."""

    @property
    def device(self) -> int:
        """All that lies on the device."""
        states = self.parameters + self.gradients + self.moments
        return states + self.working + self.activations + self.logits


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
    """
    sharded = strategy in SHARDED
    size = _bytes(policy.dtype, precision, sharded)
    parts = devices if sharded else 1
    parameters = -(-bytes_of(policy) // parts)
    gradients = -(-bytes_of(policy, trained=True) // parts)
    here = 0 if cpu_offload else 1
    activations, logits = max(
        (
            (_activations(policy, micro, size, checkpointing), _head(policy, micro, size))
            for micro in micro_batches
        ),
        key=sum,
    )
    return MemoryPlan(
        parameters=here * parameters,
        gradients=here * gradients,
        moments=here * 2 * gradients,
        working=_working(policy, strategy, size),
        activations=activations,
        logits=logits,
        host=(1 - here) * (parameters + 3 * gradients),
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
    """What a forward keeps for its backward, counted by operation as in Korthikanti et al. 2022, sec. 4.1.

    Theirs is 34·h bytes a token and block, for a 4·h MLP with GELU and dropout. Ours has a gated MLP of
    width f, no dropout, norms in float32, attention that stores no scores, and q numbers each of queries,
    and of keys and values once repeated. With r and c bytes a number (see
    `_Bytes`), n = 2 copies of normed states, or 5 where autocast makes one for each matrix:

        2·(4 + r)·h + c·(n·h + 4·q + 4·f)

    Eager attention, and one with capped scores, adds 4 + c bytes for each head and position. Under
    gradient checkpointing each block keeps its input, r·h, and one at a time all of that.
    """
    config: PreTrainedConfig = policy.config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    queries = (getattr(config, "head_dim", None) or hidden // heads) * heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    copies = 2 if size.residual == size.computed else 5
    numbers = copies * hidden + 4 * queries + 4 * inner
    token = 2 * (4 + size.residual) * hidden + size.computed * numbers
    # A cap on scores is computed on all of them, as in Gemma 2.
    if policy.config._attn_implementation == "eager" or getattr(config, "attn_logit_softcapping", None):
        token += (4 + size.computed) * heads * micro.longest
    layers = config.num_hidden_layers
    kept = layers * size.residual * hidden + token if checkpointing else layers * token
    return micro.positions * int(kept)


def _head(policy: PreTrainedModel, micro: Micro, size: _Bytes) -> int:
    """What a piece of the loss holds, in float32 at least: logits, log-probabilities, gradients of both.

    A policy whose head cannot be told from its body makes all its logits, with their gradient.
    """
    precise = max(4, size.computed)
    vocab = int(policy.config.get_text_config().vocab_size)
    piece = vocab * min(micro.supervised, max(1, LOGITS // vocab))
    # In half precision the logits are there a second time.
    held = 4 * precise if precise == size.computed else 4 * precise + 2 * size.computed
    whole = 0 if has_body(policy) else 2 * micro.positions * vocab * size.computed
    return whole + piece * held


def parameters_of(module: torch.nn.Module, *, trained: bool = False) -> int:
    """Parameters, tied ones once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def bytes_of(module: torch.nn.Module, *, trained: bool = False) -> int:
    """Bytes of the parameters, tied ones once."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad or not trained)
