"""What a set of returns can teach: table 8 (M30), Prop. 7 (M24), wrong answers weighted up (M13).

Suffix legend: N rows, K rows of one group, G groups.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.diagnostics import (
    group_composition,
    hoeffding_epsilon,
    hoeffding_probability,
    hoeffding_samples,
    partition_relative_error,
    upweighted_wrong,
    weight_error_bound,
)
from drift_weights.returns import trajectory_return
from drift_weights.weights import group_weights
from strategies import KeyedReturns, betas, keyed_returns, return_groups

RANGE: dict[str, float] = {"r_min": -0.4, "r_max": 1.0, "beta": 0.1}
"""What eq. 12 can give within 5 turns at the paper's γ, λ and β."""


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_composition_equals_counting_by_hand(rows: list[tuple[int, bool]]) -> None:
    found = group_composition([solved for _, solved in rows], [group for group, _ in rows])
    kinds = []
    for group in {group for group, _ in rows}:
        verdicts = [solved for other, solved in rows if other == group]
        kinds.append("right" if all(verdicts) else "mixed" if any(verdicts) else "wrong")
    counted = (kinds.count("right"), kinds.count("wrong"), kinds.count("mixed"))
    assert (found.all_correct, found.all_wrong, found.mixed) == counted
    assert (found.groups, found.rows) == (len(kinds), len(rows))
    assert found.accuracy == pytest.approx(sum(solved for _, solved in rows) / len(rows))
    assert found.coverage == pytest.approx((counted[0] + counted[2]) / len(kinds))
    assert math.fsum(found.shares.values()) == pytest.approx(1.0, rel=1e-15)
    assert found.shares == pytest.approx(
        {
            "all_correct": counted[0] / len(kinds),
            "all_wrong": counted[1] / len(kinds),
            "mixed": counted[2] / len(kinds),
        }
    )


def test_larger_groups_are_more_often_mixed() -> None:
    """The trend of table 8, on simulated problems of uneven difficulty."""
    generator = np.random.default_rng(8)
    solvable = generator.beta(0.8, 0.4, 400)
    shares = []
    for size in (4, 16, 64):
        solved = generator.random((400, size)) < solvable[:, None]
        shares.append(group_composition(solved.ravel(), np.repeat(np.arange(400), size)).shares)
    for name, sign in (("mixed", 1), ("all_correct", -1), ("all_wrong", -1)):
        assert (sign * np.diff([share[name] for share in shares]) > 0).all()


@pytest.mark.parametrize(
    ("solved_N", "group_N", "message"),
    [
        ([], [], "no rows"),
        ([True, False], ["a"], "group has 1 rows, expected 2"),
        ([True, False], ["a", None], "row 1: the group key is null"),
        ([1.0, float("nan")], ["a", "a"], "row 1: solved"),
        ([1, None], ["a", "a"], "solved"),
        ([1, 2], ["a", "a"], "row 1: solved"),
    ],
)
def test_composition_refuses_what_is_no_verdict(solved_N: Any, group_N: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_composition(solved_N, group_N)


@given(keyed_returns(), betas(0.02, 100.0))
def test_relative_error_is_the_formula(table: KeyedReturns, beta: float) -> None:
    """sd(exp(R/β)) / (√K·Ẑ), with no maximum taken out, by the standard library."""
    keys, error_G = partition_relative_error(table.return_N, table.group_N, beta=beta)
    assert keys == list(dict.fromkeys(table.group_N))
    for key, error in zip(keys, error_G.tolist(), strict=True):
        rows = zip(table.group_N, table.return_N, strict=True)
        tilt_K = [math.exp(r / beta) for other, r in rows if other == key]
        if len(tilt_K) == 1:
            assert math.isnan(error)
            continue
        spread = statistics.stdev(tilt_K)
        expected = spread / (math.sqrt(len(tilt_K)) * statistics.fmean(tilt_K))
        assert error == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(return_groups(min_size=2), st.floats(-3, 3), betas(0.05, 100.0))
def test_relative_error_is_blind_to_a_shift_of_all_returns(
    return_K: list[float], shift: float, beta: float
) -> None:
    group_K = ["g"] * len(return_K)
    _, plain = partition_relative_error(return_K, group_K, beta=beta)
    _, moved = partition_relative_error([r + shift for r in return_K], group_K, beta=beta)
    assert moved[0] == pytest.approx(plain[0], rel=1e-9, abs=1e-9)


def test_relative_error_predicts_the_spread_of_the_estimate() -> None:
    """Over many groups of 64, Ẑ/Z scatters by what a single group says it will."""
    generator = np.random.default_rng(7)
    return_GK = generator.choice([1.0, 0.9, 0.81, 0.0, -0.4], (1500, 64), p=[0.3, 0.2, 0.1, 0.2, 0.2])
    group_N = np.repeat(np.arange(1500), 64)
    _, error_G = partition_relative_error(return_GK.ravel(), group_N)
    estimates = np.exp(return_GK / 0.1).mean(axis=1)
    observed = estimates.std(ddof=1) / estimates.mean()
    assert float(np.median(error_G)) == pytest.approx(observed, rel=0.08)


def test_four_times_the_rows_halve_the_relative_error() -> None:
    generator = np.random.default_rng(2)
    errors = []
    for size in (16, 64, 256):
        return_N = generator.choice([1.0, 0.9, 0.0, -0.4], 400 * size)
        _, error_G = partition_relative_error(return_N, np.arange(400 * size) % 400)
        errors.append(float(np.median(error_G)))
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2.0, rel=0.1)


