"""What the quickstart shows: bars while it works, then a table for people and numbers for programs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import lightning
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from drift_eval import Comparison, Scores
from drift_eval.report import numbers


class Bar(lightning.Callback):
    """Shows Lightning's steps in the same display as everything else."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._label = label

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Open a line."""
        self._task = self._progress.add_task(self._label, total=trainer.max_steps)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        self._progress.advance(self._task)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a step took."""

    cpu_s: float
    wall_s: float


@contextmanager
def timed(costs: dict[str, Cost | None], name: str, *, cached: bool = False) -> Iterator[None]:
    """Note CPU and wall seconds of a block; nothing if an earlier run had done its work."""
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    cost = Cost(cpu_s=time.process_time() - cpu, wall_s=time.perf_counter() - wall)
    costs[name] = None if cached else cost


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldResult:
    """Everything measured in one world; scores and costs run over the reference and the methods."""

    seed: int
    names: tuple[str, ...]
    scores: tuple[Scores, ...]
    with_reference: tuple[Comparison | None, ...]
    with_drift: tuple[Comparison | None, ...]
    costs: dict[str, Cost | None]
    """None where an earlier run had done the work."""
    weights: dict[str, Any]


def print_world(console: Console, result: WorldResult) -> None:
    """The table of one world, a policy a column, so that it fits 80 characters."""
    table = Table(
        title=f"World {result.seed}: greedy on held-out problems, in %", box=SIMPLE_HEAD, padding=0
    )
    table.add_column("", no_wrap=True)
    for name in result.names:
        table.add_column(name.replace(", ", "\n").replace(" (", "\n("), justify="right", min_width=10)
    scores = result.scores
    table.add_row("acc@1", *(percent(one.acc_at_1.value) for one in scores))
    table.add_row("multi@5", *(percent(one.multi_at_max.value) for one in scores))
    intervals = ((one.multi_at_max.low, one.multi_at_max.high) for one in scores)
    table.add_row("  95 %", *(f"{percent(low)}–{percent(high)}" for low, high in intervals))
    for label, pairs in (("− reference", result.with_reference), ("− DRIFT", result.with_drift)):
        cells = zip(*map(difference, pairs), strict=True)
        for heading, row in zip((label, "  95 %", "  p"), cells, strict=True):
            table.add_row(heading, *row)
    table.add_row("correction", *(percent(one.total_correction) for one in scores))
    table.add_row("unique", *(mean(one.unique_answers_wrong) for one in scores))
    for turn, shares in enumerate(zip(*(one.malformed_shares for one in scores), strict=True), start=1):
        table.add_row(f"malformed {turn}", *map(percent, shares))
    spent = [result.costs[name] for name in result.names]
    table.add_row("CPU s", *("cached" if cost is None else f"{cost.cpu_s:.0f}" for cost in spent))
    table.add_row("wall s", *("cached" if cost is None else f"{cost.wall_s:.0f}" for cost in spent))
    console.print(table)
    once = result.costs["rollout"]
    console.print(
        "Differences to the reference and to DRIFT as in the paper are of multi@5, paired by problem: "
        "bootstrap interval, exact McNemar p. Correction: of the problems wrong at turn 1, the share "
        "solved later. Unique: mean distinct answers of dialogues never solved. Malformed: share of the "
        "responses at a turn. Rollout and weights, once for all methods: "
        + ("cached." if once is None else f"{once.cpu_s:.0f} CPU s, {once.wall_s:.0f} wall s."),
        highlight=False,
    )


def mean(value: float | None) -> str:
    """A mean in a cell; a dash where it is undefined."""
    return "–" if value is None else f"{value:.2f}"


def percent(share: float | None) -> str:
    """A share in a cell; a dash where it is undefined."""
    return "–" if share is None else f"{share * 100:.1f}"


def difference(pair: Comparison | None) -> tuple[str, str, str]:
    """Three cells of a paired difference: points, interval, p."""
    if pair is None:
        return "–", "", ""
    gap = pair.difference
    interval = f"{gap.low * 100:.1f}…{gap.high * 100:.1f}"
    return f"{gap.value * 100:+.1f}", interval, f"{pair.mcnemar.p_value:.1g}"


def seeds_table(results: Sequence[WorldResult]) -> Table:
    """multi@5 of every world and its range; worlds are never pooled."""
    table = Table(title="multi@5 in %, world by world")
    table.add_column("policy")
    for result in results:
        table.add_column(f"world {result.seed}", justify="right")
    table.add_column("range", justify="right")
    for row, name in enumerate(results[0].names):
        rates = [result.scores[row].multi_at_max.value * 100 for result in results]
        spread = f"{min(rates):.1f} – {max(rates):.1f}"
        table.add_row(name, *(f"{rate:.1f}" for rate in rates), spread)
    return table


def result_numbers(result: WorldResult) -> dict[str, Any]:
    """One world as plain JSON types."""
    content = numbers(result.scores)
    content["names"] = list(result.names)
    content["with_reference"] = [pair and asdict(pair) for pair in result.with_reference]
    content["with_drift"] = [pair and asdict(pair) for pair in result.with_drift]
    content["costs"] = {name: cost and asdict(cost) for name, cost in result.costs.items()}
    return {"seed": result.seed, "weights": result.weights, **content}
