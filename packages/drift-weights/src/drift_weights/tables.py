"""What the commands show: what was taken for what, and how the weights fall."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from drift_weights.inspection import HISTOGRAM_EDGES, Inspection, Setting

if TYPE_CHECKING:
    # At run time it would bring huggingface_hub along.
    from drift_weights.publishing import Plan


@contextmanager
def progress(doing: str) -> Iterator[Callable[[int], None]]:
    """Rows and rows a second on standard error while the block runs; quiet when that is no terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed:,} " + doing),
        TextColumn("{task.fields[speed]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=None, speed="")

        def advance(rows: int) -> None:
            bar.advance(task, rows)
            done = bar.tasks[0]
            speed = done.completed / done.elapsed if done.elapsed else 0.0
            bar.update(task, speed=f"{speed:,.0f} rows/s")

        yield advance


def print_notes(console: Console, took: Mapping[str, str], remarks: Sequence[str]) -> None:
    """What was taken for what, and what a user should be told."""
    for name, value in took.items():
        console.print(f"[bold]{name + ':':<9}[/] {escape(value)}", highlight=False, soft_wrap=True)
    for remark in remarks:
        console.print(f"[bold yellow]Note:[/] {escape(remark)}", highlight=False)


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Composition, one row a setting, alarms, and the histogram of each."""
    sizes = ", ".join(
        f"{count} {'group' if count == 1 else 'groups'} of {size}"
        for size, count in inspection.group_sizes.items()
    )
    console.print(
        f"{inspection.rows} rows in {sum(inspection.group_sizes.values())} groups: {sizes}",
        highlight=False,
    )
    _print_composition(console, inspection)
    table = Table(title="Weights")
    headings = (
        "β",
        "γ",
        "λ",
        "ESS mean",
        "ESS median",
        "largest w",
        "Ẑ error",
        "wrong w > 1",
        "wrong mass",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for setting in inspection.settings:
        table.add_row(*_setting_cells(setting))
    console.print(table)
    for setting in inspection.settings:
        _print_alarm(console, setting)
    if len(inspection.settings) == 1:
        _print_bound(console, inspection.settings[0])
    _print_histogram(console, inspection.settings)
    if len(inspection.settings) == 1:
        _print_cost(console, inspection.settings[0], inspection.rows)


def _print_cost(console: Console, setting: Setting, rows: int) -> None:
    """What leaving out the lightest rows would cost and save."""
    caption = None if setting.tokens is not None else "tokens are known where the data hold token ids"
    table = Table(title="Training without the rows below a weight", caption=caption)
    for heading in ("w <", "rows saved", "tokens saved", "weight lost"):
        table.add_column(heading, justify="right")
    all_tokens = sum(setting.tokens) if setting.tokens is not None else 0
    for edge in (1e-4, 1e-3, 1e-2, 0.1):
        fewer, mass, tokens = setting.below(edge)
        saved = f"{tokens / all_tokens:.1%}" if tokens is not None and all_tokens else "–"
        table.add_row(f"{edge:g}", f"{fewer} ({fewer / rows:.1%})", saved, f"{mass:.2%}")
    console.print(table)


def _print_composition(console: Console, inspection: Inspection) -> None:
    found = inspection.composition
    if found is None:
        console.print("The log does not say which rows are right: no composition.", highlight=False)
        return
    table = Table(title="Groups")
    for heading in ("all wrong", "all right", "mixed", "coverage", "accuracy"):
        table.add_column(heading, justify="right")
    shares = found.shares
    table.add_row(
        f"{found.all_wrong} ({shares['all_wrong']:.1%})",
        f"{found.all_correct} ({shares['all_correct']:.1%})",
        f"{found.mixed} ({shares['mixed']:.1%})",
        f"{found.coverage:.1%}",
        f"{found.accuracy:.1%}",
    )
    console.print(table)


def _setting_cells(setting: Setting) -> list[str]:
    wrong = setting.upweighted_wrong
    return [
        f"{setting.beta:g}",
        f"{setting.gamma:g}",
        f"{setting.lam:g}",
        f"{setting.ess_mean:.2f}",
        f"{setting.ess_median:.2f}",
        f"{setting.largest:.3g}",
        "–" if setting.partition_error is None else f"{setting.partition_error:.1%}",
        "–" if wrong is None else str(wrong.rows),
        "–" if wrong is None else f"{wrong.mass:.1%}",
    ]


def _print_bound(console: Console, setting: Setting) -> None:
    if setting.hoeffding_epsilon is not None:
        console.print(
            f"Ẑ error is the estimated relative error (median over groups). Prop. 7 guarantees only "
            f"±{setting.hoeffding_epsilon:,.4g} on a range of {setting.hoeffding_range:,.4g} (δ = 0.05).",
            highlight=False,
        )


def _print_alarm(console: Console, setting: Setting) -> None:
    wrong = setting.upweighted_wrong
    if wrong is not None and wrong.rows:
        console.print(
            f"[bold yellow]Alarm[/] ({_name(setting)}): {wrong.rows} of {wrong.wrong_rows} wrong answers "
            f"weigh more than 1 (up to {wrong.largest:.3g}): training imitates them more than plain SFT "
            "would.",
            highlight=False,
        )


def _print_histogram(console: Console, settings: Sequence[Setting]) -> None:
    single = len(settings) == 1
    table = Table(title=f"Rows by weight, {_name(settings[0])}" if single else "Rows by weight")
    table.add_column("w", justify="right", no_wrap=True)
    for setting in settings:
        table.add_column("rows" if single else _name(setting), justify="right")
    if single:
        table.add_column("")
    most = max(settings[0].histogram)
    for number, (low, high) in enumerate(pairwise(HISTOGRAM_EDGES)):
        label = f"≥ {low:g}" if high == float("inf") else f"{low:g} – {high:g}"
        counts = [setting.histogram[number] for setting in settings]
        bar = ["█" * round(40 * counts[0] / most)] if single else []
        table.add_row(label, *map(str, counts), *bar)
    console.print(table)


def print_plan(console: Console, plan: Plan, *, card: bool) -> None:
    """Print what publishing would upload, delete and leave, with sizes, and the card if asked."""
    remote = plan.remote
    state = "new, private" if remote is None else ("private" if remote.private else "public")
    there = {} if remote is None else remote.files
    lines = [f"{plan.repo_id} ({state}), subset {plan.subset}, tag {plan.config.tag}"]
    for name, content in plan.uploads.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        lines.append(_line("replace" if name in there else "upload", name, size))
    lines += [_line("there already", name, there[name].size) for name in plan.unchanged]
    lines += [_line("delete", name, there[name].size) for name in plan.deletions if name in there]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    if plan.tagged:
        console.print(f"tag {plan.config.tag} is there and names exactly this.", highlight=False)
    for part in plan.kept:
        console.print(f"card: {part} was edited on the Hub and stays as it is.", highlight=False)
    if card:
        console.print(f"\n{plan.card}", highlight=False, markup=False, soft_wrap=True)


def _line(doing: str, name: str, size: int) -> str:
    return f"  {doing:<14}{decimal(size):>10}  {name}"


def _name(setting: Setting) -> str:
    return f"β {setting.beta:g}, γ {setting.gamma:g}, λ {setting.lam:g}"
