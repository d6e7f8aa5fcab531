"""drift-weights reweight | inspect: the command line; it parses, calls and prints."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Literal, NoReturn

from jsonargparse import auto_cli
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from drift_weights.columns import Columns
from drift_weights.histogram import write_histogram
from drift_weights.inspection import (
    HISTOGRAM_EDGES,
    Inspection,
    Setting,
    beta_for_ess,
    grid,
    inspect_ledger,
)
from drift_weights.outputs import Form, reweight_file
from drift_weights.returns import GAMMA, LAM
from drift_weights.selections import Selection
from drift_weights.sources import WeightedSource, weighable
from drift_weights.types import Malformed
from drift_weights.weighing import AllWrong, WeightConfig
from drift_weights.weights import BETA

_FORMS = {
    "turns": "weighted terminal turns",
    "log": "the log with a weight in each row",
    "side": "row and weight alone",
}


def main(args: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        words = option_words(sys.argv[1:] if args is None else args, flags={"overwrite"})
        auto_cli(
            {"reweight": reweight, "inspect": inspect}, args=words, as_positional=True, exit_on_error=False
        )
    except (ValueError, OSError, ImportError, ArgumentError) as error:
        refuse(error)


def refuse(error: Exception) -> NoReturn:
    """Print a user's mistake as one line on standard error, and exit with code 2."""
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    sys.exit(2)


def option_words(args: Sequence[str], *, flags: Collection[str] = ()) -> list[str]:
    """Let `--group-size` stand for `--group_size`, and a bare `--overwrite` for `--overwrite=true`."""
    words = []
    for word, following in zip_longest(args, args[1:], fillvalue=""):
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name in flags and not equals and following.lower() not in ("true", "false"):
            equals, value = "=", "true"
        words.append(f"--{name}{equals}{value}")
    return words


def reweight(
    input: Path,
    output: Path,
    *,
    beta: float = BETA,
    gamma: float = GAMMA,
    lam: float = LAM,
    malformed: Malformed = "count",
    all_wrong: AllWrong = "keep",
    group_size: int | None = None,
    selection: Selection = "drift",
    form: Form | None = None,
    format: str | None = None,
    group: str | list[str] | None = None,
    correct: str | None = None,
    length: str | None = None,
    unique: str | None = None,
    return_column: str | None = None,
    threshold: float | None = None,
    answers: Literal["responses"] | None = None,
    messages: str = "messages",
    prompt: str = "prompt",
    completion: str = "completion",
    overwrite: bool = False,
) -> None:
    """Turn trajectories into weighted terminal turns, or give each row of any log its weight.

    Args:
        input: a trajectories or weighted folder, or a log in any known format.
        output: a folder for turns, a file of the input's format for a log, a .parquet for a side file.
        beta: KL strength, above 0 (eq. 13).
        gamma: discount a turn, in (0, 1] (eq. 12).
        lam: repetition penalty, not negative (eq. 12).
        malformed: count a malformed answer as a value of its own, or skip it.
        all_wrong: keep or drop groups without a success.
        group_size: the declared K; groups of another size are refused. A rollout declares its own.
        selection: drift, or a baseline: sft-5turn, star-2turn, rft (of terminal turns).
        form: log (the same log with a weight), turns (a folder of terminal turns) or side (row and weight).
        format: of a log, where it is not to be recognised.
        group: column or "[columns]" of a row's group, in place of the format's own.
        correct: column with 0 or 1.
        length: column with the number of turns.
        unique: column with the number of distinct answers.
        return_column: column that holds the return itself.
        threshold: from here on a value of `correct` is a success.
        answers: responses takes the responses as answers where a log of several turns has none.
        messages: column with the messages of a chat log.
        prompt: column with the prompt of a chat log.
        completion: column with the completion of a chat log.
        overwrite: replace the output, and a weight column that is not ours.
    """
    config = WeightConfig(
        beta=beta, gamma=gamma, lam=lam, malformed=malformed, all_wrong=all_wrong, group_size=group_size
    )
    columns = Columns(
        group=tuple(group) if isinstance(group, list) else group,
        correct=correct,
        length=length,
        unique=unique,
        return_column=return_column,
        threshold=threshold,
        answers=answers,
        messages=messages,
        prompt=prompt,
        completion=completion,
    )
    with progress("rows read and written") as advance:
        written = reweight_file(
            input,
            output,
            config,
            columns,
            selection,
            form=form,
            format=format,
            overwrite=overwrite,
            advance=advance,
        )
    console = Console()
    console.print(f"wrote {output}: {_FORMS[written.form]}", highlight=False, soft_wrap=True)
    _print_notes(console, written.took, written.remarks)
    print_inspection(console, written.inspection)


