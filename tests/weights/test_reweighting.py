"""reweight and weighted_turns: tables in, weights out, whatever the order; bad input is named."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_weights import (
    Columns,
    WeightConfig,
    from_table,
    group_weights,
    reweight,
    to_table,
    trajectory_return,
    weighted_turns,
)
from rows import LOG, trajectory

ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=5)


DATA = st.lists(
    st.lists(st.tuples(ANSWERS, st.booleans()), min_size=1, max_size=5), min_size=1, max_size=4
).map(
    lambda groups: [
        trajectory(f"g{g}", k, answers, ended="solved" if solved else "budget")
        for g, rows in enumerate(groups)
        for k, (answers, solved) in enumerate(rows)
    ]
)


@given(DATA, st.sampled_from(["count", "skip"]), st.randoms())
@settings(deadline=None)
def test_weighted_turns_equal_the_records_own_arithmetic(data, malformed, random) -> None:
    random.shuffle(data)
    table, made = weighted_turns(to_table(data), WeightConfig(malformed=malformed))
    # The oracle counts on the records, one by one; the package on flattened Arrow columns.
    returns = [
        trajectory_return(
            [t.solved],
            [t.length],
            [t.unique_answers(malformed)],
            counted_N=[t.counted_turns(malformed)],
        )[0]
        for t in data
    ]
    assert table.column("return").to_pylist() == returns
    expected = group_weights(returns, [(t.prompt_id, t.round, t.policy) for t in data])
    assert table.column("weight").to_pylist() == list(expected)
    assert table.column("unique_answers").to_pylist() == [t.unique_answers(malformed) for t in data]
    assert table.column("length").to_pylist() == [t.length for t in data]
    assert made["weighting"]["malformed"] == malformed


@given(DATA)
@settings(deadline=None)
def test_only_the_terminal_turn_is_kept_with_its_whole_history(data) -> None:
    table, _ = weighted_turns(to_table(data))
    for row, record in zip(table.to_pylist(), data, strict=True):
        assert row["completion"] == [{"role": "assistant", "content": record.turns[-1].response}]
        assert [(m["role"], m["content"]) for m in row["prompt"]] == [
            (m.role, m.content) for m in record.terminal_prompt
        ]
        assert len(row["prompt"]) == 1 + 2 * (record.length - 1)
        assert row["group_size"] == sum(other.prompt_id == record.prompt_id for other in data)


def test_groups_with_an_unscored_row_are_left_out_whole_and_listed() -> None:
    data = [trajectory("g", 0, ["a"]), trajectory("g", 1, ["a"], ended="error"), trajectory("h", 0, ["b"])]
    table, made = weighted_turns(to_table(data))
    assert table.column("prompt_id").to_pylist() == ["h"]
    assert made["omitted_groups"] == [{"prompt_id": "g", "round": 0, "policy": "p"}]
    with pytest.raises(ValueError, match="sample them again"):
        weighted_turns(to_table(data[:2]))


def test_duplicate_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 keys appear more than once.*'g'"):
        weighted_turns(to_table([trajectory("g", 0, ["a"]), trajectory("g", 0, ["b"])]))


def test_a_group_smaller_than_declared_is_refused() -> None:
    data = [trajectory("g", 0, ["a"]), trajectory("g", 1, ["a"]), trajectory("h", 0, ["b"])]
    with pytest.raises(
        ValueError, match="row 2: its group has 1 rows, 1 of 2 groups do not have the declared 2 rows"
    ):
        weighted_turns(to_table(data), WeightConfig(group_size=2))


def log(**changes) -> pa.Table:
    return pa.table(LOG | changes)


def test_rows_keep_their_order_and_columns() -> None:
    out = reweight(log(extra=["w", "x", "y", "z"]))
    assert out.column_names == ["prompt_id", "correct", "length", "unique", "extra", "weight"]
    returns = trajectory_return(LOG["correct"], LOG["length"], LOG["unique"])
    assert out.column("weight").to_pylist() == list(group_weights(returns, LOG["prompt_id"]))


def test_a_return_column_is_taken_as_it_is() -> None:
    out = reweight(pa.table({"g": [1, 1], "r": [0.5, 0.25]}), columns=Columns(group="g", return_column="r"))
    assert out.column("weight").to_pylist() == list(group_weights([0.5, 0.25], [1, 1]))


def test_without_length_and_unique_every_row_is_one_turn() -> None:
    out = reweight(pa.table({"prompt_id": ["a", "a"], "correct": [True, False]}))
    assert out.column("weight").to_pylist() == list(group_weights([1.0, 0.0], [0, 0]))


def test_a_threshold_makes_scores_into_verdicts() -> None:
    scores = pa.table({"prompt_id": ["a", "a"], "correct": [0.7, 0.2]})
    with pytest.raises(ValueError, match=r"row 0: 'correct' is 0.7, neither 0 nor 1.*threshold"):
        reweight(scores)
    out = reweight(scores, columns=Columns(threshold=0.5))
    assert out.column("weight").to_pylist() == list(group_weights([1.0, 0.0], [0, 0]))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (log().slice(0, 0), "no rows"),
        (log().drop_columns(["prompt_id"]), "no column 'prompt_id'"),
        (log().drop_columns(["unique"]), "'unique' is not; name both or neither"),
        (log(prompt_id=["a", None, "a", "b"]), "row 1: 'prompt_id' is null"),
        (log(correct=[1, 0, None, 0]), "row 2: 'correct' is null"),
        (log(length=[1, 0, 5, 5]), "row 1: length must lie in 1"),
        (log(unique=[2, 5, 3, 1]), "row 0: unique must not exceed"),
        (log(length=[1.5, 5, 5, 5]), "row 0: 'length' is 1.5, expected a whole number"),
        (log(correct=["1", "0", "0", "0"]), "row 0: 'correct' is '1', expected a number"),
        (log(weight=[1.0] * 4), "'weight' already"),
    ],
)
def test_bad_tables_are_refused_by_row_and_column(table: pa.Table, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reweight(table)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_return_that_is_not_finite_is_refused(value: float) -> None:
    table = pa.table({"prompt_id": ["a", "a"], "r": [0.5, value]})
    with pytest.raises(ValueError, match="row 1: return must be finite"):
        reweight(table, columns=Columns(return_column="r"))


@pytest.mark.parametrize(
    "config", [{"beta": 0.0}, {"beta": -1.0}, {"gamma": 0.0}, {"gamma": 1.1}, {"lam": -0.1}]
)
def test_parameters_out_of_range_are_refused(config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(config))} must"):
        reweight(log(), WeightConfig(**config))


def test_an_unknown_object_is_refused() -> None:
    with pytest.raises(TypeError, match="pass an Arrow table"):
        reweight([{"prompt_id": "a"}])


def test_the_round_trip_keeps_every_field() -> None:
    data = [trajectory("g", 0, ["a", None]), trajectory("g", 1, ["b"], ended="solved")]
    assert list(from_table(to_table(data))) == data


def test_rounds_and_policies_are_groups_of_their_own_unless_named_away() -> None:
    mixed = pa.table(
        {
            "prompt_id": ["a"] * 4,
            "round": [0, 0, 0, 1],
            "policy": ["x", "x", "y", "x"],
            "correct": [1, 0, 0, 0],
        }
    )
    apart = reweight(mixed).column("weight").to_pylist()
    assert apart[2:] == [1.0, 1.0]
    assert sum(apart[:2]) == pytest.approx(2)
    together = reweight(mixed, columns=Columns(group="prompt_id")).column("weight").to_pylist()
    assert together == list(group_weights([1.0, 0, 0, 0], [0] * 4))
    pair = reweight(mixed, columns=Columns(group=("prompt_id", "round"))).column("weight").to_pylist()
    assert pair == list(group_weights([1.0, 0, 0, 0], [0, 0, 0, 1]))


def test_a_sample_twice_in_a_group_is_refused() -> None:
    table = pa.table({"prompt_id": ["a", "b", "a"], "sample": [0, 0, 0], "correct": [1, 0, 0]})
    with pytest.raises(ValueError, match="row 2: sample 0 of its group is in row 0 already"):
        reweight(table)


def test_other_columns_are_never_touched() -> None:
    table = log(blob=pa.array([b"\xff", b"", None, b"x"]), nothing=pa.nulls(4))
    assert reweight(table).drop_columns(["weight"]).equals(table)
