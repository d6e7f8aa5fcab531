"""Problems from files: identity, repetitions, contradictions, torn input."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_rollout.problems import (
    ProblemSet,
    check_targets,
    load_problems,
    make_problem,
    problem_set,
)
from drift_rollout.prompts import PromptTemplate
from drift_rollout.verify import ChoiceVerifier
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
    with pytest.raises(ValueError, match="3 problems cannot be judged by choice/1") as error:
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
