"""drift-rollout's commands around a run: pilot, status, export, dry run, and what ends a run early."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from drift_rollout.cli import main
from drift_rollout.journal import JournalReader
from drift_weights import from_table, read_folder
from drift_weights.cli import main as weights
from rollout.own_engine import ENVIRONMENT, guessing
from tiny import bpe_tokenizer

COMMAND = [sys.executable, "-c", "from drift_rollout.cli import main; main()"]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"problem": f"q{n}", "answer": n % 3}) + "\n" for n in range(12)))
    return path


def words(problems: Path, out: Path, **options: object) -> list[str]:
    return ["sample", str(problems), "guess", str(out), "--samples=4", *guessing(**options)]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code), capsys.readouterr().err


def exported(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "trajectories" / "data").iterdir())}


def test_a_dry_run_shows_plan_prompt_and_tokens(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.save_pretrained(tmp_path / "stand-in")
    dry = ["sample", str(problems), "no/such-model", str(tmp_path / "run"), "--dry-run"]
    main([*dry, "--stand_in", str(tmp_path / "stand-in"), "--prefill", "<think>"])
    shown = capsys.readouterr().out
    assert "12 problems × 16 samples = 192 trajectories, at most 5 turns of 512 tokens each" in shown
    assert "State: q0\nYou have 5 actions left." in shown
    assert "<|im_start|>assistant\n<think>\ntokens: " in shown
    first = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert f"tokens: {first}:'<|im_start|>' " in shown
    assert re.search(r"… \(\d+ in all\)", shown)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_a_template_would_change(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    main(["sample", str(problems), str(tmp_path / "model"), str(tmp_path / "run"), "--dry-run"])
    assert "Note: the chat template renders earlier thoughts otherwise" in capsys.readouterr().out


def test_a_tokenizer_that_is_not_here_is_not_fetched(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["sample", str(problems), "no/such-model", str(tmp_path / "run"), "--dry-run"])
    shown = capsys.readouterr().out
    assert "= 192 trajectories" in shown
    assert "State: q0\nYou have 5 actions left." in shown
    assert "tokenizer is not on this machine; --stand_in FOLDER names one" in shown
    folder = str(tmp_path / "no" / "model")
    code, said = refused(capsys, ["sample", str(problems), folder, str(tmp_path / "run"), "--dry-run"])
    assert code == 2
    assert "there is no such folder" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--seed=7", "seed: 0 before, 7 now"),
        ("--sampling.temperature=0.5", "'temperature': 1.0.* before, .*'temperature': 0.5.* now"),
        ("--prompt={user: 'Say {problem}', system: null}", "prompt: .* before, .* now"),
        ("--pilot=0", "at least 1 problem must be taken"),
        ("--round=-1", r"round must lie in \[0, 2\^31\)"),
        ("--samples=0", "samples must be at least 1"),
        ("--protocol.max_turns=0", "max_turns must be at least 1"),
        ("--verifier=nobody", "nobody"),
    ],
)
def test_wrong_settings_are_refused_before_the_model_is_loaded(
    change: str,
    said: str,
    problems: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = words(problems, tmp_path / "run")
    main(run)
    opened: list[object] = []
    monkeypatch.setattr("drift_rollout.cli.open_engine", lambda *args, **_: opened.append(args))
    code, found = refused(capsys, [*run, change])
    assert code == 2
    assert re.search(said, found)
    assert not opened


def test_a_run_beside_another_is_refused_before_the_model_is_loaded(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = words(problems, tmp_path / "run")
    main(run)
    monkeypatch.setattr("drift_rollout.cli.open_engine", None)
    with FileLock(tmp_path / "run/journal.sqlite.lock"):
        assert "another run is writing" in refused(capsys, run)[1]


def test_a_pilot_projects_the_whole_and_its_work_is_kept(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = words(problems, tmp_path / "run")
    main([*run, "--pilot=5", "--price=2"])
    shown = capsys.readouterr().out
    with JournalReader(tmp_path / "run" / "journal.sqlite") as journal:
        rows = journal.finished()
    groups = {row.group for row in rows}
    assert (len(rows), len(groups)) == (20, 5)
    assert not (tmp_path / "run" / "trajectories").exists()
    assert "5 problems, 20 trajectories" in shown
    assert "48 trajectories, about 0 sampled tokens" in shown, "this engine gives no ids"
    assert re.search(r"about 0:00:0\d at the pilot's rate, 0\.0\d at 2 an hour", shown)
    solved = {g for g in groups if any(r.solved for r in rows if r.group == g)}
    assert f"{len(solved) / 5:.1%} of them have a success" in shown
    main(["status", str(tmp_path / "run")])
    assert re.search(r"not running\s+trajectories\s+20 of 48 \(41\.7%\)", capsys.readouterr().out)

    main(run)
    whole = exported(tmp_path / "run")
    main(words(problems, tmp_path / "straight"))
    assert whole == exported(tmp_path / "straight")
    main([*run, "--pilot=5"])
    assert "nothing was sampled just now" in capsys.readouterr().out


def test_status_and_export_of_a_run_that_runs(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process samples slowly; what is committed can be seen and taken, and the run goes on."""
    out = tmp_path / "run"
    slow = subprocess.Popen([*COMMAND, *words(problems, out, wait=0.05)], env=ENVIRONMENT)
    try:
        wait_for(lambda: complete_groups(out) >= 2)
        main(["status", str(out)])
        shown = capsys.readouterr().out
        assert re.search(r"state +running", shown)
        assert re.search(r"\d+ of 48 \(\d+\.\d%\)", shown)
        assert re.search(r"trajectories a minute, 0 tokens/s; about 0:00:\d\d left", shown)
        main(["export", str(out), str(tmp_path / "now")])
        said = capsys.readouterr().out
        taken = list(from_table(read_folder(tmp_path / "now", "trajectories")[0]))
        groups = {t.prompt_id for t in taken}
        assert len(taken) == 4 * len(groups) < 48
        assert f"{len(taken)} trajectories in {len(groups)} groups" in said
    finally:
        assert slow.wait(60) == 0
    main(["status", str(out)])
    assert "complete" in capsys.readouterr().out
    main(words(problems, tmp_path / "straight"))
    assert exported(out) == exported(tmp_path / "straight")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_then_goes_on(problems: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "run"
    pipes = {"env": ENVIRONMENT, "stderr": subprocess.PIPE, "text": True}
    slow = subprocess.Popen([*COMMAND, *words(problems, out, wait=0.05)], **pipes)
    wait_for(lambda: complete_groups(out) >= 1)
    slow.send_signal(number)
    _, said = slow.communicate(timeout=30)
    assert slow.returncode == 130
    assert said.splitlines()[-1] == "stopped; what had finished is in the journal, the same command goes on"
    main(words(problems, out))
    main(words(problems, tmp_path / "straight"))
    assert exported(out) == exported(tmp_path / "straight")


def test_an_engine_that_dies_is_one_line_and_nothing_is_lost(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At every request up to the 50th: test_journal.py."""
    out = tmp_path / "run"
    code, said = refused(capsys, words(problems, out, die_at=40))
    assert code == 1
    assert said == "the engine failed: died at request 40\nthe same command goes on\n"
    with JournalReader(out / "journal.sqlite") as journal:
        before = {row.key for row in journal.finished()}
    main(words(problems, out))
    main(words(problems, tmp_path / "straight"))
    assert exported(out) == exported(tmp_path / "straight")
    assert before
    assert before <= keys(out)


def test_only_complete_groups_are_exported_unless_told(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    refused(capsys, words(problems, out, die_at=2))
    assert "none of 0 groups is complete" in refused(capsys, ["export", str(out), str(tmp_path / "x")])[1]
    refused(capsys, words(problems, out, die_at=60))
    main(["export", str(out), str(tmp_path / "whole")])
    main(["export", str(out), str(tmp_path / "all"), "--partial"])
    with JournalReader(out / "journal.sqlite") as journal:
        rows = journal.finished()
    sizes = {group: sum(row.group == group for row in rows) for group in {row.group for row in rows}}
    whole, every = (read_folder(tmp_path / name, "trajectories")[0] for name in ("whole", "all"))
    assert set(whole["prompt_id"].to_pylist()) == {group[0] for group, size in sizes.items() if size == 4}
    assert every.num_rows == len(rows) > whole.num_rows
    assert f"{sum(size < 4 for size in sizes.values())} of them incomplete" in capsys.readouterr().out
    code, said = refused(capsys, ["export", str(out), str(tmp_path / "all")])
    assert (code, "exists" in said) == (2, True)


@pytest.mark.parametrize("command", [["status"], ["export"]])
def test_a_folder_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    more = [str(tmp_path / "x")] if command == ["export"] else []
    code, said = refused(capsys, [*command, str(tmp_path), *more])
    assert code == 2
    assert "holds no journal.sqlite; name the folder of a rollout" in said


def test_a_partial_export_declares_no_k(problems: Path, tmp_path: Path) -> None:
    """drift-weights takes its groups as they come; a whole one declares K."""
    out = tmp_path / "run"
    with pytest.raises(SystemExit):
        main(words(problems, out, die_at=60))
    for name, more in (("whole", []), ("part", ["--partial"])):
        main(["export", str(out), str(tmp_path / name), *more])
        _, manifest = read_folder(tmp_path / name, "trajectories")
        assert manifest["rollout"]["samples"] == (4 if name == "whole" else None)
        weights(["reweight", str(tmp_path / name), str(tmp_path / f"{name}-weighted")])


def test_a_smaller_plan_counts_its_own(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(words(problems, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "trajectories")
    main([*words(problems, tmp_path / "run"), "--samples=2", "--limit=10"])
    capsys.readouterr()
    main(["status", str(tmp_path / "run")])
    shown = " ".join(capsys.readouterr().out.split())
    assert "20 of 20 (100.0%), and 4 of problems of an earlier plan" in shown
    assert "of 2 a group" in shown


def test_samples_that_are_all_alike_are_told(
    problems: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(words(problems, tmp_path / "varied"))
    assert "begin with the same response" not in caplog.text
    main(words(problems, tmp_path / "alike", digits=1))
    assert "the samples of each of 12 problems begin with the same response" in caplog.text
    caplog.clear()
    main([*words(problems, tmp_path / "greedy", digits=1), "--sampling.temperature=0"])
    assert "begin with the same response" not in caplog.text


def test_a_run_that_solves_nothing_is_an_alarm(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems.write_text(problems.read_text().replace('"answer": ', '"answer": 9'))
    main([*words(problems, tmp_path / "run"), "--pilot=3"])
    assert "Alarm: not one of 3 problems was solved" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (
            "rollout.own_engine.Nothing",
            "lacks tokenizer, context_length, seeded, concurrency, poll, release",
        ),
        ("nowhere.Engine", "its folder on PYTHONPATH"),
        ("rollout.own_engine.Guessing --engine.own.nope=1", "unexpected keyword argument 'nope'"),
    ],
)
def test_an_engine_that_is_none_is_told(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str, said: str
) -> None:
    run = ["sample", str(problems), "guess", str(tmp_path / "run"), "--engine", *engine.split()]
    code, line = refused(capsys, run)
    assert (code, line.count("\n")) == (2, 1)
    assert said in line


def test_places_that_are_no_output_are_told(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert "is a model's folder" in refused(capsys, words(problems, tmp_path / "model"))[1]
    main(words(problems, tmp_path / "run"))
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"problem": "another", "answer": 1}))
    assert "trajectories of other problems" in refused(capsys, words(others, tmp_path / "run"))[1]


def keys(out: Path) -> set[tuple[str, int, str, int]]:
    return {t.key for t in from_table(read_folder(out / "trajectories", "trajectories")[0])}


def complete_groups(out: Path) -> int:
    if not (out / "journal.sqlite").is_file():
        return 0
    try:
        with JournalReader(out / "journal.sqlite") as journal:
            groups = [row.group for row in journal.finished()]
    except ValueError:
        # Between the file and its tables.
        return 0
    return sum(groups.count(group) == 4 for group in set(groups))


def wait_for(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
