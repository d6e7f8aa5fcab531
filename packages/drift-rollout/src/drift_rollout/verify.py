"""From a response to a verdict: the answer grammar, and what every verifier is held to."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from itertools import islice
from typing import Literal, Protocol

import numpy as np

from drift_rollout.looks import as_seen
from drift_weights.types import Verdict

Grammar = Literal["answer", "boxed"]
"""How a response marks its answer: <answer>…</answer> (D.7), or \\boxed{…}."""

_OPEN, _CLOSE = "<answer>", "</answer>"
# Over the text of `as_seen`. No quantifier gives anything back, so that a flood takes linear time.
_ANSWER_TAG = re.compile(rb"<(?=[\s/af])\s*+(?:/\s*+)?+(?:final[ _-]?)?answers?\b[^<>]*+>")
_THINK_TAG = re.compile(rb"<(?=[\s/t])\s*+(/?+)\s*+think(?:ing)?\b[^<>]*+>")
_LAST_THINK_TAG = re.compile(rb".*" + _THINK_TAG.pattern, re.DOTALL)
_BOX_SEEN = re.compile(rb"\\(?:boxed|f(?:rame)?box)(?![a-z])")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*+\{")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What a verifier says of one response."""

    answer: str | None
    """The canonical answer; None when malformed."""
    verdict: Verdict


MALFORMED = Verified(answer=None, verdict="malformed")


class Verifier(Protocol):
    """V(y) ∈ {0, 1} of eq. 21, deterministic: the same response and target give the same verdict.

    Every target is checked before the first response is sampled, so that a gold answer that nothing
    can match does not come to light in the middle of a run.

    A verifier may have, besides: `concurrency`, an int ≥ 1, if it takes its time: so many threads then
    call `verify` at once while the engine goes on, where otherwise the loop itself does. `gold_response`,
    a function of a target that returns a response which gives it as the answer; without it that is
    `<answer> target </answer>`. `close`, called when the run is over.
    `drift_rollout.verifier_kit.check_verifier` holds one to all this.
    """

    @property
    def name(self) -> str:
        """Name, version, and the options that bear on a verdict, as the manifest records them."""

    def check_target(self, target: str) -> None:
        """Raise ValueError for a gold answer that this verifier cannot hold a response against."""

    def verify(self, response: str, target: str) -> Verified:
        """Judge one response against the gold answer."""


@dataclass(frozen=True, kw_only=True)
class AnswerVerifier(ABC):
    """A verifier that reads the one answer of a response and judges it alone.

    Args:
        grammar: how a response marks its answer.
    """

    grammar: Grammar = "answer"

    @property
    @abstractmethod
    def name(self) -> str:
        """As in `Verifier`."""

    @abstractmethod
    def check_target(self, target: str) -> None:
        """As in `Verifier`."""

    @abstractmethod
    def judge(self, answer: str, target: str) -> Verified:
        """Judge the text of an answer, without tags or box, against the gold answer."""

    def named(self, version: str) -> str:
        """The name of a version, with every option that is not the default's and bears on a verdict."""
        changed = {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.metadata.get("bears_on_verdicts", True)
            and getattr(self, option.name) != option.default
        }
        return " ".join([version, *(f"{name}={value}" for name, value in sorted(changed.items()))])

    def verify(self, response: str, target: str) -> Verified:
        """Judge the one answer of a response; a response without one is malformed."""
        answer = extract_answer(response, self.grammar)
        return MALFORMED if answer is None else self.judge(answer, target)

    def gold_response(self, target: str) -> str:
        """A response that gives the gold answer."""
        return mark_answer(target, self.grammar)


def mark_answer(answer: str, grammar: Grammar = "answer") -> str:
    """A response that is nothing but this answer."""
    return f"\\boxed{{{answer}}}" if grammar == "boxed" else f"{_OPEN} {answer} {_CLOSE}"


def extract_answer(response: str, grammar: Grammar = "answer") -> str | None:
    r"""The one answer of a response, or None when it is malformed.

    The grammar: exactly one complete <answer>…</answer> in the whole response, behind the last
    </think>. None, several, one inside thinking, a stray tag, or a <think> that never closes is
    malformed. So is one beside a tag that a reader would take for another: <final_answer>, in capitals,
    with spaces or attributes, with characters that are not seen or only look like those of the tag. And
    <thinking> is <think>. Under `boxed` the same holds of \boxed{…} and \fbox{…}, braces balanced.
    """
    found = _boxed(response) if grammar == "boxed" else _tagged(response)
    return None if found is None else found.strip()


def _tagged(response: str) -> str | None:
    # Counted first: most malformed responses end here.
    if response.count(_OPEN) != 1 or response.count(_CLOSE) != 1:
        return None
    start, end = response.index(_OPEN), response.index(_CLOSE)
    seen = as_seen(response)
    tags = list(islice(_ANSWER_TAG.finditer(seen), 3))
    if end < start or len(tags) != 2 or not _thought_is_over(seen, tags[0].start()):
        return None
    return response[start + len(_OPEN) : end]


def _boxed(response: str) -> str | None:
    boxes = list(islice(_BOX.finditer(response), 2))
    seen = as_seen(response)
    places = list(islice(_BOX_SEEN.finditer(seen), 2))
    if len(boxes) != 1 or len(places) != 1 or not _thought_is_over(seen, places[0].start()):
        return None
    return _in_braces(response[boxes[0].end() :])


def _thought_is_over(seen: bytes, start: int) -> bool:
    """Whether the last tag of thinking closes it, ahead of the answer that starts here."""
    if _THINK_TAG.search(seen, start):
        return False
    last = _LAST_THINK_TAG.match(seen, 0, start)
    return last is None or last[1] == b"/"


def _in_braces(text: str) -> str | None:
    """The text up to the brace that closes the one before it; escaped ones are characters."""
    plain = text.replace(r"\\", "  ").replace(r"\{", "  ").replace(r"\}", "  ")
    bytes_N = np.frombuffer(plain.encode("ascii", "replace"), dtype=np.uint8)
    depth_N = 1 + np.cumsum((bytes_N == ord("{")).astype(np.int64) - (bytes_N == ord("}")))
    closed = np.flatnonzero(depth_N == 0)
    return text[: closed[0]] if closed.size else None
