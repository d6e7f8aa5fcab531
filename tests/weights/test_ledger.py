"""The ledger gives every batch back as it came, numbers groups over all of them, and sums by group.

Suffix legend: N rows, G groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import drift_weights.ledger
from drift_weights.ledger import Ledger
from drift_weights.outcomes import LONGEST, Outcomes, RowError
from drift_weights.returns import trajectory_return
from drift_weights.weights import group_weights
from strategies import Counts, betas, counts, gammas, lams


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a log."""

    key: str
    counts: Counts
    penalty: float = 0.0
    unscored: bool = False


def rows() -> st.SearchStrategy[list[Row]]:
    made = st.builds(
        Row,
        key=st.sampled_from("abcdef"),
        counts=counts(skip=True),
        penalty=st.floats(-1, 1),
        unscored=st.sampled_from([False] * 5 + [True]),
    )
    return st.lists(made, min_size=1, max_size=30)


def batch(found: Sequence[Row], **changes: Any) -> Outcomes:
    made = Outcomes(
        key_columns=(pa.array([row.key for row in found], pa.string()),),
        solved_N=np.array([row.counts.solved for row in found], bool),
        length_N=np.array([row.counts.length for row in found], np.int64),
        unique_N=np.array([row.counts.unique for row in found], np.int64),
        counted_N=np.array([row.counts.counted for row in found], np.int64),
        unscored_N=np.array([row.unscored for row in found], bool),
    )
    return replace(made, **changes)


def ledger(*batches: Outcomes) -> Ledger:
    made = Ledger()
    for outcomes in batches:
        made.add(outcomes)
    return made


def of_key(book: Ledger, found: Sequence[Row], values_G: Any) -> dict[str, Any]:
    """What is said of each group, under its key."""
    code_N = np.concatenate([entry.code_N for entry in book.entries()]).tolist()
    said = [(row.key, values_G[code]) for row, code in zip(found, code_N, strict=True)]
    assert len(set(said)) == len({row.key for row in found})
    return dict(said)


@given(rows(), st.data())
def test_batches_come_back_in_order_with_one_number_a_group(found: list[Row], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(found)), max_size=3)))
    parts = [found[a:b] for a, b in zip([0, *cuts], [*cuts, len(found)], strict=True)]
    book = ledger(*map(batch, parts))
    for _ in range(2):
        entries = list(book.entries())
        assert [entry.first_row for entry in entries] == [0, *cuts]
        for entry, part in zip(entries, parts, strict=True):
            assert entry.solved_N.tolist() == [row.counts.solved for row in part]
            for place, name in ((2, "length"), (1, "unique"), (0, "counted")):
                assert entry.counts_N(place).tolist() == [getattr(row.counts, name) for row in part]
            assert (entry.penalty_N, entry.return_N, entry.weight_N, entry.tokens_N) == (None,) * 4
    keys = [row.key for row in found]
    assert (book.rows, book.groups) == (len(found), len(set(keys)))
    assert sorted(of_key(book, found, range(book.groups)).values()) == list(range(book.groups))
    assert of_key(book, found, book.size_G.tolist()) == Counter(keys)
    right = dict.fromkeys(keys, 0) | Counter(row.key for row in found if row.counts.solved)
    assert of_key(book, found, book.solved_G.tolist()) == right


@given(rows())
def test_left_out_are_groups_with_an_unscored_row_and_if_asked_those_without_a_success(
    found: list[Row],
) -> None:
    book = ledger(*(batch([row]) for row in found))
    keys = {row.key for row in found}
    unscored = {row.key for row in found if row.unscored}
    solved = {row.key for row in found if row.counts.solved}
    assert of_key(book, found, book.omitted_G().tolist()) == {key: key in unscored for key in keys}
    assert of_key(book, found, book.omitted_G(all_wrong=True).tolist()) == {
        key: key in unscored or key not in solved for key in keys
    }
    assert book.unscored == len(unscored)


