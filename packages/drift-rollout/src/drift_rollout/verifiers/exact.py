"""`exact`: the rule behind the paper's numbers."""

from __future__ import annotations

from dataclasses import dataclass

from drift_rollout.verify import AnswerVerifier, Verified


@dataclass(frozen=True, kw_only=True)
class ExactVerifier(AnswerVerifier):
    """Equality of lower-cased text without white space, to reproduce the paper."""

    @property
    def name(self) -> str:
        """As in `Verifier`."""
        return self.named("exact/1")

    def check_target(self, target: str) -> None:
        """Refuse a target that is blank: an empty answer would equal it."""
        if not _squeeze(target):
            raise ValueError(f"the target must not be blank, got {target!r}")

    def judge(self, answer: str, target: str) -> Verified:
        """Correct if and only if answer and target are equal in lower case without white space.

        An empty answer is wrong, whatever the target.
        """
        squeezed = _squeeze(answer)
        correct = squeezed != "" and squeezed == _squeeze(target)
        return Verified(answer=squeezed, verdict="correct" if correct else "wrong")


def _squeeze(text: str) -> str:
    return "".join(text.split()).lower()
