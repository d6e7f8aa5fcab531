"""Laws of the group-normalised weights: eq. 13 (M10), its golden values (M13), its refusals.

That groups never mix (M11) is in test_groups.py. Suffix legend: N rows, K rows of one group.
"""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from drift_weights.returns import trajectory_return
from drift_weights.weights import BETA, effective_sample_size, group_weights
from strategies import betas, return_groups

EPS = 2.0**-52
STRICT = 700.0
"""(R_max − R)/β from which float64 may underflow; the strict laws end here."""


def weights(return_K: list[float], beta: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The weights of one group."""
    return group_weights(return_K, ["g"] * len(return_K), beta=beta)


def oracle(return_K: list[float], beta: float) -> list[mpmath.mpf]:
    """Eq. 13 as it is written, in 50 digits and with no maximum taken out."""
    with mpmath.workdps(50):
        exponentials = [mpmath.exp(mpmath.mpf(r) / mpmath.mpf(beta)) for r in return_K]
        mean = mpmath.fsum(exponentials) / len(exponentials)
        return [e / mean for e in exponentials]


@given(return_groups(), betas())
def test_equal_to_a_50_digit_oracle(return_K: list[float], beta: float) -> None:
    for found, expected, r in zip(weights(return_K, beta), oracle(return_K, beta), return_K, strict=True):
        gap = (max(return_K) - r) / beta
        if gap < STRICT:
            # The argument of exp is rounded twice, relative to itself.
            assert abs(mpmath.mpf(float(found)) / expected - 1) <= EPS * (20 + 4 * gap)
        else:
            assert 0 <= found <= len(return_K) * math.exp(-STRICT)


@given(return_groups(), betas())
def test_they_sum_to_the_size_of_the_group(return_K: list[float], beta: float) -> None:
    assert math.fsum(weights(return_K, beta)) == pytest.approx(len(return_K), rel=1e-12)


@given(return_groups(), betas())
def test_between_nothing_and_the_whole_group(return_K: list[float], beta: float) -> None:
    found = weights(return_K, beta)
    assert (found <= len(return_K)).all()
    assert (found >= 0).all()
    within = (max(return_K) - np.array(return_K)) / beta < STRICT
    assert (found[within] > 0).all()


@given(return_groups(min_size=2), betas())
def test_they_keep_the_order_of_the_returns(return_K: list[float], beta: float) -> None:
    found = weights(return_K, beta)[np.argsort(return_K)]
    assert (np.diff(found) >= 0).all()


@given(return_groups(min_size=2, max_size=6), betas())
def test_the_ratio_of_two_depends_on_the_difference_of_their_returns(
    return_K: list[float], beta: float
) -> None:
    found = weights(return_K, beta)
    for w, r in zip(found, return_K, strict=True):
        gap = (max(return_K) - r) / beta
        if gap < STRICT:
            assert math.log(found.max() / w) == pytest.approx(gap, rel=1e-12, abs=1e-14)


@given(return_groups(), st.floats(-10, 10), betas())
def test_a_constant_added_to_every_return_changes_nothing(
    return_K: list[float], shift: float, beta: float
) -> None:
    """Within the rounding of R + c, which β magnifies."""
    moved = weights([r + shift for r in return_K], beta)
    gap_K = (max(return_K) - np.array(return_K)) / beta
    within = 8 * EPS * ((2 + abs(shift)) / beta + gap_K + 4)
    assert (np.abs(moved - weights(return_K, beta)) <= len(return_K) * np.expm1(within)).all()
    strict = gap_K < STRICT - 1
    ratio = moved[strict] / weights(return_K, beta)[strict]
    assert (np.abs(ratio - 1) <= np.expm1(within[strict])).all()


@given(return_groups(), st.integers(2, 5), betas())
def test_a_group_repeated_has_the_same_weights(return_K: list[float], copies: int, beta: float) -> None:
    repeated = weights(return_K * copies, beta)[: len(return_K)]
    assert repeated.tolist() == pytest.approx(weights(return_K, beta).tolist(), rel=1e-12)


@given(return_groups(), betas())
def test_they_lie_as_near_to_one_as_beta_is_large(return_K: list[float], beta: float) -> None:
    """exp(−g) ≤ w ≤ exp(g) for g = (R_max − R_min)/β: towards 1 for β → ∞."""
    reach = (max(return_K) - min(return_K)) / beta
    assume(reach < STRICT)
    found = weights(return_K, beta)
    assert (found <= math.exp(reach) * (1 + 1e-12)).all()
    assert (found >= math.exp(-reach) * (1 - 1e-12)).all()


@given(return_groups(values=st.integers(-100, 100).map(lambda percent: percent / 100)))
def test_a_vanishing_beta_shares_the_group_among_the_best(return_K: list[float]) -> None:
    best = [r == max(return_K) for r in return_K]
    expected = [len(return_K) / sum(best) if b else 0.0 for b in best]
    assert weights(return_K, 1e-6).tolist() == expected


@given(return_groups(max_size=16), betas())
def test_worth_at_least_one_row_and_at_most_all(return_K: list[float], beta: float) -> None:
    found = weights(return_K, beta)
    _, ess = effective_sample_size(found, ["g"] * len(return_K))
    assert 1 - 1e-12 <= ess[0] <= len(return_K) * (1 + 1e-12)


@given(
    return_groups(values=st.floats(-1e308, 1e308) | st.floats(-1, 1)),
    betas(5e-324, 1.7e308) | betas(),
)
@example([1e308, -1e308, 0.0], 1e-6)
@example([1.7e308, -1.7e308], 1e6)
@example([1.0, 0.9999999], 5e-324)
def test_nothing_finite_overflows(return_K: list[float], beta: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = weights(return_K, beta)
    assert np.isfinite(found).all()
    assert math.fsum(found) == pytest.approx(len(return_K), rel=1e-12)


def test_golden_weights_at_the_papers_settings() -> None:
    """Four groups of 16, worked out apart from this code (β 0.1, γ 0.9, λ 0.5)."""
    one_right = [(1, 1, 1)] + [(0, 5, 5)] * 15
    early_and_late = [(1, 1, 1)] * 8 + [(1, 2, 2)] * 8
    all_right = [(1, 1, 1)] * 16
    all_wrong = [(0, 5, 5)] + [(0, 5, 1)] * 15
    rows = np.array(one_right + early_and_late + all_right + all_wrong)
    found = group_weights(trajectory_return(*rows.T), np.repeat(["a", "b", "c", "d"], 16))
    assert found[0] == pytest.approx(15.989, abs=5e-4)
    assert found[1:16] == pytest.approx(7.26e-4, abs=5e-7)
    assert found[16:24] == pytest.approx(1.462, abs=5e-4)
    assert found[24:32] == pytest.approx(0.538, abs=5e-4)
    assert found[32:48].tolist() == [1.0] * 16
    assert found[48] == pytest.approx(12.55, abs=5e-3)
    assert found[49:] == pytest.approx(0.230, abs=5e-4)


def test_a_lone_row_weighs_one() -> None:
    assert weights([-0.4], 0.1).tolist() == [1.0]


def test_the_default_beta_is_the_papers() -> None:
    assert BETA == 0.1
    assert inspect.signature(group_weights).parameters["beta"].default == 0.1


@pytest.mark.parametrize(
    ("return_N", "group_N", "message"),
    [
        ([], [], "return must be a non-empty column"),
        ([[0.0, 1.0]], ["a"], r"return must be a non-empty column, got shape \(1, 2\)"),
        ([0.0, float("nan")], ["a", "a"], "row 1: return must be finite, got nan"),
        ([0.0, 0.0, float("inf")], ["a", "a", "a"], "row 2: return must be finite, got inf"),
        ([float("-inf"), 0.0], ["a", "a"], "row 0: return must be finite, got -inf"),
        ([0.0, 1.0], ["a"], "group has 1 rows, expected 2"),
        ([0.0, 1.0], ["a", None], "row 1: the group key is null"),
        ([0.0, 1.0], ["a", float("nan")], "row 1: the group key is null"),
        ([0.0, 1.0], np.array([1.0, np.nan]), "row 1: the group key is null"),
    ],
)
def test_bad_input_names_the_row(return_N: Any, group_N: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_weights(return_N, group_N)


@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan"), float("inf")])
def test_beta_must_be_a_positive_number(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta must be finite and above 0, got {beta}"):
        group_weights([0.0], ["a"], beta=beta)
