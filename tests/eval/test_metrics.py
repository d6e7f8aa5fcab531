"""M25-M29 and M31: metrics against their literal definitions, computed by plain loops."""

from __future__ import annotations

from fractions import Fraction
from math import prod

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_eval.metrics import (
    GENERAL,
    MATH,
    benchmark_averages,
    correction_rates,
    cumulative_accuracy,
    first_success,
    malformed_shares,
    mean_unique_answers,
    multi_at_k,
    solved_rates,
    total_correction,
    unique_answers,
)
from drift_eval.turns import flatten_turns
from drift_weights.schema import to_table
from drift_weights.types import VERDICTS, Trajectory
from eval.dialogues import dialogue, policy_table, raw_verdicts, stopped
from strategies import trajectories


def table_of(raw: list[list[bool]]) -> pa.Table:
    return policy_table("π", [stopped(row) for row in raw], max_turns=len(raw[0]))


@given(raw_verdicts(), st.integers(0, 5))
def test_multi_at_k_is_equation_21(raw: list[list[bool]], missing: int) -> None:
    """M25 over all T verdicts: what a policy would have said after success changes nothing."""
    turns, size = len(raw[0]), len(raw) + missing
    first_N = first_success(table_of(raw))
    shares = []
    for k in range(1, turns + 1):
        literal = Fraction(sum(max(row[:k]) for row in raw), size)
        shares.append(multi_at_k(first_N, k, max_turns=turns, size=size))
        assert shares[-1] == float(literal)
    assert shares == sorted(shares)
    assert shares[0] == sum(row[0] for row in raw) / size
    assert cumulative_accuracy(first_N, max_turns=turns, size=size).tolist() == shares


@given(raw_verdicts())
def test_correction_rates_are_counts_at_t_over_counts_wrong_before(raw: list[list[bool]]) -> None:
    """M26, literally, and the product identity."""
    turns = len(raw[0])
    first_N = first_success(table_of(raw))
    rates = correction_rates(first_N, max_turns=turns)
    for t, rate in enumerate(rates):
        wrong_before = [row for row in raw if not any(row[:t])]
        if not wrong_before:
            assert rate is None
            continue
        assert rate == sum(row[t] for row in wrong_before) / len(wrong_before)
    for k in range(1, turns + 1):
        left = prod(1 - rate for rate in rates[:k] if rate is not None)
        assert multi_at_k(first_N, k, max_turns=turns) == pytest.approx(1 - left, abs=1e-12)
    assert rates[0] == multi_at_k(first_N, 1, max_turns=turns)


@given(raw_verdicts())
def test_total_correction_repairs_what_turn_one_left(raw: list[list[bool]]) -> None:
    """M27 as counts: problems solved later over problems not solved at once."""
    share_T = cumulative_accuracy(first_success(table_of(raw)), max_turns=len(raw[0]))
    failed = [row for row in raw if not row[0]]
    found = total_correction(float(share_T[0]), float(share_T[-1]))
    if not failed:
        assert found is None
    else:
        assert found == pytest.approx(sum(any(row) for row in failed) / len(failed), abs=1e-12)


@pytest.mark.parametrize(("first", "final", "printed"), [(38.6, 58.2, 31.9), (36.0, 55.8, 30.9)])
def test_total_correction_reproduces_table_6(first: float, final: float, printed: float) -> None:
    found = total_correction(first / 100, final / 100)
    assert found is not None
    assert round(100 * found, 1) == printed


@given(raw_verdicts())
def test_solved_rates_are_shares_of_the_final_success(raw: list[list[bool]]) -> None:
    """M28."""
    turns = len(raw[0])
    rates = solved_rates(first_success(table_of(raw)), max_turns=turns)
    final = sum(any(row) for row in raw)
    if final == 0:
        assert rates is None
        return
    assert rates is not None
    assert list(rates) == [sum(any(row[:t]) for row in raw) / final for t in range(1, turns + 1)]
    assert rates[-1] == 1
    assert all(0 <= rate <= 1 for rate in rates)


