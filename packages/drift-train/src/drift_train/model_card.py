"""The model card of an exported policy (being written)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def make_model_card(
    about: Mapping[str, Any], *, name: str | None = None, evaluation: Mapping[str, Any] | None = None
) -> str:
    return f"# {name}\n"


def load_evaluation(path: Path) -> dict[str, Any]:
    return {}
