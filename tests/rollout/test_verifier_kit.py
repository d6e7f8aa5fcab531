"""The kit holds verifiers to their contract: ours pass, and each broken one is told what it broke."""

from __future__ import annotations

import pytest

from drift_rollout import ChoiceVerifier, ExactVerifier, MathVerifier, NumericVerifier
from drift_rollout.verifier_kit import check_verifier
from drift_rollout.verifiers.math import MathOptions
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
        (own.Slow, r"took 0\.\d s of 0.2: response 'a+'… \(1,000,000 characters\)"),
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
