"""Rounds of rollout, weights and training: one step budget, no shared group, and any stop costs nothing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file

import refresh
from drift_rollout.cli import main as rollout_main
from drift_train import newest, read_state
from drift_train.cli import main as train_main
from drift_weights import read_folder
from drift_weights.cli import main as weights_main
from refresh import Round, Settings
from tiny import bpe_tokenizer, save_policy, tiny_model

ROOT = Path(__file__).parents[2]
ROLLOUT = {
    "samples": 4,
    "sampling": {"max_new_tokens": 6},
    "protocol": {"max_turns": 2},
    "engine": {"transformers": {"device": "cpu"}},
}
TRAIN = {
    "model": {"learning_rate": 0.01},
    "data": {"batch_size": 8},
    "trainer": {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {"class_path": "drift_train.LastCheckpoint", "init_args": {"every_n_train_steps": 1}}
        ],
    },
}
KEY = ("prompt_id", "round", "policy")


def settings(folder: Path, out: str = "out", **changes: Any) -> Settings:
    """A refresh run of a tiny policy; its files are made where they are not there."""
    if not (folder / "problems.jsonl").exists():
        save_policy(folder / "policy", bpe_tokenizer(), tiny_model(vocab=400))
        rows = [{"problem": f"what is {n} + 1", "answer": str(n + 1)} for n in range(6)]
        (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "rollout.yaml").write_text(yaml.safe_dump(ROLLOUT))
        (folder / "train.yaml").write_text(yaml.safe_dump(TRAIN))
    return Settings(
        **{
            "problems": folder / "problems.jsonl",
            "model": str(folder / "policy"),
            "out": folder / out,
            "steps": 5,
            "rollout": folder / "rollout.yaml",
            "train": folder / "train.yaml",
            **changes,
        }
    )


def here(words: list[str], folder: Path, console: Console) -> None:
    """A command in this process, which has imported everything."""
    mains = {"drift-rollout": rollout_main, "drift-weights": weights_main, "drift-train": train_main}
    program, *rest = words
    before, argv = Path.cwd(), sys.argv
    os.chdir(folder)
    sys.argv = [program]
    try:
        mains[program](rest)
    finally:
        os.chdir(before)
        sys.argv = argv


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A run that nothing stopped."""
    made = settings(tmp_path_factory.mktemp("refresh"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refresh, "_run", here)
        assert refresh.refresh(made, Console()) == made.out / "round-1" / "policy"
    return made


def weights_of(policy: Path) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in load_file(policy / "model.safetensors").items()}


def test_the_steps_are_shared_out(straight: Settings) -> None:
    done = [read_state(newest(straight.out / f"round-{r}/runs/version_0")).step for r in (0, 1)]
    assert done == [3, 2]
    for rounds, steps in ((1, 200), (2, 200), (3, 200), (7, 7)):
        shares = [
            settings(straight.out.parent, rounds=rounds, steps=steps).steps_of(r) for r in range(rounds)
        ]
        assert sum(shares) == steps
        assert max(shares) - min(shares) <= 1


def test_each_round_rolls_out_and_trains_the_policy_of_the_round_before(straight: Settings) -> None:
    rows = [read_folder(straight.out / f"round-{r}/weighted", "weighted")[0].to_pylist() for r in (0, 1)]
    assert all(len(part) == 24 for part in rows)
    groups = [{tuple(row[name] for name in KEY) for row in part} for part in rows]
    assert not groups[0] & groups[1]
    assert {row["round"] for row in rows[1]} == {1}
    assert {row["prompt_id"] for row in rows[0]} == {row["prompt_id"] for row in rows[1]}
    # The name of a policy is a hash over its weights.
    assert len({row["policy"] for part in rows for row in part}) == 2
    state = read_state(newest(straight.out / "round-1/runs/version_0"))
    assert Path(state.settings["model"]) == straight.out / "round-0" / "policy"
    base, first, last = (
        weights_of(p) for p in (Path(straight.model), *(straight.out / f"round-{r}/policy" for r in (0, 1)))
    )
    assert base != first
    assert first != last


