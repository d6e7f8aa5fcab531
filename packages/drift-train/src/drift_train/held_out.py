"""Held-out prompts: which they are, by nothing else than their names, and what is measured on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drift_train.encode import Example


@dataclass(slots=True)
class HeldOutSums:
    """What the held-out examples of this rank add up to."""

    loss: float = 0.0
    """Σ_i w_i Σ_j −log π(y_ij | x_i, y_i<j)."""
    hits: float = 0.0
    """Supervised tokens that are the policy's best guess."""
    tokens: int = 0
    """Supervised tokens."""
    examples: int = 0
    """Over all ranks."""

    def add(self, loss: float, hits: float, tokens: int) -> None:
        """Add those of a micro-batch."""
        self.loss += loss
        self.hits += hits
        self.tokens += tokens

    def of_this_rank(self) -> Tensor:
        """Loss, hits and tokens, to be summed over ranks."""
        return torch.tensor([self.loss, self.hits, self.tokens], dtype=torch.float64)

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """The weighted loss (eq. 14) and the share of tokens hit, of the sums over all ranks."""
        loss, hits, tokens = sums.tolist()
        return {"val_loss": loss / self.examples, "val_token_accuracy": hits / tokens}


def split(examples: Sequence[Example], val_share: float) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples, no prompt on both sides.

    A prompt is held out if sha256 of its prompt_id, read as a fraction, is below `val_share`: its
    side depends on nothing else, so it survives new rows, shuffles and merges.

    Raises:
        ValueError: a side that should have examples has none.
    """
    train: list[Example] = []
    held_out: list[Example] = []
    for example in examples:
        (held_out if _fraction(example.prompt_id) < val_share else train).append(example)
    if not train or (val_share > 0 and not held_out):
        side = "held-out" if train else "training"
        prompts = len({example.prompt_id for example in examples})
        raise ValueError(f"val_share {val_share} of {prompts} prompts leaves the {side} side empty")
    return train, held_out


def _fraction(prompt_id: str) -> float:
    digest = hashlib.sha256(prompt_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
