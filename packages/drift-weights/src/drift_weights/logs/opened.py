"""A log that was recognised: its outcomes batch by batch, whatever the format."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import numpy as np
import pyarrow as pa

from drift_weights.columns import (
    Columns,
    Plain,
    arrow_values,
    key_kind,
    key_values,
    numbers,
    outcomes_of_columns,
    sample_values,
    solved_rows,
)
from drift_weights.files import decode_line, file_lines, open_parquet, parquet_batches, parquet_rows
from drift_weights.logs.reader import LogFormat, LogReader, Outcome, Row
from drift_weights.outcomes import Outcomes, RowError

BATCH = 1 << 16
"""Rows handled at a time."""
LINES = 1 << 13
"""Lines of which Python values are held at a time; more of them keep the garbage collector busy."""
Advance = Callable[[int], None]


@dataclass(kw_only=True)
class OpenLog:
    """A log with its reader: its outcomes in batches, its rows, and how its rows are called."""

    path: Path
    format: LogFormat
    reader: LogReader
    columns: Columns
    plain: Plain | None
    """The columns that hold the outcome as it is, where no row needs to be looked into."""
    present: tuple[str, ...] = ()
    """The fields of the first row."""
    answers_matter: bool = True
    """Whether E enters the return; without (λ = 0) a log may have several turns and no answers."""
    has_weight: bool = False
    """Whether the rows have a `weight` already; known for every row after `outcomes`."""
    _kinds: tuple[str, ...] = ()
    notes: Counter[str] = field(default_factory=Counter)
    """What was noticed, and in how many rows."""

    @property
    def key_names(self) -> tuple[str, ...] | None:
        """What the parts of the group key are called; None where they have no names."""
        if self.columns.group is not None or self.format.name in ("chat", "table"):
            return self.columns.groups(self.present)
        return self.reader.key

    @property
    def took(self) -> dict[str, str]:
        """For people: what was taken for what, the user's options included."""
        said = dict(self.reader.took)
        chosen = {
            "group": self.columns.group,
            "verdict": self.columns.correct,
            "reward": self.columns.return_column,
            "turns": self.columns.length,
        }
        for name, value in chosen.items():
            if value is not None:
                said[name] = value if isinstance(value, str) else " and ".join(value)
        return said

    def place(self, row: int) -> str:
        """How a user finds a row."""
        if self.format.trajectories is not None:
            return f"{self.path}, trajectory {row}"
        return f"{self.path}, line {row + 1}" if is_jsonl(self.path) else f"{self.path}, row {row}"

    def outcomes(self, advance: Advance | None = None) -> Iterator[Outcomes]:
        """The outcomes of all rows, in batches, in order.

        Raises:
            ValueError: a row that is broken or unclear; file, row and field are named.
        """
        first = 0
        self.notes.clear()
        batches = self._plain_batches() if self.plain is not None else self._looked_into()
        while True:
            try:
                batch = next(batches, None)
            except RowError as error:
                raise ValueError(f"{self.place(first + error.row)}: {error.says}") from error
            if batch is None:
                return
            self._refuse_other_keys(batch, first)
            yield batch
            first += len(batch)
            if advance is not None:
                advance(len(batch))

    def _refuse_other_keys(self, batch: Outcomes, first: int) -> None:
        """Within a batch the parts of the key have one type each; over the batches they must keep it."""
        kinds = tuple(key_kind(column.type) for column in batch.key_columns)
        if first == 0:
            self._kinds = kinds
        for number, (kind, before) in enumerate(zip(kinds, self._kinds, strict=True)):
            if kind != before:
                name = self.took["group"] if self.key_names is None else self.key_names[number]
                raise ValueError(
                    f"{self.place(first)}: {name!r} is {kind}, earlier rows hold {before}; use one type"
                )

    def rows(self) -> Iterator[Row]:
        """All rows, whole."""
        if self.format.trajectories is not None:
            yield from self.format.trajectories(self.path)
        elif is_jsonl(self.path):
            for number, line in enumerate(file_lines(self.path), start=1):
                yield decode_line(self.path, number, line)
        else:
            yield from parquet_rows(self.path)

    def _plain_batches(self) -> Iterator[Outcomes]:
        assert self.plain is not None
        names = self.plain.names
        if not is_jsonl(self.path):
            for batch in parquet_batches(self.path, BATCH, names):
                values = {name: batch.column(name) for name in names}
                yield outcomes_of_columns(values, self.plain, self.columns.threshold)
            return
        # Fields that change what is read where a row has them: all rows must have them, or none.
        telling = ("round", "policy", "sample") if self.columns.group is None else ()
        counts = ("length", "unique") if self.columns.return_column is None else ()
        first: set[str] | None = None
        for rows in _chunks(self._decoded(tuple(dict.fromkeys((*names, *telling, *counts, "weight"))))):
            first = rows[0].keys() - {"weight"} if first is None else first
            self.has_weight = self.has_weight or any("weight" in row for row in rows)
            _refuse_other_fields(rows, first, names)
            values = {name: self._column(rows, name) for name in names}
            yield outcomes_of_columns(values, self.plain, self.columns.threshold)

    def _column(self, rows: Sequence[Row], name: str) -> pa.Array:
        assert self.plain is not None
        values = [row[name] for row in rows]
        if name == self.plain.sample:
            found = sample_values(values, name)
            return pa.nulls(len(values)) if found is None else found
        return (key_values if name in self.plain.group else arrow_values)(values, name)

    def _looked_into(self) -> Iterator[Outcomes]:
        # Outcomes are kept, rows are not: a dialogue can be large.
        found: list[Outcome] = []
        for row in self.records((*self.reader.fields, *self._named(), "weight")):
            try:
                found.append(self._overruled(row, self.reader.outcome(row)))
            except KeyError as error:
                raise RowError(len(found), f"no field {error}; it has {', '.join(row)}") from error
            except (ValueError, OverflowError) as error:
                raise RowError(len(found), str(error)) from error
            self.has_weight = self.has_weight or "weight" in row
            if found[-1].note is not None:
                self.notes[found[-1].note] += 1
            if len(found) == BATCH:
                yield self._batch(found)
                found = []
        if found:
            yield self._batch(found)

    def _named(self) -> tuple[str, ...]:
        """Fields that the user named in place of the format's own."""
        columns = self.columns
        group = (columns.group,) if isinstance(columns.group, str) else columns.group or ()
        given = (*group, columns.correct, columns.length, columns.unique, columns.return_column)
        return tuple(name for name in given if name is not None)

    def _overruled(self, row: Row, outcome: Outcome) -> Outcome:
        columns = self.columns
        if columns.group is not None:
            group = columns.group
            key = row[group] if isinstance(group, str) else tuple(row[name] for name in group)
            outcome = outcome._replace(group=key, sample=None)
        for name, place in (("length", columns.length), ("unique", columns.unique)):
            if place is not None:
                outcome = outcome._replace(**{name: row[place]})
        if outcome.unscored:
            return outcome
        if columns.return_column is not None:
            correct = None if columns.correct is None else row[columns.correct]
            return outcome._replace(reward=(row[columns.return_column], correct))
        return outcome if columns.correct is None else outcome._replace(reward=row[columns.correct])

    def _batch(self, found: Sequence[Outcome]) -> Outcomes:
        rewards: list[Any] = [0 if outcome.unscored else outcome.reward for outcome in found]
        returns = None
        if self.columns.return_column is not None:
            name = self.columns.return_column
            pairs = [(0, 0) if outcome.unscored else outcome.reward for outcome in found]
            returns = numbers(arrow_values([pair[0] for pair in pairs], name), name)
            rewards = [pair[1] for pair in pairs]
        solved = self._solved(rewards, returns)
        length_N = whole_numbers([outcome.length for outcome in found], "length")
        unique_N = whole_numbers(
            [self._unique(row, outcome) for row, outcome in enumerate(found)], "unique"
        )
        counted = [outcome.length if outcome.counted is None else outcome.counted for outcome in found]
        penalties = np.asarray([outcome.penalty for outcome in found], np.float64)
        samples = [outcome.sample for outcome in found]
        return Outcomes(
            key_columns=self._keys([outcome.group for outcome in found]),
            solved_N=solved,
            length_N=length_N,
            unique_N=unique_N,
            counted_N=whole_numbers(counted, "counted"),
            penalty_N=penalties if penalties.any() else None,
            return_N=returns,
            sample=sample_values(samples),
            unscored_N=np.asarray([outcome.unscored for outcome in found], bool),
        )

    def _solved(self, rewards: list[Any], returns: Any) -> Any:
        if returns is None:
            name = self.columns.correct or self.reader.took["reward"]
            return solved_rows(arrow_values(rewards, name), name, self.columns.threshold)
        if self.columns.correct is not None:
            column = arrow_values(rewards, self.columns.correct)
            return solved_rows(column, self.columns.correct, self.columns.threshold)
        return None if self.columns.threshold is None else returns >= self.columns.threshold

    def _unique(self, row: int, outcome: Outcome) -> Any:
        if outcome.unique is not None:
            return outcome.unique
        if outcome.length > 1 and self.answers_matter:
            raise RowError(
                row,
                f"{outcome.length} turns and no answers; take the responses as answers (--answers "
                "responses), name a column that counts distinct answers (--unique), or leave the "
                "repetition penalty out (--lam 0)",
            )
        return outcome.length

    def _keys(self, groups: list[Any]) -> tuple[pa.Array, ...]:
        name = self.took["group"]
        if not isinstance(groups[0], tuple):
            return (key_values(groups, name),)
        parts = len(groups[0])
        for row, group in enumerate(groups):
            if not isinstance(group, tuple) or len(group) != parts:
                raise RowError(row, f"its group ({name}) has other parts than those of earlier rows")
        return tuple(key_values(part, name) for part in zip(*groups, strict=True))

    def records(self, fields: tuple[str, ...]) -> Iterator[Row]:
        """All rows with at least `fields`, where they have them."""
        if self.format.trajectories is not None:
            return self.format.trajectories(self.path)
        if is_jsonl(self.path):
            return self._decoded(tuple(dict.fromkeys(fields)))
        return self._parquet_rows(fields)

    def _parquet_rows(self, fields: tuple[str, ...]) -> Iterator[Row]:
        names = open_parquet(self.path).schema_arrow.names
        present = [name for name in dict.fromkeys(fields) if name in names]
        yield from parquet_rows(self.path, max(BATCH // 16, 1), present)

    def _decoded(self, fields: tuple[str, ...]) -> Iterator[Row]:
        """Lines of which only `fields` are made into Python values."""
        # mypy wants the fields of a TypedDict spelled out; these are the user's.
        kind = TypedDict("Row", dict.fromkeys(fields, Any), total=False)  # type: ignore[misc]
        decode = msgspec.json.Decoder(kind).decode
        for number, line in enumerate(file_lines(self.path), start=1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            try:
                if not text.isascii():
                    # Skipped values are not checked by the decoder.
                    str(text, "utf-8")
                yield decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                # Decoded once more, as a whole, it says what is wrong.
                decode_line(self.path, number, line)
                raise


def is_jsonl(path: Path) -> bool:
    """Whether a file has one JSON object a line."""
    return path.suffix in (".jsonl", ".ndjson")


def whole_numbers(values: Sequence[Any], name: str) -> Any:
    """Counts as integers, shape [N].

    Raises:
        RowError: a value that is no whole number.
    """
    for row, value in enumerate(values):
        if not isinstance(value, int | float) or not abs(value) < 2**53 or value != int(value):
            raise RowError(row, f"{name!r} is {value!r}, expected a whole number; fix or drop its group")
    return np.asarray(values, np.int64)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, min(BATCH, LINES))):
        yield chunk


def _refuse_other_fields(rows: Sequence[Row], first: set[str], names: tuple[str, ...]) -> None:
    """Every row has the fields that the first one has, of those that matter."""
    for number, row in enumerate(rows):
        keys = row.keys()
        if keys == first or keys - {"weight"} == first:
            continue
        missing = [name for name in names if name not in row]
        if missing:
            raise RowError(number, f"no column {', '.join(map(repr, missing))}; it has {', '.join(row)}")
        other = sorted(first ^ (row.keys() - {"weight"}))
        raise RowError(
            number, f"column {', '.join(map(repr, other))} is in some lines only; give it to all or to none"
        )
