"""Settings of the engines; nothing heavy is imported here, so that a command line can show them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_OURS = frozenset({"model", "messages", "prompt", "seed", "temperature", "top_p", "max_tokens"})
_ONE_ANSWER = frozenset({"n", "best_of", "stream", "echo", "stop", "logprobs", "return_token_ids"})
_FIXED = _OURS | _ONE_ANSWER
"""Fields of a request that a rollout decides, or that would change what an answer is."""


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


# No slots: jsonargparse reads the fields of a default from its __dict__.
@dataclass(frozen=True, kw_only=True)
class OpenAIOptions:
    """Of a server that speaks OpenAI's protocol.

    Raises:
        ValueError: a value out of its range; an address with a password or query in it; a name of the
            key's variable that is none; a field in `extra_body` that the rollout decides.
    """

    base_url: str = "http://localhost:8000/v1"
    """Where the server listens, with the `/v1`."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; one that is not set means no key."""
    concurrency: int = 64
    """Requests in flight at once, ≥ 1."""
    timeout: float = 600.0
    """Seconds that one attempt may take, > 0."""
    retries: int = 5
    """Further attempts after a 408, 409, 429, 5xx, a timeout or a lost connection, ≥ 0; the waits between
    them double from half a second to eight, or are what Retry-After says, up to two minutes."""
    max_failures: int = 20
    """Requests that may fail one after another before the run is given up, ≥ 1."""
    tokenizer: str | None = None
    """Folder or Hub id of the served model's tokenizer: prompts then go out as token ids, and token ids and
    log-probabilities are kept (vLLM); null sends messages and keeps text alone."""
    context_length: int | None = None
    """Tokens of prompt and response together; null takes what the server says, or no limit."""
    seeded: bool = False
    """Whether the server promises equal answers to equal seeds; it cannot be asked."""
    logprobs: bool | None = None
    """Whether its log-probabilities are the unmodified model's; null believes vLLM alone, whose default
    they are. Say false to a vLLM that was started with another `--logprobs-mode`."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of every request, such as {chat_template_kwargs: {enable_thinking: false}}."""

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0), ("max_failures", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be positive, got {self.timeout}")
        if self.context_length is not None and self.context_length < 1:
            raise ValueError(f"context_length must be at least 1, got {self.context_length}")
        # What stands in the wrong place may be a secret, so it is not repeated.
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env is the name of an environment variable, not the key itself")
        _check_url(self.base_url)
        if taken := sorted(_FIXED & self.extra_body.keys()):
            raise ValueError(f"extra_body cannot set {', '.join(taken)}: the rollout decides that")


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            "base_url must hold no user, password or query; the key comes from the variable api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must be like http://localhost:8000/v1, got {url!r}")


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
