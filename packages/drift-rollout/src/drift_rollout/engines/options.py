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


@dataclass(frozen=True, kw_only=True)
class VLLMOptions:
    """Of vLLM; null is vLLM's own choice."""

    dtype: str = "auto"
    """float32, bfloat16 …; auto is the checkpoint's own, but half precision for a float32 one."""
    max_model_len: int | None = None
    """Tokens of prompt and response together, ≥ 1; null is the model's own limit."""
    gpu_memory_utilization: float | None = None
    """Share in (0, 1] of each device's memory for weights and key-value cache."""
    tensor_parallel_size: int = 1
    """Devices that share each layer, ≥ 1."""
    pipeline_parallel_size: int = 1
    """Groups of devices that share the model by layers, ≥ 1."""
    data_parallel_size: int = 1
    """Copies of the model, ≥ 1; a dialogue stays with the copy that has its cache."""
    max_num_seqs: int | None = None
    """Requests that one copy decodes at once, ≥ 1."""
    enforce_eager: bool = False
    """Neither compile nor capture graphs: starts sooner, samples slower."""
    quantization: str | None = None
    """fp8 and others, of weights that are stored in full; it gives the policy a name of its own."""
    seed: int | None = None
    """Of the draws where requests cannot bring their seeds (CPU); null is a new one at each start."""
    adapter: str | None = None
    """Folder of a LoRA adapter, as peft saves it, that every request is answered with."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's AsyncEngineArgs, by name."""
