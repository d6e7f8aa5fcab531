"""drift-rollout sample: the command line; it parses, calls and prints."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drift_rollout.engine import Sampling
from drift_rollout.engines.opening import EngineOptions, open_engine
from drift_rollout.journal import Finished
from drift_rollout.problems import ProblemSet, load_problems
from drift_rollout.prompts import PromptTemplate, choose_template
from drift_rollout.protocol import Protocol
from drift_rollout.run import check_run, origin_of, rollout
from drift_rollout.sampler import RolloutConfig
from drift_rollout.verify import VERIFIERS
from drift_weights.cli import option_words, refuse


def main(args: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        words = option_words(sys.argv[1:] if args is None else args, flags={"dry_run"})
        auto_cli({"sample": sample}, args=words, as_positional=True, exit_on_error=False)
    except (ValueError, OSError, ArgumentError) as error:
        refuse(error)


def sample(
    problems: Path,
    model: str,
    out: Path,
    *,
    prompt: str | PromptTemplate = "rollout-metamath",
    verifier: Literal["exact", "choice"] = "exact",
    question: str = "problem",
    answer: str = "answer",
    samples: int = 16,
    protocol: Protocol = Protocol(),
    sampling: Sampling = Sampling(),
    seed: int = 0,
    round: int = 0,
    revision: str | None = None,
    engine: EngineOptions = EngineOptions(),
    dry_run: bool = False,
) -> None:
    """Sample K correction dialogues a problem from a frozen policy; a killed run goes on where it was.

    Args:
        problems: a .jsonl or .parquet file with a question and an answer column.
        model: a folder or Hub id of a causal language model with a chat template.
        out: folder for the journal and, when all is sampled, `trajectories/`.
        prompt: a template of D.7 by name, or one of your own with `user` and `system`.
        verifier: how answers are judged.
        question: column with the problem's text.
        answer: column with the gold answer.
        samples: K, trajectories a problem.
        protocol: turn budget T and feedback f.
        sampling: temperature, top_p and tokens a response.
        seed: of the run; every turn derives its own.
        round: rollout round; groups of different rounds never mix.
        revision: a commit, tag or branch of a Hub id.
        engine: which engine answers, by name or import path, and its settings.
        dry_run: check the problems, print what would be done, and load no model.
    """
    console = Console()
    template, judge = choose_template(prompt), VERIFIERS[verifier]
    config = RolloutConfig(samples=samples, protocol=protocol, sampling=sampling, seed=seed, round=round)
    found = load_problems(
        problems, template, question=question, answer=answer, max_turns=protocol.max_turns
    )
    check_run(found, judge, config, out)
    _print_plan(console, found, config)
    if dry_run:
        return
    about, origin = {"prompt": asdict(template)}, origin_of(model, revision, problems)
    unscored = 0
    with (
        closing(open_engine(engine, model, revision=revision)) as opened,
        _progress(console) as bar,
    ):
        task = bar.add_task("sampling", total=samples * len(found.problems))

        def on_finished(batch: Sequence[Finished]) -> None:
            nonlocal unscored
            unscored += sum(not trajectory.scored for trajectory in batch)
            bar.advance(task, len(batch))

        folder = rollout(
            found, opened, judge, config, out, about=about, origin=origin, on_finished=on_finished
        )
    if unscored:
        console.print(
            f"{unscored} dialogues ended unscored; run again to sample them anew", highlight=False
        )
    console.print(f"wrote {folder}; next: drift-weights inspect {folder}", highlight=False, soft_wrap=True)


def _print_plan(console: Console, found: ProblemSet, config: RolloutConfig) -> None:
    count = len(found.problems)
    repeated = f" ({found.repeated} repeated rows are left out)" if found.repeated else ""
    turns, tokens = config.protocol.max_turns, config.sampling.max_new_tokens
    console.print(
        f"{count} problems{repeated} × {config.samples} samples = {count * config.samples} trajectories, "
        f"at most {turns} turns of {tokens} tokens each",
        highlight=False,
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
