"""Equal keys have equal numbers in every batch, different keys different ones, of any type and length.

Suffix legend: N rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import drift_weights.group_numbers
from drift_weights.group_numbers import GroupNumbers, _mix, _run_starts

# Lengths around what is hashed in words of eight bytes, and around what is hashed one by one.
LENGTHS = [0, 1, 7, 8, 9, 15, 16, 17, 24, 255, 256, 257, 300]


def assert_one_number_a_key(numbers: Sequence[int], keys: Sequence[Hashable]) -> None:
    """The numbers 0 … G−1, one each."""
    pairs = set(zip(keys, numbers, strict=True))
    assert len(pairs) == len(set(keys)) == len(set(numbers))
    assert set(numbers) == set(range(len(pairs)))


def texts() -> st.SearchStrategy[str]:
    made = st.tuples(st.sampled_from(["a", "b", "\0", "é"]), st.sampled_from(LENGTHS), st.text(max_size=2))
    return made.map(lambda parts: parts[0] * parts[1] + parts[2])


KINDS: list[tuple[st.SearchStrategy[Any], pa.DataType]] = [
    (texts(), pa.string()),
    (texts(), pa.large_string()),
    (st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), pa.int64()),
    (st.integers(0, 9), pa.int8()),
    (st.integers(0, 2**64 - 1) | st.integers(2**63 - 2, 2**63 + 2), pa.uint64()),
    (st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0]), pa.float64()),
    (st.booleans(), pa.bool_()),
]


@pytest.mark.parametrize(("values", "kind"), KINDS, ids=lambda value: str(value)[:12])
@given(data=st.data())
def test_batches_of_keys_share_their_numbers(
    values: st.SearchStrategy[Any], kind: pa.DataType, data: st.DataObject
) -> None:
    batches = data.draw(st.lists(st.lists(values, max_size=12), min_size=1, max_size=4))
    numbers = GroupNumbers()
    found: list[int] = []
    for batch in batches:
        # A slice, as readers hand them out: rows before it must not be read.
        column = pa.array([*batch[:1], *batch], kind)[len(batch[:1]) :]
        code_N = numbers.number([column])
        assert code_N.dtype == np.int32
        found += code_N.tolist()
    keys = [key for batch in batches for key in batch]
    assert_one_number_a_key(found, keys)
    assert len(numbers) == len(set(keys))


@given(st.lists(st.tuples(texts(), st.integers(0, 2), texts()), min_size=1, max_size=12))
@example([("a", 1, "b"), ("b", 1, "a"), ("a", 0, "b"), ("ab", 1, ""), ("", 1, "ab")])
def test_each_column_is_a_part_of_the_key_in_its_place(keys: list[tuple[str, int, str]]) -> None:
    columns = [pa.array([key[place] for key in keys]) for place in range(3)]
    assert_one_number_a_key(GroupNumbers().number(columns).tolist(), keys)


def test_no_zero_or_length_makes_two_keys_one() -> None:
    keys = ["", "\0", "\0\0", "a", "a\0", "a" * 8, "a" * 8 + "\0", "\0" * 8, "\0" * 256, "\0" * 257]
    keys += ["x" * n for n in range(2, 600)]
    assert_one_number_a_key(GroupNumbers().number([pa.array(keys)]).tolist(), keys)


def test_a_keys_hash_does_not_depend_on_its_neighbours() -> None:
    numbers = GroupNumbers()
    keys = ["x" * n for n in LENGTHS]
    together = numbers.hash([pa.array(keys)])
    assert together.shape == (len(keys), 2)
    for row, key in enumerate(keys):
        for alone in (pa.array([key]), pa.array([key], pa.large_string())):
            assert numbers.hash([alone]).tolist() == [together[row].tolist()]


def test_both_words_of_a_hash_tell_keys_apart() -> None:
    numbers = GroupNumbers()
    for column in (pa.array(range(5000)), pa.array([str(n) for n in range(5000)])):
        hash_N2 = numbers.hash([column])
        assert len(np.unique(hash_N2[:, 0])) == len(np.unique(hash_N2[:, 1])) == 5000
        # Low bits choose the slot: they must be spread, or the table degenerates into a list.
        filled = len(np.unique(hash_N2[:, 0] & np.uint64(4095)))
        assert 2500 < filled < 3300


def test_seeds_are_drawn_anew_and_change_no_number() -> None:
    column = pa.array(["a", "b", "a"])
    first, second = GroupNumbers(), GroupNumbers()
    assert first.hash([column]).tolist() != second.hash([column]).tolist()
    assert first.number([column]).tolist()[0] == first.number([column]).tolist()[2]
    assert_one_number_a_key(second.number([column]).tolist(), ["a", "b", "a"])


def test_growing_over_many_batches_forgets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_weights.group_numbers, "_CHUNK", 1000)
    numbers = GroupNumbers()
    first: dict[int, int] = {}
    order = np.random.default_rng(3).permutation(20_000)
    for size in (1, 900, 124, 1025, 2950, 15_000):
        batch = order[len(first) : len(first) + size]
        code_N = numbers.number([pa.array(batch)])
        assert sorted(code_N.tolist()) == list(range(len(first), len(first) + size))
        first |= dict(zip(batch.tolist(), code_N.tolist(), strict=True))
        assert len(numbers) == len(first)
        known = np.fromiter(first, np.int64)
        assert numbers.number([pa.array(known)]).tolist() == list(first.values())
    assert len(numbers) == 20_000


def test_keys_that_ask_for_one_slot_still_get_numbers_of_their_own() -> None:
    """The last slots of the table, so that the search has to go round its end."""
    numbers = GroupNumbers()
    full = np.uint64(2**64 - 1)
    hash_N2 = np.stack([np.full(50, full), np.arange(50, dtype=np.uint64)], axis=1)
    numbers._reserve(50)
    code_N = numbers._find(hash_N2)
    assert sorted(code_N.tolist()) == list(range(50))
    numbers._reserve(10_000)
    assert numbers._find(hash_N2[::-1]).tolist() == code_N[::-1].tolist()
    # Keys that share the other word only are different, too.
    other = np.stack([np.arange(50, dtype=np.uint64), np.zeros(50, np.uint64)], axis=1)
    assert sorted(numbers._find(other).tolist()) == list(range(50, 100))


def test_a_key_in_the_way_of_another_is_not_pushed_out_when_the_table_grows() -> None:
    """The first key stands where the third has to go, since the second is in the third's own place."""
    numbers = GroupNumbers()
    hash_N2 = np.array([[6, 0], [5, 1], [5, 2], [6, 3]], np.uint64)
    for row in range(4):
        assert numbers._find(hash_N2[row : row + 1]).tolist() == [row]
    numbers._reserve(50_000)
    assert numbers._find(hash_N2).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("length", [8, 16, 64])
