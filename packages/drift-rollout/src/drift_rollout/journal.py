"""Every finished trajectory is durable: one SQLite file, one writer, full synchronous."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from drift_weights.types import Trajectory

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (config TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS trajectory (
    prompt_id TEXT NOT NULL, round INTEGER NOT NULL, policy TEXT NOT NULL, sample INTEGER NOT NULL,
    scored INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (prompt_id, round, policy, sample)
) WITHOUT ROWID;
"""


class Journal:
    """The durable record of one rollout run; resume by key.

    Args:
        path: the SQLite file; made if it is not there.
        config: what must be the same on resume (policy, prompts, sampling, verifier, T, f, seed).
            K and the problems are not part of it: they may grow.

    Raises:
        ValueError: the file belongs to a run of another configuration; the differences are named.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path)
        # The rollback journal, not WAL: WAL loses its locks on network disks.
        self._db.execute("PRAGMA journal_mode=DELETE")
        self._db.execute("PRAGMA synchronous=FULL")
        with self._db:
            self._db.executescript(_SCHEMA)
        self._hold_config(path, json.loads(json.dumps(config)))

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
        with self._db:
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
        return set(self._db.execute(query))

    def trajectories(self) -> Iterator[Trajectory]:
        """Every trajectory, sorted by key, so that an export does not depend on the order of work."""
        query = "SELECT record FROM trajectory ORDER BY prompt_id, round, policy, sample"
        with closing(self._db.execute(query)) as cursor:
            for (record,) in cursor:
                yield msgspec.msgpack.decode(record, type=Trajectory)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _hold_config(self, path: Path, config: dict[str, Any]) -> None:
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
            self._db.close()
            raise ValueError(
                f"{path} belongs to a run with another configuration; resume with the same one or "
                "choose another output:\n  " + "\n  ".join(different)
            )
