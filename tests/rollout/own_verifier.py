"""Verifiers of a user's own, by import path: `--verifier rollout.own_verifier.Suffix`; and broken ones."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from drift_rollout.verify import MALFORMED, AnswerVerifier, Verified


@dataclass(frozen=True, kw_only=True)
class Suffix(AnswerVerifier):
    """Right if answer and target end alike.

    Args:
        last: so many characters count.
    """

    last: int = 1

    @property
    def name(self) -> str:
        return self.named("suffix/1")

    def check_target(self, target: str) -> None:
        if not target.strip():
            raise ValueError(f"the target must not be blank, got {target!r}")

    def judge(self, answer: str, target: str) -> Verified:
        right = answer[-self.last :] == target.strip()[-self.last :]
        return Verified(answer=answer, verdict="correct" if right else "wrong")


class Plain:
    """Right if the response is the target; takes no options."""

    name = "plain/1"

    def check_target(self, target: str) -> None:
        if not target.strip():
            raise ValueError("the target must not be blank")

    def verify(self, response: str, target: str) -> Verified:
        if not response.strip():
            return MALFORMED
        return Verified(answer=response, verdict="correct" if response == target else "wrong")

    def gold_response(self, target: str) -> str:
        return target


class Nothing:
    """No verifier."""

    name = "nothing"


class Guessing(Plain):
    """Finds one wrong response in two correct."""

    def verify(self, response: str, target: str) -> Verified:
        found = super().verify(response, target)
        return Verified(answer="?", verdict="wrong") if response and random.random() < 0.5 else found


class Remembering(Plain):
    """Every answer is the first that it has seen."""

    def __init__(self) -> None:
        self._first = ""

    def verify(self, response: str, target: str) -> Verified:
        found, self._first = super().verify(response, target), self._first or response
        return found if found.answer is None else Verified(answer=self._first, verdict=found.verdict)


class Crashing(Plain):
    """Reads every number that it sees."""

    def verify(self, response: str, target: str) -> Verified:
        if response.startswith("1e"):
            return Verified(answer=str(int(float(response))), verdict="wrong")
        return super().verify(response, target)


class Generous(Plain):
    """Finds nothing correct."""

    def verify(self, response: str, target: str) -> Verified:
        if not response.strip():
            return Verified(answer="", verdict="correct")
        return super().verify(response, target)


class Counting(Plain):
    """Names itself after what it has done."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"counting/{self._count}"

    def verify(self, response: str, target: str) -> Verified:
        self._count += 1
        return super().verify(response, target)


class Slow(Plain):
    """Thinks about what is long."""

    def verify(self, response: str, target: str) -> Verified:
        time.sleep(0.3 if len(response) > 1_000 else 0)
        return super().verify(response, target)


class Crossing(Plain):
    """Keeps the response that it judges in itself, where another thread finds it."""

    concurrency = 4

    def verify(self, response: str, target: str) -> Verified:
        self._response = response
        time.sleep(0.0001 * (threading.active_count() > 2))
        return super().verify(self._response, target)


class Careless(Plain):
    """Gives a malformed response an answer."""

    def verify(self, response: str, target: str) -> Verified:
        found = super().verify(response, target)
        return Verified(answer="none", verdict="malformed") if found.answer is None else found


class Fussy(Plain):
    """Refuses targets in its own way."""

    def check_target(self, target: str) -> None:
        if not target.strip():
            raise KeyError(target)


class Lenient(Plain):
    """Refuses no target."""

    def check_target(self, target: str) -> None:
        pass


class Loose(Plain):
    """Right if the target stands anywhere."""

    def verify(self, response: str, target: str) -> Verified:
        found = super().verify(response, target)
        return found if target not in response else Verified(answer=response, verdict="correct")


class Evaluating(Plain):
    """Computes what it is told to, which no other thread can interrupt."""

    def verify(self, response: str, target: str) -> Verified:
        if response == "9**9**9**9":
            return Verified(answer=str(eval(response)), verdict="wrong")
        return super().verify(response, target)


class Stubborn(Plain):
    """Tries for ever, whatever happens."""

    def verify(self, response: str, target: str) -> Verified:
        while response == "1/0":
            try:
                time.sleep(60)
            except Exception:  # noqa: BLE001  an alarm must end it all the same
                continue
        return super().verify(response, target)


class Deadlocked(Plain):
    """Waits for itself when a thread asks."""

    concurrency = 2

    def verify(self, response: str, target: str) -> Verified:
        if threading.current_thread() is not threading.main_thread():
            threading.Event().wait()
        return super().verify(response, target)


class Endless(Plain):
    """Never closed."""

    def close(self) -> None:
        threading.Event().wait()


class Pondering(Plain):
    """Never sure of a target."""

    def check_target(self, target: str) -> None:
        super().check_target(target)
        if target == "NaN":
            threading.Event().wait()
