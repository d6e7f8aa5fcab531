"""Settings of the engines; nothing heavy is imported here, so that a command line can show them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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


# No slots, as above.
@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Of the engines in Ray actors.

    Raises:
        ValueError: a value out of its range.
    """

    actors: int = 0
    """Actors, each with an engine of its own; 0 opens the engine here, without Ray."""
    cpus_per_actor: float = 1.0
    """Processors that Ray sets aside for each, ≥ 0."""
    gpus_per_actor: float = 0.0
    """Accelerators that each sees, ≥ 0; below 1 they are shared."""
    address: str | None = None
    """Of a running cluster (auto, or host:port); null takes RAY_ADDRESS, or starts one on this machine."""
    max_restarts: int = 8
    """Actors that are replaced when they die, all together, ≥ 0."""
    start_timeout: float = 1800.0
    """Seconds until every actor must have opened its engine."""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    """Ray's runtime environment of each actor: env_vars, py_modules, …"""

    def __post_init__(self) -> None:
        for name in ("actors", "cpus_per_actor", "gpus_per_actor", "max_restarts", "start_timeout"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
