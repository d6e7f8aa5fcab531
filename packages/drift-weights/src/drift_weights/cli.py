"""drift-weights reweight | inspect: the command line; it parses, calls and prints."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Collection, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from drift_weights.files import column_names, file_format, read_columns, write_with_weight
from drift_weights.folder import (
    MANIFEST,
    file_sha256,
    is_folder,
    read_folder,
    read_manifest,
    refuse_existing,
    write_folder,
    write_json,
)
from drift_weights.inspection import HISTOGRAM_EDGES, Inspection, Setting, inspect_outcomes
from drift_weights.outcomes import (
    Columns,
    Outcomes,
    outcomes_of_columns,
    outcomes_of_trajectories,
    outcomes_of_weighted,
    whole_trajectories,
)
from drift_weights.returns import GAMMA, LAM
from drift_weights.reweighting import WeightConfig, weigh, weighted_turns
from drift_weights.schema import TRAJECTORIES, check
from drift_weights.selections import Selection, select
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
    group: str = "prompt_id",
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
        group_size: the declared K; groups of another size are refused.
        selection: drift, or a baseline: sft-5turn, star-2turn, rft (trajectories only).
        group: column with the group of a row, usually its prompt.
        correct: column with 0 or 1.
        length: column with the number of turns.
        unique: column with the number of distinct answers.
        return_column: column that holds the return itself.
        threshold: from here on a value of `correct` is a success.
        overwrite: replace the output, and a weight column that is not ours.
    """
    config = WeightConfig(beta=beta, gamma=gamma, lam=lam, malformed=malformed, group_size=group_size)
    columns = Columns(
        group=group,
        correct=correct,
        length=length,
        unique=unique,
        return_column=return_column,
        threshold=threshold,
    )
    console = Console()
    trajectories = _trajectories(input)
    if trajectories is not None:
        table, origin = trajectories
        _write_turns(table, origin, output, config, selection, overwrite=overwrite)
        console.print(f"wrote weighted turns to {output}", highlight=False)
        shown = outcomes_of_trajectories(whole_trajectories(table)[0], malformed)
    elif selection != "drift":
        raise ValueError(f"--selection {selection} needs trajectories; {input} is a table of outcomes")
    else:
        shown = _write_log(input, output, config, columns, overwrite=overwrite)
        console.print(f"wrote {output} and {_side_file(output).name}", highlight=False)
    print_inspection(console, inspect_outcomes(shown, betas=[beta], gammas=[gamma], lams=[lam]))


def inspect(
    input: Path,
    *,
    beta: float | list[float] = BETA,
    gamma: float | list[float] = GAMMA,
    lam: float | list[float] = LAM,
    malformed: Malformed = "count",
    group: str = "prompt_id",
    correct: str = "correct",
    length: str = "length",
    unique: str = "unique",
    return_column: str | None = None,
    threshold: float | None = None,
) -> None:
    """Print group composition, effective sample size and weights, under one or many β, γ, λ.

    Args:
        input: a trajectories or weighted folder, or any .jsonl or .parquet table of outcomes.
        beta: one value or a list such as "[0.05,0.1,0.2]".
        gamma: one value or a list.
        lam: one value or a list.
        malformed: count a malformed answer as a value of its own, or skip it (trajectories only).
        group: column with the group of a row.
        correct: column with 0 or 1.
        length: column with the number of turns.
        unique: column with the number of distinct answers.
        return_column: column that holds the return itself; γ and λ then change nothing.
        threshold: from here on a value of `correct` is a success.
    """
    columns = Columns(
        group=group,
        correct=correct,
        length=length,
        unique=unique,
        return_column=return_column,
        threshold=threshold,
    )
    outcomes = _outcomes(input, malformed, columns)
    inspection = inspect_outcomes(outcomes, betas=_list(beta), gammas=_list(gamma), lams=_list(lam))
    print_inspection(Console(), inspection)


