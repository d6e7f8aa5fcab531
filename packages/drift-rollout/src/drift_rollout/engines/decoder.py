"""Forward passes over the slot cache. Suffix legend: B batch, T tokens, W columns, A active rows."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from drift_rollout.engines.kv_cache import LayerShape, SlotCache, Window

_KINDS = {"full_attention", "sliding_attention"}


class Decoder:
    """A causal LM together with the cache of all its requests.

    Args:
        model: a transformers causal LM, in eval mode.
        max_slots: requests that may hold a cache at once.
        max_tokens: bound on slots × length; None takes a share of the memory that is there.

    Raises:
        ValueError: a model that takes no positions, whose attention is neither full nor sliding, or
            whose attention implementation takes no explicit mask.
    """

    def __init__(self, model: Any, *, max_slots: int, max_tokens: int | None) -> None:
        self._model = model
        self._config = model.config.get_text_config()
        self._kinds = _layer_kinds(model, self._config)
        self._eager = model.config._attn_implementation == "eager"
        shapes = _layer_shapes(model)
        if max_tokens is None:
            max_tokens = _memory_share(model.device) // sum(shape.token_bytes for shape in shapes)
        self.max_tokens = max_tokens
        self.cache = SlotCache(shapes, max_slots=max_slots, max_tokens=max_tokens)

    @property
    def context_length(self) -> int:
        """Most tokens of a sequence: what the positions and the memory bound allow."""
        limits = [self.max_tokens]
        positions = getattr(self._config, "max_position_embeddings", None)
        if positions is not None:
            limits.append(positions)
        rope = getattr(self._config, "rope_parameters", None) or {}
        for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
            # Such frequencies change with the longest row of a batch; within the original length,
            # they do not, and a request stays independent of its company.
            if part.get("rope_type") in ("dynamic", "longrope"):
                original = part.get("original_max_position_embeddings")
                limits += [] if original is None else [int(original)]
        return min(limits)

    @torch.inference_mode()
    def prefill(self, rows: Sequence[int], starts: Sequence[int], chunks: Sequence[Sequence[int]]) -> None:
        """Cache chunks of tokens, each behind the `start` tokens that its row holds already."""
        count = max(len(chunk) for chunk in chunks)
        device = self._model.device
        padded = [[*chunk, *([chunk[-1]] * (count - len(chunk)))] for chunk in chunks]
        # Padding repeats the last position, so that no position lies outside the model's range.
        places = [
            [start + min(t, len(chunk) - 1) for t in range(count)]
            for start, chunk in zip(starts, chunks, strict=True)
        ]
        position_BT = torch.tensor(places, device=device)
        row_B = torch.tensor(rows, device=device)
        row_N, column_N = row_B.repeat_interleave(count), position_BT.flatten()
        source_N = None
        if any(len(chunk) < count for chunk in chunks):
            length_B = torch.tensor([len(chunk) for chunk in chunks], device=device)
            real_BT = torch.arange(count, device=device) < length_B[:, None]
            source_N = real_BT.flatten().nonzero()[:, 0]
            row_N, column_N = row_N[source_N], column_N[source_N]
        fresh = not any(starts)
        window = Window(
            rows=row_B,
            row_N=row_N,
            column_N=column_N,
            source_N=source_N,
            width=count if fresh else max(map(max, places)) + 1,
            fresh=fresh,
        )
        self._forward(torch.tensor(padded, device=device), position_BT, window)

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int], starts: Sequence[int]) -> torch.Tensor:
        """Feed one token to each of the first rows and return the logits behind it, [A, V]."""
        device = self._model.device
        position_A = torch.tensor(starts, device=device)
        window = Window(
            rows=slice(0, len(tokens)),
            row_N=torch.arange(len(tokens), device=device),
            column_N=position_A,
            source_N=None,
            width=max(starts) + 1,
            fresh=False,
        )
        return self._forward(torch.tensor(tokens, device=device)[:, None], position_A[:, None], window)

    def _forward(self, ids_BT: torch.Tensor, position_BT: torch.Tensor, window: Window) -> torch.Tensor:
        self.cache.look(window)
        out = self._model(
            input_ids=ids_BT,
            attention_mask=self._masks(position_BT, window.width),
            position_ids=position_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _masks(self, position_BT: torch.Tensor, width: int) -> Any:
        """Masks in the form transformers takes them: one, or one for each type of layer."""
        masks = {kind: self._mask(position_BT, width, span) for kind, span in self._kinds.items()}
        return masks.get("", masks)

    def _mask(self, position_BT: torch.Tensor, width: int, span: int | None) -> torch.Tensor:
        column_W = torch.arange(width, device=position_BT.device)
        seen_BTW = column_W <= position_BT[..., None]
        if span is not None:
            seen_BTW &= column_W > position_BT[..., None] - span
        if not self._eager:
            return seen_BTW[:, None]
        lowest = torch.finfo(self._model.dtype).min
        hidden_BTW = torch.zeros(seen_BTW.shape, dtype=self._model.dtype, device=seen_BTW.device)
        return hidden_BTW.masked_fill_(~seen_BTW, lowest)[:, None]


def _layer_kinds(model: Any, config: Any) -> dict[str, int | None]:
    """Window of each type of layer, keyed as transformers keys its masks; "" if there is one mask."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{type(model).__name__} takes no position_ids; use another engine")
    if model.config._attn_implementation not in ("eager", "sdpa"):
        raise ValueError(
            f"attention {model.config._attn_implementation!r} takes no explicit mask; "
            "choose 'sdpa' or 'eager'"
        )
    span = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        if getattr(config, "attention_chunk_size", None) is not None:
            raise ValueError(f"{type(model).__name__} attends in chunks; use another engine")
        return {"": span}
    unknown = set(types) - _KINDS
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has layers of type {', '.join(sorted(unknown))}; this engine knows "
            "full and sliding attention only"
        )
    return {kind: span if kind == "sliding_attention" else None for kind in sorted(set(types))}


@torch.inference_mode()
def _layer_shapes(model: Any) -> list[LayerShape]:
    """What each layer keeps, seen from one token: configurations name it in too many ways."""
    cache: Any = DynamicCache()
    model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), past_key_values=cache)
    shapes = []
    for layer in cache.layers:
        if layer.keys is None or layer.keys.ndim != 4:
            raise ValueError(f"{type(model).__name__} keeps no keys and values; use another engine")
        shapes.append(
            LayerShape(
                heads=layer.keys.shape[1],
                key_dim=layer.keys.shape[3],
                value_dim=layer.values.shape[3],
                dtype=layer.keys.dtype,
                device=layer.keys.device,
            )
        )
    return shapes


def _memory_share(device: torch.device) -> int:
    """Bytes that the cache may take: most of a free accelerator, a quarter of a machine's memory."""
    if device.type == "cuda":
        return int(0.7 * torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
