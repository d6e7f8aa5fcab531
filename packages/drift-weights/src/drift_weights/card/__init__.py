"""The page of a data set on the Hub, README.md, made from its manifest; a user's edits to it stay.

Every part stands between two comments. A part that is as it was left is made anew; one that was edited or
removed is left alone, and so is all text outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drift_weights.card.front import front_matter
from drift_weights.card.merging import Ledger, merge_body, merge_front, open_card
from drift_weights.card.parts import make_parts

__all__ = ["Card", "make_card"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A README.md, and what to remember of it."""

    text: str
    recorded: dict[str, str]
    """Part → sha256 of what was made for it, by which an edit is known next time."""
    kept: tuple[str, ...]
    """Parts that a user edited, removed or wrote before us, and that were left alone."""


def make_card(
    repo_id: str,
    manifest: Mapping[str, Any],
    *,
    revision: str | None,
    before: str | None = None,
    recorded: Mapping[str, str] | None = None,
) -> Card:
    """The card of a repository; equal input gives equal bytes.

    Args:
        manifest: the repository's `drift.json`.
        revision: the tag that readers are to pin; None if there is none.
        before: the card that is there; None makes one from scratch.
        recorded: of the card that is there, as its `drift.json` has it under `card`.

    Raises:
        ValueError: the card that is there has broken YAML or a part without its other end (the line is
            named); two configs that would be the default.
    """
    opened = open_card(before or "")
    ledger = Ledger(before=recorded or {} if before is not None else {})
    front = merge_front(opened, front_matter(repo_id, manifest), ledger)
    body = merge_body(opened, make_parts(repo_id, manifest, revision), ledger)
    return Card(text=opened.head + front + opened.tail + body, recorded=ledger.now, kept=tuple(ledger.kept))
