"""Settings of the engines; nothing heavy is imported here, so that a command line can show them."""

from __future__ import annotations

from dataclasses import dataclass


# No slots: jsonargparse reads the fields of a default from its __dict__.
@dataclass(frozen=True, kw_only=True)
class TransformersOptions:
    """Of the embedded engine."""

    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes an accelerator if there is one."""
    dtype: str = "auto"
    """float32, bfloat16 …; auto is the checkpoint's own."""
    attention: str | None = None
    """sdpa or eager; null is the model's own choice."""
    max_slots: int = 256
    """Requests that hold a cache at once, ≥ 1."""
    max_cached_tokens: int | None = None
    """Bound on slots × longest length; null takes a share of free memory."""
    context_length: int | None = None
    """Tokens of prompt and response together, below the model's own limit."""