def inspect(
    input: Path,
    *,
    beta: float | list[float] | None = None,
    gamma: float | list[float] | None = None,
    lam: float | list[float] | None = None,
    target_ess: float | None = None,
    malformed: Malformed = "count",
    all_wrong: AllWrong = "keep",
    group_size: int | None = None,
    format: str | None = None,
    group: str | list[str] | None = None,
    correct: str | None = None,
    length: str | None = None,
    unique: str | None = None,
    return_column: str | None = None,
    threshold: float | None = None,
    answers: Literal["responses"] | None = None,
    messages: str = "messages",
    prompt: str = "prompt",
    completion: str = "completion",
    plot: Path | None = None,
) -> None:
    """Print what was recognised, group composition, effective sample size and weights, under any β, γ, λ.

    Args:
        input: a trajectories or weighted folder, or a log in any known format.
        beta: one value or a list such as "[0.05,0.1,0.2]"; a weighted folder's own, or 0.1.
        gamma: one value or a list; a weighted folder's own, or 0.9.
        lam: one value or a list; a weighted folder's own, or 0.5.
        target_ess: look for the beta at which a group is worth so many equally weighted rows.
        malformed: count a malformed answer as a value of its own, or skip it.
        all_wrong: keep or drop groups without a success.
        group_size: the declared K; groups of another size are refused. A rollout declares its own.
        format: of a log, where it is not to be recognised.
        group: column or "[columns]" of a row's group, in place of the format's own.
        correct: column with 0 or 1.
        length: column with the number of turns.
        unique: column with the number of distinct answers.
        return_column: column that holds the return itself; γ and λ then change nothing.
        threshold: from here on a value of `correct` is a success.
        answers: responses takes the responses as answers where a log of several turns has none.
        messages: column with the messages of a chat log.
        prompt: column with the prompt of a chat log.
        completion: column with the completion of a chat log.
        plot: write the histogram as a picture, too (needs drift-weights[plot]).
    """
    columns = Columns(
        group=tuple(group) if isinstance(group, list) else group,
        correct=correct,
        length=length,
        unique=unique,
        return_column=return_column,
        threshold=threshold,
        answers=answers,
        messages=messages,
        prompt=prompt,
        completion=completion,
    )
    asked = WeightConfig(
        malformed=malformed, all_wrong=all_wrong, group_size=group_size, lam=0.0 if lam == 0 else LAM
    )
    untouched = (beta, gamma, lam, target_ess, group_size) == (None,) * 5 and asked == WeightConfig()
    with progress("rows read") as advance:
        found = weighable(input, asked, columns, format=format, advance=advance)
    stored = isinstance(found.source, WeightedSource) and untouched
    config = found.source.config if isinstance(found.source, WeightedSource) else found.config
    console = Console()
    _print_notes(console, found.took, found.remarks)
    if isinstance(found.source, WeightedSource):
        _refuse_selection(found.source, stored)
        if stored:
            console.print(
                f"Weights as they are stored, selection {found.source.selection}.", highlight=False
            )
    if target_ess is not None:
        beta = beta_for_ess(found.ledger, target_ess, replace(config, group_size=None))
        console.print(f"A mean ESS of {target_ess:g} a group needs --beta {beta:.4g}.", highlight=False)
    configs = grid(config, _list(beta, config.beta), _list(gamma, config.gamma), _list(lam, config.lam))
    inspection = inspect_ledger(found.ledger, configs, stored=stored)
    print_inspection(console, inspection)
    if plot is not None:
        write_histogram(plot, inspection)
        console.print(f"wrote {plot}", highlight=False, soft_wrap=True)


def _refuse_selection(source: WeightedSource, stored: bool) -> None:
    if source.selection != "drift" and not stored:
        raise ValueError(
            f"{source.path} holds the selection {source.selection}; look at other β, γ, λ in the "
            "trajectories that it came from"
        )


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


def _list(value: float | list[float] | None, default: float) -> list[float]:
    if value is None:
        return [default]
    return value if isinstance(value, list) else [value]


def _print_notes(console: Console, took: dict[str, str], remarks: Sequence[str]) -> None:
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


def _name(setting: Setting) -> str:
    return f"β {setting.beta:g}, γ {setting.gamma:g}, λ {setting.lam:g}"
