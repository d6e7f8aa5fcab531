"""drift-eval score and run: what they print and write, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from drift_eval.cli import main
from drift_rollout.engine import Completion, EngineError, Request, ScriptedEngine
from drift_weights.folder import read_folder, write_folder
from drift_weights.schema import from_table, to_table
from eval.dialogues import policy_rows, policy_table
from tiny import bpe_tokenizer, save_policy, tiny_model

TABLE = to_table(
    [
        *policy_rows("base", ["c", "wwc", "www", "mww"], max_turns=3),
        *policy_rows("tuned", ["c", "c", "wc", "www"], max_turns=3),
    ]
)


def folder(path: Path, table: pa.Table = TABLE) -> Path:
    return write_folder(path, table, "trajectories", {})


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a user's mistake prints: one line, and those of a list."""
    said = stopped(arguments, capsys)
    assert said.startswith("error: ")
    return said


def stopped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused run prints to standard error: perhaps progress, then a line and a list."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    progress, found, line = capsys.readouterr().err.rpartition("error: ")
    assert found
    assert all(item.startswith("  ") for item in line.splitlines()[1:])
    return progress + found + line


def test_score_prints_policies_and_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["score", str(folder(tmp_path / "in"))])
    printed = capsys.readouterr().out
    assert "50.0 [15.0, 85.0]" in printed
    assert "75.0 [30.1, 95.4]" in printed
    assert "50.0 : 75.0" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_two_tables_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies = TABLE.column("policy").unique().to_pylist()
    paths = []
    for number, policy in enumerate(policies):
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(TABLE.filter(pc.equal(TABLE.column("policy"), policy)), paths[-1])
    main(["score", str(paths[0]), "--against", str(paths[1])])
    assert "50.0 : 75.0" in capsys.readouterr().out
    main(["score", str(paths[0])])
    assert "50.0 : 75.0" not in capsys.readouterr().out


def test_two_tables_of_one_policy_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(TABLE, tmp_path / "rows.parquet")
    with pytest.raises(SystemExit):
        main(["score", str(tmp_path / "rows.parquet"), "--against", str(tmp_path / "rows.parquet")])
    said = capsys.readouterr().err
    assert said.startswith("error: both tables hold the same policy, 'base', and two policies are compared")
    assert said.endswith("before and after, is printed by drift-rollout reverify\n")


def test_a_parquet_file_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(TABLE, tmp_path / "rows.parquet")
    main(["score", str(tmp_path / "rows.parquet"), "--size", "8"])
    printed = capsys.readouterr().out
    assert "25.0 [7.1, 59.1]" in printed
    assert "base: 4 problems missing, counted as wrong" in printed