@given(rows(), gammas(), lams())
def test_returns_are_eq_12_of_each_row_and_its_penalty(found: list[Row], gamma: float, lam: float) -> None:
    penalty_N = np.array([row.penalty for row in found])
    for penalty in (None, penalty_N):
        (entry,) = ledger(batch(found, penalty_N=penalty)).entries()
        expected = [
            trajectory_return(
                [row.counts.solved],
                [row.counts.length],
                [row.counts.unique],
                counted_N=[row.counts.counted],
                penalty_N=0.0 if penalty is None else row.penalty,
                gamma=gamma,
                lam=lam,
            )[0]
            for row in found
        ]
        assert entry.returns(gamma=gamma, lam=lam).tolist() == pytest.approx(expected, rel=1e-15, abs=1e-15)


def test_a_return_of_the_logs_own_takes_the_place_of_eq_12() -> None:
    found = [Row(key="a", counts=Counts(solved=True, length=1, unique=1, counted=1))] * 3
    (entry,) = ledger(batch(found, return_N=np.array([0.25, -3.0, 1e300]))).entries()
    assert entry.returns(gamma=0.9, lam=0.5).tolist() == [0.25, -3.0, 1e300]


@given(rows(), st.data(), betas(1e-3), gammas(), lams())
def test_the_sums_of_all_batches_give_the_weights_of_the_whole(
    found: list[Row], data: st.DataObject, beta: float, gamma: float, lam: float
) -> None:
    cut = data.draw(st.integers(0, len(found) - 1))
    book = ledger(*(batch(part) for part in (found[:cut], found[cut:]) if part))
    sums = book.tilt_sums(beta=beta, gamma=gamma, lam=lam)
    returns = [entry.returns(gamma=gamma, lam=lam) for entry in book.entries()]
    weights = [sums.weights(e.code_N, r) for e, r in zip(book.entries(), returns, strict=True)]
    expected = group_weights(np.concatenate(returns), [row.key for row in found], beta=beta)
    assert np.concatenate(weights).tolist() == expected.tolist()


def test_the_largest_counts_do_not_run_into_each_other() -> None:
    for solved in (False, True):
        for unique, counted in ((0, 0), (1, LONGEST), (LONGEST, LONGEST)):
            row = Row(key="a", counts=Counts(solved=solved, length=LONGEST, unique=unique, counted=counted))
            (entry,) = ledger(batch([row])).entries()
            assert entry.solved_N.tolist() == [solved]
            assert [entry.counts_N(place).tolist() for place in (2, 1, 0)] == [
                [LONGEST],
                [unique],
                [counted],
            ]


def test_every_column_a_batch_brings_is_kept_with_it_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Row(key=key, counts=Counts(solved=True, length=2, unique=1, counted=2)) for key in "ab"]
    extras = {
        "penalty_N": np.array([-0.1, 0.0]),
        "return_N": np.array([0.5, 0.25]),
        "weight_N": np.array([1.5, 0.5]),
        "tokens_N": np.array([7, 2**40]),
    }
    for limit in (1 << 24, 1):
        monkeypatch.setattr(drift_weights.ledger, "_IN_MEMORY", limit)
        # Strided columns too: what is written is what they show.
        strided = {name: np.repeat(values, 2)[::2] for name, values in extras.items()}
        one_each = [batch(found, **{name: values}) for name, values in strided.items()]
        book = ledger(batch(found), *one_each, batch(found, **extras))
        assert book._file._rolled == (limit == 1)
        entries = list(book.entries())
        for entry, held in zip(entries, [[], *([name] for name in extras), list(extras)], strict=True):
            assert entry.code_N.tolist() == [0, 1]
            for name, values in extras.items():
                kept = getattr(entry, name)
                assert (kept is None) == (name not in held)
                assert kept is None or (kept.tolist() == values.tolist() and kept.dtype == values.dtype)


def test_groups_grow_over_many_batches() -> None:
    won, lost = (Counts(solved=solved, length=1, unique=1, counted=1) for solved in (True, False))
    book = Ledger()
    for size in (1, 9, 100, 1000):
        # The groups so far and as many as the last number says besides, a right and a wrong row of each.
        found = [Row(key=f"{key}", counts=counts) for counts in (won, lost) for key in range(size)]
        book.add(batch(found))
        assert (len(book.size_G), len(book.solved_G)) == (size, size)
    assert (book.size_G.dtype, book.solved_G.dtype) == (np.int32, np.int32)
    assert sorted(book.size_G.tolist()) == [2] * 900 + [4] * 91 + [6] * 8 + [8]
    assert sorted(book.solved_G.tolist()) == [1] * 900 + [2] * 91 + [3] * 8 + [4]


