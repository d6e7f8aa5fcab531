"""Laws of the trajectory return: eq. 2 and eq. 12 (M8, M9). Suffix legend: N rows."""

from __future__ import annotations

import inspect
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.returns import GAMMA, LAM, trajectory_return
from drift_weights.types import Trajectory
from strategies import Counts, counts, dialogues, gammas, lams, trajectories


def one(row: Counts, **settings: Any) -> float:
    """The return of a single trajectory."""
    columns = ([row.solved], [row.length], [row.unique])
    return float(trajectory_return(*columns, counted_N=[row.counted], **settings)[0])


def exact(row: Counts, gamma: float, lam: float) -> Fraction:
    """Eq. 12 in rational arithmetic."""
    success = Fraction(gamma) ** (row.length - 1) if row.solved else Fraction(0)
    share = Fraction(row.unique, row.counted) if row.counted else Fraction(0)
    return success - Fraction(lam) * (1 - share)


@given(counts(skip=True), gammas(), lams())
def test_equals_eq_12_in_exact_arithmetic(row: Counts, gamma: float, lam: float) -> None:
    found = one(row, gamma=gamma, lam=lam)
    assert found == pytest.approx(float(exact(row, gamma, lam)), rel=1e-14, abs=1e-15 * (1 + lam))


@given(dialogues(8, scored=True), gammas())
def test_without_a_penalty_it_is_the_discounted_sum_of_rewards(verdicts: list[str], gamma: float) -> None:
    """Eq. 2: Σ_t γ^(t−1) r_t equals the closed form, since the first success ends the dialogue."""
    summed = sum(
        Fraction(gamma) ** (t - 1) * (verdict == "correct") for t, verdict in enumerate(verdicts, 1)
    )
    row = Counts(solved=verdicts[-1] == "correct", length=len(verdicts), unique=1, counted=len(verdicts))
    assert one(row, gamma=gamma, lam=0.0) == pytest.approx(float(summed), rel=1e-14, abs=1e-300)


@given(counts(), gammas(), st.floats(0.0, 1.0))
def test_stays_between_the_worst_repetition_and_immediate_success(
    row: Counts, gamma: float, lam: float
) -> None:
    found = one(row, gamma=gamma, lam=lam)
    assert -lam * (1 - 1 / row.length) - 1e-15 <= found <= 1.0


@given(counts(), gammas(), lams(), st.integers(1, 5))
def test_more_turns_at_equal_answers_never_raise_it(
    row: Counts, gamma: float, lam: float, more: int
) -> None:
    length = row.length + more
    longer = Counts(solved=row.solved, length=length, unique=row.unique, counted=length)
    assert one(longer, gamma=gamma, lam=lam) <= one(row, gamma=gamma, lam=lam)


@given(counts(), gammas(), lams())
def test_one_more_distinct_answer_never_lowers_it(row: Counts, gamma: float, lam: float) -> None:
    unique = min(row.unique + 1, row.counted)
    richer = Counts(solved=row.solved, length=row.length, unique=unique, counted=row.counted)
    assert one(richer, gamma=gamma, lam=lam) >= one(row, gamma=gamma, lam=lam)


@given(trajectories(scored=True, tokens=False), st.data(), st.sampled_from(["count", "skip"]))
def test_a_permutation_of_the_rejected_answers_leaves_it_as_it_is(
    trajectory: Trajectory, data: st.DataObject, malformed: Any
) -> None:
    rejected = data.draw(st.permutations(trajectory.turns[:-1]))
    other = Trajectory(
        prompt_id="p",
        sample=0,
        policy="π",
        prompt=trajectory.prompt,
        target=None,
        turns=(*rejected, trajectory.turns[-1]),
        max_turns=trajectory.max_turns,
        ended=trajectory.ended,
    )
    pair = [trajectory, other]
    found = trajectory_return(
        [t.solved for t in pair],
        [t.length for t in pair],
        [t.unique_answers(malformed) for t in pair],
        counted_N=[t.counted_turns(malformed) for t in pair],
    )
    assert found[0] == found[1]


@given(st.lists(counts(skip=True), min_size=1, max_size=6), st.floats(-5, 5))
def test_rows_do_not_meet_and_a_penalty_is_added(rows: list[Counts], penalty: float) -> None:
    columns = ([r.solved for r in rows], [r.length for r in rows], [r.unique for r in rows])
    together = trajectory_return(
        *columns, counted_N=[r.counted for r in rows], penalty_N=penalty * np.arange(len(rows))
    )
    alone = [one(row) + penalty * number for number, row in enumerate(rows)]
    assert together.tolist() == pytest.approx(alone, rel=1e-14, abs=1e-14)


