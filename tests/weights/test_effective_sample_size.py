"""Laws of the effective sample size, (Σ w)²/Σ w² a group. Suffix legend: N rows, G groups."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.weights import effective_sample_size

Weights = st.lists(st.floats(0.0, 16.0), min_size=1, max_size=16).filter(any)


def ess(weight_K: list[float]) -> float:
    """The effective sample size of one group."""
    return float(effective_sample_size(weight_K, ["g"] * len(weight_K))[1][0])


@given(Weights)
def test_equals_the_formula_in_exact_arithmetic(weight_K: list[float]) -> None:
    exact = [Fraction(w) for w in weight_K]
    expected = sum(exact) ** 2 / sum(w * w for w in exact)
    assert ess(weight_K) == pytest.approx(float(expected), rel=1e-12)


@given(Weights)
def test_lies_between_one_row_and_all_of_them(weight_K: list[float]) -> None:
    positive = sum(w > 0 for w in weight_K)
    assert 1 - 1e-12 <= ess(weight_K) <= positive * (1 + 1e-12)


@given(st.floats(1e-300, 1e300), st.integers(1, 200))
def test_equal_weights_are_worth_every_row(weight: float, rows: int) -> None:
    assert ess([weight] * rows) == rows


@given(Weights, st.floats(1e-150, 1e150))
def test_scale_does_not_matter(weight_K: list[float], scale: float) -> None:
    scaled = [w * scale for w in weight_K if w == 0 or w * scale > 1e-290]
    plain = [w for w in weight_K if w == 0 or w * scale > 1e-290]
    if any(plain):
        assert ess(scaled) == pytest.approx(ess(plain), rel=1e-12)


@given(Weights, st.data())
def test_the_order_of_rows_does_not_matter_to_the_bit(weight_K: list[float], data: st.DataObject) -> None:
    assert ess(data.draw(st.permutations(weight_K))) == ess(weight_K)


def test_one_row_with_all_the_weight_is_worth_one() -> None:
    assert ess([0.0, 16.0, 0.0, 0.0]) == 1.0


def test_each_group_apart_in_order_of_first_appearance() -> None:
    keys, ess_G = effective_sample_size([1, 3, 1, 1, 0, 2], ["z", "a", "z", "z", "a", "m"])
    assert keys == ["z", "a", "m"]
    assert ess_G.tolist() == [3.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("weight_N", "message"),
    [
        ([], "weight must be a non-empty column"),
        ([1.0, -0.5], "row 1: weight must be finite and not negative, got -0.5"),
        ([float("nan"), 1.0], "row 0: weight must be finite and not negative, got nan"),
        ([1.0, float("inf")], "row 1: weight must be finite and not negative, got inf"),
        ([0.0, 1.0], "group 'g0' has no weight above 0"),
        ([1.0], "group has 2 rows, expected 1"),
    ],
)
def test_bad_input_names_row_or_group(weight_N: list[float], message: str) -> None:
    group_N: Any = ["g0", "g1"]
    with pytest.raises(ValueError, match=message):
        effective_sample_size(np.array(weight_N), group_N)


def test_keys_of_a_column_of_numbers_come_back_as_they_are() -> None:
    keys, ess_G = effective_sample_size([1, 3, 1], pa.array([0.5, -0.0, 0.0]))
    assert keys == [0.5, 0.0]
    np.testing.assert_allclose(ess_G, [1.0, 1.6])
