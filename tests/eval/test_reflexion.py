"""Reflexion's logs as trajectories: our own rows for the rules, the real logs for the numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from drift_eval.comparing import compare_all
from drift_eval.scoring import score
from drift_weights.folder import read_folder, write_folder
from drift_weights.schema import to_table
from reweight_logs import reflexion_trajectories


def turn(answer: str | None, correct: bool = False) -> dict[str, Any]:
    feedback = "Right" if correct else "Not right"
    return {"response": f"I say {answer}", "answer": answer, "feedback": feedback, "correct": correct}


def row(turns: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    fields = {
        "condition": "retry__3_trials",
        "question": "Which bird?",
        "context": "",
        "gold": "heron",
        "trial_budget": 3,
        "turns": turns,
        "success": any(one.get("correct") is True for one in turns),
    }
    return {**fields, **changes}


def log(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_a_dialogue_becomes_a_trajectory(tmp_path: Path) -> None:
    turns = [turn("gull"), turn(None), turn("heron", correct=True)]
    (found,) = reflexion_trajectories(log(tmp_path, row(turns)))
    assert (found.policy, found.max_turns, found.target) == ("retry__3_trials", 3, "heron")
    assert [one.verdict for one in found.turns] == ["wrong", "malformed", "correct"]
    assert [one.answer for one in found.turns] == ["gull", None, "heron"]
    assert [one.feedback for one in found.turns] == ["Not right", "Not right", None]
    assert found.ended == "solved"
    assert found.prompt[0].content == "Which bird?"


def test_same_question_same_prompt_id_across_conditions(tmp_path: Path) -> None:
    turns = [turn("heron", correct=True)]
    rows = [row(turns), row(turns, condition="other"), row(turns, condition="open", context="A lake.")]
    first, second, third = reflexion_trajectories(log(tmp_path, *rows))
    assert first.prompt_id == second.prompt_id != third.prompt_id
    assert third.prompt[0].content == "A lake.\n\nWhich bird?"


def test_the_budget_field_wins_over_the_name(tmp_path: Path) -> None:
    turns = [turn("gull")] * 4
    named = row(turns, condition="retry__3_trials", trial_budget=4)
    (found,) = reflexion_trajectories(log(tmp_path, named))
    assert (found.length, found.max_turns, found.ended) == (4, 4, "budget")


def test_copies_of_a_solved_trial_are_cut(tmp_path: Path) -> None:
    solved = turn("heron", correct=True)
    (found,) = reflexion_trajectories(log(tmp_path, row([turn("gull"), solved, solved])))
    assert [one.verdict for one in found.turns] == ["wrong", "correct"]


RIGHT = turn("heron", correct=True)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row([turn("gull")] * 4), "4 turns, more than max_turns 3"),
        (row([turn("gull")] * 2), "unsolved after 2 of 3 trials; the log is cut short"),
        (row([RIGHT, turn("gull")]), "the turns go on after a correct one"),
        (row([RIGHT], success=False), "success is False, but the last turn is correct"),
        (row([turn("gull")] * 3, success=True), "success is True, but the last turn is not correct"),
        (row([turn(None, correct=True)]), "correct but has no answer"),
        (row([]), "no turns"),
        ({k: v for k, v in row([RIGHT]).items() if k != "gold"}, "field 'gold' is missing"),
        (row([{"answer": "?"}], success=False), "field 'correct' is missing"),
        (row([turn("gull") | {"correct": "no"}], success=False), "correct must be true or false"),
        (row([turn("gull") | {"response": None}] * 3), "response must be text"),
        (row([RIGHT], question=None), "question must be text"),
        ({**row([RIGHT]), "turns": None}, "turns must be a list"),
        (row([RIGHT], trial_budget="3"), "trial_budget"),
        (row([RIGHT], trial_budget=None), "trial_budget"),
    ],
)
def test_contradictions_name_the_line(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    good = row([RIGHT], question="Which fish?")
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: ") as raised:
        list(reflexion_trajectories(log(tmp_path, good, bad)))
    assert message in str(raised.value)


def test_a_question_twice_in_a_condition_is_refused(tmp_path: Path) -> None:
    path = log(tmp_path, row([RIGHT]), row([RIGHT], condition="other"), row([RIGHT]))
    with pytest.raises(ValueError, match=r"line 3: condition .* on line 1 already"):
        list(reflexion_trajectories(path))


def test_a_torn_last_line_is_refused(tmp_path: Path) -> None:
    path = log(tmp_path, row([RIGHT]))
    path.write_text(path.read_text() + '{"condition": "retry')
    with pytest.raises(ValueError, match="line 2"):
        list(reflexion_trajectories(path))


DATA = os.environ.get("DRIFT_DATA")


@pytest.mark.skipif(DATA is None, reason="DRIFT_DATA is not set: no real logs here")
def test_scores_of_the_real_logs_equal_their_oracle(tmp_path: Path) -> None:
    """The oracle counts the questions that each condition solved within k trials."""
    source = Path(str(DATA)) / "reflexion"
    oracle = json.loads((source / "hotpot_no_context_oracle.json").read_text())
    table = to_table(reflexion_trajectories(source / "hotpot_no_context.jsonl"))
    write_folder(tmp_path / "trajectories", table, "trajectories", {"source": "reflexion"})
    read, _ = read_folder(tmp_path / "trajectories", "trajectories")
    found = score(read)
    counts = {one.policy: [rate.successes for rate in one.multi_at] for one in found}
    assert counts == oracle
    assert {one.problems for one in found} == {100}
    assert len(compare_all(read).pairs) == 6
