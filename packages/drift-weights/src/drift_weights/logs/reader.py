"""What every log reader provides: the few values that a weight needs, and the text that training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from drift_weights.columns import Columns
from drift_weights.types import Malformed

Row = Mapping[str, Any]
"""A row of a log as plain Python values; fields that nobody asked for may be missing."""


class Outcome(NamedTuple):
    """What the weight of one trajectory is made of."""

    group: Any
    """A string or whole number that the samples of one prompt share, or a tuple of them."""
    reward: Any
    """The verdict or score as the log has it; 0 or 1, or what --threshold and --return-column explain."""
    length: int = 1
    """L, the turns taken."""
    unique: int | None = 1
    """E, the distinct answers among the counted turns; None where the log has no answers and L > 1."""
    counted: int | None = None
    """The turns that E speaks about; None for L."""
    penalty: float = 0.0
    """Added to the return (the released code's format penalty)."""
    sample: Any = None
    """What tells the samples of a group apart, where the log has it; a repeated one is refused."""
    unscored: bool = False
    """The row has no verdict, so that its whole group is left out; its reward is not looked at."""
    note: str | None = None
    """What a user should be told of this row; rows with the same note are counted together."""


class Dialogue(NamedTuple):
    """The terminal turn (x_L, y_L) of one trajectory."""

    prompt: Sequence[Mapping[str, str]]
    """Messages of {role, content} before the terminal response."""
    completion: str
    """The terminal response."""
    finish_reason: str = "stop"
    """`stop`, or `length` where the log says that the response was cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogReader:
    """A format bound to one log: what it reads, and what it takes for what."""

    fields: tuple[str, ...]
    """Top-level fields that `outcome` reads; nothing else is decoded for weights."""
    outcome: Callable[[Row], Outcome]
    """Raises ValueError with the field and the remedy; the caller adds file and row."""
    dialogue: Callable[[Row], Dialogue]
    """Reads a whole row; raises ValueError likewise."""
    took: Mapping[str, str]
    """For people: what was taken for `prompt`, `turns`, `verdict`, `group` and `reward`."""
    key: tuple[str, ...] | None = None
    """Names for the parts of a group that is a tuple: `round` and `policy` are the contract's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogFormat:
    """A format that `drift-weights` recognises."""

    name: str
    """As `--format` takes it."""
    source: str
    """Who writes such files."""
    suffixes: tuple[str, ...]
    """File endings that it comes with."""
    sniff: Callable[[Row], bool]
    """Whether a file's first record is of this format: the first line, row or array element, or the
    object that the file is."""
    bind: Callable[[Row, Columns, Malformed], LogReader]
    """The reader for a log that starts with this trajectory, under the user's column options and the
    rule for malformed answers. Raises ValueError where the row leaves a choice open, naming the choices.
    `columns.group`, `correct`, `length` and `unique` are put in place of what `outcome` took by the
    caller; a reader looks at them only to settle what would otherwise be open."""
    trajectories: Callable[[Path], Iterator[Row]] | None = None
    """The trajectories of a file that is not one line or row each; None where it is."""
    array: bool = False
    """The file is a JSON array with one object a trajectory, so that a weight fits into each."""
