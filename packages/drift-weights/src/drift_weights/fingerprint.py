"""Hashes of tokenizers and policies, equal wherever the same files lie.

Rollouts write them into rows; training holds a row's ids against its tokenizer, and an evaluation against
the policy that it is said to be of.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""A kind of weights whole, or the index of its shards, in the order in which transformers looks."""


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 of what a tokenizer maps text to, and of its chat template.

    The padding and truncation that a fast tokenizer remembers from its last call are left out, so the
    fingerprint does not depend on what it was used for.

    Args:
        tokenizer: a Hugging Face tokenizer, fast or slow.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        content = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    template = getattr(tokenizer, "chat_template", None)
    text = json.dumps([content, template], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def policy_fingerprint(weights: str, tokenizer: Any) -> str:
    """sha256 over the hash of the weights and that of the tokenizer with its chat template."""
    text = f"weights {weights}\ntokenizer {tokenizer_fingerprint(tokenizer)}\n"
    return hashlib.sha256(text.encode()).hexdigest()


def folder_weights(folder: Path) -> str | None:
    """sha256 over names and hashes of the weight files that transformers loads from a folder.

    Call it when the model is loaded: a folder of the Hub's cache is filled by loading.

    Returns:
        None if there are none under the usual names.

    Raises:
        ValueError: an index that names shards which are not there, or names none.
    """
    names = _weight_files(folder)
    if not names:
        return None
    total = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{name} {digest}\n".encode())
    return total.hexdigest()


def _weight_files(folder: Path) -> list[str]:
    for whole, index in _FILES:
        if (folder / whole).is_file():
            return [whole]
        if (folder / index).is_file():
            return _shards(folder / index)
    return []


def _shards(index: Path) -> list[str]:
    content = json.loads(index.read_text(encoding="utf-8"))
    shards = sorted(set(content.get("weight_map", {}).values()))
    if not shards:
        raise ValueError(f"{index} names no shards; fetch or save the model again")
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(
            f"{index} names {len(shards)} shards, and {', '.join(missing[:3])} "
            f"({len(missing)} in all) not there; fetch or save the model again"
        )
    return shards
