"""Every finished trajectory is durable: one SQLite file, one writer, full synchronous."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from drift_weights.types import Trajectory

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS run (config TEXT NOT NULL)",
    """
CREATE TABLE IF NOT EXISTS trajectory (
    prompt_id TEXT NOT NULL, round INTEGER NOT NULL, policy TEXT NOT NULL, sample INTEGER NOT NULL,
    scored INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (prompt_id, round, policy, sample)
) WITHOUT ROWID
""",
)
_PATIENCE = 0.5
"""Seconds to wait for somebody who only looks into the file."""


class Journal:
    """The durable record of one rollout run; resume by key.

    The file is locked while it is open: one run writes to it. A killed run's lock dies with it.

    Args:
        path: the SQLite file; made if it is not there.
        config: what must be the same on resume (policy, prompts, sampling, verifier, T, f, seed).
            K and the problems are not part of it: they may grow.

    Raises:
        ValueError: the file belongs to a run of another configuration (the differences are named),
            another run is writing to it, or it is no journal. Whatever SQLite refuses later (a full
            disk) is a ValueError too.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with self._errors_named():
            self._db = sqlite3.connect(path, timeout=_PATIENCE)
        try:
            with self._errors_named():
                self._open()
            self._hold_config(json.loads(json.dumps(config)))
        except ValueError:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, trajectories: Sequence[Trajectory]) -> None:
        """Commit finished trajectories in one transaction; an unscored one may be replaced, no other.

        Raises:
            ValueError: a key that is scored already.
        """
        rows = [(*t.key, int(t.scored), msgspec.msgpack.encode(t)) for t in trajectories]
        with self._errors_named(), self._db:
            for row in rows:
                changed = self._db.execute(
                    "INSERT INTO trajectory VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "scored = excluded.scored, record = excluded.record WHERE NOT scored",
                    row,
                )
                if changed.rowcount == 0:
                    raise ValueError(f"trajectory {row[:4]} is in the journal already")

    def scored_keys(self) -> set[tuple[str, int, str, int]]:
        """Keys that need no further sampling; unscored trajectories are sampled again."""
        query = "SELECT prompt_id, round, policy, sample FROM trajectory WHERE scored"
        with self._errors_named():
            return set(self._db.execute(query))

    def trajectories(self) -> Iterator[Trajectory]:
        """Every trajectory, sorted by key, so that an export does not depend on the order of work."""
        query = "SELECT record FROM trajectory ORDER BY prompt_id, round, policy, sample"
        with self._errors_named(), closing(self._db.execute(query)) as cursor:
            for (record,) in cursor:
                yield msgspec.msgpack.decode(record, type=Trajectory)

    def close(self) -> None:
        """Close the file, and so give it free."""
        self._db.close()

    def _open(self) -> None:
        # The rollback journal, not WAL: WAL loses its locks on network disks.
        self._db.execute("PRAGMA journal_mode=DELETE")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("BEGIN EXCLUSIVE")
        # Only now: an opener that comes second keeps no lock that could stop the first.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        for statement in _SCHEMA:
            self._db.execute(statement)
        self._db.commit()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            # Errors of the Python module itself have no code of SQLite's.
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise ValueError(
                    f"another run is writing to {self._path}; wait for it, or choose another output"
                ) from error
            raise ValueError(
                f"{self._path}: {error}; is it a journal of ours, on a disk with room?"
            ) from error

    def _hold_config(self, config: dict[str, Any]) -> None:
        with self._errors_named():
            stored = self._db.execute("SELECT config FROM run").fetchone()
            if stored is None:
                with self._db:
                    self._db.execute("INSERT INTO run VALUES (?)", (json.dumps(config, sort_keys=True),))
                return
        before = json.loads(stored[0])
        different = [
            f"{name}: {before.get(name)!r} before, {config.get(name)!r} now"
            for name in sorted(before.keys() | config.keys())
            if before.get(name) != config.get(name)
        ]
        if different:
            raise ValueError(
                f"{self._path} belongs to a run with another configuration; resume with the same one or "
                "choose another output:\n  " + "\n  ".join(different)
            )