def _list(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def _trajectories(path: Path) -> tuple[pa.Table, dict[str, Any]] | None:
    """A TRAJECTORIES table and what is known of its origin; None for any other kind of input."""
    if is_folder(path):
        table, manifest = read_folder(path, "trajectories")
        return table, {"path": path.name, "manifest": manifest}
    if path.is_dir():
        raise ValueError(f"{path} is a folder without {MANIFEST}; name the folder that holds it, or a file")
    if file_format(path) != "parquet" or not {"turns", "ended"} <= set(column_names(path)):
        return None
    table = check(pq.read_table(path), TRAJECTORIES, source=str(path))
    return table, {"path": path.name, "sha256": file_sha256(path)}


def _outcomes(path: Path, malformed: Malformed, columns: Columns) -> Outcomes:
    if is_folder(path) and read_manifest(path)["kind"] == "weighted":
        return outcomes_of_weighted(read_folder(path, "weighted")[0])
    trajectories = _trajectories(path)
    if trajectories is not None:
        return outcomes_of_trajectories(whole_trajectories(trajectories[0])[0], malformed)
    return _log_outcomes(path, columns)


def _log_outcomes(path: Path, columns: Columns) -> Outcomes:
    try:
        return outcomes_of_columns(read_columns(path, columns.needed(column_names(path))), columns)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _write_turns(
    table: pa.Table,
    origin: dict[str, Any],
    output: Path,
    config: WeightConfig,
    selection: Selection,
    *,
    overwrite: bool,
) -> None:
    refuse_existing(output, overwrite=overwrite)
    turns, made = weighted_turns(table, config)
    selected = select(turns, selection)
    write_folder(
        output,
        selected,
        "weighted",
        {**made, "selection": selection, "source": origin},
        overwrite=overwrite,
    )


def _write_log(
    source: Path, output: Path, config: WeightConfig, columns: Columns, *, overwrite: bool
) -> Outcomes:
    refuse_existing(output, overwrite=overwrite)
    if "weight" in column_names(source) and not (overwrite or _ours(source)):
        raise ValueError(f"{source} has a column 'weight' that is not ours; pass --overwrite to replace it")
    outcomes = _log_outcomes(source, columns)
    try:
        _, weights = weigh(outcomes, config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    write_with_weight(source, output, weights)
    facts = {
        "weighting": asdict(config),
        "columns": asdict(columns),
        "sha256": file_sha256(output),
        "source": {"path": source.name, "sha256": file_sha256(source)},
    }
    write_json(_side_file(output), facts)
    return outcomes


def _side_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.{MANIFEST}")


def _ours(path: Path) -> bool:
    """Whether a side file vouches for exactly these bytes."""
    side = _side_file(path)
    return side.is_file() and f'"sha256": "{file_sha256(path)}"' in side.read_text(encoding="utf-8")


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Composition, one row a setting, and the first setting's alarms and histogram."""
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
    for setting in inspection.settings[:1]:
        _print_notes(console, setting)
        _print_histogram(console, setting)


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


def _print_notes(console: Console, setting: Setting) -> None:
    if setting.hoeffding_epsilon is not None:
        console.print(
            f"Ẑ error is the estimated relative error (median over groups). Prop. 7 guarantees only "
            f"±{setting.hoeffding_epsilon:,.4g} on a range of {setting.hoeffding_range:,.4g} (δ = 0.05).",
            highlight=False,
        )
    wrong = setting.upweighted_wrong
    if wrong is not None and wrong.rows:
        console.print(
            f"[bold yellow]Alarm:[/] {wrong.rows} of {wrong.wrong_rows} wrong answers weigh more than 1 "
            f"(up to {wrong.largest:.3g}): "
            "training imitates them more than plain SFT would.",
            highlight=False,
        )


def _print_histogram(console: Console, setting: Setting) -> None:
    table = Table(title=f"Weights at β = {setting.beta:g}, γ = {setting.gamma:g}, λ = {setting.lam:g}")
    table.add_column("w", justify="right")
    table.add_column("rows", justify="right")
    table.add_column("")
    most = max(setting.histogram)
    for low, high, count in zip(HISTOGRAM_EDGES, HISTOGRAM_EDGES[1:], setting.histogram, strict=False):
        label = f"≥ {low:g}" if high == float("inf") else f"{low:g} – {high:g}"
        table.add_row(label, str(count), "█" * round(40 * count / most))
    console.print(table)
