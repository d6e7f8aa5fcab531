"""drift-weights reweight | inspect | resample | export | publish | pull: it parses, calls and prints."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from importlib import import_module
from inspect import signature
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings
from rich.console import Console
from rich.prompt import Confirm

from drift_weights.columns import Columns
from drift_weights.export import ExportForm, export_file
from drift_weights.histogram import write_histogram
from drift_weights.inspection import beta_for_ess, grid, inspect_ledger
from drift_weights.names import not_here
from drift_weights.outputs import Form, reweight_file
from drift_weights.repository import PublishConfig
from drift_weights.resampling import resample_file
from drift_weights.selections import Selection
from drift_weights.sources import WeightedSource, weighable
from drift_weights.tables import print_inspection, print_notes, print_plan, progress
from drift_weights.weighing import WeightConfig

Settings = TypeVar("Settings", WeightConfig, Columns, PublishConfig)
_ABOUT = "Turn logs of multi-turn correction into importance-weighted terminal turns."
_FLAGS = {"overwrite", "default", "public", "dry_run", "yes"}
_FORMS = {
    "turns": "weighted terminal turns",
    "log": "the log with a weight in each row",
    "side": "row and weight alone",
}


def main(args: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        words = option_words(sys.argv[1:] if args is None else args, flags=_FLAGS)
        given = _parser().parse_args(words)
        _run(given.subcommand, vars(given[given.subcommand]))
    except (ValueError, OSError, ImportError, ArgumentError) as error:
        refuse(error)


def refuse(error: Exception, *, code: int = 2) -> NoReturn:
    """Print a user's mistake on standard error, one more line for each item of a list, and exit."""
    # Lists of ours; those of jsonargparse, with dashes, are folded into the line.
    head, *items = re.split(r"\n  (?=[^\s-])", str(error)) if type(error) is ValueError else [str(error)]
    lines = [" ".join(text.split()) for text in (head, *items)]
    sys.stderr.write("error: " + "\n  ".join(lines) + "\n")
    sys.exit(code)


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


def settings(kind: type[Settings], given: dict[str, Any]) -> Settings:
    """Take a configuration's fields out of what was given on the command line.

    Raises:
        ValueError: a value that the configuration refuses.
    """
    names = [field.name for field in fields(kind) if field.name in given]
    return kind(**{name: given.pop(name) for name in names})


def _parser() -> ArgumentParser:
    # The texts below the fields of the settings are the help of their options.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="drift-weights", description=_ABOUT, exit_on_error=False)
    commands = parser.add_subcommands()
    for name, function in COMMANDS.items():
        taken: set[str | int] = set(signature(function).parameters)
        says = str(function.__doc__).partition("\n")[0]
        command = ArgumentParser(description=says, exit_on_error=False)
        command.add_argument("--config", action="config", help="a YAML file with any of these options")
        command.add_function_arguments(function, as_positional=True, skip=taken & SETTINGS.keys())
        for setting in [name for name in SETTINGS if name in taken]:
            # What a command has of its own, such as a list of β, stands in place of the setting's.
            command.add_class_arguments(SETTINGS[setting], skip=taken & _names(SETTINGS[setting]))
        commands.add_subcommand(name, command, help=says)
    return parser


def _names(kind: type) -> set[str | int]:
    return {field.name for field in fields(kind)}


def _run(name: str, given: dict[str, Any]) -> None:
    function = COMMANDS[name]
    parameters = signature(function).parameters
    own = {option: given.pop(option) for option in parameters if option in given}
    made = {setting: settings(SETTINGS[setting], given) for setting in SETTINGS if setting in parameters}
    function(**own, **made)


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
    input = _located(input, revision, subset)
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
    input = _located(input, revision, subset)
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
    input = _located(input, revision, subset)
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
    input = _located(input, revision, subset)
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


def publish(
    folder: Path,
    repo_id: str,
    publishing: PublishConfig,
    *,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Put trajectories or weighted turns on the Hub, private, as one commit with a tag.

    Args:
        folder: a trajectories or weighted folder.
        repo_id: org/name on the Hub; it is made if it is not there.
        dry_run: print files, sizes, card and what is there already; change nothing.
        yes: do not ask before making it public.
    """
    hub = _with_hub("publishing")
    with progress("rows looked through") as advance:
        plan = hub.prepare(folder, repo_id, publishing, advance=advance)
    console = Console()
    print_plan(console, plan, card=dry_run)
    if dry_run:
        return
    if publishing.public and not yes:
        ask(f"Let everybody see {repo_id}?")
    done = hub.publish(plan)
    state = "published" if done.fresh else "published before, nothing to do:"
    console.print(
        f"{state} {repo_id}, {plan.subset}, {publishing.tag} (commit {done.commit})\n"
        f'next: load_dataset("{repo_id}", "{plan.subset}", revision="{publishing.tag}")',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def pull(
    repo_id: str,
    output: Path,
    *,
    revision: str = "main",
    subset: str | None = None,
    overwrite: bool = False,
) -> None:
    """Fetch a data set from the Hub, hold it to its manifest, and keep the commit that it came from.

    Args:
        repo_id: org/name on the Hub.
        output: the folder to make.
        revision: a tag or a commit; a branch is taken as it is now.
        subset: which of its data sets; the default one if not given.
        overwrite: replace the output.
    """
    got = _with_hub("pulling").pull(repo_id, output, revision=revision, subset=subset, overwrite=overwrite)
    state = "wrote" if got.fresh else "is there already:"
    sys.stdout.write(
        f"{state} {output}: {got.manifest['rows']} rows ({got.manifest['kind']}, {got.subset}), verified\n"
        f"pinned to commit {got.commit}\n"
    )


def _located(path: Path, revision: str | None, subset: str | None) -> Path:
    """Only what is pinned comes from the Hub; logs of a user without the extra never meet it."""
    if revision is None and subset is None:
        if not path.exists():
            raise not_here(path)
        return path
    found: Path = _with_hub("pulling").located(
        path, revision, subset, say=lambda words: sys.stdout.write(f"{words}\n")
    )
    return found


def ask(question: str) -> None:
    """Raise ValueError unless somebody says yes."""
    if not sys.stdin.isatty():
        raise ValueError("nobody can be asked here whether everybody may see it; pass --yes")
    if not Confirm.ask(question, default=False):
        raise ValueError("nothing was published; leave out --public to publish it privately")


def _with_hub(module: str) -> ModuleType:
    try:
        return import_module(f"drift_weights.{module}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"this needs {error.name}, which is not installed: pip install 'drift-weights[hub]'"
        ) from error


def _list(value: float | list[float] | None, default: float) -> list[float]:
    if value is None:
        return [default]
    return value if isinstance(value, list) else [value]


COMMANDS: dict[str, Callable[..., None]] = {
    "reweight": reweight,
    "inspect": inspect,
    "resample": resample,
    "export": export,
    "publish": publish,
    "pull": pull,
}
SETTINGS: dict[str, type] = {"weighting": WeightConfig, "columns": Columns, "publishing": PublishConfig}
"""Parameters of the commands whose fields are options of their own."""
