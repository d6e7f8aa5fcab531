"""Short forms on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence


def named_words(words: Sequence[str]) -> list[str]:
    """Let `--engine NAME` stand for `--engine.name NAME`, and so for the verifier."""
    return [re.sub(r"^--(engine|verifier)(?==|$)", r"--\1.name", word) for word in words]