@pytest.mark.parametrize(
    ("solved", "length", "unique", "expected"),
    [
        (1, 1, 1, 1.0),
        (1, 2, 2, 0.9),
        (1, 5, 5, 0.6561),
        (1, 3, 2, 0.81 - 0.5 / 3),
        (0, 1, 1, 0.0),
        (0, 5, 5, 0.0),
        (0, 5, 1, -0.4),
        (0, 4, 2, -0.25),
    ],
)
def test_worked_by_hand_at_the_papers_settings(
    solved: int, length: int, unique: int, expected: float
) -> None:
    assert trajectory_return([solved], [length], [unique])[0] == pytest.approx(expected, rel=1e-14)


def test_defaults_are_the_papers() -> None:
    defaults = inspect.signature(trajectory_return).parameters
    assert (GAMMA, LAM) == (0.9, 0.5)
    assert (defaults["gamma"].default, defaults["lam"].default) == (0.9, 0.5)
    assert (defaults["counted_N"].default, defaults["penalty_N"].default) == (None, 0.0)


def test_counted_defaults_to_the_length() -> None:
    found = trajectory_return([0, 1], [4, 3], [2, 1])
    assert found.tolist() == trajectory_return([0, 1], [4, 3], [2, 1], counted_N=[4, 3]).tolist()


def test_no_readable_turn_costs_the_whole_penalty() -> None:
    assert trajectory_return([0], [3], [0], counted_N=[0], lam=0.5)[0] == -0.5


def test_whole_numbers_may_come_as_floats_and_success_as_numbers() -> None:
    plain = trajectory_return([True, False], [2, 3], [1, 3])
    assert trajectory_return([1.0, 0.0], [2.0, 3.0], np.array([1, 3], np.uint8)).tolist() == (
        plain.tolist()
    )


GOOD: dict[str, Any] = {"solved_N": [1, 0, 0], "length_N": [2, 3, 1], "unique_N": [2, 1, 1]}


@pytest.mark.parametrize(
    ("field", "column", "message"),
    [
        ("solved_N", [1, 0, 2], "row 2: solved must be 0 or 1, got 2"),
        ("solved_N", [1, float("nan"), 0], "row 1: solved must be 0 or 1, got nan"),
        ("solved_N", [1, None, 0], "solved must be numeric without nulls"),
        ("solved_N", ["yes", "no", "no"], "solved must be numeric"),
        ("solved_N", [1, 0], "solved has 2 rows, expected 3"),
        ("length_N", [2, 0, 1], "row 1: length must be at least 1, got 0"),
        ("length_N", [2, 3.5, 1], "row 1: length must be whole, got 3.5"),
        ("length_N", [2, 3, float("inf")], "row 2: length must be whole, got inf"),
        ("length_N", [2, None, 1], "length must be numeric without nulls"),
        ("length_N", [[2, 3, 1]], "length must be one-dimensional"),
        ("unique_N", [3, 1, 1], "row 0: unique must not exceed the turns it counts, got 3"),
        ("unique_N", [2, 0, 1], "row 1: unique must be at least 1, got 0"),
        ("unique_N", [2, -1, 1], "row 1: unique"),
        ("unique_N", [2, 1], "unique has 2 rows"),
        ("counted_N", [2, 4, 1], "row 1: counted must lie in 0…length, got 4"),
        ("counted_N", [2, 3, -1], "row 2: counted must lie in 0…length, got -1"),
        ("counted_N", [1, 3, 1], "row 0: unique must not exceed the turns it counts, got 2"),
        ("penalty_N", [0.0, float("nan"), 0.0], "row 1: penalty must be finite, got nan"),
        ("penalty_N", [0.0, 0.0, float("-inf")], "row 2: penalty must be finite, got -inf"),
        ("gamma", 0.0, r"gamma must lie in \(0, 1\], got 0.0"),
        ("gamma", 1.01, r"gamma must lie in \(0, 1\], got 1.01"),
        ("gamma", float("nan"), r"gamma must lie in \(0, 1\], got nan"),
        ("lam", -0.1, "lam must be finite and not negative, got -0.1"),
        ("lam", float("inf"), "lam must be finite"),
        ("lam", float("nan"), "lam must be finite"),
    ],
)
def test_bad_input_names_row_and_field(field: str, column: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trajectory_return(**(GOOD | {field: column}))


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        trajectory_return([], [], [])


def test_a_penalty_of_another_length_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="penalty"):
        trajectory_return(**GOOD, penalty_N=[0.0, 0.1])
