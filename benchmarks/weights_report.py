"""Tables of what benchmarks/weights.py measured: for a terminal, for docs/benchmarks.md, for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from weights_results import Result, Run

PACKAGES = ("drift-weights", "numpy", "pyarrow", "duckdb", "polars", "pandas", "datasets")
HEADINGS = ("", "CPU s", "÷ ours", "wall s", "÷ ours", "peak MB", "÷ ours")
WISH_HEADINGS = ("wanted", "limit", "found", "met")
GROUP_BYTES = 24 + 64
"""A group's numbers and its key, 64 hexadecimal digits."""
GROUP_ROWS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """A figure that this project wants to reach, and what came out."""

    text: str
    limit: float
    found: float

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.found <= self.limit


def document(results: Sequence[Result], *, quick: bool) -> dict[str, Any]:
    """Everything, as JSON has it; small logs say nothing about what is wanted."""
    wanted = [] if quick else wishes(results)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "rounds": max((len(runs) for result in results for runs in result.runs.values()), default=0),
        "tasks": [
            asdict(result) | {"medians": {name: asdict(result.median(name)) for name in result.runs}}
            for result in results
        ],
        "wanted": [asdict(wish) | {"met": wish.met} for wish in wanted],
    }


def machine() -> dict[str, Any]:
    """Processor, cores and memory."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def show(found: dict[str, Any], results: Sequence[Result]) -> None:
    """Print tables for people."""
    console = Console(highlight=False)
    console.print(_heading(found))
    for result in results:
        console.print(_table(_title(result), HEADINGS, _rows(result)))
    rows = _wish_rows(found["wanted"])
    if rows:
        console.print(_table("Wanted", WISH_HEADINGS, rows))


def markdown(found: dict[str, Any], results: Sequence[Result]) -> str:
    """The same tables for docs/benchmarks.md."""
    parts = [_heading(found)]
    for result in results:
        parts += [f"### {_title(result)}", _markdown_table(HEADINGS, _rows(result))]
    rows = _wish_rows(found["wanted"])
    if rows:
        parts += ["### Wanted", _markdown_table(WISH_HEADINGS, rows)]
    return "\n\n".join(parts) + "\n"


def wishes(results: Sequence[Result]) -> list[Wish]:
    """What is wanted of the tasks that were run; every figure is at most its limit."""
    found = {result.task.name: result for result in results}
    return [*_parquet_wishes(found), *_jsonl_wishes(found), *_narrow_wishes(found)]


def _parquet_wishes(found: dict[str, Result]) -> Iterator[Wish]:
    whole, side = found.get("wide-parquet"), found.get("wide-side")
    if whole is not None:
        cpu = whole.median("ours").cpu_s
        reencoded = cpu / whole.median("pyarrow").cpu_s
        yield Wish(text="wide Parquet, CPU ÷ bare pyarrow re-encode", limit=1.1, found=reencoded)
        yield Wish(text="wide Parquet, CPU ÷ best peer", limit=1.0, found=cpu / whole.best_peer("cpu_s"))
    for measure, name in (("cpu_s", "CPU"), ("peak_bytes", "peak")):
        for other, what in ((whole, "whole table"), (side, "side file")):
            if side is not None and other is not None:
                ratio = getattr(side.median("ours"), measure) / other.best_peer(measure)
                yield Wish(text=f"side file, {name} ÷ best peer's {what}", limit=1 / 3, found=ratio)


def _jsonl_wishes(found: dict[str, Result]) -> Iterator[Wish]:
    result = found.get("wide-jsonl")
    if result is None:
        return
    ours, copied = result.median("ours"), result.median("copy")
    yield Wish(text="wide JSONL, CPU ÷ best peer", limit=0.5, found=ours.cpu_s / result.best_peer("cpu_s"))
    yield Wish(text="wide JSONL, CPU ÷ copy", limit=2.5, found=ours.cpu_s / copied.cpu_s)
    yield Wish(text="wide JSONL, wall ÷ copy", limit=2.5, found=ours.wall_s / copied.wall_s)
    yield Wish(text="wide JSONL, peak MB", limit=128.0, found=ours.peak_bytes / 1e6)


def _narrow_wishes(found: dict[str, Result]) -> Iterator[Wish]:
    for order in ("contiguous", "shuffled"):
        result = found.get(f"narrow-{order}")
        if result is not None:
            ratio = result.median("ours").cpu_s / result.best_peer("cpu_s")
            yield Wish(text=f"narrow {order}, CPU ÷ best peer", limit=1.0, found=ratio)
    few, many = found.get("narrow-shuffled"), found.get("narrow-huge")
    if few is not None and many is not None:
        groups = many.task.rows / GROUP_ROWS
        limit = 1.2 * few.median("ours").peak_bytes + GROUP_BYTES * groups
        peak = many.median("ours").peak_bytes
        text = (
            f"peak MB at {many.task.rows:,} rows: 1.2 × {few.task.rows:,} rows' + {GROUP_BYTES} B a group"
        )
        yield Wish(text=text, limit=limit / 1e6, found=peak / 1e6)


def _heading(found: dict[str, Any]) -> str:
    computer, versions = found["machine"], found["versions"]
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    rounds = f"{found['rounds']} rounds" if found["rounds"] > 1 else "1 round"
    return (
        f"{found['date']}; {computer['cpu']}, {computer['cores']} cores, {computer['memory_gib']} GiB, "
        f"{computer['system']}; {named}. Medians of {rounds}, a fresh process a run, imports included; all "
        "weights were equal within a relative 1e-9."
    )


def _title(result: Result) -> str:
    return f"{result.task.title}: {result.task.rows:,} rows, {result.source_bytes / 1e6:,.0f} MB"


def _rows(result: Result) -> list[list[str]]:
    ours = result.median("ours")
    rows = []
    for name in sorted(result.runs, key=lambda name: result.median(name).cpu_s):
        run = result.median(name)
        seconds = _pair(run, ours, lambda run: run.cpu_s, 2) + _pair(run, ours, lambda run: run.wall_s, 2)
        rows.append([name, *seconds, *_pair(run, ours, lambda run: run.peak_bytes / 1e6, 0)])
    return rows


def _pair(run: Run, ours: Run, measure: Callable[[Run], float], digits: int) -> list[str]:
    return [f"{measure(run):,.{digits}f}", f"{measure(run) / measure(ours):.2f}"]


def _wish_rows(wanted: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [wish["text"], f"≤ {wish['limit']:,.3g}", f"{wish['found']:,.3g}", "yes" if wish["met"] else "no"]
        for wish in wanted
    ]


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        ours = row[0] == "ours"
        table.add_row(*row, style="bold" if ours else None)
    return table


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in headings[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))
