"""Tables of what benchmarks/verify.py measured."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from verify_results import Result

OURS, UP, UNGUARDED = "ours", "ours, process up", "ours, guards off"
WANTED = 10.0
"""How many times math-verify's answers per second are wanted of ours."""


def show(console: Console, results: Sequence[Result]) -> None:
    """All tables of all logs."""
    for result in results:
        log = result.log
        said = f"{log.name}: {len(log.pairs):,} answers, {len(set(log.pairs)):,} distinct pairs"
        said += f", {log.unanswered} solutions without an answer" if log.unanswered else ""
        console.print(f"\n[bold]{said}[/bold]")
        ways = (f"{name} {count:,}" for name, count in result.agreed.items())
        console.print(Text(f"Agree with the data's grades: {'; '.join(ways)}. {result.peer} competes."))
        console.print(speed(result))
        console.print(verdicts(result))
        console.print(differences(result))


def speed(result: Result) -> Table:
    """Answers per second, without and with what comes before the first answer."""
    table = _table("Speed", "", "start s", "answers/s", "÷ math-verify", "with start", "÷ math-verify")
    for name, steady in ((OURS, UP), (UNGUARDED, UNGUARDED), (result.peer, result.peer)):
        start = statistics.median(run.start for run in result.runs[steady])
        cells = [name, f"{start:.2f}", *_rates(result, steady, start=False)]
        # Without guards it was measured with its process up alone.
        table.add_row(*cells, *(_rates(result, name, start=True) if name != UNGUARDED else ("", "")))
    met = {start: _met(result, start=start) for start in (False, True)}
    table.caption = f"wanted ≥ {WANTED:g} times: {met[False]} without the start, {met[True]} with it"
    table.caption_justify = "left"
    return table


def verdicts(result: Result) -> Table:
    """Against the data's grades, and against math-verify."""
    table = _table(
        "Verdicts", "", "accepted wrongly", "rejected wrongly", "unlike math-verify", "in distinct pairs"
    )
    peer = result.verdicts(result.peer)
    for name in (OURS, UNGUARDED, result.peer):
        said = result.verdicts(name)
        wrongly = Counter(
            accepted for accepted, right in zip(said, result.log.grades, strict=True) if accepted != right
        )
        unlike = [
            pair for pair, one, other in zip(result.log.pairs, said, peer, strict=True) if one != other
        ]
        counts = (wrongly[True], wrongly[False], len(unlike), len(set(unlike)))
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def differences(result: Result) -> Table:
    """Every distinct pair on which not all say the same, with what each says."""
    table = _table(
        "Pairs judged differently", "gold", "answer", "answers", "ours", "guards off", "math-verify", "data"
    )
    columns = [result.verdicts(name) for name in (OURS, UNGUARDED, result.peer)]
    said = zip(result.log.pairs, *columns, result.log.grades, strict=True)
    for (pair, *opinions), count in Counter(said).items():
        if len(set(opinions)) > 1:
            marks = ("right" if opinion else "wrong" for opinion in opinions)
            table.add_row(Text(pair[0]), Text(pair[1]), f"{count:,}", *marks)
    table.caption = None if table.row_count else "none"
    return table


def _rates(result: Result, name: str, *, start: bool) -> tuple[str, str]:
    return f"{result.rate(name, start=start):,.0f}", _spread(result.ratios(name, start=start))


def _met(result: Result, *, start: bool) -> str:
    return "yes" if statistics.median(result.ratios(OURS if start else UP, start=start)) >= WANTED else "no"


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table