def test_score_writes_numbers_and_picture(tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["score", str(folder(tmp_path / "in")), "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["accuracy.png", "scores.json"]
    content = json.loads((out / "scores.json").read_text())
    assert [one["multi_at"][2]["successes"] for one in content["policies"]] == [2, 3]
    assert content["comparisons"][0]["difference"]["value"] == -0.25


def test_unscored_rows_need_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = folder(tmp_path / "in", policy_table("π", ["c", "t", "w"])), tmp_path / "out"
    arguments = ["score", str(source), "--out", str(out)]
    assert "1 of 3 dialogues" in refused(arguments, capsys)
    assert not out.exists()
    main([*arguments, "--unscored", "omit"])
    assert "1 dialogues unscored, left out" in capsys.readouterr().out
    assert json.loads((out / "scores.json").read_text())["policies"][0]["problems"] == 2
    assert "--overwrite" in refused([*arguments, "--unscored", "wrong"], capsys)
    main([*arguments, "--unscored", "wrong", "--overwrite", "true"])
    assert json.loads((out / "scores.json").read_text())["policies"][0]["problems"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "subcommand"),
        (["score", "missing"], "missing is no file"),
        (["score", "broken.parquet"], "no readable Parquet file"),
        (["score", "rows.txt"], "rows.txt"),
        (["score", "rows.jsonl"], "a folder or a .parquet file"),
        (["score", "foreign.parquet"], "'turns' is missing"),
        (["score", "."], "drift.json"),
        (["score", "missing", "--unscored", "perhaps"], "unscored"),
        (["run", "rows.jsonl", "model", "out", "--prompt", "mine"], "prompt 'mine' is no template"),
        (["run", "rows.jsonl", "model", "out", "--question", "q"], "field 'q' is missing"),
        (["run", "torn.jsonl", "model", "out"], "torn.jsonl, line 1"),
        (["run", "rows.jsonl", "model", "scored"], "scores.json of no run"),
        (["run", "rows.jsonl", "model", "taken"], "holds no run that made it"),
        (["run", "rows.jsonl", "model", "out", "--verifier", "choice"], "one letter A-J, got '2'"),
        (
            ["run", "rows.jsonl", "model", "out", "--engine.transformers.device", "cuda:99"],
            "device 'cuda:99' cannot be used",
        ),
        (["run", "rows.jsonl", "model", "out", "--max_turns", "0"], "max_turns must be at least 1"),
        (["run", "rows.jsonl", "model", "out", "--verifier", "mine"], "verifier"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "rows.txt").write_text("rows")
    (tmp_path / "rows.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n')
    for name in ("scored/scores.json", "taken/trajectories/notes"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "torn.jsonl").write_text('{"problem": "1 + 1", "ans')
    pq.write_table(pa.table({"policy": ["a"]}), tmp_path / "foreign.parquet")
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(arguments, capsys)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("group", "name"), [("verifier", "math"), ("engine", "vllm")])
def test_a_name_alone_in_a_file_is_told_what_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], group: str, name: str
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"problems: p.csv\nmodel: model\nout: out\n{group}: {name}\n")
    said = refused(["run", "--config", str(config)], capsys)
    assert f"write {group}: {{name: {name}}} or the path" in said
    assert said.count("\n") == 1


def test_a_size_counts_in_comparisons_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main(["score", str(folder(tmp_path / "in")), "--size", "8", "--out", str(out)])
    assert "25.0 : 37.5" in capsys.readouterr().out
    content = json.loads((out / "scores.json").read_text())
    (pair,) = content["comparisons"]
    assert (pair["problems"], pair["difference"]["value"]) == (8, -0.125)
    shares = [one["multi_at"][2]["value"] for one in content["policies"]]
    assert [pair["first_rate"]["value"], pair["second_rate"]["value"]] == shares


class DiedError(Exception):
    """Stands for a run that is killed."""


def dying(calls: int, *, failing: str = "") -> ScriptedEngine:
    """Answers 7 to everything, fails where the prompt holds `failing`, and dies after so many calls."""
    left = [calls]

    def script(request: Request) -> Completion:
        if left[0] == 0:
            raise DiedError
        left[0] -= 1
        if failing and failing in request.messages[-1].content:
            return Completion(id=request.id, text="", finish_reason="error", error="out of memory")
        return Completion(id=request.id, text="<answer> 7 </answer>")

    return ScriptedEngine(script, batch=1)


@pytest.fixture
def sevens(tmp_path: Path) -> Path:
    """Five problems whose answer is 7."""
    file = tmp_path / "sevens.jsonl"
    file.write_text(
        "".join(json.dumps({"problem": f"{i} + {7 - i}", "answer": 7}) + "\n" for i in range(5))
    )
    return file