def test_what_the_log_holds_is_known() -> None:
    found = [Row(key="a", counts=Counts(solved=True, length=2, unique=1, counted=2))]
    for plain in (Ledger(), ledger(batch(found))):
        assert plain.knows_solved is True
        assert (plain.has_return, plain.has_weight, plain.has_tokens) == (False,) * 3
    assert ledger(batch(found, solved_N=None), batch(found)).knows_solved is False
    one = np.ones(1)
    assert ledger(batch(found, return_N=one), batch(found)).has_return
    assert ledger(batch(found), batch(found, return_N=one)).has_return
    assert ledger(batch(found, weight_N=one), batch(found)).has_weight
    assert ledger(batch(found), batch(found, weight_N=one)).has_weight
    assert ledger(batch(found, tokens_N=np.array([3]))).has_tokens


def test_without_verdicts_outcomes_are_zero_and_no_group_is_known_to_be_right() -> None:
    found = [Row(key=key, counts=Counts(solved=True, length=4, unique=2, counted=4)) for key in "aab"]
    book = ledger(batch(found, solved_N=None, unscored_N=None))
    (entry,) = book.entries()
    assert entry.solved_N.tolist() == [False] * 3
    assert [entry.counts_N(place).tolist() for place in (2, 1, 0)] == [[4] * 3, [2] * 3, [4] * 3]
    assert (book.size_G.tolist(), book.unscored) == ([2, 1], 0)


def test_a_row_out_of_range_is_counted_from_the_first_of_the_ledger() -> None:
    good = [Row(key="a", counts=Counts(solved=True, length=2, unique=1, counted=2))] * 3
    bad = [*good[:1], Row(key="b", counts=Counts(solved=True, length=0, unique=0, counted=0))]
    book = ledger(batch(good), batch(good))
    with pytest.raises(RowError) as error:
        book.add(batch(bad))
    assert error.value.row == 7
    assert error.value.says == "length must lie in 1…1048575, got 0; fix or drop its group"
    assert book.rows == 6


def test_a_sample_that_comes_again_in_a_later_batch_is_found() -> None:
    found = [Row(key=key, counts=Counts(solved=True, length=1, unique=1, counted=1)) for key in "ab"]
    book = ledger(batch(found, sample=pa.array([0, 1])), batch(found))
    assert book.repeats.first_group() is None
    book.add(batch(found, sample=pa.array([1, 1])))
    assert book.repeats.first_group() == 1


@pytest.mark.parametrize(
    ("samples", "numbered"),
    [
        ([pa.array([0]), pa.array([1])], True),
        ([pa.array([0]), None], False),
        ([None, pa.array([0])], False),
        ([pa.array([0]), pa.array([None], pa.int64())], False),
        ([pa.array(["0"])], False),
        ([], True),
    ],
)
def test_rows_are_numbered_where_all_of_them_have_a_whole_number(
    samples: list[pa.Array | None], numbered: bool
) -> None:
    found = [Row(key="a", counts=Counts(solved=True, length=1, unique=1, counted=1))]
    book = ledger(*(batch(found, sample=sample) for sample in samples))
    assert book.numbered is numbered


def test_tokens_are_known_only_where_every_batch_has_them() -> None:
    def batch(tokens: bool) -> Outcomes:
        one = np.ones(1, np.int64)
        return Outcomes(
            key_columns=(pa.array(["q"]),),
            solved_N=np.array([True]),
            length_N=one,
            unique_N=one,
            counted_N=one,
            tokens_N=one if tokens else None,
        )

    for having in ([True, True], [True, False], [False, True], [False, False]):
        ledger = Ledger()
        for tokens in having:
            ledger.add(batch(tokens))
        assert ledger.has_tokens == all(having)
