"""The embedded engine for a command line: nothing heavy is imported before it is wanted."""

from __future__ import annotations

from drift_rollout.engine import Engine


def embedded_engine(model: str, *, revision: str | None = None, device: str = "auto") -> Engine:
    """The transformers engine on a folder or Hub id.

    Args:
        model: a folder or Hub id of a causal language model with a chat template.
        revision: a commit, tag or branch of a Hub id.
        device: auto takes an accelerator if there is one.

    Raises:
        ValueError: transformers or torch is not installed (the message says how to get them), the
            device is not there, or the engine cannot run the model.
    """
    # Torch takes seconds to import, and what needs no model must work without it.
    try:
        from drift_rollout.engines.transformers import TransformersEngine
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install drift-rollout[transformers]") from error
    return TransformersEngine(model, revision=revision, device=device)
