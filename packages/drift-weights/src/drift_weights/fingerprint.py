"""Whose tokens a row's ids are: one hash that rollout writes and training holds against its model."""

from __future__ import annotations

import hashlib
import json
from typing import Any


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
