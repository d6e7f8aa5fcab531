"""An engine by its name or import path: nothing heavy is imported before it is wanted."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from drift_rollout.engine import Engine
from drift_rollout.engines.options import RayOptions, TransformersOptions

ENGINES = ("transformers",)


# No slots: jsonargparse reads the fields of a default from its __dict__.
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which engine answers, and its settings; those of the others are ignored."""

    name: str = "transformers"
    """transformers, or an engine of your own by import path (`package.module.Class`)."""
    transformers: TransformersOptions = field(default_factory=TransformersOptions)
    own: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of an engine by import path; `model` and `revision` come first."""
    ray: RayOptions = field(default_factory=RayOptions)
    """With actors: the engine is opened in each of them, here or on other machines."""


def open_engine(options: EngineOptions, model: str, *, revision: str | None = None) -> Engine:
    """Start an engine on a model.

    Args:
        options: which one, and how.
        model: a folder or Hub id of a causal language model with a chat template.
        revision: a commit, tag or branch of a Hub id.

    Raises:
        ValueError: no engine of that name, an extra that is not installed (the message says how to get
            it), or what the engine refuses.
    """
    if options.ray.actors:
        return _on_ray(options, model, revision)
    if options.name not in ENGINES:
        engine: Engine = _own(options.name)(model, revision=revision, **options.own)
        return engine
    # Torch takes seconds to import, and what needs no model must work without it.
    try:
        from drift_rollout.engines.transformers import TransformersEngine
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install drift-rollout[{options.name}]") from error
    return TransformersEngine(model, revision=revision, **asdict(options.transformers))


def _on_ray(options: EngineOptions, model: str, revision: str | None) -> Engine:
    from drift_rollout.engines.ray import RayEngine, import_ray

    try:
        import_ray(options.ray.address)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install drift-rollout[ray]") from error
    alone = replace(options, ray=RayOptions())
    return RayEngine(partial(open_engine, alone, model, revision=revision), options.ray)


def _own(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None) if module else None
    except ModuleNotFoundError as error:
        raise ValueError(f"engine {path!r}: {error}") from error
    if found is None:
        raise ValueError(f"engine {path!r} is none of {', '.join(ENGINES)}, and no package.module.Class")
    return found
