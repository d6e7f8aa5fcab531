"""The benchmark of verifiers on two small logs of our own: what it counts, and what it refuses."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
report = importlib.import_module("verify_report")
# By its place: `verify` is a module of others, too.
spec = importlib.util.spec_from_file_location("benchmark_of_verify", BENCHMARKS / "verify.py")
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark
spec.loader.exec_module(benchmark)

QWEN = [
    {"gold": "7", "answer": "7", "adjudicated": True},
    {"gold": "\\frac{1}{2}", "answer": "0.5", "adjudicated": True},
    {"gold": "(1,2)", "answer": "(2,1)", "adjudicated": False},
    {"gold": "x+1", "answer": "1+x", "adjudicated": True},
    {"gold": "x+1", "answer": "1+x", "adjudicated": True},
    {"gold": "3", "answer": "3m", "adjudicated": False},
]
SOLVED = {
    "6b_finetuning": {"is_correct": True, "solution": "so many\nA: 1200"},
    "6b_verification": {"is_correct": False, "solution": "so few\nA: 12"},
    "175b_finetuning": {"is_correct": False, "solution": "A: 1200\nand no end"},
    "175b_verification": {"is_correct": True, "solution": "A: 1,200\n"},
}


def written(folder: Path, qwen: list[dict], gsm8k: list[dict]) -> Path:
    for name, rows in (("qwen_math_cot/adjudicated", qwen), ("gsm8k/example_model_solutions", gsm8k)):
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_answers_are_the_last_lines(tmp_path: Path) -> None:
    logs = benchmark.read_logs(written(tmp_path, QWEN, [{"ground_truth": "A: 1,200", **SOLVED}]))
    assert [len(log.pairs) for log in logs] == [6, 3]
    assert logs[1].pairs == [("1,200", "1200"), ("1,200", "12"), ("1,200", "1,200")]
    assert (logs[1].grades, logs[1].unanswered) == ([True, False, True], 1)


def test_every_contender_grades_every_answer(tmp_path: Path) -> None:
    """What math-verify accepts wrongly here, a letter for a unit, ours refuses with its guards alone."""
    log = benchmark.read_logs(written(tmp_path, QWEN, [{"ground_truth": "A: 1,200", **SOLVED}]))[0]
    found = benchmark.measure(log, 1)
    assert found.verdicts("ours") == log.grades
    assert found.verdicts("ours, guards off") == found.verdicts(found.peer) == [*log.grades[:5], True]
    assert found.agreed[found.peer] == max(found.agreed.values()) == 5
    cells = [list(column.cells) for column in report.verdicts(found).columns]
    assert cells[0] == ["ours", "ours, guards off", found.peer]
    assert cells[1:] == [["0", "1", "1"], ["0", "0", "0"], ["1", "0", "0"], ["1", "0", "0"]]
    assert [list(column.cells) for column in report.differences(found).columns[2:]] == [
        ["1"], ["wrong"], ["right"], ["right"], ["wrong"]
    ]  # fmt: skip
    assert report.speed(found).row_count == 3


@pytest.mark.parametrize(
    ("qwen", "gsm8k", "said"),
    [
        (
            [{"gold": "7", "answer": "7"}],
            [],
            "adjudicated.jsonl, line 1: field 'adjudicated' must be a bool",
        ),
        ([], [{"ground_truth": "7", **SOLVED}], "line 1: the last line of 'ground_truth'"),
        ([], [{"ground_truth": "A: 7"}], "line 1: field '6b_finetuning' must be a dict"),
    ],
)
def test_a_log_of_another_shape_is_refused(
    tmp_path: Path, qwen: list[dict], gsm8k: list[dict], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        benchmark.read_logs(written(tmp_path, qwen, gsm8k))


@pytest.mark.parametrize(("words", "said"), [([], "DRIFT_DATA"), (["nowhere"], "there is no nowhere/qwen")])
def test_without_data_it_says_what_to_give(words: list[str], said: str) -> None:
    command = [sys.executable, str(BENCHMARKS / "verify.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": ""})
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
