"""From a response to a verdict: the answer grammar, and the verifiers `exact` and `choice`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from drift_weights.types import Verdict

_OPEN, _CLOSE = "<answer>", "</answer>"
_LETTER = re.compile(r"[\s(\[]*([A-J])[\s)\].:]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What a verifier says of one response."""

    answer: str | None
    """The canonical answer; None when malformed."""
    verdict: Verdict


class Verifier(Protocol):
    """V(y) ∈ {0, 1} of eq. 21, deterministic: the same response and target give the same verdict.

    Every target is checked before the first response is sampled, so that a gold answer that nothing
    can match does not come to light in the middle of a run.

    One that takes its time may have a `concurrency`, an int ≥ 1: then so many threads call `verify` at
    once while the engine goes on. Without it the loop calls `verify` itself, in its own thread.
    """

    @property
    def name(self) -> str:
        """Name and version, as the manifest records it."""

    def check_target(self, target: str) -> None:
        """Raise ValueError for a gold answer that this verifier cannot hold a response against."""

    def verify(self, response: str, target: str) -> Verified:
        """Judge one response against the gold answer."""


def extract_answer(response: str) -> str | None:
    """The one answer of a response, or None when it is malformed.

    The grammar: exactly one complete <answer>…</answer> in the whole response, behind the last
    </think>. None, several, one inside thinking, a stray tag, or a <think> that never closes is
    malformed.
    """
    if response.count(_OPEN) != 1 or response.count(_CLOSE) != 1:
        return None
    start, end = response.index(_OPEN), response.index(_CLOSE)
    thought_end = response.rfind("</think>")
    unclosed = response.rfind("<think>") > thought_end
    if end < start or start < thought_end or unclosed:
        return None
    return response[start + len(_OPEN) : end].strip()


@dataclass(frozen=True, slots=True)
class ExactVerifier:
    """Equality of lower-cased text without white space, the rule behind the paper's numbers."""

    name: str = "exact/1"

    def check_target(self, target: str) -> None:
        """Refuse a target that is blank: an empty answer would equal it."""
        if not _squeeze(target):
            raise ValueError(f"the target must not be blank, got {target!r}")

    def verify(self, response: str, target: str) -> Verified:
        """Correct if and only if answer and target are equal in lower case without white space.

        An empty answer is wrong, whatever the target.
        """
        found = extract_answer(response)
        if found is None:
            return Verified(answer=None, verdict="malformed")
        answer = _squeeze(found)
        correct = answer != "" and answer == _squeeze(target)
        return Verified(answer=answer, verdict="correct" if correct else "wrong")


@dataclass(frozen=True, slots=True)
class ChoiceVerifier:
    """One option letter A-J, case-sensitive; brackets, a full stop or a colon around it are tolerated.

    Anything else ("A or B", "I think B", "b") is malformed, so no letter is ever picked out of prose.
    """

    name: str = "choice/1"

    def check_target(self, target: str) -> None:
        """Refuse a target that is no single letter A-J."""
        _gold_letter(target)

    def verify(self, response: str, target: str) -> Verified:
        """Correct if and only if the answer is the target's letter.

        Raises:
            ValueError: the target is no single letter A-J.
        """
        gold = _gold_letter(target)
        found = extract_answer(response)
        letter = None if found is None else _LETTER.fullmatch(found)
        if letter is None:
            return Verified(answer=None, verdict="malformed")
        answer = letter.group(1)
        return Verified(answer=answer, verdict="correct" if answer == gold else "wrong")


def _gold_letter(target: str) -> str:
    letter = _LETTER.fullmatch(target)
    if letter is None:
        raise ValueError(f"the target of a choice must be one letter A-J, got {target!r}")
    return letter.group(1)


def _squeeze(text: str) -> str:
    return "".join(text.split()).lower()


VERIFIERS: dict[str, Verifier] = {"exact": ExactVerifier(), "choice": ChoiceVerifier()}
"""The verifiers by the name that a configuration uses."""
