"""One growing key-value cache for all requests. Suffix legend: S slots, L length, H heads, D dim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

_BLOCK = 64
"""Lengths grow in multiples of this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """What one layer keeps of a token."""

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes a token takes in this layer."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Where the next forward pass writes, and what it may look at."""

    rows: slice | torch.Tensor
    """The slots of the batch; a slice is read without copying."""
    row_N: torch.Tensor
    """The slot of each real token of the batch."""
    column_N: torch.Tensor
    """Its column, which is its position."""
    source_N: torch.Tensor | None
    """Its place in the flattened batch; None if nothing in the batch is padding."""
    width: int
    """Columns that are looked at."""
    fresh: bool
    """Nothing of these rows was cached before, so the pass needs only its own keys and values."""


class SlotLayer:
    """Keys and values of one layer, [S, H, L, D]; a token at position p lies in column p.

    With position and column the same, rows of any length share a batch without left padding, and a
    sliding window is a condition on columns.
    """

    def __init__(self, shape: LayerShape) -> None:
        self._shape = shape
        self.keys = self._empty(0, 0, shape.key_dim)
        self.values = self._empty(0, 0, shape.value_dim)

    def _empty(self, slots: int, length: int, dim: int) -> torch.Tensor:
        # Zeros: what lies behind the mask is multiplied by 0, and must not be NaN.
        size = (slots, self._shape.heads, length, dim)
        return torch.zeros(size, dtype=self._shape.dtype, device=self._shape.device)

    def resize(self, slots: int, length: int) -> None:
        """Change S and L, keeping what fits."""
        self.keys = _grown(self.keys, self._empty(slots, length, self._shape.key_dim))
        self.values = _grown(self.values, self._empty(slots, length, self._shape.value_dim))

    def move(self, source: Sequence[int], target: Sequence[int], width: int) -> None:
        """Copy the first columns of rows over others, all at once: two rows may swap."""
        source_R = torch.tensor(source, device=self._shape.device)
        target_R = torch.tensor(target, device=self._shape.device)
        for store in (self.keys, self.values):
            store[target_R, :, :width] = store[source_R, :, :width]


class SlotCache(Cache):
    """The cache of every request: a row each, grown by need and bounded by slots × length.

    transformers sees it as one `Cache`; masks and positions are always passed beside it, so of that
    interface only `update` does work.

    Args:
        shapes: one a layer.
        max_slots: rows at most.
        max_tokens: slots × length at most.
    """

    def __init__(self, shapes: Sequence[LayerShape], *, max_slots: int, max_tokens: int) -> None:
        super().__init__(layers=[])
        self._stores = [SlotLayer(shape) for shape in shapes]
        self._max_slots = max_slots
        self._max_tokens = max_tokens
        self._window: Window | None = None
        self.slots = 0
        self.length = 0

    def holds(self, rows: int, length: int) -> bool:
        """Whether so many rows of so many tokens are within the bound."""
        return rows <= self._max_slots and rows * length <= self._max_tokens

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens, which the bound must allow."""
        if rows <= self.slots and length <= self.length:
            return
        assert self.holds(rows, length), f"{rows} rows of {length} tokens are beyond the bound"
        wanted = self.length
        if length > wanted:
            wanted = -(-max(length, wanted * 3 // 2) // _BLOCK) * _BLOCK
        wanted = min(wanted, self._max_tokens // rows)
        slots = self.slots if rows <= self.slots else min(max(rows, 2 * self.slots), self._max_slots)
        self._resize(min(slots, self._max_tokens // wanted), wanted)

    def _resize(self, slots: int, length: int) -> None:
        for store in self._stores:
            store.resize(slots, length)
        self.slots, self.length = slots, length

    def move(self, source: Sequence[int], target: Sequence[int], width: int) -> None:
        """Copy the first `width` columns of rows over others, all at once."""
        for store in self._stores:
            store.move(source, target, width)

    def wipe(self, row: int) -> None:
        """Zero a row that may hold NaN, which the mask of a later holder would not keep out."""
        for store in self._stores:
            store.keys[row] = 0
            store.values[row] = 0

    def look(self, window: Window) -> None:
        """Set where the next forward pass writes and reads."""
        self._window = window

    def clear(self) -> None:
        """Give the memory back."""
        self._resize(0, 0)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a batch's keys and values, [B, H, T, D], and return all that it may look at."""
        window, store = self._window, self._stores[layer_idx]
        assert window is not None, "the window is set before each forward pass"
        _write(store.keys, key_states, window)
        _write(store.values, value_states, window)
        if window.fresh:
            return key_states, value_states
        return _read(store.keys, window), _read(store.values, window)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that this pass looks at; positions are passed explicitly, so none come from here."""
        return 0 if self._window is None else self._window.width


def _grown(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    slots, length = min(old.shape[0], new.shape[0]), min(old.shape[2], new.shape[2])
    new[:slots, :, :length] = old[:slots, :, :length]
    return new


def _write(store: torch.Tensor, states_BHTD: torch.Tensor, window: Window) -> None:
    flat_NHD = states_BHTD.transpose(1, 2).flatten(0, 1)
    if window.source_N is not None:
        flat_NHD = flat_NHD[window.source_N.to(store.device)]
    row_N, column_N = window.row_N.to(store.device), window.column_N.to(store.device)
    store[row_N, :, column_N] = flat_NHD


def _read(store: torch.Tensor, window: Window) -> torch.Tensor:
    rows = window.rows if isinstance(window.rows, slice) else window.rows.to(store.device)
    return store[rows, :, : window.width]
