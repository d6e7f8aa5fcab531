"""A hash over a model that came from no folder."""

from __future__ import annotations

import hashlib

import torch


def model_weights(model: torch.nn.Module) -> str:
    """sha256 over name, type, shape and bytes of every tensor of a loaded model."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()
