"""What benchmarks/verify.py compares: each contender grades one log in a fresh process, in its main thread.

python verify_peers.py CONTENDER    reads a JSON list of [gold, answer], prints a `Graded`
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

Judge = Callable[[str, str], bool]
UNRELATED = ("a+b+1", "1+b+a")
"""A pair that no log holds, and that only math-verify can decide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graded:
    """What a contender said of each answer, and how long it took."""

    verdicts: list[bool]
    seconds: float
    """All answers, one after the other."""
    start: float
    """Imports and what is done before the first answer, in seconds."""


def ours(pairs: list[list[str]]) -> Graded:
    """A fresh verifier; its process starts when it is first needed, within what is timed."""
    return _ours(pairs, guards=True, up=False)


def ours_up(pairs: list[list[str]]) -> Graded:
    """A fresh verifier whose process is up before the first answer."""
    return _ours(pairs, guards=True, up=True)


def ours_unguarded(pairs: list[list[str]]) -> Graded:
    """The same with all guards off."""
    return _ours(pairs, guards=False, up=True)


def peer(write: Callable[[str], str]) -> Callable[[list[list[str]]], Graded]:
    """math-verify called per answer, its defaults; both texts written in one way."""

    def graded(pairs: list[list[str]]) -> Graded:
        start = time.perf_counter()
        from math_verify import parse, verify

        def judge(gold: str, answer: str) -> bool:
            return bool(verify(parse(write(gold)), parse(write(answer))))

        judge(*UNRELATED)
        return _timed(judge, pairs, start)

    return graded


def _ours(pairs: list[list[str]], *, guards: bool, up: bool) -> Graded:
    start = time.perf_counter()
    from drift_rollout.verifiers.equality import MathGuards
    from drift_rollout.verifiers.math import MathOptions, MathVerifier

    chosen = MathGuards() if guards else MathGuards(**{option.name: False for option in fields(MathGuards)})
    verifier = MathVerifier(options=MathOptions(guards=chosen))

    def judge(gold: str, answer: str) -> bool:
        return verifier.judge(answer, gold).verdict == "correct"

    if up:
        judge(*UNRELATED)
    graded = _timed(judge, pairs, start)
    verifier.close()
    return graded


def _timed(judge: Judge, pairs: list[list[str]], start: float) -> Graded:
    ready = time.perf_counter()
    verdicts = [judge(gold, answer) for gold, answer in pairs]
    return Graded(verdicts=verdicts, seconds=time.perf_counter() - ready, start=ready - start)


PEERS = {
    "math-verify $…$": peer(lambda text: f"${text}$"),
    "math-verify \\boxed{…}": peer(lambda text: f"\\boxed{{{text}}}"),
    "math-verify bare": peer(lambda text: text),
}
"""Ways to hand math-verify a text."""
CONTENDERS = {"ours": ours, "ours, process up": ours_up, "ours, guards off": ours_unguarded, **PEERS}


if __name__ == "__main__":
    print(json.dumps(asdict(CONTENDERS[sys.argv[1]](json.load(sys.stdin)))))
