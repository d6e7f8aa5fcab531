"""What vLLM is told, in its own words. It takes a while to import, so that is done at use."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from drift_rollout.engine import EngineError, Request
from drift_rollout.engines.adapter import adapter_policy, adapter_rank
from drift_rollout.engines.options import VLLMOptions
from drift_weights.fingerprint import folder_weights, policy_fingerprint
from drift_weights.models import commit_of

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What max_lora_rank may be."""
_DIALOGUE = 2048
"""Tokens of the cache that a dialogue is taken to need; what a longer one loses is computed again."""
_REMEMBERED = 4
"""Dialogues remembered at most, as a multiple of those that are answered at once."""
_OPTIONAL = ("max_model_len", "gpu_memory_utilization", "max_num_seqs", "quantization")
_ALWAYS = ("dtype", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enforce_eager")


def start(model: str, revision: str | None, options: VLLMOptions) -> tuple[Any, str | None]:
    """Start the engine's processes, and load the model.

    Returns:
        the engine, and the commit that it loaded of a Hub id.

    Raises:
        ValueError: vLLM is not installed, or it refuses the options or the model.
        EngineError: the processes did not start.
    """
    try:
        from vllm import AsyncEngineArgs, AsyncLLMEngine
        from vllm.exceptions import VLLMError
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install drift-rollout[vllm]") from error
    names = {field.name for field in fields(AsyncEngineArgs)}
    commit = commit_of(model, revision) or revision
    arguments = engine_arguments(model, commit, options, names)
    try:
        return AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**arguments)), commit
    except VLLMError as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        raise EngineError(f"vLLM did not start; its own lines above say why ({error})") from error


def engine_arguments(
    model: str, revision: str | None, options: VLLMOptions, names: set[str]
) -> dict[str, Any]:
    """The arguments of vLLM's AsyncEngineArgs.

    Args:
        names: of all arguments that it takes.

    Raises:
        ValueError: `extra` names what vLLM does not know or what is set otherwise, or an adapter that
            vLLM cannot load.
    """
    own: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "tokenizer_revision": revision,
        "seed": secrets.randbits(31) if options.seed is None else options.seed,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "generation_config": "vllm",
        "disable_log_stats": True,
        **{name: getattr(options, name) for name in _ALWAYS},
        **_adapter_arguments(options),
    }
    set_here = own.keys() | set(_OPTIONAL)
    taken = [name for name in options.extra if name in set_here]
    if taken:
        raise ValueError(f"extra names {', '.join(taken)}, which has its own option or is set for you")
    unknown = [name for name in options.extra if name not in names]
    if unknown:
        raise ValueError(f"extra names {', '.join(unknown)}, which this vLLM does not take")
    optional = {name: getattr(options, name) for name in _OPTIONAL}
    return own | {name: value for name, value in optional.items() if value is not None} | options.extra


def prompt_and_sampling(request: Request, stops: Sequence[int], seed: int | None) -> tuple[Any, Any]:
    """A request in vLLM's terms: ids in, ids out, one log-probability a token, no other stops.

    Args:
        stops: ids that end a response.
        seed: None where the sampler takes none.
    """
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    assert request.token_ids is not None
    sampling = SamplingParams(
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        max_tokens=request.sampling.max_new_tokens,
        seed=seed,
        stop_token_ids=list(stops),
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    return tokens_input(list(request.token_ids)), sampling


def kept_dialogues(config: Any) -> int:
    """Dialogues whose caches vLLM can keep while others are answered, of one copy of the model.

    As many as its key-value cache holds, but no fewer than it answers at once, and no more than four
    times that.

    Args:
        config: vLLM's own, of a started engine.
    """
    at_once = config.scheduler_config.max_num_seqs
    longest = min(config.model_config.max_model_len, _DIALOGUE)
    fit = (config.cache_config.kv_cache_size_tokens or 0) // longest
    return int(min(max(fit, at_once), _REMEMBERED * at_once))


def concerns_one_request(error: BaseException) -> bool:
    """Whether an error leaves the engine alive: vLLM refused the request, or failed at it alone."""
    from vllm.exceptions import VLLMError
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, VLLMError) and not isinstance(error, EngineDeadError)


def stop_ids(model_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a response: those of the generation config, and the tokenizer's end.

    Ids outside the vocabulary, which can never be sampled, are left out: vLLM would refuse them.
    """
    named = model_config.try_get_generation_config().get("eos_token_id")
    listed = named if isinstance(named, list | tuple) else [named]
    size = model_config.get_vocab_size()
    return tuple(sorted({i for i in (*listed, tokenizer.eos_token_id) if i is not None and 0 <= i < size}))


def takes_seeds() -> bool:
    """Whether a request may bring a seed: vLLM's code for them cannot rewind a generator of the CPU."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()


def adapter_request(options: VLLMOptions) -> Any:
    """The adapter that every request is answered with, or None."""
    if options.adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, str(Path(options.adapter).resolve()))


def tokenizer_of(model: str, revision: str | None) -> Any:
    """The model's own tokenizer, as transformers opens it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, revision=revision)


def policy_of(model: str, revision: str | None, tokenizer: Any, options: VLLMOptions) -> str:
    """The fingerprint of a loaded model, equal to that of the transformers engine.

    An adapter, and weights that are quantized while they are loaded, are policies of their own.

    Raises:
        ValueError: no weight files under the usual names.
    """
    folder = _folder(model, revision)
    weights = folder_weights(folder)
    if weights is None:
        raise ValueError(f"{folder} holds no weights under their usual names, so the policy has no name")
    policy = policy_fingerprint(weights, tokenizer)
    if options.quantization is not None:
        text = f"base {policy}\nquantization {options.quantization}\n"
        policy = hashlib.sha256(text.encode()).hexdigest()
    return policy if options.adapter is None else adapter_policy(policy, Path(options.adapter))


def _adapter_arguments(options: VLLMOptions) -> dict[str, Any]:
    if options.adapter is None:
        return {"enable_lora": False}
    rank = adapter_rank(Path(options.adapter))
    if rank > _LORA_RANKS[-1]:
        raise ValueError(f"{options.adapter} is of rank {rank}, and vLLM takes {_LORA_RANKS[-1]} at most")
    room = next(size for size in _LORA_RANKS if size >= rank)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}


def _folder(model: str, revision: str | None) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from transformers.utils.hub import cached_file

    file = cached_file(model, "config.json", revision=revision)
    assert file is not None, "a missing file raises"
    return Path(file).parent
