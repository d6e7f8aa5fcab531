"""drift-rollout sample, once problems and engine are there: a pilot or all of it, and what it found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from drift_rollout.engine import Engine
from drift_rollout.finished import Finished
from drift_rollout.journal import JournalReader
from drift_rollout.problems import ProblemSet
from drift_rollout.progress import Findings, LiveBar, duration, findings, print_findings
from drift_rollout.run import JOURNAL, filled_journal, rollout
from drift_rollout.sampler import RolloutConfig
from drift_rollout.verify import Verifier


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is sampled, and how; arguments as in `rollout`."""

    problems: ProblemSet
    verifier: Verifier
    config: RolloutConfig
    out: Path
    about: dict[str, Any]
    origin: dict[str, Any]


def sample_pilot(
    console: Console, job: Job, engine: Engine, chosen: ProblemSet, price: float | None
) -> None:
    """Sample some of the job's problems, and print what they found and what the whole plan would take.

    Args:
        chosen: the pilot's problems.
        price: of an hour of the machine.
    """
    samples = job.config.samples
    with (
        LiveBar(console, samples * len(chosen.problems), "pilot") as bar,
        filled_journal(
            chosen,
            engine,
            job.verifier,
            job.config,
            job.out,
            about=job.about,
            origin=job.origin,
            on_finished=bar.add,
            part_of=job.problems,
        ) as journal,
    ):
        rows = _rows_of(journal.finished(), chosen)
    found = findings(rows, samples)
    groups = len({row.group for row in rows})
    lines = [("pilot", f"{groups:,} problems, {found.trajectories:,} trajectories")]
    lines += _projection(found, samples * len(job.problems.problems), bar, price)
    print_findings(console, found, samples, lines)
    console.print("next: the same command without --pilot goes on from here", highlight=False)


def sample_all(console: Console, job: Job, engine: Engine) -> tuple[Path, int]:
    """Sample all problems; returns the trajectories folder and how many dialogues ended unscored."""
    with LiveBar(console, job.config.samples * len(job.problems.problems)) as bar:
        folder = rollout(
            job.problems,
            engine,
            job.verifier,
            job.config,
            job.out,
            about=job.about,
            origin=job.origin,
            on_finished=bar.add,
        )
    return folder, bar.unscored


def print_sampled(console: Console, job: Job, folder: Path, unscored: int) -> None:
    """Print what a whole run found, and what comes next."""
    with JournalReader(job.out / JOURNAL) as journal:
        rows = _rows_of(journal.finished(), job.problems)
    print_findings(console, findings(rows, job.config.samples), job.config.samples, [])
    if unscored:
        console.print(
            f"{unscored} dialogues ended unscored; run again to verify or sample them again",
            highlight=False,
        )
    console.print(f"wrote {folder}; next: drift-weights inspect {folder}", highlight=False, soft_wrap=True)


def _rows_of(rows: Sequence[Finished], problems: ProblemSet) -> list[Finished]:
    """A journal may hold problems of an earlier plan."""
    wanted = {problem.prompt_id for problem in problems.problems}
    return [row for row in rows if row.prompt_id in wanted]


def _projection(
    found: Findings, total: int, bar: LiveBar, price: float | None
) -> Iterator[tuple[str, str]]:
    if not found.trajectories:
        return
    tokens = found.tokens * total / found.trajectories
    yield "whole plan", f"{total:,} trajectories, about {tokens:,.0f} sampled tokens"
    if not bar.fresh:
        yield "", "nothing was sampled just now, so its time is unknown"
        return
    seconds = bar.seconds * total / bar.fresh
    cost = "" if price is None else f", {seconds / 3600 * price:,.2f} at {price:g} an hour"
    yield "", f"about {duration(seconds)} at the pilot's rate{cost}"
