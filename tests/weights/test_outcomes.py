"""Outcomes of the contract's own tables, and the ranges of eq. 12 that every outcome is held to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights import weighted_turns
from drift_weights.outcomes import (
    LONGEST,
    Outcomes,
    RowError,
    check_outcomes,
    group_keys,
    outcomes_of_trajectories,
    outcomes_of_weighted,
)
from drift_weights.schema import to_table
from drift_weights.types import Trajectory
from drift_weights.weighing import WeightConfig
from rows import trajectory
from strategies import trajectories

ROWS = Outcomes(
    key_columns=(pa.array(["a", "a", "b"]),),
    solved_N=np.array([True, False, False]),
    length_N=np.array([1, 5, LONGEST]),
    unique_N=np.array([1, 3, 0]),
    counted_N=np.array([1, 4, 0]),
)


def ints(*values: int) -> Any:
    return np.array(values)


def test_the_ends_of_the_ranges_are_inside() -> None:
    check_outcomes(ROWS)
    check_outcomes(replace(ROWS, return_N=np.array([-1e308, 0, 1e308]), penalty_N=np.zeros(3)))


@pytest.mark.parametrize(
    ("changes", "row", "says"),
    [
        ({"length_N": ints(1, 0, 5)}, 1, "length must lie in 1…1048575, got 0"),
        ({"length_N": ints(1, 5, LONGEST + 1)}, 2, "length must lie in 1…1048575, got 1048576"),
        ({"counted_N": ints(1, 6, 0)}, 1, "counted must lie in 0…length, got 6"),
        ({"counted_N": ints(1, 4, -1)}, 2, "counted must lie in 0…length, got -1"),
        ({"unique_N": ints(2, 3, 0)}, 0, "unique must not exceed the turns it counts, got 2"),
        ({"unique_N": ints(0, 3, 0)}, 0, "unique must be at least 1, got 0"),
        ({"unique_N": ints(1, 3, -1)}, 2, "unique must not be negative, got -1"),
        ({"return_N": np.array([0, np.nan, np.inf])}, 1, "return must be finite, got nan"),
        ({"penalty_N": np.array([0, 0, -np.inf])}, 2, "penalty must be finite, got -inf"),
    ],
)
def test_a_value_out_of_range_is_named(changes: dict[str, Any], row: int, says: str) -> None:
    with pytest.raises(RowError) as error:
        check_outcomes(replace(ROWS, **changes))
    assert (error.value.row, error.value.says) == (row, f"{says}; fix or drop its group")
    assert str(error.value) == f"row {row}: {says}; fix or drop its group"


@given(st.lists(trajectories(tokens=True), min_size=1, max_size=5), st.sampled_from(["count", "skip"]))
def test_the_outcomes_of_trajectories_are_the_records_own(data: list[Trajectory], malformed: Any) -> None:
    found = outcomes_of_trajectories(to_table(data), malformed)
    assert len(found) == len(data)
    assert list(zip(*(c.to_pylist() for c in found.key_columns), strict=True)) == [
        (t.prompt_id, t.round, t.policy) for t in data
    ]
    assert found.length_N.tolist() == [t.length for t in data]
    assert found.unique_N.tolist() == [t.unique_answers(malformed) for t in data]
    assert found.counted_N.tolist() == [t.counted_turns(malformed) for t in data]
    assert (np.asarray(found.solved_N).tolist()) == [t.solved for t in data]
    assert np.asarray(found.unscored_N).tolist() == [t.ended == "error" for t in data]
    assert np.asarray(found.tokens_N).tolist() == [len(t.token_ids or ()) for t in data]
    assert found.sample is not None
    assert found.sample.to_pylist() == [t.sample for t in data]


def test_one_row_without_token_ids_leaves_the_tokens_unknown() -> None:
    data = [trajectory("g", 0, ["a"]), trajectory("g", 1, ["b"])]
    assert outcomes_of_trajectories(to_table(data)).tokens_N is None


@given(
    st.lists(trajectories(scored=True, tokens=True), min_size=1, max_size=4),
    st.sampled_from(["count", "skip"]),
)
def test_weighted_turns_keep_the_outcomes_they_were_made_of(data: list[Trajectory], malformed: Any) -> None:
    data = [replace(t, sample=row) for row, t in enumerate(data)]
    source = outcomes_of_trajectories(to_table(data), malformed)
    table, _ = weighted_turns(to_table(data), WeightConfig(malformed=malformed))
    for shard in (table, pa.concat_tables([table.slice(0, 1), table.slice(1)])):
        found = outcomes_of_weighted(shard)
        for name in ("solved_N", "length_N", "unique_N", "counted_N", "tokens_N"):
            assert getattr(found, name).tolist() == getattr(source, name).tolist(), name
            assert getattr(found, name).dtype == getattr(source, name).dtype, name
        assert [c.to_pylist() for c in found.key_columns] == [c.to_pylist() for c in source.key_columns]
        assert found.sample is not None
        assert found.sample.to_pylist() == [t.sample for t in data]
        assert np.asarray(found.weight_N).tolist() == table.column("weight").to_pylist()
        assert np.asarray(found.penalty_N).tolist() == [0.0] * len(data)
        assert (found.return_N, found.unscored_N) == (None, None)
        assert group_keys(shard) == [(t.prompt_id, t.round, t.policy) for t in data]


def test_a_last_row_without_a_readable_turn_counts_as_none() -> None:
    data = [trajectory("g", 0, ["a", "a", "b"]), trajectory("g", 1, [None, None])]
    found = outcomes_of_trajectories(to_table(data), "skip")
    assert (found.unique_N.tolist(), found.counted_N.tolist()) == ([2, 0], [3, 0])
    found = outcomes_of_trajectories(to_table(data))
    assert (found.unique_N.tolist(), found.counted_N.tolist()) == ([2, 1], [3, 2])


def test_a_stored_penalty_is_read() -> None:
    table, _ = weighted_turns(to_table([trajectory("g", 0, ["a"])]))
    place = table.schema.get_field_index("penalty")
    changed = table.set_column(place, table.schema.field(place), pa.array([-0.1]))
    assert np.asarray(outcomes_of_weighted(changed).penalty_N).tolist() == [-0.1]
