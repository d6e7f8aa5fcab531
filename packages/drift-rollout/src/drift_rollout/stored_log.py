"""Dialogues from disk, a few at a time: a trajectories folder, a rollout's folder, a Parquet file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from drift_rollout.journal import JournalReader
from drift_rollout.run import JOURNAL, TRAJECTORIES
from drift_weights.files import file_format, open_parquet, parquet_batches
from drift_weights.folder import file_sha256, folder_shards, is_folder
from drift_weights.manifest import MANIFEST
from drift_weights.schema import TRAJECTORIES as SCHEMA
from drift_weights.schema import from_table
from drift_weights.types import Trajectory

_ROWS = 256
"""Dialogues that are in memory at once."""


class StoredLog(Protocol):
    """A log, and what is known of it."""

    @property
    def path(self) -> Path:
        """What was taken."""

    @property
    def rows(self) -> int:
        """How many dialogues it holds."""

    @property
    def about(self) -> dict[str, Any]:
        """What a manifest says of how it was sampled; empty for a file."""

    @property
    def identity(self) -> dict[str, Any]:
        """Its name, and the hashes or the manifest with the hashes of its shards."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user may not have meant."""

    def golds(self) -> Iterator[tuple[str, str | None]]:
        """prompt_id and target of every dialogue."""

    def batches(self) -> Iterator[list[Trajectory]]:
        """The dialogues in order, a few hundred at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetLog:
    """The shards of a trajectories folder, or a single file with that schema."""

    path: Path
    files: tuple[Path, ...]
    rows: int
    about: dict[str, Any]
    identity: dict[str, Any]
    notes: tuple[str, ...]

    def golds(self) -> Iterator[tuple[str, str | None]]:
        """prompt_id and target of every dialogue; texts and tokens stay where they are."""
        for file in self.files:
            for batch in parquet_batches(file, _ROWS, ("prompt_id", "target")):
                yield from ((row["prompt_id"], row["target"]) for row in batch.to_pylist())

    def batches(self) -> Iterator[list[Trajectory]]:
        """The dialogues in order, a few hundred at a time.

        Raises:
            ValueError: rows that do not fit the schema or are no dialogue; file and row are named.
        """
        for file in self.files:
            first = 0
            for batch in parquet_batches(file, _ROWS):
                yield list(from_table(pa.Table.from_batches([batch]), source=f"{file}, rows from {first}"))
                first += batch.num_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalLog:
    """What the journal of a rollout holds that was not exported yet, sorted by key."""

    path: Path
    rows: int
    samples: int
    """K of the last plan; what an earlier one sampled beyond it is left aside, as in an export."""
    about: dict[str, Any]
    identity: dict[str, Any]
    notes: tuple[str, ...] = ()

    def golds(self) -> Iterator[tuple[str, str | None]]:
        """prompt_id and target of every dialogue."""
        return ((t.prompt_id, t.target) for t in chain.from_iterable(self.batches()))

    def batches(self) -> Iterator[list[Trajectory]]:
        """The dialogues in order, a few hundred at a time."""
        with JournalReader(self.path) as journal:
            wanted = (t for t in journal.trajectories() if t.sample < self.samples)
            while batch := list(islice(wanted, _ROWS)):
                yield batch


def open_log(path: Path) -> StoredLog:
    """Recognise the log at `path`.

    Args:
        path: a trajectories folder; the folder of a rollout, of which `trajectories/` is taken or,
            before its export, the journal; or a Parquet file.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: data of another kind, a shard that was changed, a journal that is being written to.
    """
    folder = next((place for place in (path, path / TRAJECTORIES) if is_folder(place)), None)
    if folder is not None:
        files, manifest = folder_shards(folder, "trajectories")
        return _parquet_log(folder, files, manifest)
    if (path / JOURNAL).is_file():
        return _journal_log(path / JOURNAL)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there; a log is a trajectories folder, the folder of a rollout, or a Parquet "
            "file of trajectories"
        )
    if path.is_dir():
        raise ValueError(f"{path} holds no {MANIFEST}, no {TRAJECTORIES}/ and no {JOURNAL}; name a log")
    if file_format(path) != "parquet":
        raise ValueError(f"{path}: trajectories are read from a folder or a .parquet file")
    return _parquet_log(path, [path], None)


def _parquet_log(path: Path, files: list[Path], manifest: dict[str, Any] | None) -> ParquetLog:
    names = [name for file in files for name in open_parquet(file).schema_arrow.names]
    missing = [name for name in SCHEMA.names if names.count(name) < len(files)]
    if missing:
        raise ValueError(f"{path} holds no trajectories: it lacks the columns {', '.join(missing)}")
    surplus = sorted(set(names) - set(SCHEMA.names))
    note = f"columns that the format does not know are left out: {', '.join(surplus)}"
    known = {"sha256": file_sha256(path)} if manifest is None else {"manifest": manifest}
    return ParquetLog(
        path=path,
        files=tuple(files),
        rows=sum(open_parquet(file).metadata.num_rows for file in files),
        about=manifest or {},
        identity={"path": path.name, **known},
        notes=(note,) if surplus else (),
    )


def _journal_log(path: Path) -> JournalLog:
    with JournalReader(path) as journal:
        if journal.live:
            raise ValueError(f"a run is writing to {path}; wait for it, or take what there is by export")
        plan = journal.plan
        if plan is None:
            raise ValueError(f"{path} holds nothing yet")
        sizes = Counter(row.group for row in journal.finished() if row.sample < plan.samples)
    planned = plan.samples * plan.problems
    note = f"the run is not complete: its journal holds {sizes.total():,} of {planned:,} dialogues"
    about = dict(plan.manifest)
    if set(sizes.values()) != {plan.samples}:
        # Groups of other sizes than K are not declared to have K rows.
        about["rollout"] = {**about["rollout"], "samples": None}
    return JournalLog(
        path=path,
        rows=sizes.total(),
        samples=plan.samples,
        about=about,
        identity={"path": path.parent.name, "journal": {"file": path.name, "sha256": file_sha256(path)}},
        notes=(note,) if sizes.total() < planned else (),
    )
