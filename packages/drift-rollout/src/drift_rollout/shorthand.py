"""Short forms of an engine's and a verifier's name: on the command line, and none in a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

# With and without None for a default, jsonargparse complains in two ways.
_NAME_ALONE = re.compile(
    r'Parser key "(engine|verifier)":.*(?:Unable to load config "|Given value: )([^\s"]+)"?\s*', re.DOTALL
)


def named_words(words: Sequence[str]) -> list[str]:
    """Let `--engine NAME` stand for `--engine.name NAME`, and so for the verifier."""
    return [re.sub(r"^--(engine|verifier)(?==|$)", r"--\1.name", word) for word in words]


def check_groups(words: Sequence[str]) -> None:
    """Refuse a YAML file whose engine or verifier is a list or a number: jsonargparse would pass over it.

    Raises:
        ValueError: it is one.
    """
    import yaml

    pairs = pairwise([*words, ""])
    named = [word.partition("=")[2] or after for word, after in pairs if re.match("--config(=|$)", word)]
    for path in filter(Path.is_file, map(Path, named)):
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            # Its reader says so better.
            continue
        for group in ("engine", "verifier"):
            value = settings.get(group) if isinstance(settings, dict) else None
            if not isinstance(value, dict | str | None):
                raise ValueError(
                    f"{path}: {group} is a group of options, such as {group}: {{name: NAME}}, not {value!r}"
                )


def spelled_out(error: Exception) -> Exception:
    """Where a YAML file has `verifier: NAME`, an error that says what to write; else the error itself."""
    found = _NAME_ALONE.fullmatch(str(error))
    if not found:
        return error
    group, name = found.groups()
    return ValueError(
        f"in a file {group} is a group of options: write {group}: {{name: {name}}} or the path of a YAML "
        f"file with such options, not {group}: {name}"
    )
