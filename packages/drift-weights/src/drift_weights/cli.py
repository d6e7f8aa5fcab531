"""drift-weights reweight | inspect | resample | export | publish | pull: it parses and calls."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from drift_weights.columns import Columns
from drift_weights.command_line import option_words, refuse, settings
from drift_weights.commands import export, inspect, resample, reweight
from drift_weights.hub_commands import publish, pull
from drift_weights.repository import PublishConfig
from drift_weights.weighing import WeightConfig

_ABOUT = "Turn logs of multi-turn correction into importance-weighted terminal turns."
_FLAGS = {"overwrite", "default", "public", "dry_run", "yes"}
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


def main(args: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        words = option_words(sys.argv[1:] if args is None else args, flags=_FLAGS)
        given = _parser().parse_args(words)
        _run(given.subcommand, vars(given[given.subcommand]))
    except (ValueError, OSError, ImportError, ArgumentError) as error:
        refuse(error)


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
