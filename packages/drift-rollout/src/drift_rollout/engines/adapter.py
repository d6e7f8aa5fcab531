"""A LoRA adapter in a peft folder: its rank, and a hash of what it makes of its base model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""In the order in which they are looked for."""
_ORIGIN = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
"""Where an adapter came from, which changes nothing of what it does."""


def adapter_rank(folder: Path) -> int:
    """The largest rank of an adapter's layers.

    Raises:
        ValueError: no adapter_config.json in the folder, or one that names no rank.
    """
    config = _config(folder)
    if not isinstance(config.get("r"), int):
        raise ValueError(f"{folder / _CONFIG} names no rank r; is it a LoRA adapter?")
    return int(max(config["r"], *(config.get("rank_pattern") or {}).values(), 1))


def adapter_policy(base: str, folder: Path) -> str:
    """sha256 over the fingerprint of a base policy and an adapter's weights and settings.

    Args:
        base: fingerprint of the base model and its tokenizer.
        folder: as peft saves it.

    Raises:
        ValueError: no settings or no weights in the folder.
    """
    files = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not files:
        raise ValueError(f"{folder} holds no {' and no '.join(_WEIGHTS)}")
    settings = {name: value for name, value in _config(folder).items() if name not in _ORIGIN}
    with files[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    text = f"base {base}\nadapter {digest}\nsettings {json.dumps(settings, sort_keys=True)}\n"
    return hashlib.sha256(text.encode()).hexdigest()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no {_CONFIG}; name a folder that peft saved")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
