"""Rows of a table obey the same rules as the records, wherever they come from."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given

from drift_weights import TRAJECTORIES, Trajectory, check_trajectories, from_table, to_table, weighted_turns
from rows import trajectory
from strategies import trajectories

GOOD = trajectory("g", 0, ["a", None], ended="solved")


@given(trajectories())
def test_every_valid_record_passes(record: Trajectory) -> None:
    assert list(from_table(check_trajectories(to_table([record])))) == [record]


def turn(number: int, **changes: Any) -> Any:
    """GOOD's row with one of its turns changed."""

    def change(row: dict[str, Any]) -> None:
        row["turns"][number].update(changes)

    return change


def put(**changes: Any) -> Any:
    return lambda row: row.update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (turn(2, verdict="Correct"), "a verdict is not one of correct, wrong"),
        (turn(2, verdict=None), "a verdict is not one of"),
        (turn(0, finish_reason=None), "a finish_reason is not stop"),
        (turn(0, response=None), "a response is null"),
        (turn(1, answer="b"), "a malformed turn has an answer"),
        (turn(0, answer=None), "a correct or wrong turn has no answer"),
        (turn(0, verdict="correct"), "a correct turn is not the last"),
        (turn(0, verdict="timeout"), "a timeout or error is not the last turn"),
        (turn(0, feedback=None), "a turn before the last has no feedback"),
        (turn(2, feedback="again"), "feedback after the last turn"),
        (turn(2, verdict="wrong"), "`ended` contradicts"),
        (turn(2, verdict="timeout"), "`ended` contradicts"),
        (put(ended="budget"), "`ended` contradicts"),
        (put(ended="tired"), "`ended` contradicts"),
        (put(turns=[]), "it has no turns"),
        (put(max_turns=2), "more turns than max_turns"),
    ],
)
def test_a_broken_row_is_refused_by_both_readers(change: Any, says: str) -> None:
    rows = to_table([trajectory("g", 1, ["a"]), GOOD]).to_pylist()
    change(rows[1])
    table = pa.Table.from_pylist(rows, schema=TRAJECTORIES)
    with pytest.raises(ValueError, match=f"row 1: .*{says}"):
        check_trajectories(table)
    with pytest.raises(ValueError, match="row 1"):
        weighted_turns(table)
    with pytest.raises(ValueError, match="row 1"):
        list(from_table(table))


def test_slices_and_chunks_are_checked_where_they_stand() -> None:
    rows = [trajectory("g", sample, ["a", "b"]) for sample in range(4)]
    table = pa.concat_tables([to_table(rows[:1]), to_table(rows).slice(1, 3)])
    assert check_trajectories(table).num_rows == 4
