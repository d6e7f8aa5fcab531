"""What the commands read: trajectories, weighted turns and logs, each as batches of outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import pyarrow as pa

from drift_weights.checking import check_trajectories
from drift_weights.columns import Columns
from drift_weights.files import open_parquet, parquet_batches
from drift_weights.folder import file_sha256, folder_shards, is_folder
from drift_weights.ledger import Ledger
from drift_weights.logs import OpenLog, open_log
from drift_weights.manifest import MANIFEST, read_manifest
from drift_weights.outcomes import Outcomes, outcomes_of_trajectories, outcomes_of_weighted
from drift_weights.reweighting import ledger_of
from drift_weights.schema import WEIGHTED, check
from drift_weights.types import Malformed
from drift_weights.weighing import WeightConfig

Advance = Callable[[int], None]
TABLE_ROWS = 2048
"""Rows with text held at a time."""


class Source(Protocol):
    """Something that weights can be made for."""

    path: Path

    def outcomes(self, advance: Advance | None = None) -> Iterator[Outcomes]:
        """The outcomes of all rows, in batches, in order."""

    def place(self, row: int) -> str:
        """How a user finds a row."""


@dataclass(kw_only=True)
class TrajectorySource:
    """A TRAJECTORIES folder or Parquet file."""

    path: Path
    files: list[Path]
    manifest: dict[str, Any] | None
    malformed: Malformed

    def outcomes(self, advance: Advance | None = None) -> Iterator[Outcomes]:
        """The outcomes of all rows, in batches, in order."""
        for table in self.tables():
            yield outcomes_of_trajectories(table, self.malformed)
            if advance is not None:
                advance(table.num_rows)

    def tables(self) -> Iterator[pa.Table]:
        """The rows, checked, in the same batches."""
        for file, first, table in _tables(self.files):
            yield check_trajectories(table, source=f"{file}, rows from {first}")

    def place(self, row: int) -> str:
        """How a user finds a row."""
        return f"{self.path}, row {row}"

    @property
    def origin(self) -> dict[str, Any]:
        """What a manifest says of it."""
        if self.manifest is None:
            return {"path": self.path.name, "sha256": file_sha256(self.path)}
        return {"path": self.path.name, "manifest": self.manifest}


@dataclass(kw_only=True)
class WeightedSource:
    """A WEIGHTED folder, whose weights may be made anew from what they were made of."""

    path: Path
    files: list[Path]
    manifest: dict[str, Any]
    config: WeightConfig = field(init=False)
    """As the folder was made."""

    def __post_init__(self) -> None:
        stored = self.manifest.get("weighting", {})
        known = ("beta", "gamma", "lam", "malformed")
        self.config = WeightConfig(**{name: stored[name] for name in known if name in stored})

    @property
    def selection(self) -> str:
        """The method whose rows it holds."""
        return str(self.manifest.get("selection", "drift"))

    def outcomes(self, advance: Advance | None = None) -> Iterator[Outcomes]:
        """The outcomes of all rows, in batches, in order."""
        brought = (self.manifest.get("columns") or {}).get("return_column") is not None
        for table in self.tables():
            outcomes = outcomes_of_weighted(table)
            if brought:
                # The log's own return, which eq. 12 does not give.
                outcomes = replace(outcomes, return_N=table.column("return").to_numpy())
            yield outcomes
            if advance is not None:
                advance(table.num_rows)

    def tables(self) -> Iterator[pa.Table]:
        """The rows, checked, in the same batches."""
        for file, first, table in _tables(self.files):
            yield check(table, WEIGHTED, source=f"{file}, rows from {first}")

    def place(self, row: int) -> str:
        """How a user finds a row."""
        return f"{self.path}, row {row}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighable:
    """A source, its outcomes, the settings that hold for it, and what a user should be told."""

    source: TrajectorySource | WeightedSource | OpenLog
    ledger: Ledger
    config: WeightConfig
    remarks: tuple[str, ...] = ()
    took: dict[str, str] = field(default_factory=dict)
    """For a log: what was taken for prompt, turns, verdict, group and reward."""


def open_source(
    path: Path, config: WeightConfig, columns: Columns, *, format: str | None = None
) -> TrajectorySource | WeightedSource | OpenLog:
    """Recognise what is there.

    Raises:
        FileNotFoundError: nothing is.
        ValueError: a folder that is not ours, a shard that was changed, a log of no known format.
    """
    if is_folder(path):
        kind = read_manifest(path)["kind"]
        if kind == "weighted":
            files, manifest = folder_shards(path, "weighted")
            return WeightedSource(path=path, files=files, manifest=manifest)
        files, manifest = folder_shards(path, "trajectories")
        return TrajectorySource(path=path, files=files, manifest=manifest, malformed=config.malformed)
    if path.is_dir():
        raise ValueError(f"{path} is a folder without {MANIFEST}; name the folder that holds it, or a file")
    if path.suffix in (".parquet", ".pq") and path.is_file():
        names = open_parquet(path).schema_arrow.names
        if {"turns", "ended"} <= set(names) and format is None:
            return TrajectorySource(path=path, files=[path], manifest=None, malformed=config.malformed)
    return open_log(
        path, columns, format=format, malformed=config.malformed, answers_matter=config.lam != 0
    )


def weighable(
    path: Path,
    config: WeightConfig,
    columns: Columns | None = None,
    *,
    format: str | None = None,
    advance: Advance | None = None,
) -> Weighable:
    """Read the outcomes of whatever is at `path`.

    Raises:
        ValueError: bad input; file, row or group, and field are named.
    """
    source = open_source(path, config, columns or Columns(), format=format)
    if isinstance(source, TrajectorySource) and source.manifest is not None:
        config = with_declared_size(config, source.manifest)
    try:
        ledger = ledger_of(lambda: source.outcomes(advance), source.place)
        if ledger.rows == 0:
            raise ValueError("there are no rows")
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    if isinstance(source, OpenLog):
        took = {"format": f"{source.format.name} ({source.format.source})"} | source.took
        remarks = _unscored(ledger) + _remarks(source, ledger)
        return Weighable(source=source, ledger=ledger, config=config, remarks=remarks, took=took)
    manifest = source.manifest if isinstance(source, TrajectorySource) else None
    return Weighable(source=source, ledger=ledger, config=config, remarks=_unscored(ledger, manifest or {}))


def with_declared_size(config: WeightConfig, manifest: dict[str, Any]) -> WeightConfig:
    """The K that a rollout declared holds for its trajectories unless the user declares another."""
    declared = manifest.get("rollout", {}).get("samples")
    return replace(config, group_size=declared) if config.group_size is None else config


def log_facts(log: OpenLog, config: WeightConfig) -> dict[str, Any]:
    """What a manifest says of a log and its weights."""
    return {
        "weighting": asdict(config),
        "format_of_log": log.format.name,
        "columns": asdict(log.columns),
        "source": {"path": log.path.name, "sha256": file_sha256(log.path)},
    }


def _tables(files: list[Path]) -> Iterator[tuple[Path, int, pa.Table]]:
    for file in files:
        first = 0
        for batch in parquet_batches(file, TABLE_ROWS):
            yield file, first, pa.Table.from_batches([batch])
            first += batch.num_rows


def _unscored(ledger: Ledger, manifest: Mapping[str, Any] = MappingProxyType({})) -> tuple[str, ...]:
    if not ledger.unscored:
        return ()
    left_out = f"{ledger.unscored} groups hold an unscored row and are left out whole"
    unfinished = manifest.get("reverified", {}).get("unfinished", 0)
    if unfinished:
        return (
            f"{left_out}; by the verifier that judged this log again, {unfinished} dialogues would have "
            "gone on and were never sampled further",
        )
    return (f"{left_out}; sample them again",)


def _remarks(log: OpenLog, ledger: Ledger) -> tuple[str, ...]:
    """What a user may not have meant: a mixture of policies, rows as single turns, groups of one row."""
    found = [f"{count} rows: {note}" for note, count in log.notes.items()]
    policies = _mixed_policies(log)
    if policies > 1:
        found.append(f"groups mix {policies} policies: not i.i.d. samples of one reference policy")
    plain = log.plain
    if plain is not None and plain.returns is None and plain.length is None:
        names = (log.columns.length or "length", log.columns.unique or "unique")
        found.append(f"no columns {names[0]!r} and {names[1]!r}: every row counts as one turn")
    if ledger.groups == ledger.rows:
        found.append(
            f"every group (one {log.took['group']}) has a single row, so every weight is 1; if rows belong "
            "together, name what they share, such as --group prompt_id"
        )
    return tuple(found)


def _mixed_policies(log: OpenLog) -> int:
    """How many policies the rows of groups come from that the user named without them."""
    if log.plain is None or "policy" not in log.present or "policy" in log.plain.group:
        return 0
    return len({row.get("policy") for row in log.records(("policy",))})
