"""The shapes of a policy and of its micro-batches, as far as memory goes by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from drift_train.head import has_body, head_weights
from drift_train.strategies import blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class Micro:
    """The shape of one micro-batch."""

    positions: int
    """Padding included, shared tokens once."""
    runs: tuple[tuple[int, int], ...]
    """Tokens that attend together, and those of the beginning that they see, too. A padded row is a run."""
    tokens: int
    """Of all examples, shared ones with each."""
    computed: int
    """Shared ones once."""
    supervised: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A policy, and the bytes that a number of it takes."""

    residual: int
    """Bytes between the blocks; autocast leaves it in float32."""
    computed: int
    """Bytes in the matrix products."""
    weights: int
    """Bytes in the weights that a forward is given."""
    hidden: int
    inner: int
    """Width of the MLP."""
    heads: int
    queries: int
    """Numbers of a token, of all heads."""
    keys: int
    """As many as values."""
    normed: int
    """Numbers of a token that the norms of a block take."""
    adapted: int
    """Numbers of a token that adapters of a block cast to their own float32; 0 where they need not."""
    windows: tuple[int | None, ...]
    """Tokens that each one sees in a block; None for all before it."""
    scores: bool
    """Whether attention keeps its scores."""
    by_lengths: bool
    """Whether attention of a packed row is one call of FlashAttention."""
    vocab: int
    head: int
    """Trained parameters of the head."""
    body: bool
    """Whether the head can be told from the body."""
    cuda: bool

    @classmethod
    def of(cls, policy: PreTrainedModel, *, precision: str, sharded: bool, cuda: bool) -> Self:
        """The shape of a policy that is dressed for training; its numbers may be missing."""
        config: PreTrainedConfig = policy.config.get_text_config()
        computed = 2 if precision == "bf16-mixed" else policy.dtype.itemsize
        # The sharded strategies gather weights in the arithmetic's precision.
        own = computed if sharded else policy.dtype.itemsize
        heads = int(config.num_attention_heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        queries, keys = width * heads, width * int(getattr(config, "num_key_value_heads", None) or heads)
        capped = bool(getattr(config, "attn_logit_softcapping", None))
        # As drift_train.attention chooses, on a device that has FlashAttention.
        fits = width % 8 == 0 and (width <= 192 or 224 < width <= 256)
        plain = not capped and not getattr(config, "attention_dropout", 0)
        last = blocks_of(policy)[-1:]
        return cls(
            residual=own,
            computed=computed,
            weights=own,
            hidden=int(config.hidden_size),
            inner=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
            heads=heads,
            queries=queries,
            keys=keys,
            normed=sum(_normed(block, config, queries, keys) for block in last)
            or 2 * int(config.hidden_size),
            adapted=sum(map(_adapted, last)) if policy.dtype.itemsize < 4 else 0,
            windows=_windows(config),
            scores=capped or policy.config._attn_implementation == "eager",
            by_lengths=cuda and computed == 2 and fits and plain,
            vocab=int(config.vocab_size),
            head=sum(weight.numel() for weight in head_weights(policy) if weight.requires_grad),
            body=has_body(policy),
            cuda=cuda,
        )


def blocks_of(policy: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks; none where the model names none, which ddp and single can do without."""
    try:
        return blocks(policy)
    except ValueError:
        return []


def _windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * int(config.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _normed(block: nn.Module, config: PreTrainedConfig, queries: int, keys: int) -> int:
    """A norm of queries or keys may have the parameters of one head, and takes all."""
    total = 0
    for name, module in block.named_modules():
        if "Norm" in type(module).__name__:
            whole = sum(p.numel() for p in module.parameters()) == config.hidden_size
            kind = "" if whole else name.rpartition(".")[2][:1]
            total += {"q": queries, "k": keys}.get(kind, int(config.hidden_size))
    return total


def _adapted(block: nn.Module) -> int:
    adapters: list[Any] = [module for module in block.modules() if hasattr(module, "lora_A")]
    return sum(int(adapter.lora_A["default"].in_features) for adapter in adapters)
