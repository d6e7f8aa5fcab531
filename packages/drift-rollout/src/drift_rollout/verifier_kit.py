"""What a verifier owes a rollout, as one check for the tests of a verifier of your own.

def test_my_verifier():
    check_verifier(MyVerifier, ["7", "-3"], wrong={"7": ["<answer> 8 </answer>"]})
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TypeVar

from drift_rollout.deadline import TookTooLong, within
from drift_rollout.judging import DaemonThreads
from drift_rollout.verify import Verified, Verifier, mark_answer
from drift_weights.types import Turn

_MILLION = 1_000_000
HOSTILE: Mapping[str, str] = {
    "nothing": "",
    "white space": " \n\t\u00a0",
    "1 MB of a letter": "a" * _MILLION,
    "1 MB of digits": "9" * _MILLION,
    "1 MB of tags": "<answer>" * (_MILLION // 8),
    "1 MB of spaces": "<" + " " * _MILLION,
    "deep brackets": "(" * 5_000 + "7" + ")" * 5_000,
    "deep braces": "\\frac{" * 5_000 + "7" + "}{2}" * 5_000,
    "deep lists": "[" * 5_000 + "]" * 5_000,
    "a tower of powers": "9^" * 50 + "9",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85",
    "surrogates": "\ud800 7 \udfff",
    "marks over marks": "7" + "\u0315\u0300" * 50_000,
    "right to left": "\u202e7\u202c \u0661\u0662 \u05d0",
    "closing tags": "7</answer></think>",
    "other digits": "\u0667 \uff17 \u2466 \U0001d7d5",
    "no number": "NaN",
    "endless": "-inf",
    "huge exponent": "1e999999999",
    "division by zero": "1/0",
    "a format": "%s %n {0} {x!r} $(x) `x`",
    "quotes": "'\"\\",
    "a line in code": "__import__('os').getcwd()",
    "a tower in code": "9**9**9**9",
}
"""What policies may say, by what it is; each is given alone, and as an answer in both grammars."""

_PARTS = ("name", "check_target", "verify")
Found = TypeVar("Found")
_NO_ANSWER = ("", " \n", "I do not know.", "<answer>", "</answer>", "\\boxed{")


def check_verifier(
    make: Callable[[], Verifier],
    targets: Sequence[str],
    *,
    wrong: Mapping[str, Sequence[str]] | None = None,
    refused: Sequence[str] = (),
    limit: float = 5.0,
) -> None:
    """Hold a verifier to the contract of `Verifier`.

    It must have one name; take the targets, and refuse others by ValueError alone; find the gold response
    of each correct, and nothing that is empty or without an answer; never raise, nor take longer than the
    limit; give verdicts that a `Turn` takes; and give the same ones again, in another order, in a new
    instance, and, if it has `concurrency`, from so many threads at once. What takes longer than the limit
    is ended, by an alarm (SIGALRM) where the check runs in the main thread.

    Args:
        make: a class, or a function that opens one (`functools.partial` for options); called three times.
        targets: gold answers that it must take, one at least.
        wrong: for a target, whole responses that must not be correct.
        refused: gold answers that it must refuse.
        limit: seconds that a verdict may take, > 0.

    Raises:
        AssertionError: what it owes and does not give, and for which input.
        TypeError: `make` is no class and no function.
        ValueError: no targets.
    """
    _check_make(make)
    if not targets:
        raise ValueError("check_verifier needs at least one target")
    with _opened(make, limit) as verifier, _opened(make, limit) as second, _opened(make, limit) as third:
        name = verifier.name
        assert isinstance(name, str), f"the name must be text, got {name!r}"
        assert name.strip(), "the name must not be blank"
        _check_targets(verifier, targets, refused, limit)
        golds = [(_gold_response(verifier, target), target) for target in targets]
        wrongs = [(said, target) for target in wrong or {} for said in (wrong or {})[target]]
        nothing = [(said, target) for target in targets for said in _NO_ANSWER]
        for pair in golds:
            assert _judged(verifier, *pair, limit).verdict == "correct", f"the gold fails: {_shown(*pair)}"
        for pair in (*nothing, *wrongs):
            verdict = _judged(verifier, *pair, limit).verdict
            assert verdict != "correct", f"correct, though it is not: {_shown(*pair)}"
        crossed = [(said, target) for said, _ in golds for target in targets]
        hostile = [(said, targets[0]) for said in _hostile_responses()]
        pairs = list(dict.fromkeys([*golds, *wrongs, *nothing, *crossed, *hostile]))
        verdicts = [_judged(verifier, *pair, limit) for pair in pairs]
        _check_again(verifier, pairs, verdicts, limit, "a second time")
        _check_again(second, pairs[::-1], verdicts[::-1], limit, "in another order")
        _check_again(third, pairs, verdicts, limit, "in a new instance")
        _check_threads(verifier, pairs, verdicts, limit)
        names = {name, verifier.name, second.name, third.name}
        assert len(names) == 1, f"the name must never change, got {', '.join(sorted(names))}"


def _check_make(make: object) -> None:
    if not callable(make):
        kind = type(make).__name__
        raise TypeError(
            f"check_verifier takes a class, or a function that makes one, got an instance of {kind}; "
            f"give it {kind}, or functools.partial({kind}, …) with the options"
        )
    missing = sorted(getattr(make, "__abstractmethods__", ()))
    assert not missing, f"{getattr(make, '__name__', make)} lacks {', '.join(missing)}"


@contextmanager
def _opened(make: Callable[[], Verifier], limit: float) -> Iterator[Verifier]:
    with ExitStack() as stack:
        verifier = make()
        missing = [part for part in _PARTS if not hasattr(verifier, part)]
        assert not missing, f"{type(verifier).__name__} lacks {', '.join(missing)}"
        close = getattr(verifier, "close", lambda: None)
        stack.callback(_in_time, close, limit, "close")
        yield verifier


def _in_time(call: Callable[[], Found], limit: float, what: str) -> Found:
    try:
        return within(limit, call)
    except TookTooLong:
        raise AssertionError(f"took more than {limit:g} s: {what}") from None


def _check_targets(
    verifier: Verifier, targets: Sequence[str], refused: Sequence[str], limit: float
) -> None:
    for target in (*targets, *refused, *HOSTILE.values()):
        what = f"check_target of {_short(target)}"
        refusal = _in_time(partial(_refusal, verifier, target), limit, what)
        assert refusal is None or target not in targets, f"the target {target!r} is refused: {refusal}"
        assert refusal is not None or target not in refused, f"the target {target!r} is not refused"


def _refusal(verifier: Verifier, target: str) -> str | None:
    try:
        verifier.check_target(target)
    except ValueError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(
            f"check_target may raise ValueError alone, got {error!r}: target {_short(target)}"
        ) from error
    return None


def _gold_response(verifier: Verifier, target: str) -> str:
    said = getattr(verifier, "gold_response", mark_answer)(target)
    assert isinstance(said, str), f"gold_response must give text, got {said!r}"
    return said


def _judged(verifier: Verifier, response: str, target: str, limit: float) -> Verified:
    return _in_time(partial(_verdict, verifier, response, target), limit, _shown(response, target))


def _verdict(verifier: Verifier, response: str, target: str) -> Verified:
    try:
        verified = verifier.verify(response, target)
    except Exception as error:
        raise AssertionError(f"verify raised {error!r}: {_shown(response, target)}") from error
    assert isinstance(verified, Verified), f"verify must give Verified, got {_short(str(verified))}"
    try:
        Turn(response=response, answer=verified.answer, verdict=verified.verdict)
    except ValueError as error:
        raise AssertionError(f"no turn takes this verdict: {error}: {_shown(response, target)}") from error
    return verified


def _check_again(
    verifier: Verifier,
    pairs: Sequence[tuple[str, str]],
    verdicts: Sequence[Verified],
    limit: float,
    how: str,
) -> None:
    for pair, before in zip(pairs, verdicts, strict=True):
        now = _judged(verifier, *pair, limit)
        assert now == before, f"{how} it is {_said(now)}, before {_said(before)}: {_shown(*pair)}"


def _check_threads(
    verifier: Verifier, pairs: Sequence[tuple[str, str]], verdicts: Sequence[Verified], limit: float
) -> None:
    threads = getattr(verifier, "concurrency", None)
    if threads is None:
        return
    assert isinstance(threads, int), f"concurrency must be an int, got {threads!r}"
    assert threads >= 1, f"concurrency must be at least 1, got {threads}"
    # Short ones many times: the long ones would keep the threads apart.
    short = [(pair, at) for pair, at in zip(pairs, verdicts, strict=True) if len(pair[0]) < 1_000] * 5
    with _restless(), closing(DaemonThreads(threads)) as pool:
        found = [pool.submit(partial(_verdict, verifier, *pair)) for pair, _ in short]
        for (pair, before), future in zip(short, found, strict=True):
            # So many share the interpreter.
            wait([future], threads * limit)
            assert future.done(), f"from {threads} threads it gave no verdict: {_shown(*pair)}"
            how = f"from {threads} threads it is {_said(future.result())}, before {_said(before)}"
            assert future.result() == before, f"{how}: {_shown(*pair)}"


@contextmanager
def _restless() -> Iterator[None]:
    """Let threads change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _hostile_responses() -> Iterator[str]:
    for said in HOSTILE.values():
        yield said
        yield mark_answer(said)
        yield mark_answer(said, "boxed")


def _shown(response: str, target: str) -> str:
    return f"response {_short(response)}, target {_short(target)}"


def _said(verified: Verified) -> str:
    return verified.verdict if verified.answer is None else f"{verified.verdict} {_short(verified.answer)}"


def _short(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:60]!r}… ({len(text):,} characters)"
