"""Attention in which every token sees its own row alone, however many rows stand end to end."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SEGMENTS = "drift_segments"
"""The name of this attention among transformers' implementations."""
_PACKED = """
apertus arcee cohere cohere2 ernie4_5 exaone4 gemma gemma2 gemma3_text glm glm4 gpt2 gpt_neox
granite granitemoe helium hunyuan_v1_dense llama ministral mistral mixtral nanochat olmo olmo2
olmo3 phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 starcoder2
"""
PACKED = frozenset(_PACKED.split())
"""Model types whose packed gradient is the padded one, by a test of each."""
_SLIDES_BY_MASK = {"qwen2_moe"}
"""Model types whose layers slide by their mask alone; a packed row has none."""
_LAYERS = {"full_attention", "sliding_attention"}
_HALF = (torch.float16, torch.bfloat16)


class Segment(NamedTuple):
    """A run of packed tokens that see an earlier run, if any, and those before them in their own."""

    start: int
    end: int
    prefix_start: int
    prefix_end: int
    """The same as prefix_start where nothing is shared."""

    @property
    def length(self) -> int:
        """Tokens of its own, ≥ 1."""
        return self.end - self.start

    @property
    def prefix(self) -> int:
        """Tokens of the earlier run."""
        return self.prefix_end - self.prefix_start