@settings(max_examples=30)
@given(st.lists(trajectories(scored=True), min_size=1, max_size=8))
def test_unique_answers_by_hand(rows: list[Trajectory]) -> None:
    """M29: distinct answers by a nested loop; 1 ≤ E ≤ L."""
    turns = flatten_turns(to_table(rows))
    expected, readable = [], []
    for row in rows:
        seen: list[str | None] = []
        for turn in row.turns:
            if all(turn.answer != other for other in seen):
                seen.append(turn.answer)
        expected.append(len(seen))
        readable.append(len([answer for answer in seen if answer is not None]))
    unique_N = unique_answers(turns)
    assert unique_N.tolist() == expected
    assert unique_answers(turns, malformed="skip").tolist() == readable
    assert all(1 <= unique <= row.length for unique, row in zip(unique_N, rows, strict=True))
    wrong = [e for e, row in zip(expected, rows, strict=True) if row.turns[-1].verdict != "correct"]
    found_wrong, found_all = mean_unique_answers(unique_N, [row.solved for row in rows])
    assert found_all == pytest.approx(sum(expected) / len(expected))
    assert found_wrong == (pytest.approx(sum(wrong) / len(wrong)) if wrong else None)


@settings(max_examples=30)
@given(st.lists(trajectories(max_turns=4), min_size=1, max_size=8))
def test_malformed_shares_by_hand(rows: list[Trajectory]) -> None:
    """The denominator of turn t is the responses that were given at turn t, not the problems."""
    shares = malformed_shares(flatten_turns(to_table(rows)), max_turns=4)
    for t, share in enumerate(shares):
        given_at_t = [row.turns[t].verdict for row in rows if len(row.turns) > t]
        expected = given_at_t.count("malformed") / len(given_at_t) if given_at_t else None
        assert share == expected


