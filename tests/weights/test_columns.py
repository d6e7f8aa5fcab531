"""Foreign tables: which columns are read, what their values may be, and what is said where they may not.

Suffix legend: N rows.
"""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.columns import (
    Columns,
    Plain,
    arrow_values,
    key_column,
    key_kind,
    key_values,
    numbers,
    outcomes_of_columns,
    sample_values,
    solved_rows,
)
from drift_weights.outcomes import RowError

PLAIN = ["prompt_id", "correct"]


@pytest.mark.parametrize(
    ("columns", "present", "expected"),
    [
        (Columns(), PLAIN, Plain(group=("prompt_id",), correct="correct")),
        (
            Columns(),
            ["policy", "prompt_id", "correct", "round"],
            Plain(group=("prompt_id", "round", "policy"), correct="correct"),
        ),
        (
            Columns(),
            [*PLAIN, "sample", "length", "unique"],
            Plain(
                group=("prompt_id",), sample="sample", correct="correct", length="length", unique="unique"
            ),
        ),
        # Samples tell the rows of the contract's group apart, not those of a group of the user's own.
        (Columns(group="g"), ["g", "correct", "sample"], Plain(group=("g",), correct="correct")),
        (Columns(group=("g", "h")), ["g", "h", "correct"], Plain(group=("g", "h"), correct="correct")),
        (
            Columns(correct="won", length="L", unique="E"),
            ["prompt_id", "won", "L", "E", "correct", "length", "unique"],
            Plain(group=("prompt_id",), correct="won", length="L", unique="E"),
        ),
        # A return needs no outcome, but an outcome that is there, or is named, is read.
        (Columns(return_column="r"), ["prompt_id", "r"], Plain(group=("prompt_id",), returns="r")),
        (
            Columns(return_column="r"),
            ["prompt_id", "r", "correct", "sample", "length"],
            Plain(group=("prompt_id",), sample="sample", correct="correct", returns="r"),
        ),
        (
            Columns(return_column="r", correct="won"),
            ["prompt_id", "r", "won", "correct"],
            Plain(group=("prompt_id",), correct="won", returns="r"),
        ),
    ],
)
def test_what_is_read_from_a_table(columns: Columns, present: list[str], expected: Plain) -> None:
    assert columns.plain(present) == expected


LONE = (
    "column {!r} is there but {!r} is not; name both or neither: without the number of distinct answers "
    "the penalty of eq. 12 cannot be computed"
)
MISSING = (
    "no column {}; there are {}; name the columns that hold the group (--group) and either the return "
    "(--return-column) or the outcome (--correct, --length, --unique)"
)


@pytest.mark.parametrize(
    ("columns", "present", "says"),
    [
        (Columns(), [*PLAIN, "length"], LONE.format("length", "unique")),
        (Columns(), [*PLAIN, "unique"], LONE.format("unique", "length")),
        (Columns(length="L"), [*PLAIN, "L"], LONE.format("L", "unique")),
        (Columns(unique="E"), [*PLAIN, "length"], LONE.format("length", "E")),
        (Columns(), ["a", "b"], MISSING.format("'prompt_id', 'correct'", "a, b")),
        (Columns(group=("g", "h")), ["g", "correct"], MISSING.format("'h'", "g, correct")),
        (Columns(return_column="r"), ["prompt_id"], MISSING.format("'r'", "prompt_id")),
        (
            Columns(return_column="r", correct="won"),
            ["prompt_id", "r", "correct"],
            MISSING.format("'won'", "prompt_id, r, correct"),
        ),
    ],
)
def test_a_table_without_the_columns_is_refused_with_the_options(
    columns: Columns, present: list[str], says: str
) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        columns.plain(present)
    assert str(error.value) == says


def test_every_column_is_read_once() -> None:
    plain = Plain(group=("g", "h"), sample="g", correct="c", returns="c", length="L", unique="E")
    assert plain.names == ("g", "h", "c", "L", "E")
    assert Plain(group=("g",)).names == ("g",)


