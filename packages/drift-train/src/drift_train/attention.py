"""Attention in which every token sees its own row alone, however many rows stand end to end."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
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
_GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether it takes fewer heads of keys than of queries; torch 2.11's does not."""


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


class Lengths(NamedTuple):
    """The segments of a packed row as FlashAttention is told them, on its device."""

    start_q: Tensor
    """Where the queries of each segment start, and the end of the last, in int32."""
    start_k: Tensor
    """The same of what each segment sees, its prefix and itself."""
    longest_q: int
    longest_k: int
    order: Tensor | None
    """Which tokens the keys are, one segment's after the other's; None where they are all, in order."""


class Segments:
    """The segments of a packed row, in order and without gaps.

    No dataclass, nor a tuple: FSDP would look into those for tensors to cast.
    """

    def __init__(self, parts: Sequence[Segment]) -> None:
        self.parts = tuple(parts)
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self._lengths: dict[torch.device, Lengths] = {}

    def mask(self, part: Segment, window: int | None, like: Tensor) -> Tensor | None:
        """What is added to a segment's scores, [length, prefix + length]; None if it is causal alone.

        One tensor for all layers, in the numbers that they compute in: of a mask of truth values each
        call of attention would make such a one of its own, and keep it for its backward.
        """
        keys = part.prefix + part.length
        if window is not None and keys <= window:
            window = None
        if not part.prefix and window is None:
            return None
        kind, device = _computed_in(like), like.device
        name = (part.prefix, part.length, window, kind, device)
        if name not in self._masks:
            seen = torch.ones(part.length, keys, dtype=torch.bool, device=device).tril(part.prefix)
            if window is not None:
                seen = seen.triu(part.prefix - window + 1)
            self._masks[name] = _added(seen, kind)
        return self._masks[name]

    def forget(self) -> None:
        """Drop the masks; they are made again when they are needed."""
        self._masks.clear()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Segments:
        """Itself; on a GPU with its lengths there already, so that no layer waits for them."""
        if torch.device(device).type == "cuda":
            found = self._lengths_on(torch.device(device), non_blocking)
            self._lengths[found.start_q.device] = found
        return self

    def lengths(self, device: torch.device) -> Lengths:
        """What a call with lengths is told."""
        if device not in self._lengths:
            self._lengths[device] = self._lengths_on(device, False)
        return self._lengths[device]

    def _lengths_on(self, device: torch.device, non_blocking: bool) -> Lengths:
        queries = [part.length for part in self.parts]
        keys = [part.prefix + part.length for part in self.parts]
        start_q, start_k = (
            torch.from_numpy(np.cumsum([0, *counts], dtype=np.int32)).to(device, non_blocking=non_blocking)
            for counts in (queries, keys)
        )
        order = None if keys == queries else torch.from_numpy(self._order())
        if order is not None:
            order = order.to(device, non_blocking=non_blocking)
        return Lengths(start_q, start_k, max(queries), max(keys), order)

    def _order(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        runs = [((p.prefix_start, p.prefix_end), (p.start, p.end)) for p in self.parts]
        return np.concatenate([np.arange(*run, dtype=np.int64) for both in runs for run in both])


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
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            attention_mask = _added(attention_mask, query.dtype)
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
    queries = torch.split(query, [part.length for part in segments.parts], dim=2)
    pairs = zip(_seen(key, segments.parts), _seen(value, segments.parts), strict=True)
    for part, q, (k, v) in zip(segments.parts, queries, pairs, strict=True):
        added = segments.mask(part, sliding_window, query)
        if softcap is None:
            groups = q.shape[1] // k.shape[1]
            if q.is_cuda:
                # With a mask, or in float32, the one kernel for grouped heads stores all scores.
                k, v, groups = repeat_kv(k, groups), repeat_kv(v, groups), 1
            outputs.append(
                scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    added,
                    dropout,
                    is_causal=added is None,
                    scale=scaling,
                    enable_gqa=groups > 1,
                )
            )
        else:
            outputs.append(_capped(q, k, v, added, dropout, scaling, softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def check_packed(config: PretrainedConfig) -> None:
    """Refuse a packed row where attention would cross its segments.

    Raises:
        ValueError: the model has another attention.
    """
    if config._attn_implementation != SEGMENTS:
        raise ValueError(
            f"a packed row needs the attention {SEGMENTS}, the policy has {config._attn_implementation}; "
            f"set it back with set_attn_implementation({SEGMENTS!r}), or lay the rows with packed=False"
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


def _seen(states: Tensor, parts: Sequence[Segment]) -> Iterator[Tensor]:
    """Keys or values that each segment sees.

    One split, and one slice for all that share it: the gradient of each slice is as large as the row.
    """
    shared: dict[tuple[int, int], Tensor] = {}
    for part, own in zip(parts, torch.split(states, [part.length for part in parts], dim=2), strict=True):
        run = part.prefix_start, part.prefix_end
        if part.prefix and run not in shared:
            shared[run] = states[:, :, slice(*run)]
        yield torch.cat([shared[run], own], dim=2) if part.prefix else own


def _computed_in(states: Tensor) -> torch.dtype:
    """What attention computes in: under autocast not in what it is given."""
    kind = states.device.type
    casts = torch.is_autocast_enabled(kind) and states.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else states.dtype


def _added(seen: Tensor, kind: torch.dtype) -> Tensor:
    """0 where a key is seen, −∞ elsewhere."""
    return torch.zeros(seen.shape, dtype=kind, device=seen.device).masked_fill_(~seen, float("-inf"))


def _capped(
    q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, dropout: float, scaling: float | None, cap: float
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if added is None:
        shape = q.shape[2], k.shape[2]
        causal = torch.ones(shape, dtype=torch.bool, device=q.device).tril(shape[1] - shape[0])
        added = _added(causal, scores.dtype)
    scores = cap * torch.tanh(scores / cap) + added
    precise = torch.promote_types(scores.dtype, torch.float32)
    return drop(torch.softmax(scores, -1, dtype=precise).to(v.dtype), dropout) @ v


def _takes_lengths(query: Tensor, dropout: float, softcap: float | None) -> bool:
    size = query.shape[-1]
    # Of 200 to 224, the backward is there on A100 and H100 alone.
    fits = size % 8 == 0 and (size <= 192 or 224 < size <= 256)
    plain = dropout == 0 and softcap is None
    return query.is_cuda and query.dtype in _HALF and fits and plain and _has_flash(query.device)


@cache
def _has_flash(device: torch.device) -> bool:
    """Whether torch has FlashAttention for a GPU: from Ampere on; a V100 or T4 goes segment by segment."""
    built = torch.backends.cuda.is_flash_attention_available()
    return built and torch.cuda.get_device_capability(device) >= (8, 0)


def _by_lengths(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    lengths = segments.lengths(query.device)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if lengths.order is not None:
        # By way of float32, because the gradients of all samples add up in their prefix: half precision
        # would round at each. Of index_select they are one index_add; indexing would sort in each layer.
        precise = torch.promote_types(k.dtype, torch.float32)
        k, v = (x.to(precise).index_select(0, lengths.order).to(x.dtype) for x in (k, v))
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and not _GROUPED:
        k, v = (x[:, :, None].expand(-1, -1, groups, -1).flatten(1, 2) for x in (k, v))
    grouped: dict[str, Any] = {"enable_gqa": groups > 1} if _GROUPED else {}
    # A window of no queries' own keys on the right is causal, counted from each segment's last token.
    output = varlen_attn(
        q,
        k,
        v,
        lengths.start_q,
        lengths.start_k,
        lengths.longest_q,
        lengths.longest_k,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(output, Tensor)
    return output[None]


AttentionInterface.register(SEGMENTS, attend)
# Without segments it is sdpa, which wants sdpa's masks.
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
