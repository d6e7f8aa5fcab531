"""The kit holds verifiers to their contract: ours pass, and each broken one is told what it broke."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from drift_rollout import ChoiceVerifier, ExactVerifier, MathVerifier, NumericVerifier
from drift_rollout.deadline import within
from drift_rollout.verifier_kit import check_verifier
from drift_rollout.verifiers.math import MathOptions
from drift_rollout.verify import AnswerVerifier, Verified
from rollout import own_verifier as own


@pytest.mark.parametrize("grammar", ["answer", "boxed"])
def test_our_verifiers_pass(grammar: str) -> None:
    other = "<answer>8</answer>", "\\boxed{8}", "7"
    check_verifier(
        lambda: ExactVerifier(grammar=grammar), ["7", "x + y"], wrong={"7": other}, refused=[" "]
    )
    letters = {"B": ["<answer>A</answer>", "<answer>A or B</answer>", "\\boxed{b}"]}
    check_verifier(
        lambda: ChoiceVerifier(grammar=grammar), ["B", "C"], wrong=letters, refused=["", "b", "7"]
    )


@pytest.mark.parametrize("grammar", ["answer", "boxed"])
def test_numeric_and_math_pass(grammar: str) -> None:
    other = "<answer>8</answer>", "\\boxed{8}", "7", "<answer>7 or 8</answer>", "\\boxed{-7}"
    check_verifier(
        lambda: NumericVerifier(grammar=grammar),
        ["7", "2.5", "True"],
        wrong={"7": other},
        refused=["", "3/4"],
    )
    check_verifier(
        lambda: MathVerifier(grammar=grammar, options=MathOptions(timeout=2)),
        ["7", "\\sqrt{2}+x"],
        wrong={"7": other},
        refused=["", "x" * 1001],
        limit=10,
    )


def test_ones_of_a_users_own_pass() -> None:
    check_verifier(own.Plain, ["7", "8"], wrong={"7": ["17", "7 "]}, refused=[""])
    check_verifier(lambda: own.Suffix(last=2, grammar="boxed"), ["17"], wrong={"17": ["\\boxed{7}"]})


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (own.Guessing, "a second time it is|the gold fails"),
        (own.Remembering, "in another order it is wrong"),
        (own.Crashing, r"verify raised OverflowError.*response '1e999999999', target '7'"),
        (own.Generous, "correct, though it is not: response '', target '7'"),
        (own.Counting, "the name must never change, got counting/0, counting/"),
        (own.Slow, r"took more than 0.2 s: response 'a+'… \(1,000,000 characters\)"),
        (own.Evaluating, r"took more than 0.2 s: response '9\*\*9\*\*9\*\*9', target '7'"),
        (own.Stubborn, "took more than 0.2 s: response '1/0', target '7'"),
        (own.Deadlocked, "from 2 threads it gave no verdict: response '7', target '7'"),
        (own.Endless, "took more than 0.2 s: close"),
        (own.Pondering, "took more than 0.2 s: check_target of 'NaN'"),
        (own.Crossing, "from 4 threads it is"),
        (own.Careless, "no turn takes this verdict: a malformed turn has no answer"),
        (own.Fussy, "check_target may raise ValueError alone, got KeyError"),
        (own.Lenient, "the target ' ' is not refused"),
        (own.Loose, "correct, though it is not: response '17', target '7'"),
    ],
)
def test_a_broken_one_is_told_what_it_broke(broken: type, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_verifier(broken, ["7", "8"], wrong={"7": ["17", "8"]}, refused=[" "], limit=0.2)


def test_from_another_thread_what_hangs_is_left_alone() -> None:
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(check_verifier, own.Pondering, ["7"], limit=0.2)
        with pytest.raises(AssertionError, match=r"took more than 0\.2 s: check_target of 'NaN'"):
            checked.result(60)


def test_an_alarm_that_was_set_still_rings() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert within(60, lambda: time.sleep(0.3)) is None
        assert rung == []
        time.sleep(0.1)
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_instance_is_no_maker() -> None:
    with pytest.raises(TypeError, match=r"got an instance of Suffix; give it Suffix, or functools.partial"):
        check_verifier(own.Suffix(last=2), ["17"])  # type: ignore[arg-type]
    check_verifier(partial(own.Suffix, last=2), ["17"])


class Unnamed(AnswerVerifier):
    """Lacks what AnswerVerifier leaves to it."""

    def judge(self, answer: str, target: str) -> Verified:
        return Verified(answer=answer, verdict="wrong")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (own.Nothing, "Nothing lacks check_target, verify"),
        (lambda: None, "NoneType lacks name, check_target, verify"),
        (Unnamed, "Unnamed lacks check_target, name"),
    ],
)
def test_what_is_missing_is_named(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(AssertionError, match=f"^{says}$"):
        check_verifier(make, ["7"])


def test_a_target_that_is_refused_is_told() -> None:
    with pytest.raises(AssertionError, match="the target 'b' is refused"):
        check_verifier(ChoiceVerifier, ["b"])


def test_without_targets_nothing_is_checked() -> None:
    with pytest.raises(ValueError, match="at least one target"):
        check_verifier(ExactVerifier, [])


def test_every_instance_is_closed() -> None:
    closed = []

    class Closing(own.Plain):
        def close(self) -> None:
            closed.append(self)

    check_verifier(Closing, ["7"])
    assert len({*map(id, closed)}) == len(closed) == 3
