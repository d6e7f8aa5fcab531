"""score and compare on whole tables, against plain loops over the dialogues."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_eval.comparing import compare, compare_all, compare_outcomes
from drift_eval.outcomes import outcomes
from drift_eval.scoring import score
from drift_weights.schema import to_table
from drift_weights.types import Trajectory
from eval.dialogues import dialogue, policy_rows, policy_table
from strategies import dialogues, trajectories


@st.composite
def evaluations(draw: st.DrawFn) -> list[Trajectory]:
    """Two policies with their own turn budgets, rows in any order, one dialogue a problem."""
    rows = []
    for policy in ("a", "b"):
        found = draw(st.lists(trajectories(5, scored=True, tokens=False), min_size=1, max_size=6))
        rows += [
            replace(row, policy=policy, prompt_id=f"p{number}", max_turns=5)
            for number, row in enumerate(found)
        ]
    return draw(st.permutations(rows))


@settings(max_examples=30)
@given(evaluations(), st.integers(0, 4))
def test_scores_are_per_policy(rows: list[Trajectory], missing: int) -> None:
    size = max(sum(row.policy == name for row in rows) for name in "ab") + missing
    found = score(to_table(rows), size=size)
    assert [scores.policy for scores in found] == list(dict.fromkeys(row.policy for row in rows))
    for scores in found:
        own = [row for row in rows if row.policy == scores.policy]
        solved_at = [row.length for row in own if row.turns[-1].verdict == "correct"]
        assert scores.problems == size
        assert scores.missing == size - len(own)
        assert [rate.successes for rate in scores.multi_at] == [
            sum(at <= k for at in solved_at) for k in range(1, 6)
        ]
        assert all(rate.trials == size for rate in scores.multi_at)
        assert scores.acc_at_1 == scores.multi_at[0]
        assert scores.multi_at_max == scores.multi_at[-1]
        assert scores.lengths == tuple(sum(row.length == t for row in own) for t in range(1, 6))
        assert scores.unique_answers_all == pytest.approx(
            sum(len({turn.answer for turn in row.turns}) for row in own) / len(own)
        )
        assert scores.unscored == 0


def test_scores_by_hand() -> None:
    (scores,) = score(policy_table("π", ["c", "wc", "mwc", "wmm", "www"], max_turns=3))
    assert [rate.value for rate in scores.multi_at] == [0.2, 0.4, 0.6]
    assert scores.correction_rates == (0.2, 0.25, pytest.approx(1 / 3))
    assert scores.total_correction == pytest.approx(0.5)
    assert scores.solved_rates == (pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
    assert scores.malformed_shares == (0.2, 0.25, pytest.approx(1 / 3))
    assert scores.lengths == (1, 1, 3)
    assert scores.unique_answers_wrong == 2.5
    assert scores.unique_answers_all == pytest.approx((1 + 2 + 3 + 2 + 3) / 5)


def test_what_is_undefined_is_none() -> None:
    (best,) = score(policy_table("π", ["c", "c"], max_turns=2))
    assert best.total_correction is None
    assert best.correction_rates == (1.0, None)
    assert best.unique_answers_wrong is None
    assert best.malformed_shares == (0.0, None)
    (worst,) = score(policy_table("π", ["ww"], max_turns=2))
    assert worst.solved_rates is None
    assert worst.total_correction == 0.0


def test_a_full_context_ends_a_dialogue_among_the_wrong() -> None:
    rows = policy_rows("π", ["wwc"], max_turns=3)
    full = replace(dialogue("w", prompt_id="p9", max_turns=3), ended="context")
    (scores,) = score(to_table([*rows, full]))
    assert scores.correction_rates == (0.0, 0.0, 0.5)
    assert scores.malformed_shares == (0.0, 0.0, 0.0)


UNSCORED = ["c", "wwc", "wt", "e", "wwwww"]


def test_unscored_dialogues_are_refused_unless_told() -> None:
    table = policy_table("π", UNSCORED)
    with pytest.raises(
        ValueError, match=r"2 of 5 dialogues .* prompt_id p2.*--unscored wrong, .*--unscored omit"
    ):
        score(table)
    (wrong,) = score(table, unscored="wrong")
    assert (wrong.problems, wrong.unscored, wrong.unscored_as) == (5, 2, "wrong")
    assert [rate.value for rate in wrong.multi_at] == [0.2, 0.2, 0.4, 0.4, 0.4]
    (omitted,) = score(table, unscored="omit")
    assert (omitted.problems, omitted.unscored, omitted.missing) == (3, 2, 0)
    assert [rate.successes for rate in omitted.multi_at] == [1, 1, 2, 2, 2]
    assert omitted.lengths == (1, 0, 1, 0, 1)
    (benchmark,) = score(table, unscored="omit", size=10)
    assert (benchmark.problems, benchmark.missing) == (8, 5)


def test_omitting_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="all 2 dialogues are unscored"):
        score(policy_table("π", ["t", "e"]), unscored="omit")
    with pytest.raises(ValueError, match="unscored must be one of"):
        score(policy_table("π", ["c"]), unscored="ignore")


def test_several_samples_a_problem_are_refused() -> None:
    rows = [dialogue("c", sample=0), dialogue("w", sample=1), dialogue("c", prompt_id="p1")]
    with pytest.raises(ValueError, match=r"2 dialogues on prompt_id p0; scores need one a problem"):
        score(to_table(rows))
    rounds = [dialogue("c"), replace(dialogue("w"), round=1)]
    with pytest.raises(ValueError, match="keep one sample and one round"):
        score(to_table(rounds))


def test_budgets_must_agree_within_a_policy() -> None:
    rows = [dialogue("c", max_turns=5), dialogue("w", prompt_id="p1", max_turns=6)]
    with pytest.raises(ValueError, match="max_turns 5, 6; score them apart"):
        score(to_table(rows))


def test_more_turns_than_the_budget_are_refused() -> None:
    table = policy_table("π", ["c", "www"], max_turns=3)
    index = table.schema.get_field_index("max_turns")
    cut = table.set_column(index, table.schema.field(index), pa.array([3, 2], pa.int32()))
    with pytest.raises(ValueError, match="row 1: 3 turns, more than its max_turns 2"):
        score(cut)


def test_a_table_of_another_kind_is_refused_whole() -> None:
    with pytest.raises(ValueError, match=r"(?s)'prompt_id' is missing.*'turns' is missing"):
        score(pa.table({"policy": ["a"]}))
    with pytest.raises(ValueError, match="no rows"):
        score(policy_table("π", ["c"]).slice(0, 0))
    with pytest.raises(ValueError, match="cover all 2 rows, got 1"):
        score(policy_table("π", ["c", "w"]), size=1)


pairs = st.lists(st.tuples(dialogues(5, scored=True), dialogues(5, scored=True)), min_size=2, max_size=10)


def letters(verdicts: list[str]) -> str:
    return "".join(verdict[0] for verdict in verdicts)


@given(pairs, st.integers(1, 5), st.randoms(use_true_random=False))
def test_comparison_pairs_by_problem_not_by_row(
    verdicts: list[tuple[list[str], list[str]]], k: int, random: object
) -> None:
    first = policy_rows("a", [letters(a) for a, _ in verdicts])
    second = policy_rows("b", [letters(b) for _, b in verdicts])
    random.shuffle(second)
    found = compare(to_table([*second, *first]), "a", "b", k=k)
    solved = [(("correct" in a[:k]), ("correct" in b[:k])) for a, b in verdicts]
    assert found.mcnemar.only_first == sum(a and not b for a, b in solved)
    assert found.mcnemar.only_second == sum(b and not a for a, b in solved)
    assert found.difference.value == pytest.approx(sum(a - b for a, b in solved) / len(solved))
    assert found.first_rate.successes == sum(a for a, _ in solved)
    assert found.second_rate.successes == sum(b for _, b in solved)
    assert (found.k, found.problems) == (k, len(verdicts))
    assert found.difference.low - 1e-12 <= found.difference.value <= found.difference.high + 1e-12


def test_missing_problems_are_wrong_for_both() -> None:
    """As if both policies had failed on as many problems more."""
    first, second = ["c", "wc", "ww"], ["ww", "wc", "c"]
    cut = to_table([*policy_rows("a", first, max_turns=2), *policy_rows("b", second[:3], max_turns=2)])
    whole = to_table(
        [
            *policy_rows("a", [*first, "ww", "ww"], max_turns=2),
            *policy_rows("b", [*second, "ww", "ww"], max_turns=2),
        ]
    )
    assert compare(cut, "a", "b", size=5) == compare(whole, "a", "b")
    assert compare_all(cut, size=5) == compare_all(whole)
    with pytest.raises(ValueError, match="size must cover all 3 problems, got 2"):
        compare(cut, "a", "b", size=2)


def test_a_size_needs_equally_many_omitted() -> None:
    rows = [*policy_rows("a", ["c", "w", "t"], max_turns=1), *policy_rows("b", ["c", "c"], max_turns=1)]
    table = to_table(rows)
    assert compare(table, "a", "b", unscored="omit").problems == 2
    with pytest.raises(ValueError, match="omit 1 and 0 dialogues"):
        compare(table, "a", "b", size=6, unscored="omit")
    also = to_table([*rows, dialogue("t", policy="b", prompt_id="p2", max_turns=1)])
    found = compare(also, "a", "b", size=6, unscored="omit")
    assert [found.problems] == [one.problems for one in score(also, size=6, unscored="omit")[:1]]


def test_default_k_is_the_common_budget() -> None:
    rows = [*policy_rows("a", ["wwc", "c"], max_turns=3), *policy_rows("b", ["www", "c"], max_turns=3)]
    assert compare(to_table(rows), "a", "b").k == 3
    longer = [*policy_rows("a", ["wwc", "c"], max_turns=3), *policy_rows("b", ["wwwc", "c"], max_turns=4)]
    with pytest.raises(ValueError, match=r"turn budgets differ \('a' 3, 'b' 4\)"):
        compare(to_table(longer), "a", "b")
    with pytest.raises(ValueError, match="k must lie within both turn budgets, got 4"):
        compare(to_table(longer), "a", "b", k=4)
    (pair,) = compare_all(to_table(longer)).pairs
    assert (pair.k, pair.first_rate.successes, pair.second_rate.successes) == (3, 2, 1)


def test_policies_on_other_problems_are_refused_by_name() -> None:
    rows = policy_rows("a", ["c", "w", "c"], max_turns=1)
    other = [replace(row, policy="b", prompt_id=f"q{i}") for i, row in enumerate(rows)]
    table = to_table([*rows, rows_of("b", rows[0]), *other[1:]])
    message = r"only of the first, 2 \(q1, q2\) only of the second"
    with pytest.raises(ValueError, match=message):
        compare(table, "a", "b")
    everything = compare_all(to_table([*rows, *other, *[replace(r, policy="c") for r in rows]]))
    assert [(pair.first, pair.second) for pair in everything.pairs] == [("a", "c")]
    assert len(everything.refused) == 2
    with pytest.raises(ValueError, match="'d' is not in the table; it has a, b"):
        compare(table, "a", "d")


def rows_of(policy: str, row: Trajectory) -> Trajectory:
    return replace(row, policy=policy)


def test_one_problem_is_no_paired_test() -> None:
    rows = [dialogue("c", policy="a"), dialogue("w", policy="b")]
    with pytest.raises(ValueError, match="one problem only"):
        compare(to_table(rows), "a", "b", k=1)
    assert "one problem only" in compare_all(to_table(rows)).refused[0]


def test_outcomes_of_two_tables_compare() -> None:
    (first,) = outcomes(policy_table("a", ["c", "wc", "ww"], max_turns=2))
    (second,) = outcomes(policy_table("b", ["c", "c", "c"], max_turns=2))
    found = compare_outcomes(first, second)
    assert (found.mcnemar.only_first, found.mcnemar.only_second) == (0, 1)
    assert found.difference.value == pytest.approx(-1 / 3)