def test_equal_returns_leave_no_error() -> None:
    assert partition_relative_error([0.9] * 5, ["g"] * 5)[1].tolist() == [0.0]


def test_a_return_that_is_no_number_is_refused_not_passed_on_as_undefined() -> None:
    with pytest.raises(ValueError, match="row 1: return must be finite"):
        partition_relative_error([0.0, float("nan")], ["a", "a"])


@pytest.mark.parametrize("size", [4, 16, 64])
def test_the_bound_holds_by_simulation(size: int) -> None:
    """Eq. 22, where it says something: β 0.5, several ε, 4,000 estimates of a known Z."""
    values, chances = np.array([1.0, 0.9, 0.0, -0.4]), np.array([0.2, 0.1, 0.4, 0.3])
    truth = float(np.exp(values / 0.5) @ chances)
    drawn = np.random.default_rng(size).choice(values, (4000, size), p=chances)
    error = np.abs(np.exp(drawn / 0.5).mean(axis=1) - truth)
    for epsilon in (0.5, 1.0, 2.0, 4.0):
        bound = hoeffding_probability(epsilon, size, r_min=-0.4, r_max=1.0, beta=0.5)
        assert float((error >= epsilon).mean()) <= bound


def test_the_bound_is_reached_in_its_exponent_by_the_extreme_case() -> None:
    """Half the mass at each end and K = 1: |Ẑ − Z| = Δ/2 for sure, where eq. 22 gives 2·e^(−1/2)."""
    gap = math.exp(1.0) - math.exp(-0.4)
    found = hoeffding_probability(gap / 1.5, 1, r_min=-0.4, r_max=1.0, beta=1.0)
    assert found == pytest.approx(2 * math.exp(-2 / 2.25), rel=1e-12)
    assert hoeffding_probability(gap / 2, 1, r_min=-0.4, r_max=1.0, beta=1.0) == 1.0


@given(st.integers(1, 10_000), st.floats(1e-6, 0.9), betas(0.05, 100.0))
def test_probability_samples_and_epsilon_are_one_relation(size: int, delta: float, beta: float) -> None:
    settings = {"r_min": -0.4, "r_max": 1.0, "beta": beta}
    epsilon = hoeffding_epsilon(size, delta, **settings)
    assert hoeffding_probability(epsilon, size, **settings) == pytest.approx(delta, rel=1e-9)
    assert hoeffding_samples(epsilon, delta, **settings) == pytest.approx(size, rel=1e-9)


def test_vacuous_at_the_papers_settings() -> None:
    """K 16 and β 0.1 guarantee ± 7,479 for a quantity that ranges over 22,026."""
    assert math.exp(10.0) - math.exp(-4.0) == pytest.approx(22_026, abs=1)
    assert hoeffding_epsilon(16, 0.05, **RANGE) == pytest.approx(7_479, abs=1)


