"""Problems from files: identity, repetitions, contradictions, torn input."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_rollout import ChoiceVerifier, ExactVerifier, Verified
from drift_rollout.problems import (
    ProblemSet,
    check_targets,
    golds_that_fail,
    load_problems,
    make_problem,
    problem_set,
)
from drift_rollout.prompts import PromptTemplate
from drift_weights import Message

BARE = PromptTemplate(system=None, user="{problem}")


def questions_and_golds(found: ProblemSet) -> list[tuple[str, str | None]]:
    return [(problem.messages[0].content, problem.target) for problem in found.problems]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_identity_is_the_hash_of_the_content() -> None:
    text = '{"messages":[{"content":"é?","role":"user"}],"target":"3"}'
    made = make_problem((Message(role="user", content="é?"),), "3", {"level": 1})
    assert made.prompt_id == hashlib.sha256(text.encode()).hexdigest()


def test_jsonl_and_parquet_give_the_same_problems(tmp_path: Path) -> None:
    rows = [{"q": "1+1?", "gold": 2}, {"q": "1+2?", "gold": 3}, {"q": "1+1?", "gold": 2}]
    lines = write(tmp_path / "p.jsonl", *map(json.dumps, rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    from_lines = load_problems(lines, BARE, question="q", answer="gold")
    assert from_lines == load_problems(tmp_path / "p.parquet", BARE, question="q", answer="gold")
    assert [(p.messages[0].content, p.target) for p in from_lines.problems] == [
        ("1+1?", "2"),
        ("1+2?", "3"),
    ]
    assert from_lines.repeated == 1


def test_contradicting_golds_are_refused() -> None:
    pair = [make_problem((Message(role="user", content="1+1?"),), gold) for gold in "23"]
    with pytest.raises(ValueError, match=r"'1\+1\?': '2' \(.*\), '3' "):
        problem_set(pair, source="here")


def conflicting(path: Path) -> Path:
    rows = [("1+1?", 2), ("1+2?", 3), ("1+1?", 3), ("1+2?", 3), ("1+1?", 2)]
    return write(path, *(json.dumps({"problem": q, "answer": gold}) for q, gold in rows))


def test_contradictions_of_a_file_are_told_with_their_places(tmp_path: Path) -> None:
    path = conflicting(tmp_path / "p.jsonl")
    with pytest.raises(ValueError, match="1 prompts come with different golds") as error:
        load_problems(path, BARE)
    assert f"'1+1?': '2' ({path}, row 0), '3' ({path}, row 2)" in str(error.value)
    assert "--on_conflict drop" in str(error.value)


def test_contradictions_can_be_left_out_whole(tmp_path: Path) -> None:
    """Of five rows three contradict each other, and one repeats another."""
    found = load_problems(conflicting(tmp_path / "p.jsonl"), BARE, on_conflict="drop")
    assert questions_and_golds(found) == [("1+2?", "3")]
    assert found.counts == {"count": 1, "repeated": 1, "conflicting": 1}
    assert str(found) == "1 problems (1 repeated rows, 1 prompts with different golds are left out)"
    assert [(c.question, [gold for gold, _ in c.golds], c.rows) for c in found.conflicts] == [
        ("1+1?", ["2", "3"], 3)
    ]
    assert any("'1+1?': '2'" in note for note in found.notes)
    only = write(tmp_path / "only.csv", "problem,answer", "a,1", "a,2")
    with pytest.raises(ValueError, match=r"only.csv: all 1 prompts come with different golds"):
        load_problems(only, BARE, on_conflict="drop")


def test_ten_contradictions_are_listed(tmp_path: Path) -> None:
    rows = [f"q{n}?,{gold}" for n in range(12) for gold in "ab"]
    with pytest.raises(ValueError, match="12 prompts come with different golds") as error:
        load_problems(write(tmp_path / "p.csv", "problem,answer", *rows), BARE)
    assert [f"'q{n}?'" in str(error.value) for n in range(12)] == [True] * 10 + [False] * 2
    assert "… and 2 more" in str(error.value)


def test_question_and_place_are_no_part_of_a_problem(tmp_path: Path) -> None:
    """They serve to tell and to compare; neither the id nor what is sampled depends on them."""
    path = write(tmp_path / "p.jsonl", '{"problem": "1+1?", "answer": 2}')
    template = PromptTemplate(system="s", user="Solve {problem}!")
    (found,) = load_problems(path, template).problems
    assert (found.question, found.place) == ("1+1?", f"{path}, row 0")
    assert found == make_problem(template.render("1+1?"), "2")
    assert found.metadata == {}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"problem": "x", "answer": ', "line 2: not valid JSON"),
        ('{"problem": "x"}', "row 1: field 'answer' is missing or empty"),
        ('{"problem": "", "answer": "1"}', "row 1: field 'problem' is missing or empty"),
        ('{"problem": "x", "answer": " \\t"}', "row 1: field 'answer' is missing or empty"),
        ("[1]", "line 2: expected a JSON object"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path / "p.jsonl", '{"problem": "a", "answer": "b"}', line)
    with pytest.raises(ValueError, match=says) as error:
        load_problems(path, BARE)
    assert str(path) in str(error.value)


def test_whole_numbers_of_a_float_column_are_integers(tmp_path: Path) -> None:
    rows = {"problem": ["a", "b", "c", "d"], "answer": [18.0, 0.5, -0.0, 1e20]}
    pq.write_table(pa.table(rows), tmp_path / "p.parquet")
    found = load_problems(tmp_path / "p.parquet", BARE)
    assert [p.target for p in found.problems] == ["18", "0.5", "0", "1" + 20 * "0"]
    assert load_problems(
        write(tmp_path / "p.jsonl", '{"problem": "a", "answer": 18.0}'), BARE
    ).problems == (found.problems[0],)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_golds_that_are_no_number_are_refused(tmp_path: Path, value: float) -> None:
    pq.write_table(pa.table({"problem": ["a", "b"], "answer": [1.0, value]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=rf"p.parquet, row 1: field 'answer' is {value}"):
        load_problems(tmp_path / "p.parquet", BARE)


def test_golds_are_held_against_the_verifier_all_at_once() -> None:
    golds = ["A", "b", "(C)", "7", None]
    many = [make_problem((Message(role="user", content=f"q{n}"),), gold) for n, gold in enumerate(golds)]
    check_targets([many[0], many[2]], ChoiceVerifier())
    with pytest.raises(ValueError, match="3 problems cannot be judged by choice/2") as error:
        check_targets(many, ChoiceVerifier())
    said = str(error.value)
    assert [problem.prompt_id in said for problem in many] == [False, True, False, True, True]
    assert all(words in said for words in ("got 'b'", "got '7'", "has no target"))


def test_metamath_keeps_math_rows_and_reads_the_gold(tmp_path: Path) -> None:
    rows = [
        {"type": "MATH_Rephrased", "query": "a?", "response": "so 7.\nThe answer is: 7"},
        {"type": "GSM_AnsAug", "query": "b?", "response": "The answer is: 8"},
        {
            "type": "MATH_FOBAR",
            "query": "c?",
            "response": "x The answer is: no. The answer is: \\frac{1}{2}",
        },
    ]
    path = tmp_path / "MetaMathQA.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    found = load_problems(path, BARE, source="metamath-math")
    assert questions_and_golds(found) == [("a?", "7"), ("c?", "\\frac{1}{2}")]
    for response in ("seven", "The answer is: "):
        path.write_text(json.dumps([rows[1], {"type": "MATH_SV", "query": "a?", "response": response}]))
        with pytest.raises(ValueError, match=r"MetaMathQA.json, row 1: field 'response': .*The answer is"):
            load_problems(path, BARE, source="metamath-math")


class LetterVerifier:
    """Takes no gold of digits, and calls a gold of capital letters wrong."""

    name = "letters/1"

    def check_target(self, target: str) -> None:
        if target.isdigit():
            raise ValueError(f"no letter in {target!r}")

    def verify(self, response: str, target: str) -> Verified:
        assert response == f"<answer> {target} </answer>"
        return Verified(answer=target, verdict="wrong" if target.isupper() else "correct")


def test_golds_that_fail_their_own_verifier_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "problem,answer", "a?,x", "b?,X", "c?,7", "d?,y")
    problems = load_problems(path, BARE).problems
    wrong, refused = golds_that_fail(problems, LetterVerifier())
    assert (wrong.problem, wrong.verdict) == (problems[1], "wrong")
    assert (refused.problem, refused.verdict) == (problems[2], "refused")
    assert str(wrong) == f"{path}, row 1: problem {problems[1].prompt_id}: gold 'X': wrong"
    assert str(refused).endswith("gold '7': refused (no letter in '7')")


def test_golds_that_the_grammar_cannot_hold_fail() -> None:
    golds = ["7", "</answer>", "<answer>7", " ", None, "a </think> b"]
    problems = [
        make_problem((Message(role="user", content=f"q{n}"),), gold) for n, gold in enumerate(golds)
    ]
    failed = golds_that_fail(problems, ExactVerifier())
    assert [(found.problem.target, found.verdict) for found in failed] == [
        ("</answer>", "malformed"),
        ("<answer>7", "malformed"),
        (" ", "refused"),
        (None, "refused"),
        ("a </think> b", "malformed"),
    ]