def test_outcomes_are_the_columns() -> None:
    values = {
        "g": pa.array(["a", "b"]),
        "s": pa.array([7, 8]),
        "c": pa.array([True, False]),
        "r": pa.array([0.5, -1.0]),
        "L": pa.array([2.0, 5.0]),
        "E": pa.array([1, 4], pa.uint8()),
    }
    found = outcomes_of_columns(
        values, Plain(group=("g", "s"), sample="s", correct="c", returns="r", length="L", unique="E")
    )
    assert [column.to_pylist() for column in found.key_columns] == [["a", "b"], [7, 8]]
    assert found.solved_N is not None
    assert found.return_N is not None
    assert found.sample is not None
    assert found.solved_N.tolist() == [True, False]
    assert found.return_N.tolist() == [0.5, -1.0]
    assert found.sample.to_pylist() == [7, 8]
    counts = (found.length_N, found.unique_N, found.counted_N)
    assert [column.tolist() for column in counts] == [[2, 5], [1, 4], [2, 5]]
    assert {column.dtype for column in counts} == {np.dtype(np.int64)}


def test_without_counts_a_row_is_one_turn_and_what_is_not_there_stays_unknown() -> None:
    values = {"g": pa.array([1, 1, 2]), "L": pa.array([3, 3, 3])}
    for plain in (Plain(group=("g",)), Plain(group=("g",), length="L")):
        found = outcomes_of_columns(values, plain)
        assert (found.solved_N, found.return_N, found.sample) == (None, None, None)
        for column in (found.length_N, found.unique_N, found.counted_N):
            assert column.tolist() == [1, 1, 1]


def refusal(call: Any, *arguments: Any) -> tuple[int, str]:
    """The row that is refused, and the words."""
    with pytest.raises(RowError) as error:
        call(*arguments)
    return error.value.row, error.value.says


@pytest.mark.parametrize(
    ("name", "column", "row", "says"),
    [
        ("L", pa.array([1, None, 3]), 1, "'L' is null, expected a number; fix or drop its group"),
        ("L", pa.array([1, 2, 2.5]), 2, "'L' is 2.5, expected a whole number; fix or drop its group"),
        (
            "E",
            pa.array([1.0, float("inf"), 1]),
            1,
            "'E' is inf, expected a whole number; fix or drop its group",
        ),
        (
            "E",
            pa.array([1, 2.0**53, 1]),
            1,
            "'E' is 9.0072e+15, expected a whole number; fix or drop its group",
        ),
        ("E", pa.array(["1", "2", "3"]), 0, "'E' is '1', expected a number; fix or drop its group"),
        ("r", pa.array([0.5, None, 1]), 1, "'r' is null, expected a number; fix or drop its group"),
        ("c", pa.array([1, 0, None]), 2, "'c' is null, expected a number; fix or drop its group"),
        ("s", pa.array([[1], [2], [3]]), 0, "'s' is [1], expected a number or a string"),
        ("g", pa.array(["a", None, "b"]), 1, "'g' is null; every row needs its group"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_row_and_column(
    name: str, column: pa.Array, row: int, says: str
) -> None:
    fine = pa.array([1, 1, 1])
    values = {"g": fine, "s": fine, "c": fine, "r": fine, "L": fine, "E": fine} | {name: column}
    plain = Plain(group=("g",), sample="s", correct="c", returns="r", length="L", unique="E")
    assert refusal(outcomes_of_columns, values, plain) == (row, says)


def test_the_largest_count_that_a_float_holds_is_taken() -> None:
    values = {"g": pa.array([1]), "n": pa.array([2.0**53 - 1])}
    found = outcomes_of_columns(values, Plain(group=("g",), length="n", unique="n"))
    assert found.length_N.tolist() == [2**53 - 1]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([True, False]), [1.0, 0.0]),
        (pa.array([3, 4], pa.uint8()), [3.0, 4.0]),
        (pa.array(np.array([0.5, 2], np.float16)), [0.5, 2.0]),
        (pa.array([Decimal("0.25"), Decimal("2.00")]), [0.25, 2.0]),
        # More digits than a double has: the nearest double.
        (pa.array([2**53 + 1, -(2**63)]), [2.0**53, -(2.0**63)]),
        (pa.array([1.5, float("nan")]), [1.5, float("nan")]),
        (pa.array([9, 1, 2])[1:], [1.0, 2.0]),
    ],
)
def test_numbers_of_every_type_are_floats(column: pa.Array, expected: list[float]) -> None:
    found = numbers(column, "x")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("column", "row", "says"),
    [
        (pa.array([None, 1.0]), 0, "'x' is null, expected a number; fix or drop its group"),
        (pa.array([1, 2, None, None]), 2, "'x' is null, expected a number; fix or drop its group"),
        (pa.array(["one", None]), 0, "'x' is 'one', expected a number; fix or drop its group"),
        (pa.nulls(2), 0, "'x' is null, expected a number; fix or drop its group"),
        (
            pa.array([datetime.date(2020, 1, 2)]),
            0,
            "'x' is datetime.date(2020, 1, 2), expected a number; fix or drop its group",
        ),
    ],
)
def test_what_is_no_number_is_refused(column: pa.Array, row: int, says: str) -> None:
    assert refusal(numbers, column, "x") == (row, says)