def test_a_killed_run_goes_on_where_it_was(
    sevens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = [dying(3), dying(-1), dying(-1)]
    used = iter(engines)
    monkeypatch.setattr("drift_eval.cli.open_engine", lambda *_, **__: next(used))
    arguments = ["run", str(sevens), "model", str(tmp_path / "out")]
    with pytest.raises(DiedError):
        main(arguments)
    assert not (tmp_path / "out/trajectories").exists()
    main(arguments)
    assert len(engines[1].requests) == 5 - 3
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["policies"][0]["acc_at_1"]["successes"] == 5
    assert "'max_turns': 2" in stopped([*arguments, "--max_turns", "2"], capsys)


def test_dialogues_that_failed_are_said_and_sampled_again(
    sevens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = iter([dying(-1, failing="3 + 4"), dying(-1)])
    monkeypatch.setattr("drift_eval.cli.open_engine", lambda *_, **__: next(engines))
    arguments = ["run", str(sevens), "model", str(tmp_path / "out")]
    said = stopped(arguments, capsys)
    assert "1 of 5 dialogues ended unscored; run again" in said
    assert read_folder(tmp_path / "out/trajectories", "trajectories")[0].num_rows == 5
    main(arguments)
    assert json.loads((tmp_path / "out/scores.json").read_text())["policies"][0]["unscored"] == 0


def test_run_evaluates_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a problems file, a HF folder and a prompt of one's own to dialogues and scores."""
    tokenizer = bpe_tokenizer()
    model = save_policy(tmp_path / "model", tokenizer, tiny_model(vocab=len(tokenizer)))
    file = tmp_path / "problems.jsonl"
    rows = [{"q": f"what is {i}?", "gold": i} for i in (0, 1, 2, 2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "run.yaml"
    config.write_text(
        json.dumps(
            {
                "problems": str(file),
                "model": str(model),
                "out": str(tmp_path / "out"),
                "prompt": {"user": "Problem: {problem}", "system": None},
                "question": "q",
                "answer": "gold",
            }
        )
    )
    main(["run", "--config", str(config), "--max_turns", "2", "--max_new_tokens", "6"])
    assert "multi@2" in capsys.readouterr().out
    table, manifest = read_folder(tmp_path / "out/trajectories", "trajectories")
    trajectories = list(from_table(table))
    assert {row.prompt[0].content for row in trajectories} == {f"Problem: what is {i}?" for i in range(3)}
    made = manifest["rollout"]
    assert {row.policy for row in trajectories} == {made["policy"]}
    assert manifest["problems"] == {"count": 3, "repeated": 1}
    assert (made["verifier"], made["sampling"]["temperature"], made["samples"]) == ("exact/1", 0.0, 1)
    assert made["prompt"] == {"user": "Problem: {problem}", "system": None}
    assert (manifest["origin"]["model"], manifest["origin"]["problems"]["name"]) == (model.name, file.name)
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert (scores["policies"][0]["problems"], scores["policies"][0]["max_turns"]) == (3, 2)
    assert (tmp_path / "out/accuracy.png").is_file()


def test_check_gold_lists_what_fails_and_runs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("no engine is opened")

    monkeypatch.setattr("drift_eval.cli.open_engine", never)
    file, out = tmp_path / "problems.csv", tmp_path / "out"
    file.write_text("problem,answer\na?,B\nb?,7\nc?,K\n")
    arguments = ["run", str(file), "model", str(out), "--check-gold", "--verifier", "choice"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert [line.split(": ")[0] for line in said.out.splitlines()] == [f"{file}, row {n}" for n in (1, 2)]
    assert said.err.startswith("error: 2 of 3 golds fail choice/2")
    file.write_text("problem,answer\na?,B\n")
    main(arguments)
    assert capsys.readouterr().out == "1 problems; every gold passes choice/2\n"
    assert not out.exists()


def test_a_dead_engine_ends_an_evaluation_that_then_goes_on(
    sevens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(request: Request) -> Completion:
        raise EngineError("out of memory")

    engines = iter([ScriptedEngine(broken, batch=1), dying(-1)])
    monkeypatch.setattr("drift_eval.cli.open_engine", lambda *_, **__: next(engines))
    arguments = ["run", str(sevens), "model", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said.endswith("the engine failed: out of memory\nthe same command goes on\n")
    main(arguments)
    assert (tmp_path / "out/scores.json").is_file()
