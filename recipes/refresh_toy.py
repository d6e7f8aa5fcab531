"""One round of rollouts against several, at the same number of optimizer steps, on worlds of the toy.

    uv run recipes/refresh_toy.py                  three worlds, 1 and 2 rounds, two weightings
    uv run recipes/refresh_toy.py --rounds 1 2 4   and four rounds

A comparison that was stopped goes on when it is started again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from drift_eval import Comparison, Scores, compare_outcomes, outcomes
from drift_eval.scoring import score_outcomes
from drift_weights import read_folder
from drift_weights.folder import write_json
from quickstart import (
    BATCH,
    METHODS,
    MICRO_TOKENS,
    RESPONSE_TOKENS,
    Method,
    Scale,
    Stage,
    evaluate_policy,
    hush,
    reference_policy,
    world_stage,
    write_problems,
)
from quickstart_report import difference, percent
from refresh import PLAN, Round, Settings, refresh

WEIGHTED = tuple(method for method in METHODS if method.selection == "drift")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one way to spend the steps came to in one world."""

    world: int
    weighting: str
    rounds: int
    scores: Scores
    with_first: Comparison | None
    """Against the first number of rounds, paired by problem; None for that itself."""
    dialogues: int
    """Rolled out, over all rounds."""
    solved: tuple[float, ...]
    """Share of each round's dialogues."""


def main() -> None:
    """Run the worlds asked for, and print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="worlds to run, each with its own everything")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2], help="the first is compared with")
    parser.add_argument("--out", type=Path, default=Path("runs/refresh"))
    options = parser.parse_args()
    hush()
    console = Console()
    results = []
    for seed in range(options.seeds):
        with world_stage(seed, Scale(), options.out / f"world-{seed}", console) as stage:
            results += compare(stage, options.rounds, console)
    console.print(result_table(results))
    write_json(options.out / "results.json", {"results": [asdict(result) for result in results]})


def compare(stage: Stage, rounds: Sequence[int], console: Console) -> list[Result]:
    """Every weighting with every number of rounds, in one world."""
    reference = reference_policy(stage)
    problems = stage.folder / "rollout.jsonl"
    write_problems(problems, stage.splits.rollout)
    first: Path | None = None
    results = []
    for method in WEIGHTED:
        base = None
        for count in rounds:
            out = stage.folder / f"{method.weighting}-{count}"
            settings = settings_of(stage, method, problems, reference, out, count)
            if first is not None:
                _lend(first, settings)
            policy = refresh(settings, console)
            first = first or out
            table = evaluate_policy(
                stage, f"{method.weighting}, {count} round(s)", policy, stage.splits.heldout
            )
            found = outcomes(table)[0]
            base = base or found
            results.append(
                Result(
                    world=stage.seed,
                    weighting=method.weighting,
                    rounds=count,
                    scores=score_outcomes(found),
                    with_first=None if found is base else compare_outcomes(found, base),
                    **_rolled_out(settings),
                )
            )
    return results


def settings_of(
    stage: Stage, method: Method, problems: Path, reference: Path, out: Path, rounds: int
) -> Settings:
    """A refresh run with the quickstart's settings, which its commands read from two YAML files."""
    rollout = {
        "prompt": {"user": "{problem}", "system": None},
        "samples": stage.scale.samples,
        "sampling": {"max_new_tokens": RESPONSE_TOKENS},
        "seed": stage.seed,
        "engine": {"transformers": {"device": "cpu"}},
    }
    train = {
        "model": {"learning_rate": method.learning_rate, "gradient_clip": 1.0},
        "data": {
            "batch_size": BATCH,
            "micro_tokens": MICRO_TOKENS,
            "weighting": method.weighting,
            "seed": stage.seed,
        },
        "trainer": {"accelerator": "cpu"},
    }
    return Settings(
        problems=problems,
        model=str(reference),
        out=out,
        rounds=rounds,
        steps=stage.scale.steps,
        rollout=_written(stage.folder / "rollout.yaml", rollout),
        train=_written(stage.folder / f"train-{method.weighting}.yaml", train),
    )


def result_table(results: Sequence[Result]) -> Table:
    """A row a run; gains are of multi@5, over the first number of rounds of the same weighting."""
    table = Table(title="Greedy on held-out problems, in %", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("world", "weighting", "rounds", "acc@1", "multi@5", "gain", "95 %", "p", "solved"):
        table.add_column(name, justify="left" if name in ("weighting", "solved") else "right", no_wrap=True)
    for one in results:
        scores = one.scores
        cells = [str(one.world), one.weighting, str(one.rounds), percent(scores.acc_at_1.value)]
        cells += [percent(scores.multi_at_max.value), *difference(one.with_first)]
        table.add_row(*cells, " ".join(map(percent, one.solved)))
    return table


def _lend(first: Path, settings: Settings) -> None:
    """Round 0 asks the same policy with the same seeds: its rollout is taken from the first run."""
    lent, scratch = settings.out / "round-0", settings.out / ".round-0"
    if not lent.exists():
        settings.out.mkdir(exist_ok=True)
        write_json(settings.out / PLAN, settings.fixed())
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(first / "round-0" / "rollout", scratch / "rollout")
        scratch.rename(lent)


def _rolled_out(settings: Settings) -> dict[str, Any]:
    solved = []
    count = 0
    for number in range(settings.rounds):
        made = Round(folder=settings.out / f"round-{number}")
        table, _ = read_folder(made.weighted, "weighted")
        found = table["solved"].to_pylist()
        count += len(found)
        solved.append(sum(found) / len(found))
    return {"dialogues": count, "solved": tuple(solved)}


def _written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