def test_without_a_threshold_only_0_and_1_are_verdicts() -> None:
    assert solved_rows(pa.array([1.0, 0.0, -0.0]), "c", None).tolist() == [True, False, False]
    says = (
        "'c' is {}, neither 0 nor 1; name it as the return column (--return-column), or give the threshold "
        "from which it counts as correct (--threshold)"
    )
    assert refusal(solved_rows, pa.array([0, 1, 2, 3]), "c", None) == (2, says.format(2))
    assert refusal(solved_rows, pa.array([0, 1, float("nan")]), "c", None) == (2, says.format("nan"))


def test_a_threshold_is_itself_a_success() -> None:
    scores = pa.array([0.5, 0.49999, 1e9, float("-inf"), float("inf")])
    assert solved_rows(scores, "c", 0.5).tolist() == [True, False, True, False, True]
    says = "'c' is NaN; fix or drop its group"
    assert refusal(solved_rows, pa.array([1.0, 0.0, float("nan")]), "c", 0.5) == (2, says)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a", "b"]), pa.array(["a", "b"])),
        (pa.array(["a", ""], pa.large_string()), pa.array(["a", ""], pa.large_string())),
        (pa.array(["a", "b", "a"]).dictionary_encode(), pa.array(["a", "b", "a"])),
        (pa.array([3, -1], pa.int8()), pa.array([3, -1], pa.int64())),
        (pa.array([2**32 - 1], pa.uint32()), pa.array([2**32 - 1], pa.int64())),
        (pa.array([2**64 - 1, 0], pa.uint64()), pa.array([2**64 - 1, 0], pa.uint64())),
        (pa.array([True, False]), pa.array([1, 0], pa.int64())),
        (pa.array([0.5, 1.0], pa.float32()), pa.array([0.5, 1.0], pa.float64())),
        (pa.array([datetime.date(2020, 1, 2)]), pa.array(["2020-01-02"])),
        (pa.array([Decimal("1.50")]), pa.array(["1.50"])),
    ],
)
def test_keys_are_strings_or_numbers(column: pa.Array, expected: pa.Array) -> None:
    found = key_column(column, "g")
    assert found.type == expected.type
    assert found.equals(expected)


LONG = ["x" * 70]


