"""What another verifier changes: verdicts of turns, accuracies, and corrections that only re-spelled."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from drift_rollout.regrade import Regraded
from drift_weights.types import Turn

Change = tuple[str, str]
"""Old and new verdict of a turn."""
_TAIL = 60
"""Characters of a response that an example keeps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A turn whose verdict changed."""

    gold: str
    before: str | None
    """The answer as the old verifier read it; None where it could not."""
    now: str | None
    ending: str
    """The last characters of the response."""
    prompt_id: str
    sample: int
    turn: int
    """From 1."""


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts of the dialogues of one policy and budget, under the old and the new verdicts."""

    dialogues: int = 0
    first_before: int = 0
    """Correct at turn 1."""
    first_now: int = 0
    solved_before: int = 0
    """Correct within the budget."""
    solved_now: int = 0
    open_before: int = 0
    """Unscored: whether they are solved is not known."""
    open_now: int = 0
    corrected: int = 0
    """Solved after turn 1 by the old verdicts: N · (multi@T − acc@1)."""
    respelled: int = 0
    """Of those, the ones with an earlier turn that the new verifier calls correct."""

    def add(self, row: Regraded) -> None:
        """Count one dialogue."""
        before, after = row.before, row.after
        self.dialogues += 1
        self.first_before += before.turns[0].verdict == "correct"
        self.first_now += row.verified[0].verdict == "correct"
        self.solved_before += before.solved
        self.solved_now += after.solved
        self.open_before += not before.scored
        self.open_now += not after.scored
        corrected = before.solved and before.length > 1
        self.corrected += corrected
        self.respelled += corrected and any(said.verdict == "correct" for said in row.verified[:-1])


class Changes:
    """Counts over a whole log, and the first few examples of each change.

    Args:
        examples: so many of each.
    """

    def __init__(self, examples: int) -> None:
        if examples < 0:
            raise ValueError(f"examples must be at least 0, got {examples}")
        self.turns: Counter[Change] = Counter()
        """Turns of the old log by old and new verdict."""
        self.examples: dict[Change, list[Example]] = {}
        self.tallies: dict[tuple[str, int], Tally] = {}
        """By policy and max_turns."""
        self.cut = 0
        """Turns behind one that now ends its dialogue."""
        self.unfinished = 0
        """Dialogues that would have gone on."""
        self.unscored = 0
        """Dialogues that are unscored for another reason: the new verifier, or the engine then."""
        self._most = examples

    def add(self, row: Regraded) -> None:
        """Count one dialogue."""
        self.cut += row.before.length - row.after.length
        self.unfinished += row.unfinished
        self.unscored += not row.after.scored and not row.unfinished
        self.tallies.setdefault((row.before.policy, row.before.max_turns), Tally()).add(row)
        for number, (turn, said) in enumerate(zip(row.before.turns, row.verified, strict=True), start=1):
            change = (turn.verdict, said.verdict)
            self.turns[change] += 1
            if turn.verdict != said.verdict:
                self._keep(change, row, number, turn, said.answer)

    def _keep(self, change: Change, row: Regraded, number: int, turn: Turn, answer: str | None) -> None:
        kept = self.examples.setdefault(change, [])
        if len(kept) < self._most:
            example = Example(
                gold=row.before.target or "",
                before=turn.answer,
                now=answer,
                ending=turn.response[-_TAIL:],
                prompt_id=row.before.prompt_id,
                sample=row.before.sample,
                turn=number,
            )
            kept.append(example)

    @property
    def facts(self) -> dict[str, Any]:
        """The counts, for a manifest."""
        return {
            "turns": [
                {"before": old, "now": new, "count": count}
                for (old, new), count in sorted(self.turns.items())
            ],
            "policies": [
                {"policy": policy, "max_turns": budget, **asdict(tally)}
                for (policy, budget), tally in sorted(self.tallies.items())
            ],
            "cut_turns": self.cut,
            "unfinished": self.unfinished,
            "unscored": self.unscored,
        }
