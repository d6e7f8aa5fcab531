"""drift-weights reweight | inspect | resample | export: what each does with its arguments."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from drift_weights.columns import Columns
from drift_weights.export import ExportForm, export_file
from drift_weights.histogram import write_histogram
from drift_weights.hub_commands import located
from drift_weights.inspection import beta_for_ess, grid, inspect_ledger
from drift_weights.outputs import Form, reweight_file
from drift_weights.resampling import resample_file
from drift_weights.selections import Selection
from drift_weights.sources import WeightedSource, weighable
from drift_weights.tables import print_inspection, print_notes, progress
from drift_weights.weighing import WeightConfig

_FORMS = {
    "turns": "weighted terminal turns",
    "log": "the log with a weight in each row",
    "side": "row and weight alone",
}


def reweight(
    input: Path,
    output: Path,
    weighting: WeightConfig,
    columns: Columns,
    *,
    selection: Selection = "drift",
    form: Form | None = None,
    format: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    overwrite: bool = False,
) -> None:
    """Turn trajectories into weighted terminal turns, or give each row of any log its weight.

    Args:
        input: a trajectories or weighted folder, a log in any known format, or org/name on the Hub.
        output: a folder for turns, a file of the input's format for a log, a .parquet for a side file.
        selection: drift, or a baseline: sft-5turn, star-2turn, rft (of terminal turns).
        form: log (the same log with a weight), turns (a folder of terminal turns) or side (row and weight).
        format: of a log, where it is not to be recognised.
        revision: of a data set on the Hub: a tag or a commit.
        subset: of a data set on the Hub; its default if not given.
        overwrite: replace the output, and a weight column that is not ours.
    """
    input = located(input, revision, subset)
    with progress("rows read and written") as advance:
        written = reweight_file(
            input,
            output,
            weighting,
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
    weighting: WeightConfig,
    columns: Columns,
    *,
    beta: float | list[float] | None = None,
    gamma: float | list[float] | None = None,
    lam: float | list[float] | None = None,
    target_ess: float | None = None,
    format: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    plot: Path | None = None,
) -> None:
    """Print what was recognised, group composition, effective sample size and weights, under any β, γ, λ.

    Args:
        input: a trajectories or weighted folder, a log in any known format, or org/name on the Hub.
        beta: one value or a list such as "[0.05,0.1,0.2]"; a weighted folder's own, or 0.1.
        gamma: one value or a list; a weighted folder's own, or 0.9.
        lam: one value or a list; a weighted folder's own, or 0.5.
        target_ess: look for the beta at which a group is worth so many equally weighted rows.
        format: of a log, where it is not to be recognised.
        revision: of a data set on the Hub: a tag or a commit.
        subset: of a data set on the Hub; its default if not given.
        plot: write the histogram as a picture, too (needs drift-weights[plot]).
    """
    untouched = (beta, gamma, lam, target_ess) == (None,) * 4 and weighting == WeightConfig()
    # A log of several turns without answers can be read only where the penalty plays no part.
    asked = replace(weighting, lam=0.0) if lam == 0 else weighting
    input = located(input, revision, subset)
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


def resample(
    input: Path,
    output: Path,
    *,
    seed: int,
    epoch: int = 0,
    revision: str | None = None,
    subset: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write each row as often as its weight says, by chance for the fraction, for trainers without weights.

    Args:
        input: a weighted folder, a .jsonl or .parquet log that reweight wrote, or org/name on the Hub.
        output: a folder for a folder, a file of the input's format for a log.
        seed: of the draw; the same seed draws the same rows.
        epoch: a new epoch is a new draw.
        revision: of a data set on the Hub: a tag or a commit.
        subset: of a data set on the Hub; its default if not given.
        overwrite: replace the output.
    """
    input = located(input, revision, subset)
    with progress("rows read and drawn") as advance:
        drawn = resample_file(input, output, seed=seed, epoch=epoch, overwrite=overwrite, advance=advance)
    sys.stdout.write(
        f"wrote {output}\n{drawn.drawn} rows drawn from {drawn.rows} in {drawn.groups} groups, each of "
        f"weight 1 (seed {seed}, epoch {epoch})\n"
    )


def export(
    input: Path,
    output: Path,
    *,
    to: ExportForm,
    revision: str | None = None,
    subset: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write weighted terminal turns in a form that other trainers read.

    Args:
        input: a weighted folder, or org/name on the Hub.
        output: a .jsonl or .parquet file.
        to: trl (prompt, completion, weight) or messages (a chat with its weight beside it).
        revision: of a data set on the Hub: a tag or a commit.
        subset: of a data set on the Hub; its default if not given.
        overwrite: replace the output.
    """
    input = located(input, revision, subset)
    with progress("rows written") as advance:
        written = export_file(input, output, to=to, overwrite=overwrite, advance=advance)
    sys.stdout.write(f"wrote {output}\n{written.rows} rows\n")
    if to == "trl":
        sys.stdout.write("Note: stock TRL drops the column weight without a word; see docs/trl.md.\n")
    elif written.earlier:
        sys.stdout.write(
            f"Note: {written.earlier} rows have earlier responses, marked with a weight of 0; a trainer "
            "that does not know the mark learns them, too.\n"
        )
    if written.cut:
        sys.stdout.write(
            f"Note: {written.cut} completions were cut by the token limit; a chat template ends them all "
            "the same.\n"
        )


def _list(value: float | list[float] | None, default: float) -> list[float]:
    if value is None:
        return [default]
    return value if isinstance(value, list) else [value]
