"""Tables of benchmarks/train.py: what each contender took, and what was wanted of ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table
from train_data import Size

OVER_AUTHORS, OVER_TRL, OF_LIMIT = 3.0, 1.3, 0.5
"""What is wanted of ours: so many times the speed, and at least this share of the device's limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one process took; seconds are of a step."""

    wall: float
    cpu: float
    peak: int
    """Bytes: on a CPU those that the process grew by once the model was built, on a GPU those allocated."""
    first: float
    """Wall seconds of the first step, which compiles and chooses kernels."""

    def seconds(self, device: str) -> float:
        """By the clock that counts there."""
        return self.cpu if device == "cpu" else self.wall


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """All rounds on one model."""

    shape: str
    device: str
    name: str
    """Of the device."""
    size: Size
    rate: float | None
    """FLOP/s of a bfloat16 matrix product, on a GPU."""
    distances: dict[str, float]
    """Of each contender's gradient from the formula's."""
    runs: dict[str, list[Run]]
    failed: dict[str, str]
    """Contenders that are left out, and why."""

    def seconds(self, name: str) -> float:
        """The median of the rounds."""
        return median(run.seconds(self.device) for run in self.runs[name])

    def peak(self, name: str) -> int:
        """The most of all rounds."""
        return max(run.peak for run in self.runs[name])

    def ratios(self, name: str) -> list[float]:
        """Its seconds by ours, round by round."""
        pairs = zip(self.runs[name], self.runs["ours"], strict=True)
        return [one.seconds(self.device) / own.seconds(self.device) for one, own in pairs]


def show(console: Console, result: Result) -> None:
    """Print both tables of one model."""
    size, rounds = result.size, len(result.runs["ours"])
    clock = "CPU s" if result.device == "cpu" else "s"
    console.print(
        f"{result.shape} on {result.name}: body {size.body:,} parameters, head {size.head:,}; a step of "
        f"{size.rows} rows, {size.tokens:,} tokens, {size.unique:,} of them unique, {size.responses:,} "
        f"with loss; {rounds} rounds.",
        highlight=False,
    )
    table = Table(title="Medians of a step; ratios from the least to the most of the rounds")
    names = ["", clock, "÷ ours", "rounds", "peak MB", "÷ ours", "gradient off by", "first s"]
    if result.rate is not None:
        names += ["tokens/s", "MFU", "of the limit"]
    for name in names:
        table.add_column(name, justify="right" if name else "left")
    for name in result.runs:
        table.add_row(name, *_cells(result, name))
    console.print(table)
    if "authors" in result.runs and _peers(result):
        _show_wanted(console, result)


def _cells(result: Result, name: str) -> Iterator[str]:
    seconds, ratios = result.seconds(name), result.ratios(name)
    yield f"{seconds:,.2f}"
    yield f"{seconds / result.seconds('ours'):.2f}"
    yield "" if name == "ours" else f"{min(ratios):.2f}–{max(ratios):.2f}"
    yield f"{result.peak(name) / 1e6:,.0f}"
    yield f"{result.peak(name) / result.peak('ours'):.2f}"
    yield f"{result.distances[name]:.1e}"
    yield f"{median(run.first for run in result.runs[name]):,.1f}"
    if result.rate is not None:
        yield f"{result.size.tokens / seconds:,.0f}"
        yield f"{result.size.useful(seconds, result.rate):.1%}"
        yield f"{result.size.limit(result.rate) / seconds:.1%}"


def _show_wanted(console: Console, result: Result) -> None:
    table = Table(title="What was wanted, and what came out")
    for name in ("wanted", "limit", "found", "met"):
        table.add_column(name, justify="left" if name == "wanted" else "right")
    for wanted, limit, found, met in wanted_rows(result):
        table.add_row(wanted, limit, found, "yes" if met else "no")
    console.print(table)


def wanted_rows(result: Result) -> Iterator[tuple[str, str, str, bool]]:
    """What, its limit, what was found, and whether that is met."""
    peers = _peers(result)
    for ours in (name for name in ("ours", "ours, shared") if name in result.runs):
        own = result.seconds(ours)
        over_authors = result.seconds("authors") / own
        name = f"{ours}: speed ÷ authors"
        yield name, f"≥ {OVER_AUTHORS:g}", f"{over_authors:.2f}", over_authors >= OVER_AUTHORS
        over_trl = min(result.seconds(name) for name in peers) / own
        yield f"{ours}: speed ÷ best TRL", f"≥ {OVER_TRL:g}", f"{over_trl:.2f}", over_trl >= OVER_TRL
        memory = result.peak(ours) / min(result.peak(name) for name in ("authors", *peers))
        yield f"{ours}: peak ÷ leanest peer", "≤ 1", f"{memory:.2f}", memory <= 1
        if result.rate is not None:
            share = result.size.limit(result.rate) / own
            yield f"{ours}: speed ÷ limit", f"≥ {OF_LIMIT:g}", f"{share:.2f}", share >= OF_LIMIT


def _peers(result: Result) -> list[str]:
    return [name for name in result.runs if name.startswith("TRL")]
