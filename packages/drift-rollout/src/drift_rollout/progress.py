"""How far a rollout is, and what it has found so far: for the live bar, `status` and `--pilot`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from drift_rollout.finished import Finished
from drift_rollout.unscored import SETTLED_AFTER
from drift_weights.diagnostics import GroupComposition, group_composition
from drift_weights.returns import trajectory_return
from drift_weights.weights import BETA, effective_sample_size, group_weights

_MALFORMED = 0.5
"""Share of malformed turns above which something is wrong with prompt or policy."""
WINDOW = 600.0
"""Seconds that a rate looks back on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What finished trajectories say, those that are scored."""

    trajectories: int
    timeouts: int
    """Trajectories that are unscored for a timeout; the next run verifies their last response again."""
    errors: int
    """Likewise for an error; those that the engine failed are sampled again."""
    settled: int
    """Turns that are wrong because their verification failed in three runs."""
    complete: int
    """Groups of which all K are scored."""
    composition: GroupComposition | None
    """Of the complete groups; None before the first."""
    ess: float | None
    """Mean effective sample size of a complete group at the paper's β, γ, λ, in [1, K]."""
    solved_at: tuple[float, ...]
    """Share of the scored trajectories whose first correct answer came at turn 1, 2, …"""
    malformed: float
    """Share of their turns without a readable answer."""
    tokens: int
    """Sampled by them."""


def findings(rows: Sequence[Finished], samples: int) -> Findings:
    """Count finished trajectories; composition and ESS are over complete groups alone.

    Args:
        rows: of a journal; samples beyond K, of an earlier plan, do not count.
        samples: K.
    """
    rows = [row for row in rows if row.sample < samples]
    scored = [row for row in rows if row.scored]
    sizes: dict[tuple[str, int, str], int] = {}
    for row in scored:
        sizes[row.group] = sizes.get(row.group, 0) + 1
    whole = [row for row in scored if sizes[row.group] >= samples]
    turns = sum(row.length for row in scored)
    last = max((row.length for row in scored), default=0)
    solved = [sum(row.solved and row.length == t for row in scored) for t in range(1, last + 1)]
    return Findings(
        trajectories=len(scored),
        timeouts=sum(row.unscored == "timeout" for row in rows),
        errors=sum(row.unscored == "error" for row in rows),
        settled=sum(row.settled for row in rows),
        complete=sum(size >= samples for size in sizes.values()),
        composition=_composition(whole),
        ess=_ess(whole),
        solved_at=tuple(count / len(scored) for count in solved),
        malformed=sum(row.malformed for row in scored) / turns if turns else 0.0,
        tokens=sum(row.tokens for row in scored),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How fast trajectories finish."""

    trajectories: float
    """A second."""
    tokens: float
    """Sampled tokens a second."""

    def seconds(self, left: int) -> float | None:
        """How long so many trajectories would take; None while nothing finishes."""
        return left / self.trajectories if self.trajectories else None


def recent_rate(rows: Sequence[Finished], now: float, window: float = WINDOW) -> Rate:
    """Of the last `window` seconds, or since the first trajectory of them."""
    recent = [row for row in rows if row.finished > now - window]
    since = now - min((row.finished for row in recent), default=now)
    if since <= 0:
        return Rate(trajectories=0.0, tokens=0.0)
    return Rate(trajectories=len(recent) / since, tokens=sum(row.tokens for row in recent) / since)


def print_findings(
    console: Console, found: Findings, samples: int, lines: Sequence[tuple[str, str]]
) -> None:
    """Print lines about a run, and what it has found."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in [*lines, *_lines(found, samples)]:
        table.add_row(name, value)
    console.print(table, highlight=False)
    for alarm in alarms(found):
        console.print(f"[bold yellow]Alarm:[/] {alarm}", highlight=False)


def alarms(found: Findings) -> list[str]:
    """What should be looked at before anybody trains on it."""
    said = []
    if found.composition is not None and found.composition.coverage == 0:
        said.append(
            f"not one of {found.complete:,} problems was solved: nothing can be learned from them; look at "
            "some responses, the prompt and the verifier"
        )
    if found.malformed > _MALFORMED:
        said.append(
            f"{found.malformed:.0%} of the turns have no readable answer; look at some, and at the prompt"
        )
    return said


def duration(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


class LiveBar:
    """A bar with what was found so far; quiet when the console is no terminal.

    Args:
        console: where it stands.
        total: trajectories of the plan.
        doing: the word before it.
    """

    def __init__(self, console: Console, total: int, doing: str = "sampling") -> None:
        self.unscored = 0
        self.fresh = 0
        """Trajectories that were not there before this run."""
        self.seconds = 0.0
        """That they took."""
        self._started: float | None = None
        self._solved = self._scored = self._malformed = self._turns = 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[found]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
        self._task: TaskID = self._bar.add_task(doing, total=total, found="")

    def __enter__(self) -> LiveBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def add(self, batch: Sequence[Finished]) -> None:
        """Count what finished; the first batch is what was there already."""
        now = monotonic()
        if self._started is None:
            self._started = now
        else:
            self.fresh += len(batch)
            self.seconds = now - self._started
        scored = [row for row in batch if row.scored]
        self.unscored += len(batch) - len(scored)
        self._scored += len(scored)
        self._solved += sum(row.solved for row in scored)
        self._malformed += sum(row.malformed for row in scored)
        self._turns += sum(row.length for row in scored)
        if self._scored:
            found = (
                f"{self._solved / self._scored:.0%} solved, {self._malformed / self._turns:.0%} malformed"
            )
            self._bar.update(self._task, found=found)
        self._bar.advance(self._task, len(batch))


def _composition(rows: Sequence[Finished]) -> GroupComposition | None:
    if not rows:
        return None
    return group_composition([row.solved for row in rows], [row.group for row in rows])


def _ess(rows: Sequence[Finished]) -> float | None:
    if not rows:
        return None
    returns = trajectory_return(
        np.array([row.solved for row in rows]),
        np.array([row.length for row in rows]),
        np.array([row.unique_answers for row in rows]),
    )
    groups = [row.group for row in rows]
    _, ess = effective_sample_size(group_weights(returns, groups), groups)
    return float(ess.mean())


def _lines(found: Findings, samples: int) -> Iterator[tuple[str, str]]:
    if found.composition is not None and found.ess is not None:
        shares = found.composition.shares
        yield (
            "groups",
            f"{found.complete:,} complete: all wrong {shares['all_wrong']:.1%}, all right "
            f"{shares['all_correct']:.1%}, mixed {shares['mixed']:.1%}",
        )
        yield "coverage", f"{found.composition.coverage:.1%} of them have a success"
        yield "ESS", f"{found.ess:.2f} of {samples} a group, at β = {BETA:g}"
    if found.trajectories:
        shares_of_turns = ", ".join(f"{share:.1%}" for share in found.solved_at)
        yield "solved at turn", f"1, 2, …: {shares_of_turns}; never {1 - sum(found.solved_at):.1%}"
        yield "malformed", f"{found.malformed:.1%} of turns"
        yield "tokens", f"{found.tokens:,} sampled, {found.tokens / found.trajectories:,.0f} a trajectory"
    if found.timeouts or found.errors:
        yield (
            "unscored",
            f"timeout {found.timeouts:,}, error {found.errors:,}; the next run verifies them again, or "
            "samples them anew if the engine failed",
        )
    if found.settled:
        yield (
            "settled",
            f"{found.settled:,} turns as wrong, after {SETTLED_AFTER} failed verifications each",
        )
