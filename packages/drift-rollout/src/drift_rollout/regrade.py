"""One dialogue under other verdicts: where it would have ended, and whether that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from drift_rollout.verify import Verified
from drift_weights.types import Ended, Trajectory, Turn

METADATA = "reverified"
"""Where a dialogue keeps both verdicts of every turn that its log held."""
_REJECTED = ("wrong", "malformed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Regraded:
    """A dialogue before and after."""

    before: Trajectory
    after: Trajectory
    verified: tuple[Verified, ...]
    """What the new verifier says of every turn of `before`."""
    unfinished: bool
    """It would have gone on, but was never sampled further."""


def regrade(before: Trajectory, verified: Sequence[Verified], *, verifier: str | None) -> Regraded:
    """The dialogue as it would have been sampled, as far as that is known.

    It ends at its first turn that is now correct, or timed out or failed. One that was solved and is
    rejected now, with turns left, would have gone on: nobody knows how, so it is unscored (its last
    verdict `error`, `ended` `error`), and its own verdict stands in the metadata.

    Args:
        before: as stored.
        verified: the new verdict on each of its turns.
        verifier: which gave the old ones, if that is known.

    Raises:
        ValueError: it was re-verified before, so that turns may be missing.
    """
    if METADATA in before.metadata:
        raise ValueError(
            f"trajectory {before.key} has {METADATA!r} in its metadata: it was re-verified before and may "
            "have lost turns; take the log that it came from"
        )
    length = next(
        (number for number, said in enumerate(verified, start=1) if said.verdict not in _REJECTED),
        before.length,
    )
    ended = _ending(before, length, verified[length - 1])
    turns = [_judged(turn, said) for turn, said in zip(before.turns, verified, strict=True)][:length]
    unfinished = ended is None
    verdict = "error" if unfinished else turns[-1].verdict
    turns[-1] = replace(turns[-1], verdict=verdict, feedback=None)
    after = replace(
        before,
        turns=tuple(turns),
        ended=ended or "error",
        metadata={**before.metadata, METADATA: _both(before, verified, verifier)},
        **_tokens(before, length),
    )
    return Regraded(before=before, after=after, verified=tuple(verified), unfinished=unfinished)


def _ending(before: Trajectory, length: int, last: Verified) -> Ended | None:
    """Why the dialogue is over after so many turns; None if it would not have been."""
    if last.verdict == "correct":
        return "solved"
    if last.verdict not in _REJECTED:
        return "error"
    if length == before.max_turns:
        return "budget"
    return before.ended if before.ended in ("budget", "context") else None


def _judged(turn: Turn, said: Verified) -> Turn:
    return replace(turn, answer=said.answer, verdict=said.verdict)


def _both(before: Trajectory, verified: Sequence[Verified], verifier: str | None) -> dict[str, Any]:
    return {
        "verifier": verifier,
        "ended": before.ended,
        "verdicts": [turn.verdict for turn in before.turns],
        "answers": [turn.answer for turn in before.turns],
        "new_verdicts": [said.verdict for said in verified],
        "new_answers": [said.answer for said in verified],
    }


def _tokens(before: Trajectory, length: int) -> dict[str, Any]:
    """The token fields, cut behind so many turns."""
    if before.token_ids is None or before.response_spans is None:
        return {}
    spans = before.response_spans[:length]
    sampled = sum(end - start for start, end in spans)
    return {
        "token_ids": before.token_ids[: spans[-1][1]],
        "response_spans": spans,
        "logprobs": None if before.logprobs is None else before.logprobs[:sampled],
    }
