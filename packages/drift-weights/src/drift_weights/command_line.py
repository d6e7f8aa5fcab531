"""What the command lines of all packages share: words taken in, mistakes and questions said."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields
from itertools import zip_longest
from typing import Any, NoReturn, TypeVar

from rich.prompt import Confirm

from drift_weights.columns import Columns
from drift_weights.repository import PublishConfig
from drift_weights.weighing import WeightConfig

Settings = TypeVar("Settings", WeightConfig, Columns, PublishConfig)


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


def ask(question: str) -> None:
    """Raise ValueError unless somebody says yes."""
    if not sys.stdin.isatty():
        raise ValueError("nobody can be asked here whether everybody may see it; pass --yes")
    if not Confirm.ask(question, default=False):
        raise ValueError("nothing was published; leave out --public to publish it privately")
