"""Every finished trajectory is durable: one SQLite file, one writer, every commit on the disk.

While a run writes, anybody may look: `JournalReader` sees what is committed.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from filelock import FileLock, Timeout

from drift_rollout.finished import KEY, SUMMARY, Finished, in_short, row_of
from drift_rollout.unscored import Failures, Key
from drift_weights.types import Trajectory

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS run (config TEXT NOT NULL)",
    """
CREATE TABLE IF NOT EXISTS plan (
    samples INTEGER NOT NULL, problems INTEGER NOT NULL, manifest TEXT NOT NULL
)
""",
    """
CREATE TABLE IF NOT EXISTS trajectory (
    prompt_id TEXT NOT NULL, round INTEGER NOT NULL, policy TEXT NOT NULL, sample INTEGER NOT NULL,
    scored INTEGER NOT NULL, solved INTEGER NOT NULL, length INTEGER NOT NULL,
    unique_answers INTEGER NOT NULL, malformed INTEGER NOT NULL, tokens INTEGER NOT NULL,
    finished REAL NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (prompt_id, round, policy, sample)
) WITHOUT ROWID
""",
    """
CREATE TABLE IF NOT EXISTS failure (
    prompt_id TEXT NOT NULL, round INTEGER NOT NULL, policy TEXT NOT NULL, sample INTEGER NOT NULL,
    turn INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (prompt_id, round, policy, sample, turn)
) WITHOUT ROWID
""",
)
_INSERT = f"""
INSERT INTO trajectory ({KEY}, {SUMMARY}, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET {", ".join(f"{n} = excluded.{n}" for n in f"{SUMMARY}, record".split(", "))}
WHERE NOT scored
"""
_THIS = "(prompt_id, round, policy, sample) = (?, ?, ?, ?)"
_PATIENCE = 60.0
"""Seconds to wait for somebody who only looks into the file, or, looking, for a commit."""

_LOOK = 0.2
"""Seconds to wait for the lock: who only asks whether it is held, holds it himself for a moment."""

_WRITING = "another run is writing to {path}; wait for it, or choose another output"

_PORTION = 256
"""Trajectories that are read at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the last run that wrote here was to sample."""

    samples: int
    problems: int
    manifest: dict[str, Any]
    """What its trajectories folder says of where they are from."""


class EmptyJournalError(ValueError):
    """A run was killed, or is, before its journal held anything."""


class JournalReader:
    """A journal to look into, whether or not a run is writing to it.

    Args:
        path: the SQLite file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no journal. Whatever SQLite refuses later is a ValueError too.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} holds no {path.name}; name the folder of a rollout")
        self._connect(path)
        with self._errors_named():
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables:
                self._db.execute(f"SELECT {KEY}, {SUMMARY} FROM trajectory LIMIT 1")
        if not tables:
            self._db.close()
            raise EmptyJournalError(f"{path} holds nothing yet")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def live(self) -> bool:
        """Whether a run is writing to it now."""
        lock = FileLock(_lock_of(self._path))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        lock.release()
        return False

    @property
    def config(self) -> dict[str, Any]:
        """What the run was made with.

        Raises:
            EmptyJournalError: it does not say so yet.
        """
        with self._errors_named():
            row = self._db.execute("SELECT config FROM run").fetchone()
        if row is None:
            raise EmptyJournalError(f"{self._path} holds nothing yet")
        found: dict[str, Any] = json.loads(row[0])
        return found

    @property
    def plan(self) -> Plan | None:
        """How many samples and problems the last run was to have; None before the first."""
        with self._errors_named():
            row = self._db.execute("SELECT samples, problems, manifest FROM plan").fetchone()
        if row is None:
            return None
        return Plan(samples=row[0], problems=row[1], manifest=json.loads(row[2]))

    def scored_keys(self) -> set[tuple[str, int, str, int]]:
        """Keys that need no further sampling; unscored trajectories are verified or sampled again."""
        with self._errors_named():
            return set(self._db.execute(f"SELECT {KEY} FROM trajectory WHERE scored"))

    def finished(self) -> list[Finished]:
        """Every trajectory in short, sorted by key."""
        failures = self.failures()
        query = f"""
            SELECT {KEY}, {SUMMARY}, CASE WHEN scored THEN NULL ELSE record END
            FROM trajectory ORDER BY {KEY}
        """
        with self._errors_named():
            return [in_short(row, record, failures) for *row, record in self._db.execute(query)]

    def failures(self) -> Failures:
        """How often the verification of turns has failed; none in a journal older than the count."""
        with self._errors_named():
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'failure'").fetchone():
                return {}
            rows = self._db.execute(f"SELECT {KEY}, turn, count FROM failure").fetchall()
        found: Failures = {}
        for *key, turn, count in rows:
            found.setdefault((key[0], key[1], key[2], key[3]), {})[turn] = count
        return found

    def unscored(self, key: Key) -> Trajectory | None:
        """The trajectory of this key, if it is there and is not scored."""
        query = f"SELECT record FROM trajectory WHERE {_THIS} AND NOT scored"
        with self._errors_named():
            row = self._db.execute(query, key).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=Trajectory)

    def trajectories(self) -> Iterator[Trajectory]:
        """Every trajectory, sorted by key, so that an export does not depend on the order of work.

        Read in portions: neither does a live run wait for the reader, nor does memory grow.
        """
        query = (
            f"SELECT record FROM trajectory WHERE ({KEY}) > (?, ?, ?, ?) ORDER BY {KEY} LIMIT {_PORTION}"
        )
        last: tuple[str, int, str, int] = ("", -1, "", -1)
        while True:
            with self._errors_named():
                records = self._db.execute(query, last).fetchall()
            for (record,) in records:
                trajectory = msgspec.msgpack.decode(record, type=Trajectory)
                last = trajectory.key
                yield trajectory
            if len(records) < _PORTION:
                return

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _connect(self, path: Path) -> None:
        self._path = path
        with self._errors_named():
            self._db = sqlite3.connect(path, timeout=_PATIENCE)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ValueError(
                f"{self._path}: {error}; is it a journal of ours, on a disk with room that can be written?"
            ) from error


