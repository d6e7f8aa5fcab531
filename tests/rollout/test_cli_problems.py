"""drift-rollout sample: where problems come from, and what is said of them, before any model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drift_rollout import Completion, ScriptedEngine
from drift_rollout.cli import main
from drift_weights import from_table, read_folder


@pytest.fixture
def gsm(tmp_path: Path) -> Path:
    path = tmp_path / "gsm.jsonl"
    rows = [{"question": f"What is {n} + 1?", "answer": f"so\n#### {n + 1}"} for n in (0, 1, 2, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    path = tmp_path / "eval.csv"
    path.write_text("problem,answer\nwhat is 1+1,2\n")
    return path


def dry_run(capsys: pytest.CaptureFixture[str], problems: Path, *more: str) -> str:
    main(["sample", str(problems), "no/such-model", str(problems.parent / "run"), "--dry-run", *more])
    assert not (problems.parent / "run").exists()
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], problems: Path, *more: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(problems), "no/such-model", str(problems.parent / "run"), *more])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert all(item.startswith("  ") for item in said.err.splitlines()[1:])
    assert not (problems.parent / "run").exists()
    return said.out, said.err


def test_a_named_source_is_read_and_counted(gsm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = dry_run(capsys, gsm, "--source", "gsm8k")
    assert "3 problems (1 repeated rows are left out) × 16 samples = 48 trajectories" in said


def test_a_source_reads_well_in_a_file(
    gsm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "rollout.yaml"
    config.write_text(
        f"problems: {gsm}\nsource: gsm8k\nmodel: no/such-model\nout: {tmp_path / 'run'}\ndry_run: true\n"
    )
    main(["sample", "--config", str(config)])
    assert "3 problems" in capsys.readouterr().out


def test_an_overlap_stops_the_run_unless_told_otherwise(
    gsm: Path, evaluation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--source", "gsm8k", "--overlap_with", str(evaluation), "--overlap_question", "problem"]
    _, said = refused(capsys, gsm, *asked)
    assert f"1 of 3 problems are asked by {evaluation}, too" in said
    assert f"{gsm}, row 1 = {evaluation}, row 0: 'What is 1 + 1?'" in said
    dropped = dry_run(capsys, gsm, *asked, "--overlap", "drop")
    assert "2 problems (1 repeated rows, 1 problems of the evaluation are left out) × 16" in dropped
    assert f"{gsm}, row 1 = {evaluation}, row 0" in dropped
    allowed = dry_run(capsys, gsm, *asked, "--overlap", "allow")
    assert "3 problems (1 repeated rows are left out)" in allowed
    assert f"1 of 3 problems are asked by {evaluation}, too" in allowed


def test_the_evaluation_has_the_columns_of_the_problems_by_default(
    gsm: Path, evaluation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = refused(capsys, gsm, "--source", "gsm8k", "--overlap_with", str(gsm))
    assert "3 of 3 problems are asked by" in said
    _, said = refused(capsys, gsm, "--source", "gsm8k", "--overlap_with", str(evaluation))
    assert f"{evaluation}, row 0: field 'question' is missing" in said
    assert "--overlap_question" in said


def test_contradictions_and_missing_golds_are_left_out_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    rows = [("a?", "1"), ("a?", "2"), ("b?", ""), ("c?", "3")]
    path.write_text(
        "".join(json.dumps({"problem": q, "solution": f"\\boxed{{{gold}}}"}) + "\n" for q, gold in rows)
    )
    assert "row 2: field 'solution'" in refused(capsys, path, "--source", "math")[1]
    asked = ["--source", "math", "--on_no_gold", "drop"]
    assert "1 prompts come with different golds" in refused(capsys, path, *asked)[1]
    said = dry_run(capsys, path, *asked, "--on_conflict", "drop")
    assert "1 problems (1 prompts with different golds, 1 rows without a gold are left out) × 16" in said
    assert f"left out: {path}, row 2" in said
    assert f"left out, its golds differ: 'a?': '1' ({path}, row 0), '2' ({path}, row 1)" in said


def test_check_gold_lists_what_fails_and_runs_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.csv"
    path.write_text("problem,answer\na?,7\nb?,</answer>\nc?,[bold]x\n")
    listed, said = refused(capsys, path, "--check-gold")
    (line,) = listed.splitlines()
    assert line.startswith(f"{path}, row 1: problem ")
    assert line.endswith("gold '</answer>': malformed")
    assert said.startswith("error: 1 of 3 golds fail exact/1")
    listed, said = refused(capsys, path, "--check-gold", "--verifier", "choice")
    assert [line.split(": ")[0] for line in listed.splitlines()] == [f"{path}, row {n}" for n in range(3)]
    assert "gold '[bold]x': refused (the target of a choice" in listed
    path.write_text("problem,answer\na?,7\n")
    main(["sample", str(path), "no/such-model", str(tmp_path / "run"), "--check-gold"])
    assert capsys.readouterr().out == "1 problems; every gold passes exact/1\n"
    assert not (tmp_path / "run").exists()


def test_a_folder_is_sampled_and_named_in_the_manifest(
    gsm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was left out is counted there; question and place of a problem are no part of a trajectory."""

    def engine(*_: object, **__: object) -> ScriptedEngine:
        return ScriptedEngine(lambda request: Completion(id=request.id, text="<answer> 2 </answer>"))

    monkeypatch.setattr("drift_rollout.cli.open_engine", engine)
    folder = tmp_path / "problems"
    folder.mkdir()
    gsm.rename(folder / "train.jsonl")
    (folder / "test.jsonl").write_text('{"question": "What is 2+1", "answer": "#### 3"}\n')
    arguments = ["sample", str(folder), "model", str(tmp_path / "run"), "--samples=1", "--source=gsm8k"]
    arguments += [f"--overlap_with={folder / 'test.jsonl'}", "--overlap=drop"]
    main(arguments)
    table, manifest = read_folder(tmp_path / "run" / "trajectories", "trajectories")
    made = list(from_table(table))
    assert {t.target for t in made} == {"1", "2"}
    assert all(t.metadata == {} for t in made)
    assert manifest["problems"] == {"count": 2, "repeated": 1, "overlapping": 1}
    origin = manifest["origin"]["problems"]
    assert (origin["name"], origin["split"]) == ("problems", "train")
    assert str(tmp_path) not in json.dumps(manifest["origin"])