class Segments:
    """The segments of a packed row, in order and without gaps.

    No dataclass, nor a tuple: FSDP would look into those for tensors to cast.
    """

    def __init__(self, parts: Sequence[Segment]) -> None:
        self.parts = tuple(parts)
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self._places: dict[torch.device, tuple[Tensor, Tensor, Tensor | None]] = {}

    def mask(self, part: Segment, window: int | None, device: torch.device) -> Tensor | None:
        """What a segment sees of its prefix and itself, [length, prefix + length]; None if causal."""
        keys = part.prefix + part.length
        if window is not None and keys <= window:
            window = None
        if not part.prefix and window is None:
            return None
        name = (part.prefix, part.length, window, device)
        if name not in self._masks:
            seen = torch.ones(part.length, keys, dtype=torch.bool, device=device).tril(part.prefix)
            self._masks[name] = seen if window is None else seen.triu(part.prefix - window + 1)
        return self._masks[name]

    def forget(self) -> None:
        """Drop the masks; they are made again when they are needed."""
        self._masks.clear()

    def places(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Where queries and keys of each segment start, and which tokens the keys are (None: all)."""
        if device not in self._places:
            queries = [0, *accumulate(part.length for part in self.parts)]
            keys = [0, *accumulate(part.prefix + part.length for part in self.parts)]
            start_q, start_k = (torch.tensor(x, dtype=torch.int32, device=device) for x in (queries, keys))
            order = None if keys == queries else torch.tensor(self._order(), device=device)
            self._places[device] = start_q, start_k, order
        return self._places[device]

    def _order(self) -> list[int]:
        runs = ((part.prefix_start, part.prefix_end, part.start, part.end) for part in self.parts)
        return [i for a, b, c, d in runs for i in (*range(a, b), *range(c, d))]


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row, segment by segment; of anything else transformers' own `sdpa`.

    Nothing is masked between segments, because nothing is computed there. Half precision on CUDA takes
    one call of FlashAttention with lengths; all else a call of `scaled_dot_product_attention` a segment.

    Args:
        module: the layer.
        query: shape [1, heads, T, D], as are key and value, which may have fewer heads.
        attention_mask: unused for a packed row.
        segments: None where the batch is not packed.
        dropout: of the probabilities.
        scaling: of the scores; None for 1/√D.
        sliding_window: tokens that each one sees, itself included; None for all before it.
        softcap: c of c·tanh(score/c), which Gemma 2 has.

    Returns:
        Shape [1, T, heads, D], and no probabilities.
    """
    if segments is None and softcap is not None:
        # transformers' sdpa would leave the cap out.
        if attention_mask is None:
            shape = query.shape[2], key.shape[2]
            attention_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril(
                shape[1] - shape[0]
            )
        capped = _capped(query, key, value, attention_mask, dropout, scaling, softcap)
        return capped.transpose(1, 2), None
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
    if _takes_lengths(query, dropout, softcap):
        return _by_lengths(query, key, value, segments, scaling, sliding_window), None
    outputs = []
    for part in segments.parts:
        seen = segments.mask(part, sliding_window, query.device)
        q, k, v = query[:, :, part.start : part.end], _seen(key, part), _seen(value, part)
        if softcap is None:
            gqa = query.shape[1] != key.shape[1]
            outputs.append(
                scaled_dot_product_attention(
                    q, k, v, seen, dropout, is_causal=seen is None, scale=scaling, enable_gqa=gqa
                )
            )
        else:
            outputs.append(_capped(q, k, v, seen, dropout, scaling, softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def check_packed(config: PretrainedConfig) -> None:
    """Refuse a packed row where attention would cross its segments.

    Raises:
        ValueError: the model has another attention.
    """
    if config._attn_implementation != SEGMENTS:
        raise ValueError(
            f"a packed row needs the attention {SEGMENTS}, the policy has {config._attn_implementation}; "
            "pad its rows"
        )


def check_causal(policy: PreTrainedModel) -> None:
    """Refuse a policy whose tokens see those behind them: its targets would be among what it sees.

    Raises:
        ValueError: it is one.
    """
    config = policy.config.get_text_config()
    ahead = getattr(config, "use_bidirectional_attention", None) or False
    # The towers of one that reads more than text look both ways, rightly.
    if config is policy.config:
        ahead = ahead or any(getattr(module, "is_causal", True) is False for module in policy.modules())
    if ahead:
        raise ValueError(
            f"the attention of this {config.model_type} is not causal: a token sees those behind it, its "
            "own target among them; train a causal language model"
        )


def why_not_packed(config: PretrainedConfig) -> str | None:
    """Why the rows of a model have to be padded instead; None if they can be packed.

    Packing is exact if a token meets others in attention alone, and finds its place by its position id.
    """
    if config.model_type not in PACKED:
        return f"that packing is exact has been tried out for other families than {config.model_type}"
    layers = set(getattr(config, "layer_types", None) or ())
    if not layers <= _LAYERS:
        return "not all of its layers are full or sliding attention"
    if config.model_type in _SLIDES_BY_MASK and "sliding_attention" in layers:
        return f"the layers of {config.model_type} slide by a mask, which a packed row has not"
    return None


def _seen(states: Tensor, part: Segment) -> Tensor:
    """Keys or values that a segment sees."""
    own = states[:, :, part.start : part.end]
    if not part.prefix:
        return own
    return torch.cat([states[:, :, part.prefix_start : part.prefix_end], own], dim=2)


def _capped(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, dropout: float, scaling: float | None, cap: float
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if seen is None:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = (cap * torch.tanh(scores / cap)).masked_fill(~seen, float("-inf"))
    precise = torch.promote_types(scores.dtype, torch.float32)
    return drop(torch.softmax(scores, -1, dtype=precise).to(v.dtype), dropout) @ v


def _takes_lengths(query: Tensor, dropout: float, softcap: float | None) -> bool:
    fits = query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    plain = dropout == 0 and softcap is None
    # torch 2.11 had it without grouped heads.
    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return query.is_cuda and query.dtype in _HALF and fits and plain and grouped


def _by_lengths(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    start_q, start_k, order = segments.places(query.device)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if order is not None:
        k, v = k[order], v[order]
    longest_q = max(part.length for part in segments.parts)
    longest_k = max(part.prefix + part.length for part in segments.parts)
    # A window of no queries' own keys on the right is causal, counted from each segment's last token.
    output = varlen_attn(
        q,
        k,
        v,
        start_q,
        start_k,
        longest_q,
        longest_k,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(output, Tensor)
    return output[None]


AttentionInterface.register(SEGMENTS, attend)
# Without segments it is sdpa, which wants sdpa's masks.
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
