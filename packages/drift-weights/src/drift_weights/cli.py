"""drift-weights reweight | inspect | resample | export: the command line; it parses, calls and prints."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from drift_weights.columns import Columns
from drift_weights.commands import export, resample
from drift_weights.histogram import write_histogram
from drift_weights.inspection import beta_for_ess, grid, inspect_ledger
from drift_weights.outputs import Form, reweight_file
from drift_weights.returns import GAMMA, LAM
from drift_weights.selections import Selection
from drift_weights.sources import WeightedSource, weighable
from drift_weights.tables import print_inspection, print_notes
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
        commands: dict[str, Any] = {
            "reweight": reweight,
            "inspect": inspect,
            "resample": resample,
            "export": export,
        }
        auto_cli(commands, args=words, as_positional=True, exit_on_error=False)
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
    print_notes(console, written.took, written.remarks)
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
    print_notes(console, found.took, found.remarks)
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
