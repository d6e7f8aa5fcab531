"""Parts of a multimodal policy that no text reaches: they get no gradient, so they are not trained."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def unread_modules(policy: PreTrainedModel) -> list[str]:
    """Names of the outermost modules beside the language model, such as its vision tower.

    Optimizers keep no moments where there was no gradient, and DDP waits for gradients that never come.
    A policy without other inputs than text has none of them.
    """
    if policy.config.get_text_config() is policy.config:
        return []
    parts = (policy.get_decoder(), policy.get_input_embeddings(), policy.get_output_embeddings())
    read = {id(p) for part in parts if part is not None for p in part.parameters()}
    return _outside(policy, read, "")


def freeze_unread(policy: PreTrainedModel) -> None:
    """Train the language model of a multimodal policy alone."""
    for name in unread_modules(policy):
        policy.get_submodule(name).requires_grad_(False)


def _outside(module: nn.Module, read: set[int], prefix: str) -> list[str]:
    found = []
    for name, child in module.named_children():
        inside = [id(p) in read for p in child.parameters()]
        if inside and not any(inside):
            found.append(prefix + name)
        elif not all(inside):
            found += _outside(child, read, f"{prefix}{name}.")
    return found
