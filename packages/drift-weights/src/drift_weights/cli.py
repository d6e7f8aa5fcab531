"""drift-weights reweight | inspect: the command line; it parses, calls and prints."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Collection, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import NoReturn

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from drift_weights.columns import Columns
from drift_weights.inspection import HISTOGRAM_EDGES, Inspection, Setting, inspect_outcomes
from drift_weights.returns import GAMMA, LAM
from drift_weights.reweighting import WeightConfig
from drift_weights.selections import Selection
from drift_weights.sources import Weighed, reweight_file, weigh_file
from drift_weights.types import Malformed
from drift_weights.weights import BETA


def main(args: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        words = option_words(sys.argv[1:] if args is None else args, flags={"overwrite"})
        auto_cli(
            {"reweight": reweight, "inspect": inspect}, args=words, as_positional=True, exit_on_error=False
        )
    except (ValueError, OSError, ArgumentError) as error:
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
    group_size: int | None = None,
    selection: Selection = "drift",
    group: str | list[str] | None = None,
    correct: str = "correct",
    length: str = "length",
    unique: str = "unique",
    return_column: str | None = None,
    threshold: float | None = None,
    overwrite: bool = False,
) -> None:
    """Turn trajectories into weighted terminal turns, or add a weight to each row of any log.

    Args:
        input: a trajectories folder or Parquet file, or any .jsonl or .parquet table.
        output: a folder for trajectories; a file of the input's format for any other table.
        beta: KL strength, above 0 (eq. 13).
        gamma: discount a turn, in (0, 1] (eq. 12).
        lam: repetition penalty, not negative (eq. 12).
        malformed: count a malformed answer as a value of its own, or skip it.
        group_size: the declared K; groups of another size are refused. A rollout declares its own.
        selection: drift, or a baseline: sft-5turn, star-2turn, rft (trajectories only).
        group: column or "[columns]" of a row's group; prompt_id, with round and policy if there.
        correct: column with 0 or 1.
        length: column with the number of turns.
        unique: column with the number of distinct answers.
        return_column: column that holds the return itself.
        threshold: from here on a value of `correct` is a success.
        overwrite: replace the output, and a weight column that is not ours.
    """
    config = WeightConfig(beta=beta, gamma=gamma, lam=lam, malformed=malformed, group_size=group_size)
    columns = Columns(
        group=tuple(group) if isinstance(group, list) else group,
        correct=correct,
        length=length,
        unique=unique,
        return_column=return_column,
        threshold=threshold,
    )
    weighed = reweight_file(input, output, config, columns, selection, overwrite=overwrite)
    console = Console()
    console.print(f"wrote {output}", highlight=False)
    _print_weighed(console, weighed, [beta], [gamma], [lam])


def inspect(
    input: Path,
    *,
    beta: float | list[float] | None = None,
    gamma: float | list[float] | None = None,
    lam: float | list[float] | None = None,
    malformed: Malformed = "count",
    group_size: int | None = None,
    group: str | list[str] | None = None,
    correct: str = "correct",
    length: str = "length",
    unique: str = "unique",
    return_column: str | None = None,
    threshold: float | None = None,
) -> None:
    """Print group composition, effective sample size and weights, under one or many β, γ, λ.

    Args:
        input: a trajectories or weighted folder, or any .jsonl or .parquet table of outcomes.
        beta: one value or a list such as "[0.05,0.1,0.2]"; a weighted folder's own, or 0.1.
        gamma: one value or a list; a weighted folder's own, or 0.9.
        lam: one value or a list; a weighted folder's own, or 0.5.
        malformed: count a malformed answer as a value of its own, or skip it (trajectories only).
        group_size: the declared K; groups of another size are refused. A rollout declares its own.
        group: column or "[columns]" of a row's group; prompt_id, with round and policy if there.
        correct: column with 0 or 1.
        length: column with the number of turns.
        unique: column with the number of distinct answers.
        return_column: column that holds the return itself; γ and λ then change nothing.
        threshold: from here on a value of `correct` is a success.
    """
    columns = Columns(
        group=tuple(group) if isinstance(group, list) else group,
        correct=correct,
        length=length,
        unique=unique,
        return_column=return_column,
        threshold=threshold,
    )
    asked = (beta, gamma, lam) != (None, None, None) or malformed != "count" or group_size is not None
    config = WeightConfig(malformed=malformed, group_size=group_size) if asked else None
    weighed = weigh_file(input, config, columns)
    found = weighed.config
    betas, gammas, lams = _list(beta, found.beta), _list(gamma, found.gamma), _list(lam, found.lam)
    _print_weighed(Console(), weighed, betas, gammas, lams)


def _list(value: float | list[float] | None, default: float) -> list[float]:
    if value is None:
        return [default]
    return value if isinstance(value, list) else [value]


def _print_weighed(
    console: Console,
    weighed: Weighed,
    betas: Sequence[float],
    gammas: Sequence[float],
    lams: Sequence[float],
) -> None:
    for remark in weighed.remarks:
        console.print(f"[bold yellow]Note:[/] {remark}", highlight=False)
    inspection = inspect_outcomes(
        weighed.outcomes, betas=betas, gammas=gammas, lams=lams, weight_N=weighed.weight_N
    )
    print_inspection(console, inspection)


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Composition, one row a setting, alarms, and the histogram of each."""
    sizes = ", ".join(f"{count} of {size}" for size, count in inspection.group_sizes.items())
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
