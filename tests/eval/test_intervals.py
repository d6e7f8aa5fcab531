"""Intervals and tests against closed forms, exact enumeration and binomial sums."""

from __future__ import annotations

from decimal import Decimal, getcontext
from fractions import Fraction
from itertools import product
from math import comb
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from drift_eval.intervals import bootstrap_mean, mcnemar, paired_bootstrap, wilson

# The two-sided 95 % quantile of the normal distribution, to 30 digits, from tables.
Z_95 = Decimal("1.95996398454005423552459443052")


def wilson_by_hand(successes: int, trials: int, z: Decimal) -> tuple[float, float]:
    getcontext().prec = 40
    n, p = Decimal(trials), Decimal(successes) / Decimal(trials)
    centre = p + z * z / (2 * n)
    spread = z * (p * (1 - p) / n + z * z / (4 * n * n)).sqrt()
    scale = 1 + z * z / n
    return float((centre - spread) / scale), float((centre + spread) / scale)


@given(st.data())
def test_wilson_is_the_closed_formula(data: st.DataObject) -> None:
    trials = data.draw(st.integers(1, 20_000))
    successes = data.draw(st.integers(0, trials))
    rate = wilson(successes, trials)
    low, high = wilson_by_hand(successes, trials, Z_95)
    assert (rate.low, rate.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert rate.value == float(Fraction(successes, trials))
    assert rate.low - 1e-12 <= rate.value <= rate.high + 1e-12


def test_wilson_at_another_confidence() -> None:
    rate = wilson(7, 40, confidence=0.8)
    low, high = wilson_by_hand(7, 40, Decimal(NormalDist().inv_cdf(0.9)))
    assert (rate.low, rate.high) == (pytest.approx(low), pytest.approx(high))


def test_the_papers_margin_on_math500() -> None:
    """58.2 % of 500: the interval holds the runner-up's 56.4 %."""
    rate = wilson(291, 500)
    assert (round(100 * rate.low, 1), round(100 * rate.high, 1)) == (53.8, 62.4)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes ≤ trials"):
        wilson(successes, trials)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence=95)


flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(flags)
def test_mcnemar_is_a_binomial_sum(pairs: list[tuple[bool, bool]]) -> None:
    """p = Σ P(i) over the outcomes i that are no likelier than the observed one."""
    test = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
    only_first = sum(1 for a, b in pairs if a and not b)
    only_second = sum(1 for a, b in pairs if b and not a)
    assert (test.only_first, test.only_second) == (only_first, only_second)
    n = only_first + only_second
    weights = [comb(n, i) for i in range(n + 1)]
    expected = Fraction(sum(w for w in weights if w <= weights[only_first]), 2**n)
    assert test.p_value == pytest.approx(float(expected), rel=1e-9)


@given(flags)
def test_mcnemar_does_not_care_who_is_first(pairs: list[tuple[bool, bool]]) -> None:
    one = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
    other = mcnemar([b for _, b in pairs], [a for a, _ in pairs])
    assert one.p_value == pytest.approx(other.p_value)
    assert one.only_first == other.only_second


def exact_tails(values: list[float], low: float, high: float) -> tuple[float, float, float, float]:
    """Of all n^n bootstrap samples: the mass below, up to low, and above, from high on."""
    means = [sum(draw) / len(values) for draw in product(values, repeat=len(values))]
    n, eps = len(means), 1e-9
    return (
        sum(m < low - eps for m in means) / n,
        sum(m <= low + eps for m in means) / n,
        sum(m > high + eps for m in means) / n,
        sum(m >= high - eps for m in means) / n,
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 1, 0]),
        ([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]),
        ([0.5, 2.0, -1.0, 0.25, 3.0, 0.0], [0.0, 2.5, 1.0, 0.0, -1.0, 0.5]),
    ],
)
def test_paired_bootstrap_against_every_possible_resample(first: list[float], second: list[float]) -> None:
    """The ends are 2.5 % quantiles of the exact distribution, within Monte Carlo error."""
    estimate = paired_bootstrap(first, second, seed=3)
    differences = [a - b for a, b in zip(first, second, strict=True)]
    below, up_to, above, from_ = exact_tails(differences, estimate.low, estimate.high)
    slack = 4 * (0.025 * 0.975 / estimate.resamples) ** 0.5
    assert below <= 0.025 + slack
    assert up_to >= 0.025 - slack
    assert above <= 0.025 + slack
    assert from_ >= 0.025 - slack
    assert estimate.value == pytest.approx(sum(differences) / len(differences))


def test_pairs_stay_together() -> None:
    """Equal policies never differ in any resample; drawn apart they would."""
    results = [True, False] * 20
    estimate = paired_bootstrap(results, results)
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)
    alone = bootstrap_mean(results)
    assert alone.high - alone.low > 0.2


values = st.lists(st.floats(-10, 10), min_size=2, max_size=12)


@given(values, st.integers(0, 5), st.data())
def test_swapping_policies_turns_the_interval_round(
    first: list[float], seed: int, data: st.DataObject
) -> None:
    second = data.draw(st.lists(st.floats(-10, 10), min_size=len(first), max_size=len(first)))
    one = paired_bootstrap(first, second, seed=seed, resamples=200)
    other = paired_bootstrap(second, first, seed=seed, resamples=200)
    assert (one.low, one.high) == (
        pytest.approx(-other.high, abs=1e-9),
        pytest.approx(-other.low, abs=1e-9),
    )
    assert one == paired_bootstrap(first, second, seed=seed, resamples=200)


@given(values)
def test_the_mean_is_the_difference_to_nothing(observed: list[float]) -> None:
    assume(len(set(observed)) > 1)
    alone = bootstrap_mean(observed, resamples=200)
    paired = paired_bootstrap(observed, [0.0] * len(observed), resamples=200)
    assert (alone.low, alone.high) == (pytest.approx(paired.low), pytest.approx(paired.high))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 draws of 80 problems, first solves 60 %, second 45 %, correlated; 95 % ± 4 sd."""
    rng = np.random.default_rng(7)
    covered = 0
    for draw in range(200):
        hard = rng.random(80)
        first, second = hard + 0.3 * rng.random(80) < 0.75, hard + 0.3 * rng.random(80) < 0.6
        estimate = paired_bootstrap(first, second, seed=draw, resamples=400)
        covered += estimate.low <= 0.15 <= estimate.high
    assert 0.88 <= covered / 200 <= 1.0


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1.0], [1.0], "at least 2 problems, got 1"),
        ([], [], "at least 2 problems, got 0"),
        ([1, 0], [1, 0, 1], "first has 2 problems and second 3"),
        ([1, float("nan")], [0, 0], "row 1: first must be finite"),
        ([[1, 0]], [[1, 0]], "one-dimensional"),
    ],
)
def test_paired_bootstrap_refuses(first: list[float], second: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(first, second)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_mean([0, 1], resamples=0)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_mean([0, 1], confidence=1.0)
    with pytest.raises(ValueError, match="row 1: second must be 0 or 1, got 2"):
        mcnemar([0, 1], [1, 2])
    with pytest.raises(ValueError, match="pair them by prompt_id"):
        mcnemar([0, 1], [1])
