"""drift-weights reweight and inspect, as a user runs them."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_weights import group_weights, read_folder, to_table, trajectory_return, write_folder
from drift_weights.cli import COMMANDS, main
from rows import LOG, trajectory

LINES = [
    b'{"prompt_id": "a", "correct": 1,\t"length":1, "unique": 1, "x": 1.50, "y": "\\u00e9"}\n',
    b'{"prompt_id":"b","correct":0,"length":5,"unique":5,"note":{"deep":[1,2]} }\r\n',
    b'{ "prompt_id": "a", "correct": false, "length": 5, "unique": 3}\n',
    b'{"prompt_id": "b", "correct": 0, "length": 5, "unique": 1}',
]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(LINES))
    return path


def expected() -> list[float]:
    returns = trajectory_return(LOG["correct"], LOG["length"], LOG["unique"])
    return list(group_weights(returns, LOG["prompt_id"]))


def fail(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_jsonl_keeps_every_other_byte(jsonl: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    main(["reweight", str(jsonl), str(out)])
    written = out.read_bytes().splitlines(keepends=True)
    for before, after, weight in zip(LINES, written, expected(), strict=True):
        assert json.loads(after)["weight"] == weight
        body, end = before.rstrip(), before[len(before.rstrip()) :]
        assert after.startswith(body[:-1].rstrip())
        assert after.endswith(b"}" + end)
        rest = json.loads(after)
        rest.pop("weight")
        assert rest == json.loads(before)


def test_parquet_in_parquet_out(tmp_path: Path) -> None:
    table = pa.table(LOG | {"extra": [[1], [2], [], None]})
    pq.write_table(table, tmp_path / "log.parquet")
    main(["reweight", str(tmp_path / "log.parquet"), str(tmp_path / "out.parquet")])
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.drop_columns(["weight"]).equals(table)
    assert out.column("weight").to_pylist() == expected()


def test_weights_of_ours_are_replaced_and_others_only_when_told(
    jsonl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, again, moved = (tmp_path / name for name in ("ours.jsonl", "again.jsonl", "moved.jsonl"))
    main(["reweight", str(jsonl), str(ours)])
    main(["reweight", str(ours), str(again), "--beta", "1"])
    assert json.loads(again.read_bytes().splitlines()[0])["weight"] != expected()[0]
    shutil.copy(ours, moved)
    assert "not ours" in fail(capsys, "reweight", moved, tmp_path / "third.jsonl")
    assert not (tmp_path / "third.jsonl").exists()
    main(["reweight", str(moved), str(tmp_path / "third.jsonl"), "--overwrite"])
    rows = [json.loads(line) for line in (tmp_path / "third.jsonl").read_bytes().splitlines()]
    assert [row["weight"] for row in rows] == expected()


def test_an_existing_output_is_kept(
    jsonl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    assert "exists" in fail(capsys, "reweight", jsonl, out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "args", "says"),
    [
        (b"", [], "has no rows"),
        (LINES[0] + LINES[1][:30], [], "line 2: not valid JSON"),
        (LINES[0] + b"3\n", [], "line 2: expected a JSON object"),
        (LINES[0] + b'{"prompt_id": "a"}\n', [], "line 2: no column 'correct'"),
        (LINES[0], ["--group", "nope"], "no column 'nope'"),
        (LINES[0], ["--group-size", "16"], "declared 16 rows"),
        (LINES[0], ["--beta", "0"], "beta must"),
        (LINES[0], ["--gamma", "0"], "gamma must"),
        (LINES[0], ["--selection", "rft"], "add --form turns"),
        (b'{"prompt_id": "a", "r": 1e999}\n', ["--return-column", "r"], "line 1"),
        (
            LINES[0] + LINES[0].replace(b'"a"', b"7"),
            [],
            "line 2: 'prompt_id' is 7 (int), earlier rows hold str",
        ),
    ],
)
def test_bad_logs_name_the_file_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, args: list[str], says: str
) -> None:
    source = tmp_path / "log.jsonl"
    source.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    message = fail(capsys, "reweight", source, tmp_path / "out.jsonl", *args)
    assert says in message
    assert message.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    if "must" not in says and "needs" not in says:
        assert str(source) in message


def test_a_broken_parquet_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.parquet").write_bytes(b"PAR1 not really")
    assert "no readable Parquet file" in fail(
        capsys, "reweight", tmp_path / "log.parquet", tmp_path / "o.parquet"
    )
    pq.write_table(pa.table(LOG | {"correct": ["yes", "no", "no", "no"]}), tmp_path / "typed.parquet")
    says = fail(capsys, "reweight", tmp_path / "typed.parquet", tmp_path / "o.parquet")
    assert "typed.parquet, row 0: 'correct' is 'yes', expected a number" in says
    assert not (tmp_path / "o.parquet").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = [
        trajectory("g", 0, ["a"], ended="solved"),
        trajectory("g", 1, ["a", "a"]),
        trajectory("h", 0, ["b"]),
    ]
    return write_folder(tmp_path / "trajectories", to_table(data), "trajectories", {"origin": "test"})


def test_trajectories_become_a_weighted_folder(folder: Path, tmp_path: Path) -> None:
    main(["reweight", str(folder), str(tmp_path / "w"), "--beta", "0.2"])
    table, manifest = read_folder(tmp_path / "w", "weighted")
    assert table.num_rows == 3
    assert manifest["weighting"]["beta"] == 0.2
    assert manifest["selection"] == "drift"
    assert manifest["source"]["manifest"]["origin"] == "test"


def test_selections_are_recorded(folder: Path, tmp_path: Path) -> None:
    main(["reweight", str(folder), str(tmp_path / "w"), "--selection", "star-2turn"])
    table, manifest = read_folder(tmp_path / "w", "weighted")
    assert table.column("weight").to_pylist() == [1.0]
    assert (table.column("length").to_pylist(), manifest["selection"]) == ([2], "star-2turn")


def test_a_folder_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "folder without drift.json" in fail(capsys, "inspect", tmp_path)
    assert "nowhere.jsonl does not exist\n" in fail(capsys, "inspect", tmp_path / "nowhere.jsonl")
    assert "pin it with a revision" in fail(capsys, "inspect", Path("org/name"))


def test_every_option_of_every_command_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert not re.findall(r"--\w+ (?:[A-Z_]+|\{[^}]*\}) \((?:required, )?type", said), command


def test_inspect_shows_composition_and_sweeps(
    jsonl: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", str(jsonl), "--beta", "[0.05,0.1,0.2]", "--lam", "[0,0.5]"])
    shown = capsys.readouterr().out
    assert "4 rows in 2 groups: 2 groups of 2" in shown
    assert "1 (50.0%)" in shown
    assert shown.count("│ 0.05 ") == shown.count("│  0.1 ") == shown.count("│  0.2 ") == 2
    main(["inspect", str(folder)])
    shown = capsys.readouterr().out
    assert "3 rows in 2 groups: 1 group of 1, 1 group of 2" in shown
    assert "█" in shown
    main(["reweight", str(folder), str(tmp_path / "w")])
    capsys.readouterr()
    main(["inspect", str(tmp_path / "w")])
    assert "3 rows in 2 groups: 1 group of 1, 1 group of 2" in capsys.readouterr().out


def test_the_alarm_rings_for_wrong_answers_above_one(
    jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", str(jsonl)])
    assert "1 of 3 wrong answers weigh more than 1" in " ".join(capsys.readouterr().out.split())


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("drift-weights")
    run = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "reweight" in run.stdout


def test_columns_are_those_of_all_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "log.jsonl"
    source.write_bytes(b'{"prompt_id": "a", "correct": 1}\n' + LINES[0])
    says = fail(capsys, "reweight", source, tmp_path / "o.jsonl")
    assert "line 2: column 'length', 'unique' is in some lines only" in says
    source.write_bytes(LINES[0] + LINES[2].replace(b"}", b', "weight": 3}'))
    assert "not ours" in fail(capsys, "reweight", source, tmp_path / "o.jsonl")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"prompt_id": "a", "correct": 1, "reward": NaN}\n', "field 'reward' is NaN or infinite"),
        (b"\n", "line 2: the line is empty; remove it"),
    ],
)
def test_lines_that_are_no_json_say_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes, says: str
) -> None:
    source = tmp_path / "log.jsonl"
    source.write_bytes(LINES[0] + line)
    assert says in fail(capsys, "reweight", source, tmp_path / "o.jsonl")


def test_a_byte_order_mark_is_no_mistake(jsonl: Path, tmp_path: Path) -> None:
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + jsonl.read_bytes())
    main(["reweight", str(marked), str(tmp_path / "o.jsonl")])
    out = (tmp_path / "o.jsonl").read_bytes()
    assert out.startswith(b"\xef\xbb\xbf{")
    assert json.loads(out.splitlines()[0].decode("utf-8-sig"))["weight"] == expected()[0]


def test_in_place_the_source_is_hashed_before_it_is_replaced(jsonl: Path) -> None:
    before = hashlib.sha256(jsonl.read_bytes()).hexdigest()
    main(["reweight", str(jsonl), str(jsonl), "--overwrite"])
    facts = json.loads((jsonl.parent / "log.jsonl.drift.json").read_text())
    assert facts["source"]["sha256"] == before
    assert facts["sha256"] == hashlib.sha256(jsonl.read_bytes()).hexdigest()


def test_the_k_of_the_rollout_is_declared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [trajectory("g", 0, ["a"]), trajectory("g", 1, ["b"]), trajectory("h", 0, ["b"])]
    manifest = {"rollout": {"samples": 2}}
    folder = write_folder(tmp_path / "t", to_table(data), "trajectories", manifest)
    for command in (["reweight", folder, tmp_path / "w"], ["inspect", folder]):
        assert "1 of 2 groups do not have the declared 2 rows" in fail(capsys, *command)
    assert not (tmp_path / "w").exists()


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [trajectory("g", 0, ["a"], ended="error"), trajectory("h", 0, ["b"])]
    folder = write_folder(tmp_path / "t", to_table(data), "trajectories", {})
    main(["reweight", str(folder), str(tmp_path / "w")])
    assert "1 groups hold an unscored row and are left out" in capsys.readouterr().out


def test_a_mixture_of_policies_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "log.jsonl"
    rows = [{"prompt_id": "a", "policy": name, "correct": 0} for name in "xy"]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["inspect", str(source), "--group", "prompt_id"])
    assert "groups mix 2 policies" in capsys.readouterr().out
    main(["inspect", str(source)])
    assert "2 groups: 2 groups of 1" in capsys.readouterr().out


def test_what_is_printed_is_what_was_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["reweight", str(folder), str(tmp_path / "w"), "--selection", "rft"])
    assert "1 rows in 1 groups: 1 group of 1" in capsys.readouterr().out
    main(["inspect", str(tmp_path / "w")])
    shown = capsys.readouterr().out
    assert "Weights as they are stored, selection rft" in shown
    assert "1 rows in 1 groups" in shown
    assert "holds the selection rft" in fail(capsys, "inspect", tmp_path / "w", "--beta", "0.2")


def test_a_weighted_folder_remembers_its_settings(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["reweight", str(folder), str(tmp_path / "w"), "--beta", "0.7"])
    first = capsys.readouterr().out
    main(["inspect", str(tmp_path / "w")])
    second = capsys.readouterr().out
    assert "│ 0.7 " in first
    assert first[first.index("3 rows") :] == second[second.index("3 rows") :]


def test_turns_do_not_go_into_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "become a folder" in fail(capsys, "reweight", folder, tmp_path / "out.parquet")


def test_a_sweep_has_a_histogram_for_each_setting(
    jsonl: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    main(["inspect", str(jsonl), "--beta", "[0.05,100]"])
    shown = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in shown.splitlines() if "–" in line}
    # At β = 100 every weight is near 1; at 0.05 none is.
    assert [cell.strip() for cell in rows["0.5 – 1"]] == ["0", "2"]


@pytest.mark.parametrize(
    ("rows", "args", "says"),
    [
        ([{"prompt_id": "a", "policy": p, "correct": 0} for p in "xy"], [], "has a single row"),
        ([{"q": "a", "correct": c, "n_turns": 3} for c in (0, 1)], ["--group", "q"], "counts as one turn"),
    ],
)
def test_what_a_user_may_not_have_meant_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list, args: list[str], says: str
) -> None:
    source = tmp_path / "log.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in (["inspect", source], ["reweight", source, tmp_path / "out.jsonl"]):
        main([*map(str, command), *args])
        assert says in " ".join(capsys.readouterr().out.split())
