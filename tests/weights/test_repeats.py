"""A sample that a group holds twice is found, however the samples look and wherever the batches end.

Suffix legend: N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import drift_weights.repeats
from drift_weights.repeats import Repeats

SAMPLES: dict[str, tuple[st.SearchStrategy[Any], pa.DataType]] = {
    "small": (st.integers(0, 70), pa.int64()),
    "any": (st.integers(60, 68) | st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1), pa.int64()),
    "uint8": (st.integers(0, 255), pa.uint8()),
    "uint64": (st.integers(0, 70) | st.integers(2**63 - 2, 2**63 + 2), pa.uint64()),
    "int8": (st.integers(-128, 127), pa.int8()),
    "text": (st.text(max_size=3), pa.string()),
    "float": (st.floats(allow_nan=False).map(lambda x: x + 0.0), pa.float64()),
}


@pytest.mark.parametrize("kind", SAMPLES)
@given(data=st.data())
def test_found_are_exactly_the_groups_that_hold_a_sample_twice(kind: str, data: st.DataObject) -> None:
    values, type_ = SAMPLES[kind]
    row = st.tuples(st.integers(0, 5), values | st.none())
    batches = data.draw(st.lists(st.lists(row, max_size=8), max_size=4))
    repeats = Repeats()
    for batch in batches:
        code_N = np.array([code for code, _ in batch], np.int32)
        repeats.add(code_N, pa.array([sample for _, sample in batch], type_), 0, 6)
    counted = Counter(row for batch in batches for row in batch if row[1] is not None)
    twice = {code for (code, _), count in counted.items() if count > 1}
    found = repeats.first_group()
    assert found in twice if twice else found is None


def test_the_ends_of_the_small_numbers() -> None:
    for sample in (0, 1, 62, 63, 64, 65, -1):
        repeats = Repeats()
        repeats.add(np.array([0, 1, 2], np.int32), pa.array([sample, sample, sample]), 0, 3)
        assert repeats.first_group() is None
        repeats.add(np.array([2], np.int32), pa.array([sample]), 3, 3)
        assert repeats.first_group() == 2
        assert repeats.first_group() == 2


def test_groups_that_come_later_have_no_samples_yet() -> None:
    repeats = Repeats()
    for groups in range(1, 40):
        repeats.add(np.array([groups - 1], np.int32), pa.array([5]), groups, groups)
    assert repeats.first_group() is None
    repeats.add(np.array([38], np.int32), pa.array([5]), 39, 39)
    assert repeats.first_group() == 38


def test_samples_on_disk_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_weights.repeats, "_AT_ONCE", 10)
    for group in range(7):
        repeats = Repeats()
        rows = [(code, f"{sample}") for code in range(7) for sample in range(5)]
        for code, sample in rows:
            repeats.add(np.array([code], np.int32), pa.array([sample]), 0, 7)
        assert repeats.first_group() is None
        repeats.add(np.array([group], np.int32), pa.array(["0"]), 0, 7)
        assert repeats.first_group() == group


def test_null_samples_are_not_compared() -> None:
    for column in (pa.nulls(3), pa.array([None] * 3, pa.int64()), pa.array([None] * 3, pa.string())):
        repeats = Repeats()
        repeats.add(np.zeros(3, np.int32), column, 0, 1)
        assert repeats.first_group() is None


class Hashing:
    """Hands out hashes made by hand."""

    def __init__(self, hash_N2: list[list[int]]) -> None:
        self.hash_N2 = np.array(hash_N2, np.uint64)

    def hash(self, columns: Sequence[pa.Array]) -> NDArray[np.uint64]:
        return self.hash_N2


@pytest.mark.parametrize(
    ("hashes", "found"),
    [
        ([[1, 5], [2, 5], [1, 6], [2, 6]], None),
        # Sorted by one word alone the two that are equal would not lie side by side.
        ([[1, 5], [2, 5], [1, 5], [2, 6]], 0),
        ([[5, 1], [5, 2], [5, 1], [6, 2]], 0),
    ],
)
def test_samples_are_one_only_where_both_words_of_their_hashes_are(
    hashes: list[list[int]], found: int | None
) -> None:
    repeats = Repeats()
    repeats._hashing = Hashing(hashes)
    repeats.add(np.zeros(4, np.int32), pa.array(["a", "b", "c", "d"]), 0, 1)
    assert repeats.first_group() == found


def test_many_samples_go_to_disk() -> None:
    repeats = Repeats()
    for first, on_disk in ((100, False), (10**6, True)):
        samples = np.arange(first, first + 800_000)
        repeats.add(np.zeros(800_000, np.int32), pa.array(samples), 0, 1)
        assert repeats._others._rolled == on_disk
    assert repeats.first_group() is None
