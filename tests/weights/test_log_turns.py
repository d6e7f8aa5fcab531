"""Terminal turns of foreign logs: text, keys and what they were made of, as trainers read them."""

import hashlib
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from drift_weights import WeightConfig, group_weights, read_folder
from drift_weights.cli import main
from drift_weights.columns import Columns
from drift_weights.outputs import reweight_file
from drift_weights.sources import weighable


def said(*texts: str) -> list[dict[str, str]]:
    found = [{"role": "user", "content": "3 + 4?"}]
    for number, text in enumerate(texts):
        again = [{"role": "user", "content": "Again."}] if number else []
        found += [*again, {"role": "assistant", "content": text}]
    return found


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CHAT = [
    {"prompt_id": "q", "sample": 4, "correct": 1, "messages": said("8", "7")},
    {"prompt_id": "q", "sample": 2, "correct": 0, "messages": said("8", "8")},
    {"prompt_id": "r", "sample": 4, "correct": 0, "messages": said("1")},
]


def test_the_last_response_is_the_completion_and_all_before_it_the_prompt(tmp_path: Path) -> None:
    source = write(tmp_path / "chat.jsonl", CHAT)
    reweight_file(source, tmp_path / "t", columns=Columns(answers="responses"), form="turns")
    table, manifest = read_folder(tmp_path / "t", "weighted")
    rows = table.to_pylist()
    assert [row["prompt"] for row in rows] == [said("8", "7")[:-1], said("8", "8")[:-1], said("1")[:-1]]
    assert [row["completion"][0]["content"] for row in rows] == ["7", "8", "1"]
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [("q", 4), ("q", 2), ("r", 4)]
    # Solved in two turns with two answers; two equal wrong answers; one wrong turn.
    returns = [0.9, -0.25, 0.0]
    assert [row["return"] for row in rows] == returns
    assert [row["weight"] for row in rows] == list(group_weights(returns, ["q", "q", "r"]))
    assert [(row["length"], row["unique_answers"], row["group_size"]) for row in rows] == [
        (2, 2, 2),
        (2, 1, 2),
        (1, 1, 1),
    ]
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert {row["policy"] for row in rows} == {f"log-{digest[:16]}"}
    assert manifest["format_of_log"] == "chat"
    assert manifest["columns"]["answers"] == "responses"


def test_keys_of_the_contract_are_taken_and_others_are_hashed(tmp_path: Path) -> None:
    rows = [row | {"round": 3, "policy": "mine"} for row in CHAT]
    reweight_file(write(tmp_path / "a.jsonl", rows), tmp_path / "a", WeightConfig(lam=0.0), form="turns")
    table, _ = read_folder(tmp_path / "a", "weighted")
    assert set(zip(table["round"].to_pylist(), table["policy"].to_pylist(), strict=True)) == {(3, "mine")}
    long = [row | {"question": "x" * 200, "number": 7} for row in CHAT]
    columns = Columns(group=("question", "number"))
    source = write(tmp_path / "b.jsonl", long)
    reweight_file(source, tmp_path / "b", WeightConfig(lam=0.0), columns, form="turns")
    table, _ = read_folder(tmp_path / "b", "weighted")
    key = json.dumps(["x" * 200, 7], separators=(",", ":"))
    assert set(table["prompt_id"].to_pylist()) == {hashlib.sha256(key.encode()).hexdigest()}
    # With a group of the user's own the log's samples are not compared, so rows are numbered.
    assert table["sample"].to_pylist() == [0, 1, 2]


def test_a_log_that_knows_no_right_answers_becomes_turns_with_a_threshold(tmp_path: Path) -> None:
    rows = [{"q": "a", "score": score, "prompt": "p", "completion": "c"} for score in (0.2, 0.9)]
    source = write(tmp_path / "log.jsonl", rows)
    columns = Columns(group="q", return_column="score")
    with pytest.raises(
        ValueError, match=r"log\.jsonl: weighted turns say which rows are right.*--threshold"
    ):
        reweight_file(source, tmp_path / "t", columns=columns, form="turns")
    assert not (tmp_path / "t").exists()
    columns = Columns(group="q", return_column="score", threshold=0.5)
    reweight_file(source, tmp_path / "t", columns=columns, form="turns")
    table, _ = read_folder(tmp_path / "t", "weighted")
    assert table["solved"].to_pylist() == [False, True]
    assert table["return"].to_pylist() == [0.2, 0.9]
    # Its return stays its own when the folder is weighed again.
    reweight_file(tmp_path / "t", tmp_path / "again", WeightConfig(beta=0.5))
    table, _ = read_folder(tmp_path / "again", "weighted")
    assert table["weight"].to_pylist() == list(group_weights([0.2, 0.9], ["a", "a"], beta=0.5))


def test_a_row_without_text_is_refused_by_its_line(tmp_path: Path) -> None:
    rows = [CHAT[0], CHAT[1] | {"messages": [*said("8"), {"role": "assistant", "content": None}]}]
    source = write(tmp_path / "chat.jsonl", rows)
    with pytest.raises(ValueError, match=r"chat\.jsonl, line 2: .*content is null"):
        reweight_file(source, tmp_path / "t", WeightConfig(lam=0.0), form="turns")
    assert not (tmp_path / "t").exists()
    reweight_file(source, tmp_path / "o.jsonl", WeightConfig(lam=0.0))
    assert (tmp_path / "o.jsonl").exists()