class StoppedError(Exception):
    """The machine went down."""


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_stopped_before_any_command_it_ends_in_the_same_bits(
    straight: Settings, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that was done is done again."""
    made = settings(straight.out.parent, f"stopped-{stop}")
    ran: list[str] = []

    def until(words: list[str], folder: Path, console: Console) -> None:
        if len(ran) == stop:
            raise StoppedError
        ran.append(words[1])
        here(words, folder, console)

    monkeypatch.setattr(refresh, "_run", until)
    with pytest.raises(StoppedError):
        refresh.refresh(made, Console())
    first, ran[:] = list(ran), ["-"] * 99
    refresh.refresh(made, Console())
    again = ran[99:]
    stages = ["sample", "reweight", "fit", "export"] * 2
    assert first == stages[:stop]
    # A journal that is full is asked once more for its export, which costs no sampling.
    assert again == stages[stop - (stop % 4 == 1) :]
    assert weights_of(made.out / "round-1/policy") == weights_of(straight.out / "round-1/policy")


def test_a_fit_goes_on_from_its_furthest_state(straight: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings(straight.out.parent, "in-a-fit")
    fits: list[list[str]] = []

    def stopping(words: list[str], folder: Path, console: Console) -> None:
        if words[1] == "fit":
            fits.append(words)
            if len(fits) == 1:
                short = [w.replace("max_steps=3", "max_steps=1") for w in words]
                here(short, folder, console)
                raise StoppedError
        here(words, folder, console)

    monkeypatch.setattr(refresh, "_run", stopping)
    with pytest.raises(StoppedError):
        refresh.refresh(made, Console())
    refresh.refresh(made, Console())
    assert fits[1][-1].startswith("--ckpt_path=")
    assert fits[1][-1].endswith("step-000001")
    assert not any("ckpt_path" in word for word in fits[2])
    assert weights_of(made.out / "round-1/policy") == weights_of(straight.out / "round-1/policy")


def test_other_settings_are_refused_and_named(straight: Settings) -> None:
    for change in ({"steps": 6}, {"rounds": 3}, {"rollout": None}):
        with pytest.raises(ValueError, match=f"other settings: {next(iter(change))} "):
            refresh.refresh(settings(straight.out.parent, **change), Console())
    (straight.out.parent / "mine").mkdir(exist_ok=True)
    (straight.out.parent / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"holds files and no refresh\.json"):
        refresh.refresh(settings(straight.out.parent, "mine"), Console())


@pytest.mark.parametrize("name", ["max_steps", "logger"])
def test_what_the_rounds_set_is_taken_from_no_file(tmp_path: Path, name: str) -> None:
    settings(tmp_path)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({**TRAIN, "trainer": {name: 9}}))
    with pytest.raises(ValueError, match=rf"trainer\.{name} is set by the rounds"):
        settings(tmp_path)
    with pytest.raises(ValueError, match="rounds must lie in"):
        settings(tmp_path, rounds=6)


def test_a_dry_run_prints_the_commands_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = settings(tmp_path)
    words = [
        str(made.problems),
        made.model,
        str(made.out),
        "--steps=5",
        f"--train={made.train}",
        "--dry-run",
    ]
    refresh.main(words)
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == ["sample", "reweight", "fit", "export"] * 2
    assert "--trainer.max_steps=2" in lines[6]
    assert f"--model.model={made.out}/round-0/policy" in lines[6]
    assert not made.out.exists()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = settings(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        refresh.main([str(made.problems), made.model, str(made.out), "--rounds=9", "--steps=5"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: rounds must lie in [1, steps], got 9 of 5 steps\n"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kill_9_of_everything_and_again(straight: Settings) -> None:
    """The real processes, killed after 15, 30 and 60 s, which is in any of the stages; then let be."""
    made = settings(straight.out.parent, "killed")
    words = [sys.executable, str(ROOT / "recipes/refresh.py")]
    words += [str(made.problems), made.model, str(made.out)]
    words += ["--steps=5", f"--rollout={made.rollout}", f"--train={made.train}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for patience in (15, 30, 60, 1200):
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.send_signal(signal.SIGKILL)
            process.kill()
            process.wait(timeout=60)
    assert process.returncode == 0
    rows = read_folder(Round(folder=made.out / "round-1").weighted, "weighted")[0]
    assert rows.num_rows == 24
    assert weights_of(made.out / "round-1/policy") == weights_of(straight.out / "round-1/policy")
