"""What an evaluation asks, too: the normal form of a question, and what becomes of an overlap."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_rollout.overlap import normal_form, overlap, without_overlap
from drift_rollout.problems import ProblemSet, load_problems, make_problem, problem_set
from drift_rollout.prompts import EVAL_MATH, ROLLOUT_METAMATH
from drift_weights import Message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is $x + 1$?", "what is $x+1$"),
        ("Compute  1 +\n2 .", "Compute 1+2"),
        (r"Find $10\,000\;x$", "Find $10 000 x$"),
        (r"for $x \quad y$~and", "for $x y$ and"),
        (r"a \hspace{2mm} b \ c", "a b c"),
        ("Ｗｈａｔ is ½?", "What is 1⁄2"),
        ("“How many?”", "How many"),
        ("Find\u00a0x:", "FIND X"),
    ],
)
def test_typesetting_makes_no_other_question(one: str, other: str) -> None:
    assert normal_form(one) == normal_form(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Add 1 2 and 3", "Add 12 and 3"),
        ("Compute 5!", "Compute 5"),
        ("-5 + 3?", "5 + 3?"),
        ("Find f'", "Find f"),
        (r"\begin{matrix} a \\ , b", r"\begin{matrix} a \ , b"),
        (r"x \quadrant", r"x rant"),
        ("x^2", "x^3"),
        ("?", "."),
        ("(1", "1"),
    ],
)
def test_another_meaning_is_another_question(one: str, other: str) -> None:
    assert normal_form(one) != normal_form(other)


@given(st.text(min_size=1).filter(str.strip))
def test_a_normal_form_is_never_empty_and_blind_to_outer_space(text: str) -> None:
    assert normal_form(text)
    assert normal_form(f" \n{text}\t ") == normal_form(text)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    path = tmp_path / "eval.jsonl"
    rows = [{"question": "Other?"}, {"question": "What is $1+1$"}, {"question": "what is $1 + 1$?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def problems(tmp_path: Path) -> ProblemSet:
    path = tmp_path / "p.jsonl"
    rows = [{"problem": f"What is $1 + {n}$?", "answer": 1 + n} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(path, ROLLOUT_METAMATH)


def test_an_overlap_is_found_across_templates_and_places(
    problems: ProblemSet, evaluation: Path, tmp_path: Path
) -> None:
    (found,) = overlap(problems.problems, evaluation, question="question")
    assert found.problem is problems.problems[1]
    assert found.place == f"{evaluation}, row 1"
    assert str(found) == f"{tmp_path / 'p.jsonl'}, row 1 = {evaluation}, row 1: 'What is $1 + 1$?'"
    text = str(problems.problems[1].question)
    in_eval = make_problem(EVAL_MATH.render(text), "2")
    assert in_eval.prompt_id != found.problem.prompt_id


def test_an_overlap_is_refused_dropped_or_allowed(problems: ProblemSet, evaluation: Path) -> None:
    with pytest.raises(ValueError, match="1 of 3 problems are asked by") as error:
        without_overlap(problems, evaluation, question="question")
    assert f"row 1 = {evaluation}, row 1" in str(error.value)
    assert "--overlap drop" in str(error.value)
    dropped = without_overlap(problems, evaluation, "drop", question="question")
    assert [p.target for p in dropped.problems] == ["1", "3"]
    assert dropped.counts == {"count": 2, "repeated": 0, "overlapping": 1}
    assert str(dropped) == "2 problems (1 problems of the evaluation are left out)"
    allowed = without_overlap(problems, evaluation, "allow", question="question")
    assert allowed.problems == problems.problems
    assert allowed.overlapping == 0
    for settled in (dropped, allowed):
        assert any(f"row 1 = {evaluation}, row 1" in note for note in settled.notes)


def test_the_first_ten_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("problem,answer\n" + "".join(f"q{n}?,{n}\n" for n in range(13)))
    found = load_problems(path, ROLLOUT_METAMATH)
    with pytest.raises(ValueError, match="13 of 13 problems") as error:
        without_overlap(found, path)
    assert str(error.value).count(f"= {path}, row") == 10
    assert "… and 3 more" in str(error.value)
    with pytest.raises(ValueError, match="nothing is left"):
        without_overlap(found, path, "drop")


def test_no_overlap_is_said(problems: ProblemSet, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("problem\nSomething else?\n")
    assert without_overlap(problems, path).notes == (f"no problem is asked by {path}",)


def test_what_cannot_be_compared_is_refused(problems: ProblemSet, evaluation: Path, tmp_path: Path) -> None:
    bare = problem_set([make_problem((Message(role="user", content="q"),), "1")], source="here")
    with pytest.raises(ValueError, match="has no question to compare"):
        overlap(bare.problems, evaluation, question="question")
    with pytest.raises(ValueError, match=r"eval.jsonl, row 0: field 'problem' is missing or empty"):
        overlap(problems.problems, evaluation)
    with pytest.raises(FileNotFoundError, match=r"nothing.csv is no file"):
        overlap(problems.problems, tmp_path / "nothing.csv")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty.jsonl holds no question"):
        overlap(problems.problems, tmp_path / "empty.jsonl")


def test_an_ending_of_the_evaluation_is_dropped_where_it_stands(
    problems: ProblemSet, tmp_path: Path
) -> None:
    path = tmp_path / "glued.csv"
    path.write_text("problem\nWhat is $1+0$? Think.\nWhat is $1+2$?\n")
    found = overlap(problems.problems, path, drop_ending="Think.")
    assert [(o.problem.target, o.place) for o in found] == [
        ("1", f"{path}, row 0"),
        ("3", f"{path}, row 1"),
    ]