def test_keys_of_one_length_are_the_keys_they_are_among_others(kind: pa.DataType, length: int) -> None:
    keys = [f"{row:0{length}}" for row in range(50)]
    numbers = GroupNumbers()
    assert_one_number_a_key(numbers.number([pa.array(keys, kind)]).tolist(), keys)
    codes = numbers.number([pa.array(keys, kind)]).tolist()
    assert numbers.number([pa.array(keys, kind)[20:]]).tolist() == codes[20:]
    assert numbers.number([pa.array([*keys, "", "x" * 9], kind)]).tolist()[:-2] == codes
    assert [numbers.number([pa.array([key], kind)]).tolist() for key in keys] == [[code] for code in codes]


def test_a_full_table_takes_one_key_more() -> None:
    numbers = GroupNumbers()
    assert_one_number_a_key(numbers.number([pa.array(range(1024))]).tolist(), range(1024))
    for key in range(1024, 1300):
        assert numbers.number([pa.array([key])]).tolist() == [key]
    assert sorted(numbers.number([pa.array(range(1300))]).tolist()) == list(range(1300))


def test_the_order_of_the_columns_counts() -> None:
    numbers = GroupNumbers()
    first, second = pa.array(["a", "b", "a"]), pa.array(["b", "a", "b"])
    code_N = numbers.number([first, second])
    assert code_N[0] == code_N[2]
    assert code_N[0] != code_N[1]
    assert numbers.number([second, first]).tolist() == [code_N[1], code_N[0], code_N[1]]


