"""drift-rollout's commands around a run: pilot, status, export, dry run, and what ends a run early."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drift_rollout.cli import main
from drift_rollout.journal import JournalReader
from drift_weights import from_table, read_folder
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