@pytest.mark.parametrize(
    ("column", "row", "says"),
    [
        (pa.array([None, "b"]), 0, "'g' is null; every row needs its group"),
        (pa.array([1, 2, None]), 2, "'g' is null; every row needs its group"),
        (pa.array([1.0, float("nan"), None]), 1, "'g' is null; every row needs its group"),
        (pa.array(["a", None]).dictionary_encode(), 1, "'g' is null; every row needs its group"),
        (pa.array([[1, 2], [3]]), 0, "'g' is [1, 2]; a group key must be a string or a number"),
        (pa.array([{"a": 1}, {"a": 2}]), 0, "'g' is {'a': 1}; a group key must be a string or a number"),
        (pa.array([b"a", b"b"]), 0, "'g' is b'a'; a group key must be a string or a number"),
        (pa.array([LONG]), 0, f"'g' is {repr(LONG)[:57]}...; a group key must be a string or a number"),
        (pa.array([["x" * 56]]), 0, f"'g' is ['{'x' * 56}']; a group key must be a string or a number"),
        (pa.array([["x" * 57]]), 0, f"'g' is ['{'x' * 55}...; a group key must be a string or a number"),
    ],
)
def test_what_cannot_name_a_group_is_refused(column: pa.Array, row: int, says: str) -> None:
    assert refusal(key_column, column, "g") == (row, says)


@given(
    st.lists(st.text(max_size=3) | st.none(), max_size=6)
    | st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), max_size=6)
    | st.lists(st.booleans() | st.none(), max_size=6)
    | st.lists(st.floats(allow_nan=False) | st.none(), max_size=6)
    | st.lists(st.lists(st.integers(0, 3), max_size=2), max_size=6)
)
def test_python_values_of_one_kind_come_back_equal(values: list[Any]) -> None:
    assert arrow_values(values, "x").to_pylist() == values


@pytest.mark.parametrize(
    "values",
    [[True, 2], [2, 0.5, True], [Decimal("0.5"), 1.5], [np.float32(0.5), Decimal(2)], [np.True_, 2, 0.5]],
)
def test_numbers_of_several_kinds_are_floats(values: list[Any]) -> None:
    found = arrow_values(values, "x")
    assert [float(value) for value in found.to_pylist()] == [float(value) for value in values]
    assert numbers(found, "x").tolist() == [float(value) for value in values]


def test_nan_is_no_null() -> None:
    assert arrow_values([float("nan"), None, 1.0], "x").null_count == 1


@pytest.mark.parametrize(
    ("values", "row", "says"),
    [
        (["a", None, 1], 2, "'x' is 1 (int), earlier rows hold str; use one type"),
        ([None, 1, "a", 2.5], 2, "'x' is 'a' (str), earlier rows hold int; use one type"),
        ([True, "a"], 1, "'x' is 'a' (str), earlier rows hold bool; use one type"),
        ([0.5, 1.5, "a"], 2, "'x' is 'a' (str), earlier rows hold float; use one type"),
        (["a", 0.5], 1, "'x' is 0.5 (float), earlier rows hold str; use one type"),
        (["a", False], 1, "'x' is False (bool), earlier rows hold str; use one type"),
        ([[1], "a"], 1, "'x' is 'a' (str), earlier rows hold list; use one type"),
        (["a", LONG], 1, f"'x' is {repr(LONG)[:57]}... (list), earlier rows hold str; use one type"),
    ],
)
def test_values_of_several_kinds_are_refused_at_the_first_that_differs(
    values: list[Any], row: int, says: str
) -> None:
    assert refusal(arrow_values, values, "x") == (row, says)


def test_lists_that_cannot_be_one_column_are_refused_at_the_first() -> None:
    for call in (arrow_values, key_values):
        row, says = refusal(call, [[1], ["a"]], "x")
        assert row == 0
        assert says.startswith("'x' is [1]")


