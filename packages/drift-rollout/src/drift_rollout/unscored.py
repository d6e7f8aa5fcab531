"""Turns that got no verdict: verified again on resume, settled at last, and too many of them stop a run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

from drift_rollout.engine import Completion
from drift_rollout.verify import Verified
from drift_weights.types import UNSCORED, Trajectory

Key = tuple[str, int, str, int]
"""(prompt_id, round, policy, sample) of a trajectory."""
Failures = dict[Key, dict[int, int]]
"""How often the verification of a turn, counted from 1, has failed, over all runs."""
Recall = Callable[[Key], Trajectory | None]
"""The unscored trajectory that an earlier run left under a key."""
Cause = Literal["timeout", "error", "engine"]
"""A verdict of the verifier, or the engine."""

SETTLED_AFTER = 3
"""Failed verifications, over all runs, after which a turn is wrong."""
_LAST = 200
"""Dialogues that are looked back on."""
_MOST = 100
"""Of them that may end unscored before a run stops: something is broken for all."""


class UnscoredError(RuntimeError):
    """Too many dialogues ended unscored."""


def settled_turns(failures: dict[int, int]) -> int:
    """Turns of one trajectory that were settled."""
    return sum(count >= SETTLED_AFTER for count in failures.values())


def settle(judged: Verified, response: str) -> Verified:
    """The verdict `wrong` of a turn that cannot be verified.

    Its answer is what the verifier gave as such, else the whole response without white space around it:
    equal responses are one answer, and others are others.
    """
    return Verified(answer=response.strip() if judged.answer is None else judged.answer, verdict="wrong")


def can_be_verified(stored: Trajectory, tokenizer: str | None) -> bool:
    """Whether only a verdict is missing, and the dialogue can go on in an engine with this tokenizer."""
    last = stored.turns[-1]
    waits = last.verdict in UNSCORED and last.finish_reason != "error"
    return waits and stored.tokenizer == tokenizer


def last_completion(stored: Trajectory, request_id: str) -> Completion:
    """The last response as the engine gave it."""
    last, ids, logprobs = stored.turns[-1], None, None
    if stored.token_ids is not None and stored.response_spans is not None:
        start, end = stored.response_spans[-1]
        ids = stored.token_ids[start:end]
        if stored.logprobs is not None:
            logprobs = stored.logprobs[len(stored.logprobs) - len(ids) :]
    return Completion(
        id=request_id,
        text=last.response,
        token_ids=ids,
        logprobs=logprobs,
        finish_reason=last.finish_reason,
    )


class UnscoredBound:
    """Stops a run when a hundred of its last two hundred dialogues ended unscored.

    A hundred in a row are a hundred of the last two hundred. A response that fails again when it is
    verified again is not to be noted: such were chosen for having failed, and say nothing about others.

    Args:
        verifier: its name.
    """

    def __init__(self, verifier: str) -> None:
        self._verifier = verifier
        self._last: deque[Cause | None] = deque(maxlen=_LAST)
        self._error = ""

    def note(self, cause: Cause | None, error: str | None) -> None:
        """One dialogue ended.

        Args:
            cause: why it is unscored; None if it is scored.
            error: the engine's.
        """
        self._last.append(cause)
        if cause is not None:
            self._error = error or f"{self._verifier} gave the verdict {cause}"

    def check(self) -> None:
        """Stop a run that has no sense.

        Raises:
            UnscoredError: it says how many dialogues failed by what.
        """
        causes = Counter(cause for cause in self._last if cause is not None)
        if causes.total() < _MOST:
            return
        named: dict[Cause, str] = {
            "timeout": f"{causes['timeout']} by a timeout of the verifier {self._verifier}",
            "error": f"{causes['error']} by an error of the verifier {self._verifier}",
            "engine": f"{causes['engine']} by an error of the engine",
        }
        by = ", ".join(text for cause, text in named.items() if causes[cause])
        raise UnscoredError(
            f"{causes.total()} of the last {len(self._last)} dialogues ended unscored: {by}; the last one: "
            f"{self._error}; what is in the journal stays; mend this and run again (a response whose "
            f"verification fails in {SETTLED_AFTER} runs is settled as wrong)"
        )