class Journal(JournalReader):
    """The durable record of one rollout run; resume by key.

    One run writes to it: a lock beside the file says so, and dies with its process.

    Args:
        path: the SQLite file; made if it is not there.
        config: what must be the same on resume (policy, prompts, sampling, verifier, T, f, seed).
            K and the problems are not part of it: they may grow.
        clock: seconds since 1970.

    Raises:
        ValueError: the file belongs to a run of another configuration (the differences are named),
            another run is writing to it, or it is no journal. Whatever SQLite refuses later (a full
            disk) is a ValueError too.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], *, clock: Callable[[], float] = time.time
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(_lock_of(path))
        try:
            self._lock.acquire(timeout=_LOOK)
        except Timeout as error:
            raise ValueError(_WRITING.format(path=path)) from error
        self._clock = clock
        try:
            self._connect(path)
            self._open(json.loads(json.dumps(config)))
        except BaseException:
            self._lock.release()
            raise

    def add(self, trajectories: Sequence[Trajectory], failures: Failures | None = None) -> list[Finished]:
        """Commit finished trajectories in one transaction; an unscored one may be replaced, no other.

        Args:
            failures: how often the verification of their turns has failed by now; those of others, and of
                a trajectory that is replaced, do not count.

        Returns:
            Each in short.

        Raises:
            ValueError: a key that is scored already.
        """
        now = self._clock()
        rows = [row_of(trajectory, now) for trajectory in trajectories]
        failures = failures or {}
        with self._errors_named(), self._db:
            for row in rows:
                if self._db.execute(_INSERT, row).rowcount == 0:
                    raise ValueError(f"trajectory {row[:4]} is in the journal already")
                self._db.execute(f"DELETE FROM failure WHERE {_THIS}", row[:4])
                counts = [(*row[:4], turn, count) for turn, count in failures.get(row[:4], {}).items()]
                self._db.executemany("INSERT INTO failure VALUES (?, ?, ?, ?, ?, ?)", counts)
        return [in_short(row, record, failures) for *row, record in rows]

    def begin(self, plan: Plan) -> None:
        """Note what this run is to sample."""
        with self._errors_named(), self._db:
            self._db.execute("DELETE FROM plan")
            values = (plan.samples, plan.problems, json.dumps(plan.manifest))
            self._db.execute("INSERT INTO plan VALUES (?, ?, ?)", values)

    def close(self) -> None:
        """Close the file, and so give it free."""
        super().close()
        self._lock.release()

    def _open(self, config: dict[str, Any]) -> None:
        try:
            with self._errors_named():
                # The rollback journal, not WAL: WAL loses its locks on network disks.
                self._db.execute("PRAGMA journal_mode=DELETE")
                self._db.execute("PRAGMA synchronous=EXTRA")
                with self._db:
                    # All tables or none, whenever it is killed.
                    self._db.execute("BEGIN")
                    for statement in _SCHEMA:
                        self._db.execute(statement)
                self._db.execute(f"SELECT {SUMMARY} FROM trajectory LIMIT 1")
            self._hold_config(config)
        except ValueError:
            self._db.close()
            raise

    def _hold_config(self, config: dict[str, Any]) -> None:
        with self._errors_named():
            stored = self._db.execute("SELECT config FROM run").fetchone()
            if stored is None:
                with self._db:
                    self._db.execute("INSERT INTO run VALUES (?)", (json.dumps(config, sort_keys=True),))
                return
        _refuse_other(self._path, json.loads(stored[0]), config)


def check_config(path: Path, config: Mapping[str, Any], *, unknown: Collection[str]) -> None:
    """Hold a configuration against that of a journal, if there is one, before all of it is known.

    Args:
        unknown: names of settings that will be known later.

    Raises:
        ValueError: they differ, another run is writing to it, or it is no journal.
    """
    try:
        with JournalReader(path) as journal:
            if journal.live:
                raise ValueError(_WRITING.format(path=path))
            before = journal.config
    except (FileNotFoundError, EmptyJournalError):
        return
    known = {name: value for name, value in before.items() if name not in unknown}
    _refuse_other(path, known, json.loads(json.dumps(config)))


def _refuse_other(path: Path, before: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    different = [
        f"{name}: {before.get(name)!r} before, {config.get(name)!r} now"
        for name in sorted(before.keys() | config.keys())
        if before.get(name) != config.get(name)
    ]
    if different:
        says = (
            "belongs to a run with another configuration; resume with the same one or choose another output"
        )
        raise ValueError(f"{path} {says}:\n  " + "\n  ".join(different))


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")
