"""The held-out split: by prompt, and by nothing else than its name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from drift_train.encode import Example


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
