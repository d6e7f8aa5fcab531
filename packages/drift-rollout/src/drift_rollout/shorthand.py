"""Short forms of an engine's and a verifier's name: on the command line, and none in a file."""

from __future__ import annotations

import re
from collections.abc import Sequence

# With and without None for a default, jsonargparse complains in two ways.
_NAME_ALONE = re.compile(
    r'Parser key "(engine|verifier)":.*(?:Unable to load config "|Given value: )([^\s"]+)"?\s*', re.DOTALL
)


def named_words(words: Sequence[str]) -> list[str]:
    """Let `--engine NAME` stand for `--engine.name NAME`, and so for the verifier."""
    return [re.sub(r"^--(engine|verifier)(?==|$)", r"--\1.name", word) for word in words]


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
