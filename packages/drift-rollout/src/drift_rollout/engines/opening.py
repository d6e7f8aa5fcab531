"""An engine by its name or import path: nothing heavy is imported before it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from drift_rollout.engine import Engine
from drift_rollout.engines.options import OpenAIOptions, RayOptions, TransformersOptions, VLLMOptions
from drift_rollout.importing import call_named, check_has, import_named
from drift_weights.names import check_model


# No slots: jsonargparse reads the fields of a default from its __dict__.
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which engine answers, and its settings; those of the others are ignored."""

    name: str = "transformers"
    """transformers, vllm, openai, or an engine of your own by import path (`package.module.Class`)."""
    transformers: TransformersOptions = field(default_factory=TransformersOptions)
    vllm: VLLMOptions = field(default_factory=VLLMOptions)
    openai: OpenAIOptions = field(default_factory=OpenAIOptions)
    own: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of an engine by import path; `model` and `revision` come first."""
    ray: RayOptions = field(default_factory=RayOptions)
    """With actors: the engine is opened in each of them, here or on other machines."""


def open_engine(options: EngineOptions, model: str, *, revision: str | None = None) -> Engine:
    """Start an engine on a model.

    Args:
        options: which one, and how.
        model: a folder or Hub id of a causal language model with a chat template, or the name under
            which a server has it.
        revision: a commit, tag or branch of a Hub id.

    Raises:
        ValueError: no engine of that name, an extra that is not installed (the message says how to get
            it), or what the engine refuses.
        OSError: a server that does not answer, or that refuses the key.
    """
    if options.ray.actors:
        return _on_ray(options, model, revision)
    if options.name not in ENGINES:
        return _opened(options, model, revision)
    try:
        return ENGINES[options.name](options, model, revision)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install drift-rollout[{options.name}]") from error


# Imported at use: torch takes seconds, and what needs no model must work without it.
def _transformers(options: EngineOptions, model: str, revision: str | None) -> Engine:
    from drift_rollout.engines.transformers import TransformersEngine

    return TransformersEngine(model, revision=revision, **asdict(options.transformers))


def engine_facts(options: EngineOptions) -> dict[str, Any]:
    """What a manifest says of the engine: its name, and what of its settings bears on the tokens."""
    chosen = getattr(options, options.name, None) if options.name in ENGINES else None
    named = ("dtype", "quantization", "extra_body", "logprobs")
    settings = {name: value for name in named if (value := getattr(chosen, name, None))}
    return {"name": options.name, **settings}


def tokenizer_at_hand(name: str, revision: str | None) -> Any:
    """A model's tokenizer if it is on this machine; the Hub is not asked.

    Returns:
        None if it is not here, or transformers is not installed.

    Raises:
        FileNotFoundError: neither a folder nor what can be a Hub id.
    """
    check_model(name)
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name, revision=revision, local_files_only=True)
    except (ModuleNotFoundError, OSError):
        return None


def _vllm(options: EngineOptions, model: str, revision: str | None) -> Engine:
    from drift_rollout.engines.vllm import VLLMEngine

    return VLLMEngine(model, revision=revision, options=options.vllm)


def _openai(options: EngineOptions, model: str, revision: str | None) -> Engine:
    from drift_rollout.engines.openai import OpenAIEngine

    return OpenAIEngine(model, revision=revision, options=options.openai)


ENGINES: dict[str, Callable[[EngineOptions, str, str | None], Engine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "openai": _openai,
}


def _on_ray(options: EngineOptions, model: str, revision: str | None) -> Engine:
    from drift_rollout.engines.ray import RayEngine, import_ray

    try:
        import_ray(options.ray.address)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install drift-rollout[ray]") from error
    alone = replace(options, ray=RayOptions())
    return RayEngine(partial(open_engine, alone, model, revision=revision), options.ray)


def _opened(options: EngineOptions, model: str, revision: str | None) -> Engine:
    """An engine of a user's own."""
    path = options.name
    engine: Engine = call_named(
        "engine",
        path,
        import_named("engine", path, ENGINES),
        model,
        called_with="the model, revision= and engine.own",
        keywords={"revision": revision, **options.own},
    )
    facts = ("policy", "tokenizer", "context_length", "seeded", "concurrency")
    methods = ("submit", "poll", "release", "close")
    check_has("engine", path, engine, (*facts, *methods), "drift_rollout.engine.Engine")
    return engine