def test_bound_on_the_weights_holds_for_every_group_within_epsilon() -> None:
    """Eq. 24 on simulated groups: |ŵ − w| ≤ M/m²·|Ẑ − Z|."""
    values, chances = np.array([1.0, 0.0, -0.4]), np.array([0.3, 0.4, 0.3])
    truth = float(np.exp(values / 0.5) @ chances)
    drawn = np.random.default_rng(3).choice(values, (500, 8), p=chances)
    estimated = group_weights(drawn.ravel(), np.repeat(np.arange(500), 8), beta=0.5).reshape(500, 8)
    error = np.abs(estimated - np.exp(drawn / 0.5) / truth).max(axis=1)
    for epsilon, worst in zip(np.abs(np.exp(drawn / 0.5).mean(axis=1) - truth), error, strict=True):
        assert worst <= weight_error_bound(epsilon, r_min=-0.4, r_max=1.0, beta=0.5) + 1e-12
    found = weight_error_bound(0.25, r_min=-0.4, r_max=1.0, beta=0.5)
    assert found == pytest.approx(math.exp(2.0) / math.exp(-0.8) ** 2 * 0.25, rel=1e-12)


@pytest.mark.parametrize("bound", [hoeffding_epsilon, hoeffding_samples, hoeffding_probability])
def test_bounds_refuse_a_range_or_a_beta_that_is_none(bound: Any) -> None:
    with pytest.raises(ValueError, match=r"r_min must lie below r_max, got 1\.0 and 1\.0"):
        bound(16, 0.05, r_min=1.0, r_max=1.0, beta=0.1)
    with pytest.raises(ValueError, match="beta must be finite and above 0"):
        bound(16, 0.05, r_min=0.0, r_max=1.0, beta=0.0)


def test_bounds_survive_a_beta_below_the_range_of_exp() -> None:
    """A sweep over β must not end in an OverflowError; the bound is then as vacuous as can be."""
    settings = {"r_min": -0.4, "r_max": 1.0, "beta": 1e-3}
    assert hoeffding_probability(1.0, 16, **settings) == 1.0
    assert hoeffding_epsilon(16, 0.05, **settings) == math.inf
    assert hoeffding_samples(1.0, 0.05, **settings) == math.inf
    assert weight_error_bound(1.0, **settings) == math.inf


Weighted = st.lists(st.tuples(st.floats(0, 16), st.booleans()), min_size=1, max_size=30)


@given(Weighted)
def test_upweighted_wrong_rows_by_hand(rows: list[tuple[float, bool]]) -> None:
    found = upweighted_wrong([w for w, _ in rows], [solved for _, solved in rows])
    wrong = [w for w, solved in rows if not solved]
    above = [w for w in wrong if w > 1]
    total = math.fsum(w for w, _ in rows)
    assert (found.rows, found.wrong_rows) == (len(above), len(wrong))
    assert found.largest == max(above, default=0.0)
    assert found.mass == pytest.approx(math.fsum(wrong) / total if total else 0.0, rel=1e-12)


def test_the_all_wrong_golden_group_raises_the_alarm() -> None:
    """One wrong row with 5 distinct answers among 15 with one is imitated twelvefold (M13)."""
    weights = group_weights(trajectory_return([0] * 16, [5] * 16, [5] + [1] * 15), ["g"] * 16)
    found = upweighted_wrong(weights, [False] * 16)
    assert (found.rows, found.wrong_rows, found.mass) == (1, 16, 1.0)
    assert found.largest == pytest.approx(12.55, abs=5e-3)


def test_a_success_in_every_group_leaves_nothing_to_flag() -> None:
    return_N = trajectory_return([1, 0, 0, 1, 0, 0], [1, 5, 5, 5, 5, 5], [1, 5, 5, 1, 3, 3])
    weights = group_weights(return_N, ["a"] * 3 + ["b"] * 3)
    found = upweighted_wrong(weights, [True, False, False] * 2)
    assert (found.rows, found.largest) == (0, 0.0)
    assert 0 < found.mass < 0.05


def test_upweighted_wrong_refuses_columns_of_different_length() -> None:
    with pytest.raises(ValueError, match="rows"):
        upweighted_wrong([1.0, 2.0, 3.0], [False])
