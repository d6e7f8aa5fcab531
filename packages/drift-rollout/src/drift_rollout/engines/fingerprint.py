"""Which policy is this? A hash over weights and tokenizer, equal wherever the same files lie."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from drift_rollout.rendering import tokenizer_fingerprint

_PATTERNS = ("*.safetensors", "*.bin")
"""Weight files, the first kind that is there."""


def policy_fingerprint(weights: str, tokenizer: Any) -> str:
    """sha256 over the hash of the weights and that of the tokenizer with its chat template."""
    text = f"weights {weights}\ntokenizer {tokenizer_fingerprint(tokenizer)}\n"
    return hashlib.sha256(text.encode()).hexdigest()


def folder_weights(folder: Path) -> str | None:
    """sha256 over names and hashes of a folder's weight files; None if it has none."""
    for pattern in _PATTERNS:
        files = sorted(folder.glob(pattern))
        if files:
            total = hashlib.sha256()
            for path in files:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                total.update(f"{path.name} {digest}\n".encode())
            return total.hexdigest()
    return None


def model_weights(model: torch.nn.Module) -> str:
    """sha256 over name, type, shape and bytes of every tensor of a loaded model."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()
