"""The public logs, converted: their known composition, and refusals on rows of our own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drift_weights import group_composition, read_folder
from drift_weights.outcomes import group_keys, outcomes_of_weighted
from reweight_logs import gsm8k_trajectories, qwen_trajectories

DATA = os.environ.get("DRIFT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="DRIFT_DATA is not set")
SCRIPT = Path(__file__).parents[2] / "recipes" / "reweight_logs.py"


@needs_data
@pytest.mark.parametrize(
    ("log", "file", "size", "wrong", "right", "mixed"),
    [
        ("gsm8k", "gsm8k/example_model_solutions.jsonl", 4, 432, 156, 731),
        ("qwen", "qwen_math_cot/math_cot_100.jsonl", 8, 4, 86, 10),
    ],
)
def test_known_composition(log, file, size, wrong, right, mixed, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, log, Path(DATA) / file, tmp_path]
    wide = os.environ | {"COLUMNS": "200"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=wide)
    table, _ = read_folder(tmp_path / "weighted", "weighted")
    outcomes = outcomes_of_weighted(table)
    found = group_composition(outcomes.solved_N, group_keys(table))
    assert (found.all_wrong, found.all_correct, found.mixed) == (wrong, right, mixed)
    assert set(table.column("group_size").to_pylist()) == {size}
    for count in (wrong, right, mixed):
        assert f" {count} (" in printed.stdout
    if log == "gsm8k":
        assert "four models under one policy label" in printed.stdout


def write(path: Path, row: dict) -> Path:
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


def test_gsm8k_answers_stand_behind_a(tmp_path: Path) -> None:
    row = {
        "question": "1+1?",
        "ground_truth": "so\nA: 2",
        "b": {"is_correct": False, "solution": "A: 1\nno\nA: 3"},
        "a": {"is_correct": True, "solution": "A: 2"},
        "c": {"is_correct": False, "solution": "no idea"},
    }
    made = list(gsm8k_trajectories(write(tmp_path / "g.jsonl", row)))
    assert [t.turns[0].answer for t in made] == ["2", "3", None]
    assert [t.turns[0].verdict for t in made] == ["correct", "wrong", "malformed"]
    assert len({t.prompt_id for t in made}) == 1
    row["c"]["is_correct"] = True
    with pytest.raises(ValueError, match="line 1: sample 2 is graded correct but has no answer"):
        list(gsm8k_trajectories(write(tmp_path / "g.jsonl", row)))


def test_qwen_lists_must_agree(tmp_path: Path) -> None:
    row = {"question": "1+1?", "gt": "2", "response": ["x", "y"], "pred": ["2", "3"]}
    row["score"] = [True, False]
    made = list(qwen_trajectories(write(tmp_path / "q.jsonl", row)))
    assert [(t.sample, t.solved) for t in made] == [(0, True), (1, False)]
    with pytest.raises(ValueError, match="line 1"):
        list(qwen_trajectories(write(tmp_path / "q.jsonl", row | {"score": [True]})))
    row.pop("gt")
    with pytest.raises(ValueError, match="line 1: field 'gt' is missing"):
        list(qwen_trajectories(write(tmp_path / "q.jsonl", row)))
