"""The contract on disk: records to tables and back, and every wrong column named at once."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.schema import TRAJECTORIES, WEIGHTED, check, from_table, to_table
from drift_weights.types import Message, Trajectory, Turn
from strategies import trajectories, weighted_tables

ONE = Trajectory(
    prompt_id="p",
    sample=0,
    policy="π",
    prompt=(Message(role="user", content="2 + 2?"),),
    target="4",
    turns=(Turn(response="4", answer="4", verdict="correct"),),
    max_turns=5,
    ended="solved",
)


@given(st.lists(trajectories(), min_size=1, max_size=4))
def test_trajectories_come_back_equal(written: list[Trajectory]) -> None:
    table = to_table(written)
    assert table.schema == TRAJECTORIES
    assert list(from_table(table)) == written


@given(st.lists(trajectories(), min_size=1, max_size=3))
def test_large_types_of_other_writers_are_the_same_types(written: list[Trajectory]) -> None:
    table = enlarged(to_table(written))
    assert pa.types.is_large_string(table.column("policy").type)
    assert pa.types.is_large_list(table.column("turns").type)
    assert check(table, TRAJECTORIES).schema == TRAJECTORIES
    assert list(from_table(table)) == written


def enlarged(table: pa.Table) -> pa.Table:
    """The table with large strings and large lists throughout, as polars writes them."""
    return table.cast(pa.schema([pa.field(f.name, large(f.type)) for f in table.schema]))


def large(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_list(kind):
        return pa.large_list(large(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, large(f.type)) for f in kind])
    return kind


def test_parquet_written_and_read_fits(tmp_path: Any) -> None:
    pq.write_table(enlarged(to_table([ONE])), tmp_path / "x.parquet")
    assert list(from_table(pq.read_table(tmp_path / "x.parquet"))) == [ONE]


def test_rows_stay_in_order_over_many_batches() -> None:
    rows = [Trajectory(**(fields(ONE) | {"sample": number})) for number in range(9000)]
    chunks = [to_table(rows[:10]), to_table(rows[10:5000]), to_table(rows[5000:])]
    assert [t.sample for t in from_table(pa.concat_tables(chunks))] == list(range(9000))


def fields(trajectory: Trajectory) -> dict[str, Any]:
    return {name: getattr(trajectory, name) for name in TRAJECTORIES.names}


def test_metadata_is_json_with_sorted_keys() -> None:
    rows = [Trajectory(**(fields(ONE) | {"metadata": {"b": "中", "a": [1, None]}}))]
    assert to_table(rows).column("metadata").to_pylist() == ['{"a": [1, null], "b": "中"}']


def test_every_wrong_column_is_named_in_one_message() -> None:
    table = to_table([ONE, ONE]).drop_columns(["ended", "logprobs"])
    table = replaced(table, "sample", pa.array(["a", "b"]))
    table = replaced(table, "max_turns", pa.array([5.0, 5.0]))
    table = replaced(table, "policy", pa.array(["π", None]))
    with pytest.raises(ValueError, match=r"rollouts\.parquet does not fit") as caught:
        check(table, TRAJECTORIES, source="rollouts.parquet")
    message = str(caught.value)
    assert "column 'ended' is missing (expected string)" in message
    assert "column 'logprobs' is missing (expected list<" in message
    assert "column 'sample' is string, expected int64" in message
    assert "column 'max_turns' is double, expected int32" in message
    assert "column 'policy' is null in row 1" in message
    assert message.count("column '") == 5


def replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


@pytest.mark.parametrize("name", TRAJECTORIES.names)
def test_each_missing_column_is_found(name: str) -> None:
    with pytest.raises(ValueError, match=f"column '{name}' is missing"):
        check(to_table([ONE]).drop_columns([name]), TRAJECTORIES)


@pytest.mark.parametrize("name", [f.name for f in TRAJECTORIES if not f.nullable])
def test_each_null_that_may_not_be_is_found(name: str) -> None:
    table = to_table([ONE])
    nulls = pa.nulls(1, TRAJECTORIES.field(name).type)
    with pytest.raises(ValueError, match=f"column '{name}' is null in row 0"):
        check(replaced(table, name, nulls), TRAJECTORIES)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.struct([("role", pa.string())])),
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.int32())])),
        pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())])),
        pa.list_(pa.string()),
        pa.string(),
    ],
)
def test_nested_types_are_held_against_the_schema_too(kind: pa.DataType) -> None:
    table = replaced(to_table([ONE]), "prompt", pa.nulls(1, kind))
    with pytest.raises(ValueError, match=r"column 'prompt' is .*, expected list<"):
        check(table, TRAJECTORIES)


def test_the_name_of_a_list_element_does_not_matter() -> None:
    column = pa.array([[1, 2]], pa.list_(pa.field("element", pa.int32())))
    assert check(replaced(to_table([ONE]), "token_ids", column), TRAJECTORIES).schema == TRAJECTORIES


def test_columns_come_in_the_schemas_order_and_others_are_kept_behind() -> None:
    table = to_table([ONE]).append_column("difficulty", pa.array([3]))
    shuffled = table.select(sorted(table.column_names))
    found = check(shuffled, TRAJECTORIES)
    assert found.column_names == [*TRAJECTORIES.names, "difficulty"]
    assert found.column("difficulty").to_pylist() == [3]
    assert list(from_table(shuffled)) == [ONE]


def test_an_empty_table_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"empty\.parquet has no rows"):
        check(TRAJECTORIES.empty_table(), TRAJECTORIES, source="empty.parquet")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("ended", "budget", "ended 'budget', but its last verdict is 'correct'"),
        ("max_turns", 0, "more than max_turns 0"),
        ("turns", [], "has no turns"),
        ("turns", [None], ""),
        ("metadata", "{torn", ""),
        ("metadata", "[1]", "metadata"),
        ("metadata", "null", "metadata"),
    ],
)
def test_a_row_that_is_no_trajectory_is_named(column: str, value: Any, message: str) -> None:
    rows = to_table([ONE, ONE, ONE]).to_pylist()
    rows[1][column] = value
    table = pa.Table.from_pylist(rows, schema=TRAJECTORIES)
    with pytest.raises(ValueError, match=rf"log\.parquet, row 1: .*{message}"):
        list(from_table(table, source="log.parquet"))


@given(weighted_tables())
def test_weighted_tables_fit_their_schema(table: pa.Table) -> None:
    assert check(table, WEIGHTED).equals(table)


def test_a_weight_is_never_null() -> None:
    assert not WEIGHTED.field("weight").nullable
    assert WEIGHTED.field("weight").type == pa.float64()


def test_a_number_that_json_cannot_hold_is_refused_when_written() -> None:
    row = Trajectory(**(fields(ONE) | {"metadata": {"score": float("nan")}}))
    with pytest.raises(ValueError, match=r"metadata|JSON"):
        to_table([row])
