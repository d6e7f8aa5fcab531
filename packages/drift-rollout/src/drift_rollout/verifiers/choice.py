"""`choice`: one letter of several options."""

from __future__ import annotations

import re
from dataclasses import dataclass

from drift_rollout.verify import MALFORMED, AnswerVerifier, Verified

_LETTER = re.compile(r"[\s(\[]*([A-J])[\s)\].:]*")


@dataclass(frozen=True, kw_only=True)
class ChoiceVerifier(AnswerVerifier):
    """One option letter A-J, case-sensitive; brackets, a full stop or a colon around it are tolerated.

    Anything else ("A or B", "I think B", "b") is malformed, so no letter is ever picked out of prose.
    """

    @property
    def name(self) -> str:
        """As in `Verifier`."""
        return self.named("choice/1")

    def check_target(self, target: str) -> None:
        """Refuse a target that is no single letter A-J."""
        _gold_letter(target)

    def judge(self, answer: str, target: str) -> Verified:
        """Correct if and only if the answer is the target's letter.

        Raises:
            ValueError: the target is no single letter A-J.
        """
        gold = _gold_letter(target)
        letter = _LETTER.fullmatch(answer)
        if letter is None:
            return MALFORMED
        return Verified(answer=letter[1], verdict="correct" if letter[1] == gold else "wrong")


def _gold_letter(target: str) -> str:
    letter = _LETTER.fullmatch(target)
    if letter is None:
        raise ValueError(f"the target of a choice must be one letter A-J, got {target!r}")
    return letter.group(1)
