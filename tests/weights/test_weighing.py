"""Weights of a whole ledger: what is left out, what is refused, and that batches do not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from drift_weights.ledger import Ledger
from drift_weights.outcomes import Outcomes, RowError
from drift_weights.reweighting import ledger_of
from drift_weights.weighing import Weighing, WeightConfig
from drift_weights.weights import group_weights

R = [1.0, 0.0, 0.5, -0.5, 0.25, 0.75]
KEYS = ["a", "b", "a", "c", "b", "a"]
RIGHT = [True, False, False, False, False, True]


def outcomes(first: int, last: int, unscored: str = "", **changes: Any) -> Outcomes:
    """Rows `first` to `last` of the log above; the rows of the groups in `unscored` have no verdict."""
    ones = np.ones(last - first, np.int64)
    fields: dict[str, Any] = {
        "key_columns": (pa.array(KEYS[first:last], pa.string()),),
        "solved_N": np.array(RIGHT[first:last], bool),
        "length_N": ones,
        "unique_N": ones,
        "counted_N": ones,
        "return_N": np.array(R[first:last]),
        "unscored_N": np.array([key in unscored for key in KEYS[first:last]], bool),
    }
    return Outcomes(**fields | changes)


def log(unscored: str = "") -> Ledger:
    """The log in two batches."""
    return ledger_of(lambda: [outcomes(0, 2, unscored), outcomes(2, 6, unscored)])


def kept(weighing: Weighing) -> list[bool]:
    flags = [batch.keep_N for batch in weighing.batches()]
    assert all(flag is not None for flag in flags)
    return [bool(value) for flag in flags for value in np.asarray(flag)]


def test_batches_are_weighed_as_one_log() -> None:
    weighing = Weighing(log(), WeightConfig(beta=0.3))
    batches = list(weighing.batches())
    assert [batch.entry.first_row for batch in batches] == [0, 2]
    assert [batch.keep_N for batch in batches] == [None, None]
    assert np.concatenate([batch.return_N for batch in batches]).tolist() == R
    expected = group_weights(R, KEYS, beta=0.3).tolist()
    assert np.concatenate([batch.weight_N for batch in batches]).tolist() == expected
    assert weighing.all_wrong == 0


def test_gamma_and_lambda_reach_the_returns() -> None:
    four = outcomes(0, 2, length_N=np.array([4, 4]), counted_N=np.array([4, 4]), return_N=None)
    weighing = Weighing(ledger_of(lambda: [four]), WeightConfig(gamma=0.5, lam=2.0))
    (batch,) = weighing.batches()
    # R = 1[solved]·0.5³ − 2·(1 − 1/4).
    assert batch.return_N.tolist() == [0.125 - 1.5, -1.5]


def test_groups_without_a_success_are_dropped_only_when_asked() -> None:
    assert [batch.keep_N for batch in Weighing(log(), WeightConfig()).batches()] == [None, None]
    weighing = Weighing(log(), WeightConfig(all_wrong="drop"))
    assert kept(weighing) == [key == "a" for key in KEYS]
    assert weighing.all_wrong == 2
    weighed = np.concatenate([batch.weight_N for batch in weighing.batches()])
    everything = group_weights(R, KEYS)
    assert [w for w, keep in zip(weighed, kept(weighing), strict=True) if keep] == [
        w for w, key in zip(everything, KEYS, strict=True) if key == "a"
    ]


def test_an_unscored_group_is_left_out_and_does_not_count_as_all_wrong() -> None:
    weighing = Weighing(log("c"), WeightConfig())
    assert kept(weighing) == [key != "c" for key in KEYS]
    assert weighing.all_wrong == 0
    assert Weighing(log("c"), WeightConfig(all_wrong="drop")).all_wrong == 1


LEFT_OUT = (
    "every one of 3 groups is left out ({} hold an unscored trajectory); sample them again before weighting"
)


def test_nothing_left_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r".") as error:
        Weighing(log("abc"), WeightConfig())
    assert str(error.value) == LEFT_OUT.format(3)
    with pytest.raises(ValueError, match=r".") as error:
        Weighing(log("a"), WeightConfig(all_wrong="drop"))
    assert str(error.value) == LEFT_OUT.format(1)


def test_a_log_without_rows_is_refused() -> None:
    for batches in ([], [outcomes(0, 0)]):
        with pytest.raises(ValueError, match=r".") as error:
            Weighing(ledger_of(lambda batches=batches: batches), WeightConfig())
        assert str(error.value) == "there are no rows"


def test_all_wrong_groups_of_a_log_without_verdicts_are_not_guessed() -> None:
    book = ledger_of(lambda: [outcomes(0, 6, solved_N=None)])
    with pytest.raises(ValueError, match=r".") as error:
        Weighing(book, WeightConfig(all_wrong="drop"))
    assert str(error.value) == "the log does not say which rows are right, so all-wrong groups are unknown"
    assert len(list(Weighing(book, WeightConfig()).batches())) == 1


SIZE = (
    "its group has {} rows, {} of {} groups do not have the declared {} rows; complete them, or leave the "
    "group size undeclared"
)


@pytest.mark.parametrize(
    ("unscored", "size", "row", "says"),
    [
        ("", 3, 1, SIZE.format(2, 2, 3, 3)),
        ("", 1, 0, SIZE.format(3, 2, 3, 1)),
        # b and its two rows do not count: c, of the second batch, is the first that is refused.
        ("b", 3, 3, SIZE.format(1, 1, 2, 3)),
    ],
)
def test_groups_of_another_size_than_declared_are_refused(
    unscored: str, size: int, row: int, says: str
) -> None:
    with pytest.raises(RowError) as error:
        Weighing(log(unscored), WeightConfig(group_size=size))
    assert (error.value.row, error.value.says) == (row, says)


def test_groups_of_the_declared_size_pass_unscored_ones_aside() -> None:
    assert kept(Weighing(log("bc"), WeightConfig(group_size=3))) == [key == "a" for key in KEYS]
    one_each = ledger_of(lambda: [outcomes(0, 2)])
    (batch,) = Weighing(one_each, WeightConfig(group_size=1)).batches()
    assert batch.weight_N.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"malformed": "drop"}, "malformed must be count or skip, got 'drop'"),
        ({"all_wrong": "skip"}, "all_wrong must be keep or drop, got 'skip'"),
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
        ({"beta": 0.0}, "beta must be finite and above 0, got 0.0"),
        ({"beta": float("nan")}, "beta must be finite and above 0, got nan"),
        ({"beta": float("inf")}, "beta must be finite and above 0, got inf"),
        ({"gamma": 0.0}, "gamma must lie in (0, 1], got 0.0"),
        ({"gamma": 1.5}, "gamma must lie in (0, 1], got 1.5"),
        ({"lam": -1.0}, "lam must be finite and not negative, got -1.0"),
        ({"lam": float("inf")}, "lam must be finite and not negative, got inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        WeightConfig(**settings)
    assert str(error.value) == says


def test_settings_at_the_ends_of_their_ranges_pass() -> None:
    WeightConfig(beta=5e-324, gamma=1.0, lam=0.0, malformed="skip", all_wrong="drop", group_size=1)
