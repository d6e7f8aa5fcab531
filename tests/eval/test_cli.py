"""drift-eval score and run: what they print and write, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_eval.cli import main
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
    """The one line that a user's mistake prints."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_score_prints_policies_and_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["score", str(folder(tmp_path / "in"))])
    printed = capsys.readouterr().out
    assert "50.0 [15.0, 85.0]" in printed
    assert "75.0 [30.1, 95.4]" in printed
    assert "50.0 : 75.0" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


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
        (["run", "rows.jsonl", "model", "out", "--template", "mine"], "template 'mine' is not one of"),
        (["run", "rows.jsonl", "model", "out", "--question", "q"], "field 'q' is missing"),
        (["run", "torn.jsonl", "model", "out"], "torn.jsonl, line 1"),
        (["run", "rows.jsonl", "model", "."], "--overwrite"),
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
    (tmp_path / "torn.jsonl").write_text('{"problem": "1 + 1", "ans')
    pq.write_table(pa.table({"policy": ["a"]}), tmp_path / "foreign.parquet")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert message in refused(arguments, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


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
                "template": {"user": "Problem: {problem}", "system": None},
                "question": "q",
                "answer": "gold",
            }
        )
    )
    main(["run", "--config", str(config), "--max_turns", "2", "--max_new_tokens", "6"])
    assert "multi@2" in capsys.readouterr().out
    table, manifest = read_folder(tmp_path / "out/trajectories", "trajectories")
    trajectories = list(from_table(table))
    assert [row.prompt[0].content for row in trajectories] == [f"Problem: what is {i}?" for i in range(3)]
    assert {row.policy for row in trajectories} == {manifest["evaluation"]["policy"]}
    assert manifest["problems"]["rows_repeated"] == 1
    assert (manifest["verifier"], manifest["sampling"]["temperature"]) == ("exact/1", 0.0)
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert (scores["policies"][0]["problems"], scores["policies"][0]["max_turns"]) == (3, 2)
    assert (tmp_path / "out/accuracy.png").is_file()
