"""Rollout refresh (D.5): rounds of rollout → weights → training, each from the policy of the round before.

    uv run recipes/refresh.py problems.jsonl MODEL OUT --rounds 2 --steps 200 --train train.yaml

The steps are shared out over the rounds, so that n rounds train as long as one. Every stage is a command in
a process of its own: rollouts and training never share a device, and what runs here runs by hand as well. A
run that was stopped goes on when it is started again: rollouts from their journal, training from its newest
state, finished stages not at all. `recipes/refresh_toy.py` compares rounds on the toy world.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli
from rich.console import Console

from drift_train import newest, read_state
from drift_weights.command_line import option_words, refuse
from drift_weights.folder import file_sha256, write_json

PLAN = "refresh.json"
"""Beside the rounds: what they were made with."""
_TRAINER = tuple(
    f"trainer.{name}" for name in ("max_steps", "max_epochs", "logger", "enable_checkpointing")
)
"""A round's length, and where its states lie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """One refresh run.

    Raises:
        ValueError: fewer steps than rounds, a missing file, or a setting of the rounds' own in a YAML file.
    """

    problems: Path
    model: str
    out: Path
    rounds: int = 2
    steps: int = 200
    """Optimizer steps of all rounds together (D.2)."""
    rollout: Path | None = None
    """Options of `drift-rollout sample` as YAML."""
    weights: Path | None = None
    """Options of `drift-weights reweight` as YAML."""
    train: Path | None = None
    """Options of `drift-train fit` as YAML; the learning rate at least."""

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= self.steps:
            raise ValueError(f"rounds must lie in [1, steps], got {self.rounds} of {self.steps} steps")
        _refuse_own(self.rollout, ("problems", "model", "out", "round"))
        _refuse_own(self.weights, ("input", "output"))
        _refuse_own(self.train, ("ckpt_path", "model.model", "data.path", *_TRAINER))

    def steps_of(self, round_: int) -> int:
        """The round's share of the steps; the first rounds take what is left over."""
        share, over = divmod(self.steps, self.rounds)
        return share + (round_ < over)

    def fixed(self) -> dict[str, Any]:
        """What must stay the same when the run goes on."""
        configs = {"rollout": self.rollout, "weights": self.weights, "train": self.train}
        return {
            "problems": file_sha256(self.problems),
            "model": self.model,
            "rounds": self.rounds,
            "steps": self.steps,
            **{name: path and _read(path) for name, path in configs.items()},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """The files of one round."""

    folder: Path

    @property
    def trajectories(self) -> Path:
        """Where its dialogues are."""
        return self.folder / "rollout" / "trajectories"

    @property
    def weighted(self) -> Path:
        """Where its weighted turns are."""
        return self.folder / "weighted"

    @property
    def policy(self) -> Path:
        """What it ends with, and the next one starts from."""
        return self.folder / "policy"

    def state(self) -> Path | None:
        """The furthest state of its fits, of which there is one more after each stop."""
        runs = {path.parents[2] for path in self.folder.glob("runs/*/checkpoints/step-*/state.json")}
        found = [newest(run) for run in sorted(runs)]
        return max(found, key=lambda state: read_state(state).step, default=None)


def refresh(settings: Settings, console: Console) -> Path:
    """Run all rounds, or what is left of them; returns the last round's policy.

    Raises:
        ValueError: OUT holds a run of other settings, or a command failed.
        FileNotFoundError: no such file.
    """
    _claim(settings)
    policy: str | Path = settings.model
    for number in range(settings.rounds):
        made = Round(folder=settings.out / f"round-{number}")
        if not made.policy.is_dir():
            made.folder.mkdir(exist_ok=True)
            for words in commands(settings, number, policy):
                _run(words, made.folder, console)
        policy = made.policy
    return Path(policy)


def commands(settings: Settings, number: int, policy: str | Path) -> Iterator[list[str]]:
    """What a round still has to run, as words of a shell; each is made when the one before has ended.

    A fit ends with a state of its last step, and is left out where there is one.
    """
    made = Round(folder=settings.out.absolute() / f"round-{number}")
    start = _absolute(policy)
    steps = settings.steps_of(number)
    if not made.weighted.is_dir():
        asked = [_absolute(settings.problems), start, str(made.trajectories.parent)]
        yield ["drift-rollout", "sample", *_config(settings.rollout), *asked, "--round", str(number)]
        turns = [str(made.trajectories), str(made.weighted)]
        yield ["drift-weights", "reweight", *_config(settings.weights), *turns]
    state = made.state()
    if state is None or read_state(state).step < steps:
        fit = ["drift-train", "fit", *_config(settings.train), f"--model.model={start}"]
        fit += [f"--data.path={made.weighted}", f"--trainer.max_steps={steps}"]
        yield fit if state is None else [*fit, f"--ckpt_path={state}"]
    yield ["drift-train", "export", str(made.state() or made.folder / "runs/version_0"), str(made.policy)]


def main(args: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    words = option_words(sys.argv[1:] if args is None else args, flags={"dry_run"})
    try:
        auto_cli(command, args=words, as_positional=True, exit_on_error=False)
    except (ValueError, OSError, LookupError) as error:
        refuse(error)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on\n")
        sys.exit(130)


def command(
    problems: Path,
    model: str,
    out: Path,
    *,
    rounds: int = 2,
    steps: int = 200,
    rollout: Path | None = None,
    weights: Path | None = None,
    train: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Train a policy in rounds, each on dialogues of the policy of the round before (D.5).

    Args:
        problems: a .jsonl or .parquet file with a question and an answer column.
        model: a folder or Hub id of the policy to start from.
        out: a folder for the rounds; started again with the same settings, a stopped run goes on.
        rounds: n ≥ 1.
        steps: optimizer steps of all rounds together.
        rollout: a YAML file with options of drift-rollout sample.
        weights: a YAML file with options of drift-weights reweight.
        train: a YAML file with options of drift-train fit, the learning rate among them.
        dry_run: print the commands that are left, and run none.
    """
    settings = Settings(
        problems=problems,
        model=model,
        out=out,
        rounds=rounds,
        steps=steps,
        rollout=rollout,
        weights=weights,
        train=train,
    )
    console = Console()
    if dry_run:
        for words in _left(settings):
            console.print(shlex.join(words), markup=False, highlight=False, soft_wrap=True)
        return
    policy = refresh(settings, console)
    console.print(f"wrote {policy}, after {rounds} rounds of {steps} steps together", highlight=False)


def _left(settings: Settings) -> Iterator[list[str]]:
    policy: str | Path = settings.model
    for number in range(settings.rounds):
        made = Round(folder=settings.out / f"round-{number}")
        if not made.policy.is_dir():
            yield from commands(settings, number, policy)
        policy = made.policy


def _claim(settings: Settings) -> None:
    """Note the settings in OUT, or hold them against those that are noted there."""
    wanted, path = settings.fixed(), settings.out / PLAN
    if not path.is_file():
        if settings.out.is_dir() and any(settings.out.iterdir()):
            raise ValueError(f"{settings.out} holds files and no {PLAN}; choose another output")
        settings.out.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
        return
    found = json.loads(path.read_bytes())
    other = sorted(name for name in wanted if found.get(name) != wanted[name])
    if other:
        name = other[0]
        raise ValueError(
            f"{settings.out} is a run with other settings: {', '.join(other)} ({name} was "
            f"{found.get(name)!r}, is {wanted[name]!r}); choose another output, or go on with those"
        )


def _run(words: Sequence[str], folder: Path, console: Console) -> None:
    """One command, in the folder of its round, where a fit leaves its runs."""
    console.print(f"[{folder.name}] {shlex.join(words)}", markup=False, highlight=False, soft_wrap=True)
    program, *rest = words
    # The programs of this environment, whatever the PATH says.
    done = subprocess.run([Path(sys.executable).with_name(program), *rest], cwd=folder, check=False)
    if done.returncode:
        raise ValueError(
            f"{program} {rest[0]} ended with {done.returncode}; what is done stays, start again to go on"
        )


def _config(path: Path | None) -> list[str]:
    return [] if path is None else ["--config", _absolute(path)]


def _absolute(place: str | Path) -> str:
    """Commands run elsewhere; a Hub id stays as it is."""
    path = Path(place)
    return str(path.absolute()) if path.exists() or isinstance(place, Path) else str(place)


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _refuse_own(path: Path | None, names: Sequence[str]) -> None:
    if path is None:
        return
    content = _read(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no options")
    for name in names:
        section, _, key = name.rpartition(".")
        found = content.get(section) if section else content
        if isinstance(found, dict) and key in found:
            raise ValueError(f"{path}: {name} is set by the rounds; take it out")


if __name__ == "__main__":
    main()