def test_selections_choose_among_the_turns_of_a_log(tmp_path: Path) -> None:
    source = write(tmp_path / "chat.jsonl", CHAT)
    config = WeightConfig(lam=0.0)
    written = reweight_file(source, tmp_path / "t", config, selection="rft", form="turns")
    table, manifest = read_folder(tmp_path / "t", "weighted")
    assert (table["sample"].to_pylist(), table["weight"].to_pylist()) == ([4], [1.0])
    assert manifest["selection"] == "rft"
    assert written.inspection.rows == 1
    with pytest.raises(ValueError, match="add --form turns"):
        reweight_file(source, tmp_path / "o.jsonl", config, selection="rft")


def test_dropped_rows_are_in_none_of_the_forms(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": "q", "correct": 0},
        {"prompt_id": "r", "correct": 1},
        {"prompt_id": "q", "correct": 0},
    ]
    source = write(tmp_path / "log.jsonl", rows)
    config = WeightConfig(all_wrong="drop")
    written = reweight_file(source, tmp_path / "o.jsonl", config)
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()] == [
        {"prompt_id": "r", "correct": 1, "weight": 1.0}
    ]
    assert "1 groups without a success are left out" in written.remarks
    reweight_file(source, tmp_path / "side.parquet", config, form="side")
    assert pq.read_table(tmp_path / "side.parquet").to_pydict() == {"row": [1], "weight": [1.0]}


def test_the_output_named_parquet_of_a_log_of_lines_holds_the_weights_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "log.jsonl", [{"prompt_id": "q", "correct": n} for n in (0, 1)])
    written = reweight_file(source, tmp_path / "w.parquet")
    assert written.form == "side"
    side = pq.read_table(tmp_path / "w.parquet").to_pydict()
    assert side == {"row": [0, 1], "weight": list(group_weights([0.0, 1.0], [0, 0]))}


def test_a_target_is_met_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "log.jsonl", [{"prompt_id": "q", "correct": n == 0} for n in range(4)])
    main(["inspect", str(source), "--target-ess", "2"])
    shown = capsys.readouterr().out
    beta = float(shown.split("--beta ")[1].split(".\n")[0].rstrip("."))
    # (1 + 3x)² = 2(1 + 3x²) for x = exp(−1/β).
    x = (-6 + (36 + 12) ** 0.5) / 6
    assert beta == pytest.approx(-1 / math.log(x), rel=2e-3)
    assert weighable(source, WeightConfig()).ledger.rows == 4


def test_the_return_of_a_log_stays_its_own_however_often_it_is_weighed(tmp_path: Path) -> None:
    rows = [{"q": "a", "score": score, "prompt": "p", "completion": "c"} for score in (0.2, 0.9)]
    columns = Columns(group="q", return_column="score", threshold=0.5)
    reweight_file(write(tmp_path / "log.jsonl", rows), tmp_path / "0", columns=columns, form="turns")
    for number in range(3):
        config = WeightConfig(beta=0.5 + number)
        reweight_file(tmp_path / str(number), tmp_path / str(number + 1), config)
    table, _ = read_folder(tmp_path / "3", "weighted")
    assert table["weight"].to_pylist() == list(group_weights([0.2, 0.9], ["a", "a"], beta=2.5))


def test_groups_left_out_for_an_unscored_row_are_listed_by_key(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "3 + 4?"}]
    rows = [
        {"example_id": f"q{n % 3}", "prompt": asked, "completion": "7", "reward": 1.0, "answer": "7"}
        | {"error": "timeout" if n in (1, 5) else None}
        for n in range(6)
    ]
    source = write(tmp_path / "results.jsonl", rows)
    reweight_file(source, tmp_path / "t", form="turns")
    table, manifest = read_folder(tmp_path / "t", "weighted")
    policy = table["policy"][0].as_py()
    left = [{"prompt_id": name, "round": 0, "policy": policy} for name in ("q1", "q2")]
    assert manifest["omitted_groups"] == left
    assert set(table["prompt_id"].to_pylist()) == {"q0"}
    reweight_file(tmp_path / "t", tmp_path / "again", WeightConfig(beta=1.0))
    assert read_folder(tmp_path / "again", "weighted")[1]["omitted_groups"] == left
    reweight_file(source, tmp_path / "o.jsonl")
    assert json.loads((tmp_path / "o.jsonl.drift.json").read_text())["omitted_group_count"] == 2


def test_a_training_step_is_a_round(tmp_path: Path) -> None:
    rows = [
        {"input": "3 + 4?", "output": str(n), "gts": "7", "score": float(n == 7), "step": step}
        for step in (12, 13)
        for n in (7, 8)
    ]
    reweight_file(write(tmp_path / "12.jsonl", rows), tmp_path / "t", form="turns")
    table, _ = read_folder(tmp_path / "t", "weighted")
    assert table["round"].to_pylist() == [12, 12, 13, 13]
    assert len(set(table["prompt_id"].to_pylist())) == 1
    assert table["group_size"].to_pylist() == [2] * 4


def test_where_some_rows_have_no_number_every_row_is_numbered_by_its_place(tmp_path: Path) -> None:
    rows = [
        row | {"prompt_id": "q", "sample": sample} for row, sample in zip(CHAT, (1, None, 5), strict=True)
    ]
    reweight_file(write(tmp_path / "chat.jsonl", rows), tmp_path / "t", WeightConfig(lam=0.0), form="turns")
    table, _ = read_folder(tmp_path / "t", "weighted")
    assert table["sample"].to_pylist() == [0, 1, 2]