@settings(max_examples=30)
@given(st.lists(trajectories(), min_size=2, max_size=8), st.data())
def test_slices_and_chunks_of_a_table_read_alike(rows: list[Trajectory], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    padded = to_table([rows[-1], *rows])
    chunked = pa.concat_tables([padded.slice(1, cut), padded.slice(1 + cut)])
    expected = [row.length if row.solved else 0 for row in rows]
    assert first_success(chunked).tolist() == expected
    whole, parts = flatten_turns(to_table(rows)), flatten_turns(chunked)
    assert parts.lengths.tolist() == [row.length for row in rows]
    assert unique_answers(parts).tolist() == unique_answers(whole).tolist()
    verdicts = [VERDICTS.index(turn.verdict) for row in rows for turn in row.turns]
    assert parts.verdicts.tolist() == verdicts
    assert parts.numbers.tolist() == [t + 1 for row in rows for t in range(row.length)]


# Table 2, multi@5: MATH, MATH500, TheoremQA, MMLU-Redux, MMLU-Pro, GPQA, and the printed average.
TABLE_2 = {
    "base": (38.3, 40.2, 26.0, 76.8, 49.0, 47.9, 46.4),
    "SFT-5turn": (53.3, 53.6, 33.1, 78.2, 53.3, 58.0, 54.9),
    "STaR-2turn": (50.2, 50.4, 29.5, 84.4, 57.1, 58.6, 55.1),
    "SCoRe-2turn": (53.0, 55.8, 31.8, 85.4, 55.2, 63.2, 57.4),
    "UFO-5turn": (55.5, 56.4, 33.5, 87.0, 57.1, 71.2, 60.2),
    "DRIFT-5turn": (55.9, 58.2, 34.3, 84.6, 57.2, 72.7, 60.5),
    "DRIFT + refresh": (56.7, 59.6, 34.8, 85.9, 57.7, 72.7, 61.2),
    "DRIFT then UFO": (60.3, 61.4, 34.8, 87.6, 58.5, 72.2, 62.5),
}


@pytest.mark.parametrize("method", TABLE_2)
def test_averages_agree_with_table_2(method: str) -> None:
    """M31; the paper averages before it rounds: half a digit a score and half a digit printed."""
    *scores, printed = TABLE_2[method]
    averages = benchmark_averages(dict(zip(MATH + GENERAL, scores, strict=True)))
    assert averages.all == pytest.approx(printed, abs=0.1 + 1e-9)


def test_averages_of_the_drift_row() -> None:
    scores = dict(zip(MATH + GENERAL, TABLE_2["DRIFT-5turn"][:6], strict=True))
    averages = benchmark_averages(scores)
    assert (averages.math, averages.general, averages.all) == (
        pytest.approx((55.9 + 58.2 + 34.3) / 3),
        pytest.approx((84.6 + 57.2 + 72.7) / 3),
        pytest.approx((55.9 + 58.2 + 34.3 + 84.6 + 57.2 + 72.7) / 6),
    )
    assert (round(averages.math or 0, 1), round(averages.general or 0, 1)) == (49.5, 71.5)
    assert round(averages.all or 0, 1) == 60.5


def test_an_average_needs_all_its_benchmarks() -> None:
    averages = benchmark_averages({"MATH": 0.5, "MATH500": 0.6, "TheoremQA": 0.1, "GPQA": 0.2})
    assert averages.math == pytest.approx(0.4)
    assert averages.general is None
    assert averages.all is None
    with pytest.raises(ValueError, match="GSM8K"):
        benchmark_averages({"GSM8K": 0.5})


@pytest.mark.parametrize(
    ("first_N", "k", "max_turns", "size", "message"),
    [
        ([1], 6, 5, None, "k must lie in 1…max_turns = 5, got 6"),
        ([1], 0, 5, None, "k must lie in"),
        ([1, 6], 1, 5, None, "row 1: first_success must lie in 0…max_turns = 5, got 6"),
        ([-1], 1, 5, None, "row 0"),
        ([1, 2, 0], 1, 5, 2, "cover all 3 rows, got 2"),
        ([], 1, 5, None, "size must be at least 1"),
        ([0.5], 1, 5, None, "whole numbers"),
        ([[1]], 1, 5, None, "a column"),
        ([1], 1, 0, None, "k must lie in"),
    ],
)
def test_multi_at_k_refuses(
    first_N: list[int], k: int, max_turns: int, size: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        multi_at_k(first_N, k, max_turns=max_turns, size=size)


def test_problems_that_never_loaded_are_wrong() -> None:
    assert multi_at_k([1, 2], 2, max_turns=2, size=8) == 0.25
    assert multi_at_k(np.array([], dtype=np.int64), 1, max_turns=2, size=4) == 0.0


@pytest.mark.parametrize(("first", "final"), [(0.5, 0.4), (38.6, 58.2), (-0.1, 0.2), (0.2, float("nan"))])
def test_total_correction_refuses(first: float, final: float) -> None:
    with pytest.raises(ValueError, match="acc@1"):
        total_correction(first, final)


def test_total_correction_is_undefined_where_nothing_was_left() -> None:
    assert total_correction(1.0, 1.0) is None


def test_turns_refuse_what_is_no_dialogue() -> None:
    table = policy_table("π", ["wc", "w"])
    column = table.schema.get_field_index("turns")
    turns = table.column("turns").to_pylist()
    empty = pa.array([turns[0], []], table.schema.field("turns").type)
    with pytest.raises(ValueError, match="row 1: a trajectory has at least one turn"):
        first_success(table.set_column(column, table.schema.field(column), empty))
    turns[1][0]["verdict"] = "maybe"
    unknown = pa.array(turns, table.schema.field("turns").type)
    with pytest.raises(ValueError, match="row 1: verdict 'maybe' is not one of correct"):
        first_success(table.set_column(column, table.schema.field(column), unknown))
    with pytest.raises(ValueError, match="row 0: 2 turns, more than max_turns 1"):
        malformed_shares(flatten_turns(table), max_turns=1)
    with pytest.raises(ValueError, match="malformed must be count or skip"):
        unique_answers(flatten_turns(table), malformed="drop")


def test_mean_unique_answers_refuses_columns_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="equal columns"):
        mean_unique_answers([1, 2], [True])
    with pytest.raises(ValueError, match="with rows"):
        mean_unique_answers([], [])


def test_all_malformed_answers_are_one() -> None:
    turns = flatten_turns(to_table([dialogue("mmwmw", answers=[None, None, "a", None, "a"])]))
    assert unique_answers(turns).tolist() == [2]
    assert unique_answers(turns, malformed="skip").tolist() == [1]
    silent = flatten_turns(to_table([dialogue("mmm")]))
    assert unique_answers(silent).tolist() == [1]
    assert unique_answers(silent, malformed="skip").tolist() == [0]
