"""Groups never mix, and no bit depends on the order of rows (M11); every kind of key is a key.

Suffix legend: N rows, G groups.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.weights import effective_sample_size, group_codes, group_weights
from strategies import KeyedReturns, betas, keyed_returns


def rows_of(table: KeyedReturns, keys: set[Hashable]) -> list[int]:
    """The positions of the rows whose group is among `keys`."""
    return [row for row, key in enumerate(table.group_N) if key in keys]


def bits(table: KeyedReturns, rows: list[int], beta: float) -> dict[int, str]:
    """The weight of each of these rows, given in this order, down to the last bit."""
    return_N, group_N = [table.return_N[i] for i in rows], [table.group_N[i] for i in rows]
    found = group_weights(return_N, group_N, beta=beta).tolist()
    return {row: weight.hex() for row, weight in zip(rows, found, strict=True)}


@given(keyed_returns(max_size=20), st.data(), betas())
def test_reordering_rows_changes_no_bit(table: KeyedReturns, data: st.DataObject, beta: float) -> None:
    rows = list(range(len(table.group_N)))
    shuffled = data.draw(st.permutations(rows))
    assert bits(table, shuffled, beta) == bits(table, rows, beta)


@given(keyed_returns(max_groups=6), st.data(), betas())
def test_sharding_by_group_and_joining_changes_no_bit(
    table: KeyedReturns, data: st.DataObject, beta: float
) -> None:
    keys = sorted(set(table.group_N), key=repr)
    shard_of = {key: data.draw(st.integers(0, 2)) for key in keys}
    joined: dict[int, str] = {}
    for shard in range(3):
        rows = rows_of(table, {key for key in keys if shard_of[key] == shard})
        if rows:
            joined |= bits(table, data.draw(st.permutations(rows)), beta)
    assert joined == bits(table, list(range(len(table.group_N))), beta)


def test_many_groups_of_sixteen_survive_many_orders_to_the_bit() -> None:
    """A sum in row order fails here: it differs in more than half of such groups."""
    generator = np.random.default_rng(5)
    return_N, group_N = generator.uniform(-0.4, 1.0, 3200), np.arange(3200) % 200
    first_N = group_weights(return_N, group_N)
    for _ in range(5):
        order = generator.permutation(3200)
        assert (group_weights(return_N[order], group_N[order]) == first_N[order]).all()


@given(keyed_returns(), st.data())
def test_a_group_does_not_see_the_returns_of_another(table: KeyedReturns, data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(table.group_N))
    elsewhere = [
        r if key == chosen else data.draw(st.floats(-100, 100))
        for key, r in zip(table.group_N, table.return_N, strict=True)
    ]
    changed = KeyedReturns(group_N=table.group_N, return_N=elsewhere)
    everything, mine = list(range(len(elsewhere))), rows_of(table, {chosen})
    before, after = bits(table, everything, 0.1), bits(changed, everything, 0.1)
    assert [before[row] for row in mine] == [after[row] for row in mine]


def test_prompt_round_and_policy_each_part_groups() -> None:
    keys = [("p", 0, "a"), ("p", 0, "b"), ("p", 1, "a"), ("q", 0, "a")]
    assert group_weights([0.0, 1.0, 0.5, -0.4], keys).tolist() == [1.0] * 4


def test_keys_of_different_types_are_different_groups() -> None:
    assert group_codes(["1", 1, ("1",), (1,)])[0].tolist() == [0, 1, 2, 3]


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20))
def test_groups_are_numbered_by_first_appearance_in_every_container(names: list[int]) -> None:
    seen = list(dict.fromkeys(names))
    expected = [seen.index(name) for name in names]
    for column in integer_columns(names):
        code_N, keys = group_codes(column)
        assert (code_N.tolist(), keys) == (expected, seen)


def integer_columns(names: list[int]) -> list[Any]:
    """One column of whole numbers in the containers that a log may come in."""
    half = len(names) // 2
    return [
        names,
        tuple(names),
        np.array(names),
        np.array(names, dtype=np.int8),
        np.array(names, dtype=object),
        [np.int32(name) for name in names],
        pa.array(names),
        pa.array([99, *names])[1:],
        pa.chunked_array([names[:half], names[half:]], type=pa.int64()),
        pa.array(names).dictionary_encode(),
    ]


@given(st.lists(st.text("ab中", max_size=2), min_size=1, max_size=20))
def test_text_keys_are_the_same_groups_in_every_container(names: list[str]) -> None:
    seen = list(dict.fromkeys(names))
    expected = [seen.index(name) for name in names]
    columns = [
        names,
        np.array(names),
        np.array(names, dtype=object),
        [np.str_(name) for name in names],
        pa.array(names),
        pa.array(names, pa.large_string()),
        pa.array(names).dictionary_encode(),
    ]
    for column in columns:
        code_N, keys = group_codes(column)
        assert (code_N.tolist(), keys) == (expected, seen)


def test_keys_come_back_as_plain_values() -> None:
    for column in ([np.int64(3)], np.array([3]), pa.array([3])):
        assert type(group_codes(column)[1][0]) is int


def test_a_categorical_column_counts_only_categories_that_occur() -> None:
    """A filtered or sorted categorical holds unused categories, and an order of its own."""
    column = pa.DictionaryArray.from_arrays(pa.array([2, 1, 2]), pa.array(["a", "b", "c"]))
    keys, ess_G = effective_sample_size([1.0, 1.0, 1.0], column)
    assert (keys, ess_G.tolist()) == (["c", "b"], [2.0, 1.0])


@pytest.mark.parametrize(
    "column",
    [
        ["a", None],
        np.array(["a", None], dtype=object),
        pa.array(["a", None]),
        pa.chunked_array([["a"], [None]]),
        pa.array([1.0, float("nan")]),
        pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", None])),
    ],
)
def test_a_null_key_is_refused_with_its_row(column: Any) -> None:
    with pytest.raises(ValueError, match="row 1: the group key is null"):
        group_codes(column)


def test_a_nested_column_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="pass tuples"):
        group_codes(pa.array([[1], [2]]))
