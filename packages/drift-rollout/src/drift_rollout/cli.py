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
from drift_rollout.overlap import OnOverlap, without_overlap
from drift_rollout.problem_sources import SourceName, row_format
from drift_rollout.problems import OnMistake, ProblemSet, golds_that_fail, load_problems
from drift_rollout.prompts import PromptTemplate, choose_template
from drift_rollout.protocol import Protocol
from drift_rollout.run import check_run, origin_of, rollout
from drift_rollout.sampler import RolloutConfig
from drift_rollout.verify import VERIFIERS, Verifier
from drift_weights.cli import option_words, refuse
from drift_weights.types import Trajectory


def main(args: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        words = option_words(sys.argv[1:] if args is None else args, flags={"dry_run", "check_gold"})
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
    source: SourceName = "table",
    question: str | None = None,
    answer: str | None = None,
    drop_ending: str | None = None,
    problems_revision: str | None = None,
    problems_subset: str | None = None,
    problems_split: str = "train",
    on_conflict: OnMistake = "refuse",
    on_no_gold: OnMistake = "refuse",
    overlap_with: Path | None = None,
    overlap_question: str | None = None,
    overlap: OnOverlap = "refuse",
    samples: int = 16,
    protocol: Protocol = Protocol(),
    sampling: Sampling = Sampling(),
    seed: int = 0,
    round: int = 0,
    revision: str | None = None,
    engine: EngineOptions = EngineOptions(),
    dry_run: bool = False,
    check_gold: bool = False,
) -> None:
    """Sample K correction dialogues a problem from a frozen policy; a killed run goes on where it was.

    Args:
        problems: a JSONL, JSON, Parquet or CSV file, a folder of such, or org/name on the Hub.
        model: a folder or Hub id of a causal language model with a chat template.
        out: folder for the journal and, when all is sampled, `trajectories/`.
        prompt: a template of D.7 by name, or one of your own with `user` and `system`.
        verifier: how answers are judged.
        source: table (the gold is a column), metamath-math (MetaMathQA's MATH rows), math or gsm8k.
        question: column with the problem's text; the source's own if not given.
        answer: column with the gold answer, or the text that says it; likewise.
        drop_ending: text at the end of every question that is no part of it.
        problems_revision: a tag or commit of problems on the Hub.
        problems_subset: one of several data sets in a folder or on the Hub.
        problems_split: of a folder or a data set on the Hub.
        on_conflict: equal prompts with different golds are refused, or left out whole (drop).
        on_no_gold: an answer's text that says no gold is refused, or its row left out (drop).
        overlap_with: a file of an evaluation whose questions must not be sampled.
        overlap_question: its column with the question; the one of the problems if not given.
        overlap: what that evaluation asks, too, is refused, left out (drop) or let in (allow).
        samples: K, trajectories a problem.
        protocol: turn budget T and feedback f.
        sampling: temperature, top_p and tokens a response.
        seed: of the run; every turn derives its own.
        round: rollout round; groups of different rounds never mix.
        revision: a commit, tag or branch of a Hub id.
        engine: which engine answers, by name or import path, and its settings.
        dry_run: check the problems, print what would be done, and load no model.
        check_gold: list the golds that fail their own verifier, and load no model.
    """
    console = Console()
    template, judge = choose_template(prompt), VERIFIERS[verifier]
    config = RolloutConfig(samples=samples, protocol=protocol, sampling=sampling, seed=seed, round=round)
    found = load_problems(
        problems,
        template,
        source=source,
        question=question,
        answer=answer,
        drop_ending=drop_ending,
        revision=problems_revision,
        subset=problems_subset,
        split=problems_split,
        on_conflict=on_conflict,
        on_no_gold=on_no_gold,
        max_turns=protocol.max_turns,
    )
    if overlap_with is not None:
        asked = overlap_question or row_format(source, question=question).question
        found = without_overlap(found, overlap_with, overlap, question=asked, drop_ending=drop_ending)
    _print_notes(console, found)
    if check_gold:
        _print_golds(console, found, judge)
        return
    check_run(found, judge, config, out)
    _print_plan(console, found, config)
    if dry_run:
        return
    about, origin = {"prompt": asdict(template)}, origin_of(model, revision, found.origin)
    unscored = 0
    with (
        closing(open_engine(engine, model, revision=revision)) as opened,
        _progress(console) as bar,
    ):
        task = bar.add_task("sampling", total=samples * len(found.problems))

        def on_finished(batch: Sequence[Trajectory]) -> None:
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


def _print_notes(console: Console, found: ProblemSet) -> None:
    for note in found.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _print_golds(console: Console, found: ProblemSet, judge: Verifier) -> None:
    failed = golds_that_fail(found.problems, judge)
    for gold in failed:
        console.print(str(gold), markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(found.problems)} golds fail {judge.name}; mend or remove them, or "
            "choose another verifier"
        )
    console.print(f"{found}; every gold passes {judge.name}", highlight=False, soft_wrap=True)


def _print_plan(console: Console, found: ProblemSet, config: RolloutConfig) -> None:
    count = len(found.problems)
    turns, tokens = config.protocol.max_turns, config.sampling.max_new_tokens
    console.print(
        f"{found} × {config.samples} samples = {count * config.samples} trajectories, "
        f"at most {turns} turns of {tokens} tokens each",
        highlight=False,
        soft_wrap=True,
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
