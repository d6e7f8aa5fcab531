"""A verifier of a user's own by import path, in a rollout and in an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from drift_eval.cli import main as evaluate
from drift_rollout.cli import main as roll_out
from drift_weights import from_table, read_folder
from rollout.own_engine import guessing

COMMANDS = [pytest.param(roll_out, "sample", id="sample"), pytest.param(evaluate, "run", id="run")]
Main = Callable[[list[str]], None]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text(
        "".join(json.dumps({"problem": f"q{n}", "answer": f"4{n % 3}"}) + "\n" for n in range(6))
    )
    return path


def words(command: str, problems: Path, out: Path, verifier: str) -> list[str]:
    return [command, str(problems), "guess", str(out), *guessing(), "--verifier", *verifier.split()]


@pytest.mark.parametrize(("main", "command"), COMMANDS)
def test_its_arguments_reach_it(main: Main, command: str, problems: Path, tmp_path: Path) -> None:
    """The engine says one digit of two: right if one has to agree, and never if both have to."""
    suffix = "rollout.own_verifier.Suffix"
    for last, solves in (("1", True), ("2", False)):
        out = tmp_path / last
        main(words(command, problems, out, f"{suffix} --verifier.own.last={last}"))
        folder = next(path.parent for path in out.rglob("drift.json"))
        table, manifest = read_folder(folder, "trajectories")
        assert any(t.solved for t in from_table(table)) is solves
        assert manifest["rollout"]["verifier"] == ("suffix/1" if last == "1" else "suffix/1 last=2")


def test_the_grammar_reaches_it_if_it_takes_one(problems: Path, tmp_path: Path) -> None:
    boxed = '--prompt={"user":"\\\\boxed:{problem}","system":null}'
    verifiers = {
        f"rollout.own_verifier.Suffix {boxed} --verifier.grammar boxed": "suffix/1 grammar=boxed",
        f"rollout.own_verifier.Suffix {boxed} --verifier.own.grammar boxed": "suffix/1 grammar=boxed",
        "rollout.own_verifier.Plain": "plain/1",
    }
    for number, (verifier, name) in enumerate(verifiers.items()):
        out = tmp_path / str(number)
        roll_out(words("sample", problems, out, verifier))
        _, manifest = read_folder(out / "trajectories", "trajectories")
        assert manifest["rollout"]["verifier"] == name


@pytest.mark.parametrize(("main", "command"), COMMANDS)
@pytest.mark.parametrize(
    ("verifier", "said"),
    [
        ("hope", "verifier 'hope' is none of exact, choice"),
        (
            "nowhere.Verifier",
            "verifier 'nowhere.Verifier': No module named 'nowhere'; a module of your own",
        ),
        ("..Verifier", "and no package.module.Class"),
        ("rollout.own_verifier.Hope", "and module rollout.own_verifier has no Hope"),
        ("rollout.own_verifier", "and no package.module.Class"),
        ("math --verifier.own.nope=1", "verifier.own is for a verifier by import path; math takes none"),
        ("exact --verifier.grammar=boxed", "the prompt asks for <answer>, and exact/1 grammar=boxed reads"),
        ("rollout.own_verifier.Nothing", "lacks check_target, verify: see drift_rollout.verify.Verifier"),
        ("rollout.own_verifier.Suffix --verifier.own.nope=1", "unexpected keyword argument 'nope'"),
        ("rollout.own_verifier.Plain --verifier.own.nope=1", "is called with verifier.own, and grammar="),
        ("rollout.own_verifier.Plain --verifier.grammar=boxed", "takes no grammar"),
    ],
)
def test_one_that_is_none_is_told(
    main: Main,
    command: str,
    verifier: str,
    said: str,
    problems: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words(command, problems, tmp_path / "run", verifier))
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert not (tmp_path / "run").exists()