def test_mixing_is_a_bijection_that_reaches_the_bits_that_choose_a_slot() -> None:
    random = np.random.default_rng(7).integers(0, 2**64, 100, np.uint64)
    ones = [np.uint64(1) << np.uint64(bit) for bit in range(64)]
    flips = np.array([0, *ones, *(a | b for a in ones for b in ones if a < b)], np.uint64)
    assert _mix(np.zeros(1, np.uint64)).tolist() == [0]
    for word in random[:5]:
        assert len(np.unique(_mix(word ^ flips))) == len(flips)
    mixed = _mix(random.copy())
    assert 0.3 < np.mean(mixed >> np.uint64(63)) < 0.7
    for one in ones:
        assert ((_mix(random ^ one) ^ mixed) & np.uint64(4095)).any()


def test_a_table_is_of_32_bit_numbers_before_and_after_it_grows() -> None:
    numbers = GroupNumbers()
    for keys in (10, 10_000):
        numbers.number([pa.array(range(keys))])
        assert numbers._slots.dtype == np.int32
        assert len(numbers._slots) >= 2 * keys


def test_whole_numbers_are_one_key_in_types_of_any_width_and_never_two() -> None:
    numbers = GroupNumbers()
    wide = numbers.number([pa.array([5, 2**63, 2**64 - 1, 2**64 - 5], pa.uint64())]).tolist()
    narrow = numbers.number([pa.array([5, -(2**63), -1, -5], pa.int64())]).tolist()
    assert wide[0] == narrow[0]
    assert len({*wide, *narrow}) == 7
    assert numbers.number([pa.array([5, -1], pa.int8())]).tolist() == [narrow[0], narrow[2]]


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "cc", "", "d" * 300]), st.integers(1, 9)), max_size=30)
)
def test_rows_of_a_group_that_stand_together_are_numbered_like_any_others(
    runs: list[tuple[str, int]],
) -> None:
    keys = [key for key, rows in runs for _ in range(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift_weights.group_numbers, "_LOOK", 2)
        together = GroupNumbers()
        code_N = together.number([pa.array(keys, pa.string())]).tolist()
    apart = [int(together.number([pa.array([key])])[0]) for key in keys]
    assert code_N == apart
    assert len(together) == len(set(keys))


def runs_of(keys: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    return [key for key, length in zip(keys, lengths, strict=True) for _ in range(length)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), min_size=1, max_size=12))
def test_groups_that_stand_together_are_the_groups_that_stand_apart(runs: list[tuple[str, int]]) -> None:
    keys = runs_of([key for key, _ in runs], [length for _, length in runs])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift_weights.group_numbers, "_LOOK", 2)
        numbers = GroupNumbers()
        code_N = numbers.number([pa.array(keys), pa.array([key < "b" for key in keys])])
        together = numbers.hash([pa.array(keys)])
    assert code_N.dtype == np.int32
    assert_one_number_a_key(code_N.tolist(), keys)
    assert together.tolist() == [numbers.hash([pa.array([key])])[0].tolist() for key in keys]


@pytest.mark.parametrize("rows", [511, 512, 513, 2000])
def test_a_long_batch_in_runs_of_any_length(rows: int) -> None:
    """The first key once, the last once, and one that comes back after others."""
    lengths = [1, 7, 300, 2, 1, 60, 3]
    keys = runs_of(["k", "a", "b", "a", "c", "b", "d"], lengths)
    keys += [f"x{row // 9}" for row in range(rows - len(keys) - 1)] + ["k"]
    assert len(keys) == rows
    numbers = GroupNumbers()
    code_N = numbers.number([pa.array(keys)]).tolist()
    assert_one_number_a_key(code_N, keys)
    assert numbers.number([pa.array(keys[::-1])]).tolist() == code_N[::-1]
    singly = [numbers.number([pa.array([key])]).tolist()[0] for key in keys[:20] + keys[-20:]]
    assert singly == code_N[:20] + code_N[-20:]


def test_looking_for_runs_gives_up_where_most_keys_differ() -> None:
    words = np.arange(2000, dtype=np.uint64)[:, None]
    assert _run_starts(words) is None
    assert _run_starts(words // 3) is not None
    assert _run_starts(np.zeros((511, 1), np.uint64)) is None
    assert np.asarray(_run_starts(np.zeros((512, 1), np.uint64))).tolist() == [0]
    pairs = np.column_stack([words // 4, words // 6])
    expected = [row for row in range(2000) if row % 4 == 0 or row % 6 == 0]
    assert np.asarray(_run_starts(pairs)).tolist() == expected
