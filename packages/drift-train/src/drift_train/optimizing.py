"""What AdamW and the schedule of its rate are given."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Literal

from torch import nn

from drift_train.state_tensors import plain_name

Schedule = Literal[
    "constant_with_warmup",
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
]
"""Those of transformers.get_scheduler that need nothing beyond warm-up and the number of steps."""


def parameter_groups(policy: nn.Module, vectors: Set[str], weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters that decay, and those that do not.

    Args:
        policy: placed already.
        vectors: names of those that do not, from before it was.
        weight_decay: of the others.
    """
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            (others if plain_name(name) in vectors else decaying).append(parameter)
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # An empty group would not survive a checkpoint.
    return [group for group in groups if group["params"]]


def vectors_of(model: nn.Module) -> set[str]:
    """Names of the parameters that are no matrices; FSDP1's shards are all flat, and show it no more."""
    return {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}
