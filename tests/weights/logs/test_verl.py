"""verl's rollout files: groups, and which number is the verdict."""

import json
from pathlib import Path
from typing import Any

import pytest

from drift_weights.columns import Columns
from drift_weights.logs.opening import open_log
from drift_weights.logs.reader import LogReader, Outcome
from drift_weights.logs.verl import VERL


def row(question: str = "What is 3 + 4?", output: Any = "It is 7.", **changes: Any) -> dict[str, Any]:
    asked = f"user\n{question}\nassistant\n"
    return {"input": asked, "output": output, "gts": "7", "score": 1.0, "step": 12} | changes


def bind(found: dict[str, Any], columns: Columns | None = None) -> LogReader:
    return VERL.bind(found, columns or Columns(), "count")


def outcome(found: dict[str, Any], columns: Columns | None = None) -> Outcome:
    reader = bind(found, columns)
    return reader.outcome({name: found[name] for name in reader.fields})


def test_a_row_is_recognised_with_or_without_ground_truth() -> None:
    older = row()
    del older["gts"]
    assert VERL.sniff(row())
    assert VERL.sniff(older)
    assert not VERL.sniff({"input": "a", "output": "b", "score": 1.0})


def test_a_row_is_one_turn_of_its_prompt_and_step() -> None:
    assert outcome(row())[1:4] == (1.0, 1, 1)
    assert outcome(row()).group == outcome(row(output="It is 8.", score=0.0)).group
    assert outcome(row()).group != outcome(row(step=13)).group
    assert outcome(row()).group != outcome(row("What is 9 − 2?")).group
    assert bind(row()).fields == ("input", "step", "score")


def test_score_and_accuracy_are_two_choices() -> None:
    found = row(score=-1.0, acc=False, pred="8")
    with pytest.raises(ValueError, match=r"'score' and 'acc'.*--correct acc.*--threshold"):
        bind(found)
    assert outcome(found, Columns(correct="acc")).reward is False
    assert outcome(found, Columns(correct="score", threshold=0.0)).reward == -1.0
    assert outcome(found, Columns(return_column="score")).reward == -1.0


def test_a_prompt_that_is_not_there_is_no_group() -> None:
    with pytest.raises(ValueError, match="'input' is None, so the group is unknown"):
        outcome(row() | {"input": None})


def test_the_terminal_turn() -> None:
    found = row()
    asked = {"role": "user", "content": "user\nWhat is 3 + 4?\nassistant\n"}
    assert bind(found).dialogue(found) == ([asked], "It is 7.", "stop")


@pytest.mark.parametrize(
    ("says", "output"),
    [("is empty", ""), ("'output' is no text", None), ("'output' is no text", [{"role": "assistant"}])],
)
def test_what_cannot_be_trained_on_is_refused(says: str, output: Any) -> None:
    found = row(output=output)
    with pytest.raises(ValueError, match=says):
        bind(found).dialogue(found)


def test_another_log_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no field 'score', 'step'.*'verl'.*input, output"):
        bind({"input": "a", "output": "b"})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_groups_of_three_four_and_eight(tmp_path: Path) -> None:
    rows = [row(f"q{size}", score=float(n == 0)) for size in (3, 4, 8) for n in range(size)]
    log = open_log(write(tmp_path / "12.jsonl", rows))
    batch = next(log.outcomes())
    assert log.format is VERL
    keys = list(zip(*(column.to_pylist() for column in batch.key_columns), strict=True))
    assert [keys.count(key) for key in dict.fromkeys(keys)] == [3, 4, 8]
    assert batch.solved_N is not None
    assert batch.solved_N.sum() == 3


def test_a_shaped_score_is_reported_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "12.jsonl", [row(), row(score=-1.0)])
    with pytest.raises(ValueError, match=r"12\.jsonl, line 2: 'score' is -1.*--threshold"):
        list(open_log(path).outcomes())
    batch = next(open_log(path, Columns(correct="score", threshold=0.5)).outcomes())
    assert batch.solved_N is not None
    assert batch.solved_N.tolist() == [True, False]
