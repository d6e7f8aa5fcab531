"""What the arithmetic says to bad input, word for word, and what lies just inside its ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from drift_weights import Columns, reweight, to_table, weighted_turns
from drift_weights.outcomes import Outcomes
from drift_weights.returns import binary, check_gamma, check_lam, trajectory_return
from drift_weights.reweighting import ledger_of
from drift_weights.weighing import WeightConfig
from drift_weights.weights import (
    TiltSums,
    check_beta,
    effective_sample_size,
    finite_returns,
    group_codes,
    group_weights,
    resample,
)
from rows import LOG, trajectory

NAN, INF = float("nan"), float("inf")
FIELDS = ("solved_N", "length_N", "unique_N")
FIX = "; fix or drop its group"


def refusal(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        call(*arguments, **named)
    return str(error.value)


def returned(**changes: Any) -> Any:
    fields = {"solved_N": [1, 0, 0], "length_N": [1, 5, 5], "unique_N": [1, 5, 1]} | changes
    return trajectory_return(**fields)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({name: [] for name in FIELDS}, "no rows: a return needs at least one trajectory"),
        ({"solved_N": [1, 0]}, "solved has 2 rows, expected 3"),
        ({"unique_N": [1, 5]}, "unique has 2 rows, expected 3"),
        ({"counted_N": [1, 5]}, "counted has 2 rows, expected 3"),
        ({"solved_N": [1, 0, 0.5]}, f"row 2: solved must be 0 or 1, got 0.5{FIX}"),
        ({"solved_N": ["1", "0", "0"]}, "solved must be numeric without nulls, got dtype <U1"),
        ({"length_N": [1, None, 5]}, "length must be numeric without nulls, got dtype object"),
        ({"length_N": [[1], [5], [5]]}, "length must be one-dimensional, got shape (3, 1)"),
        ({"length_N": [1, 5, 0]}, f"row 2: length must be at least 1, got 0{FIX}"),
        ({"length_N": [1, 5, 5.5]}, f"row 2: length must be whole, got 5.5{FIX}"),
        ({"unique_N": [1, NAN, 1]}, f"row 1: unique must be whole, got nan{FIX}"),
        ({"counted_N": [1, 5, INF]}, f"row 2: counted must be whole, got inf{FIX}"),
        ({"counted_N": [1, 6, 5]}, f"row 1: counted must lie in 0…length, got 6{FIX}"),
        ({"counted_N": [1, 5, -1]}, f"row 2: counted must lie in 0…length, got -1{FIX}"),
        ({"unique_N": [1, 6, 1]}, f"row 1: unique must not exceed the turns it counts, got 6{FIX}"),
        (
            {"counted_N": [1, 5, 3], "unique_N": [1, 5, 4]},
            f"row 2: unique must not exceed the turns it counts, got 4{FIX}",
        ),
        ({"unique_N": [0, 5, 1]}, f"row 0: unique must be at least 1, got 0{FIX}"),
        (
            {"counted_N": [1, 5, 0], "unique_N": [1, 5, -1]},
            f"row 2: unique must not be negative, got -1{FIX}",
        ),
        ({"penalty_N": [0.0, 0.0]}, "penalty has shape (2,), expected one number or 3 rows"),
        ({"penalty_N": [0.0, INF, NAN]}, f"row 1: penalty must be finite, got inf{FIX}"),
        ({"penalty_N": NAN}, f"row 0: penalty must be finite, got nan{FIX}"),
        ({"gamma": 0.0}, "gamma must lie in (0, 1], got 0.0"),
        ({"lam": NAN}, "lam must be finite and not negative, got nan"),
    ],
)
def test_a_return_out_of_range_is_refused(changes: dict[str, Any], says: str) -> None:
    assert refusal(returned, **changes) == says


def test_the_ends_of_the_parameters_ranges() -> None:
    check_gamma(1.0)
    check_gamma(5e-324)
    check_lam(0.0)
    check_lam(1e308)
    check_beta(5e-324)
    check_beta(1e308)
    assert refusal(check_gamma, 1.0000000000000002) == "gamma must lie in (0, 1], got 1.0000000000000002"
    assert refusal(check_gamma, NAN) == "gamma must lie in (0, 1], got nan"
    assert refusal(check_lam, -5e-324) == "lam must be finite and not negative, got -5e-324"
    assert refusal(check_lam, INF) == "lam must be finite and not negative, got inf"
    for beta in (0.0, -1.0, NAN, INF):
        says = f"beta must be finite and above 0, got {beta}"
        assert refusal(check_beta, beta) == refusal(TiltSums, beta) == says
        assert refusal(group_weights, [0.0], ["a"], beta=beta) == says


def test_whole_numbers_are_compared_exactly() -> None:
    """As doubles 2⁵³ and 2⁵³ + 1 are one number."""
    says = f"row 0: counted must lie in 0…length, got {2**53 + 1}{FIX}"
    assert refusal(trajectory_return, [1], [2**53], [1], counted_N=[2**53 + 1]) == says


def test_numbers_of_any_type_may_be_added_as_a_penalty() -> None:
    penalty = [Decimal("-0.25"), Decimal("0.5"), Fraction(1, 4)]
    assert returned(penalty_N=penalty).tolist() == [0.75, 0.5, 0.25 - 0.5 * (1 - 1 / 5)]


def test_rows_without_a_counted_turn_cost_the_whole_penalty_whatever_the_memory_held() -> None:
    rows = 100
    nothing = np.zeros(rows, np.int64)
    for _ in range(20):
        spoiled = [np.full(rows, 7.0) for _ in range(8)]
        del spoiled
        found = trajectory_return(nothing, nothing + 1, nothing, counted_N=nothing)
        assert found.tolist() == [-0.5] * rows


def test_verdicts_are_floats_however_they_come() -> None:
    for values in ([True, False], [1, 0], [1.0, 0.0], np.array([1, 0], np.uint8)):
        found = binary("solved", values)
        assert (found.dtype, found.tolist()) == (np.float64, [1.0, 0.0])
    assert refusal(binary, "solved", [1, 0], 3) == "solved has 2 rows, expected 3"


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        ([], "return must be a non-empty column, got shape (0,)"),
        ([[1.0, 2.0]], "return must be a non-empty column, got shape (1, 2)"),
        ([0.0, INF, NAN], f"row 1: return must be finite, got inf{FIX}"),
        ([NAN], f"row 0: return must be finite, got nan{FIX}"),
    ],
)
def test_returns_that_cannot_be_weighed_are_refused(returns: Any, says: str) -> None:
    assert refusal(finite_returns, returns) == says
    assert refusal(group_weights, returns, ["a"] * 3) == says


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([], "weight must be a non-empty column, got shape (0,)"),
        ([[1.0, 2.0]], "weight must be a non-empty column, got shape (1, 2)"),
        ([1.0, 0.0, -0.5], "row 2: weight must be finite and not negative, got -0.5"),
        ([1.0, INF, -0.5], "row 1: weight must be finite and not negative, got inf"),
        ([NAN, 1.0, 1.0], "row 0: weight must be finite and not negative, got nan"),
    ],
)
def test_weights_that_are_none_are_refused(weights: Any, says: str) -> None:
    assert refusal(effective_sample_size, weights, ["a"] * 3) == says
    assert refusal(resample, weights, ["a"] * 3, [0, 1, 2], seed=0) == says


def test_a_group_of_zeros_is_named() -> None:
    says = "group 'b' has no weight above 0"
    assert refusal(effective_sample_size, [1.0, 0.0, 2.0, 0.0], ["a", "b", "c", "b"]) == says


NULL = "row {}: the group key is null"


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ([None, "a", "b"], NULL.format(0)),
        (["a", "b", NAN], NULL.format(2)),
        (pa.array([None, "a", "b"]), NULL.format(0)),
        (pa.array([1.0, 2.0, NAN]), NULL.format(2)),
        (pa.array([1, None, None]), NULL.format(1)),
        (["a", "b"], "group has 2 rows, expected 3"),
        (pa.array(["a"] * 4), "group has 4 rows, expected 3"),
        (pa.array([[1]] * 3), "a group key must be a scalar, got list<item: int64>; pass tuples instead"),
    ],
)
def test_groups_that_are_none_are_refused(groups: Any, says: str) -> None:
    assert refusal(group_weights, [0.0, 0.5, 1.0], groups) == says
    assert refusal(effective_sample_size, [0.0, 0.5, 1.0], groups) == says
    assert refusal(resample, [0.0, 0.5, 1.0], groups, [0, 1, 2], seed=0) == says


def test_numbers_of_groups_are_64_bit_whatever_holds_the_keys() -> None:
    columns: list[Any] = [
        ["a", "b"],
        np.array(["a", "b"]),
        pa.array(["a", "b"]),
        pa.chunked_array([["a", "b"]]),
    ]
    for column in columns:
        code_N, keys = group_codes(column, rows=2)
        assert (code_N.dtype, code_N.tolist(), keys) == (np.int64, [0, 1], ["a", "b"])


@pytest.mark.parametrize(
    ("groups", "samples", "says"),
    [
        (["a", "a", "b"], [0, 1], "sample must be whole numbers, one a row"),
        (["a", "a", "b"], [0.0, 1.0, 2.0], "sample must be whole numbers, one a row"),
        (["a", "a", "b"], ["0", "1", "2"], "sample must be whole numbers, one a row"),
        (["b", "a", "a"], [4, 4, 4], "row 2: sample 4 of group 'a' appears twice"),
        (["a", "b", "a"], [4, 4, 4], "row 2: sample 4 of group 'a' appears twice"),
        (["a", "a", "a"], [1, 4, 4], "row 2: sample 4 of group 'a' appears twice"),
        (
            [frozenset("x")] * 3,
            [0, 1, 2],
            "group key frozenset({'x'}) cannot enter the hash of a draw; use text or numbers",
        ),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(groups: Any, samples: Any, says: str) -> None:
    assert refusal(resample, [1.0, 1.0, 1.0], groups, samples, seed=0) == says


def test_samples_may_be_of_any_whole_type() -> None:
    for kind in (np.int8, np.uint8, np.uint64, np.int64):
        assert resample([1.0, 1.0], ["a", "a"], np.array([1, 0], kind), seed=0).tolist() == [1, 1]


@pytest.mark.parametrize("values", [[1, 2, 0], np.array([0.1, 0.7, 0.4], np.float32), [Decimal("0.3")] * 3])
def test_numbers_of_any_type_are_reckoned_with_as_doubles(values: Any) -> None:
    groups, plain = ["a", "a", "b"], [float(value) + (k == 2) for k, value in enumerate(values)]
    raised = [*values[:2], values[2] + 1]
    assert finite_returns(values).dtype == np.float64
    assert group_weights(raised, groups).tolist() == group_weights(plain, groups).tolist()
    assert (
        effective_sample_size(raised, groups)[1].tolist()
        == effective_sample_size(plain, groups)[1].tolist()
    )
    assert (
        resample(raised, groups, [0, 1, 2], seed=3).tolist()
        == resample(plain, groups, [0, 1, 2], seed=3).tolist()
    )


def test_a_table_that_cannot_be_reweighted_says_why() -> None:
    says = "the data have a column 'weight' already; rename or drop it first"
    assert refusal(reweight, pa.table(LOG | {"weight": [1.0] * 4})) == says
    says = "a frame keeps its rows; drop all-wrong groups yourself, or reweight a file"
    assert refusal(reweight, pa.table(LOG), WeightConfig(all_wrong="drop")) == says
    says = "row 2: 'prompt_id' is null; every row needs its group"
    assert refusal(reweight, pa.table(LOG | {"prompt_id": ["a", "b", None, "c"]})) == says


def test_settings_and_columns_reach_the_weights_of_a_table() -> None:
    scores = pa.table({"g": ["a", "a", "b"], "won": [0.7, 0.2, 0.1], "L": [1, 3, 5], "E": [1, 2, 5]})
    columns = Columns(group="g", correct="won", length="L", unique="E", threshold=0.5)
    found = reweight(scores, WeightConfig(beta=0.4, gamma=0.8, lam=0.3), columns=columns)
    returns = trajectory_return([1, 0, 0], [1, 3, 5], [1, 2, 5], gamma=0.8, lam=0.3)
    expected = group_weights(returns, ["a", "a", "b"], beta=0.4).tolist()
    assert found.column("weight").to_pylist() == expected
    assert found.schema.field("weight") == pa.field("weight", pa.float64(), nullable=False)


def outcomes(keys: list[str], samples: list[Any] | None, **changes: Any) -> Outcomes:
    ones = np.ones(len(keys), np.int64)
    fields: dict[str, Any] = {
        "key_columns": (pa.array(keys),),
        "solved_N": ones > 0,
        "length_N": ones,
        "unique_N": ones,
        "counted_N": ones,
        "sample": None if samples is None else pa.array(samples),
    }
    return Outcomes(**fields | changes)


TWICE = "{}: sample {!r} of its group is in {} already; keep one of them"


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([(["a", "b", "a", "a"], [0, 1, 1, 0])], TWICE.format("row 3", 0, "row 0")),
        ([(["a", "b"], [0, 7]), (["b", "a", "b"], [0, 1, 7])], TWICE.format("row 4", 7, "row 1")),
        # Rows and batches without a sample, and the same sample in other groups, come in between.
        (
            [(["b", "a", "a"], ["s", None, "s"]), (["a", "b"], None), (["c", "b", "a"], ["s", None, "s"])],
            TWICE.format("row 7", "s", "row 2"),
        ),
        ([(["a"] * 3, [99, 100, 98]), (["a"] * 3, [97, 95, 98])], TWICE.format("row 5", 98, "row 2")),
    ],
)
def test_a_sample_twice_in_a_group_is_named_with_both_rows(batches: Any, says: str) -> None:
    made = [outcomes(keys, samples) for keys, samples in batches]
    assert refusal(ledger_of, lambda: made) == says
    lines = refusal(ledger_of, lambda: made, "line {}".format)
    assert lines == says.replace("row", "line")


def test_a_value_out_of_range_is_named_where_the_user_finds_it() -> None:
    good, bad = outcomes(["a", "b"], None), outcomes(["a"], None, length_N=np.array([0]))
    says = "length must lie in 1…1048575, got 0; fix or drop its group"
    assert refusal(ledger_of, lambda: [good, bad]) == f"row 2: {says}"
    assert refusal(ledger_of, lambda: [good, bad], "line {}".format) == f"line 2: {says}"


def test_one_unscored_row_is_listed_as_its_group() -> None:
    data = [trajectory("h", 0, ["b"]), trajectory("g", 0, ["a"], ended="error")]
    data += [trajectory("f", k, ["a"], ended="error") for k in range(2)]
    table, made = weighted_turns(to_table(data))
    assert table.column("prompt_id").to_pylist() == ["h"]
    listed = [{"prompt_id": name, "round": 0, "policy": "p"} for name in ("f", "g")]
    assert made["omitted_groups"] == listed
    _, made = weighted_turns(to_table(data[:2]))
    assert made["omitted_groups"] == listed[1:]
    _, made = weighted_turns(to_table(data[:1]))
    assert made["omitted_groups"] == []


def test_no_warning_level_of_the_users_gets_in_the_way() -> None:
    with np.errstate(all="raise"):
        assert group_weights([0.0, 1.0], ["a", "a"], beta=1e-3).tolist() == [0.0, 2.0]
        assert group_weights([0.0, 1.0], ["a", "a"], beta=1e-300).tolist() == [0.0, 2.0]
        assert group_weights([0.0, 1.0], ["a", "a"], beta=1 / 740).tolist() == [2 * math.exp(-740), 2.0]


def test_zero_is_one_group_whatever_its_sign() -> None:
    for keys in ([0.0, -0.0], np.array([0.0, -0.0]), pa.array([0.0, -0.0]), [(0.0,), (-0.0,)]):
        assert group_codes(keys)[0].tolist() == [0, 0]


def test_sums_are_kept_as_whole_numbers_in_28_bytes_a_group_while_groups_come_in() -> None:
    sums = TiltSums(0.5)
    for groups in range(90, 110):
        code_N = np.arange(groups)
        sums.see(code_N, np.linspace(-1, 1, groups), groups)
    assert sums.size_G[:110].tolist()[:109] == [20] * 90 + list(range(19, 0, -1))
    sums.add(np.arange(109), np.ones(109))
    kept = (sums.size_G, sums.max_G, sums._high_G, sums._low_G)
    assert [values.dtype.kind for values in kept] == ["i", "f", "i", "i"]
    assert sum(values.itemsize for values in kept) == 28