def test_a_threshold_makes_verdicts_of_returns_where_there_are_no_others() -> None:
    values = {"g": pa.array([1, 1, 2]), "r": pa.array([0.5, 0.4, -1.0]), "c": pa.array([0.0, 0.7, 0.5])}
    returns = Plain(group=("g",), returns="r")
    found = outcomes_of_columns(values, returns, 0.5)
    assert np.asarray(found.solved_N).tolist() == [True, False, False]
    assert outcomes_of_columns(values, returns).solved_N is None
    assert outcomes_of_columns(values, Plain(group=("g",)), 0.5).solved_N is None
    both = Plain(group=("g",), returns="r", correct="c")
    assert np.asarray(outcomes_of_columns(values, both, 0.5).solved_N).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "b"], pa.array(["a", "b"])),
        ([3, -1], pa.array([3, -1], pa.int64())),
        ([2**63 - 1, -(2**63)], pa.array([2**63 - 1, -(2**63)], pa.int64())),
        ([2**63, 0, 2**64 - 1], pa.array([2**63, 0, 2**64 - 1], pa.uint64())),
        ([True, False], pa.array([1, 0], pa.int64())),
        ([0.5, 1.0], pa.array([0.5, 1.0])),
        ([Decimal("1.50"), Decimal("2.00")], pa.array(["1.50", "2.00"])),
    ],
)
def test_values_of_one_type_name_groups(values: list[Any], expected: pa.Array) -> None:
    found = key_values(values, "g")
    assert found.type == expected.type
    assert found.equals(expected)


BEYOND = "'g' is {}, beyond 64 bits; give such keys as text"


@pytest.mark.parametrize(
    ("values", "row", "says"),
    [
        ([0, 2**64], 1, BEYOND.format(2**64)),
        ([-1, 0, 2**63], 2, BEYOND.format(2**63)),
        ([0, -(2**63) - 1, 1], 1, BEYOND.format(-(2**63) - 1)),
        ([-1, 2**64], 1, BEYOND.format(2**64)),
        ([-(2**63), -1000, 1000, 2**63], 3, BEYOND.format(2**63)),
        (["a", None, 1], 1, "'g' is null; every row needs its group"),
        ([1, "a", None], 2, "'g' is null; every row needs its group"),
        ([0.5, float("nan")], 1, "'g' is null; every row needs its group"),
        ([1, 0.5], 1, "'g' is 0.5 (float), earlier rows hold int; use one type"),
        ([1, True], 1, "'g' is True (bool), earlier rows hold int; use one type"),
        ([[1], [2]], 0, "'g' is [1]; a group key must be a string or a number"),
    ],
)
def test_values_that_cannot_name_groups_are_refused(values: list[Any], row: int, says: str) -> None:
    assert refusal(key_values, values, "g") == (row, says)


def test_a_number_beyond_a_double_is_refused_by_row() -> None:
    says = f"'x' is {str(10**400)[:57]}..., beyond what a number can hold"
    assert refusal(arrow_values, [1, 10**400, 0.5], "x") == (1, says)


def test_samples_may_be_missing() -> None:
    for values in ([None, 3, None, 4], ["a", None], [2**64 - 1, None], [None, 0.5], [1, 2]):
        found = sample_values(values)
        assert found is not None
        assert found.to_pylist() == values
    assert sample_values([None, None]) is None
    assert sample_values([]) is None
    says = "'sample' is 'a' (str), earlier rows hold int; use one type"
    assert refusal(sample_values, [None, 1, None, "a"]) == (3, says)
    assert refusal(sample_values, [None, [1]], "s")[0] == 1
    assert refusal(sample_values, [None, [1]], "s")[1].startswith("'s' is [1]")


def test_samples_that_equal_nothing_are_refused() -> None:
    plain = Plain(group=("g",), sample="s")
    for column, row, says in (
        (pa.array([0.5, None, float("nan"), float("nan")]), 2, "'s' is NaN, expected a number or a string"),
        (pa.array([b"a", b"b", b"c", b"d"]), 0, "'s' is b'a', expected a number or a string"),
    ):
        assert refusal(outcomes_of_columns, {"g": pa.array([1] * 4), "s": column}, plain) == (row, says)
    floats = pa.array([0.5, None, 1.5, 0.5])
    found = outcomes_of_columns({"g": pa.array([1] * 4), "s": floats}, plain)
    assert found.sample is not None
    assert found.sample.equals(floats)


def test_the_kinds_of_keys_have_names() -> None:
    kinds = (pa.int8(), pa.uint64(), pa.float32(), pa.string(), pa.large_string())
    named = ["a whole number"] * 2 + ["a float"] + ["a string"] * 2
    assert [key_kind(kind) for kind in kinds] == named
