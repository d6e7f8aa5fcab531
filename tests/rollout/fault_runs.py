"""A rollout in a process of its own that a fault meets, and what is left of its rows afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import msgspec
import pyarrow.parquet as pq

from drift_rollout.cli import main
from drift_rollout.finished import Finished
from drift_rollout.journal import Journal, JournalReader
from drift_rollout.run import JOURNAL, TRAJECTORIES
from drift_rollout.unscored import Failures
from drift_weights import Trajectory
from drift_weights.folder import folder_shards

Key = tuple[str, int, str, int]
Prepare = Callable[[], None]
"""Done in the process of the run, before its command starts."""

PATIENCE = 60.0
"""Seconds after which a run that does not end is ended, and is an error."""
ERROR = 70
"""Exit code of a run that ended by an exception which no command should let through."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended."""

    code: int
    """Negative: the signal that killed it."""
    said: str
    reported: dict[Key, str]
    """Rows that the run itself took for committed, each with the hash of its record."""
    seconds: float


class Run:
    """`drift-rollout …` in a fork of this process, so that nothing is imported twice.

    Args:
        words: of the command line.
        prepare: in the child, before the command.
    """

    def __init__(self, words: Sequence[str], *prepare: Prepare) -> None:
        said, says = os.pipe()
        heard, reports = os.pipe()
        sys.stdout.flush()
        self._start = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(said)
            os.close(heard)
            _become(words, prepare, says, reports)
        os.close(says)
        os.close(reports)
        self._pipes = {said: b"", heard: b""}
        self._said, self._heard = said, heard

    def fault(self, number: int) -> None:
        """Send a signal; one that has ended does not mind."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Until it ends.

        Raises:
            TimeoutError: it did not.
        """
        end, open_pipes = time.monotonic() + PATIENCE, set(self._pipes)
        while open_pipes:
            ready = select.select(list(open_pipes), [], [], max(0.0, end - time.monotonic()))[0]
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"a run did not end in {PATIENCE:g} s")
            for pipe in ready:
                more = os.read(pipe, 1 << 16)
                self._pipes[pipe] += more
                if not more:
                    os.close(pipe)
                    open_pipes.discard(pipe)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        lines = self._pipes[self._heard].decode().splitlines(keepends=True)
        rows = [row for line in lines if line.endswith("\n") for row in json.loads(line)]
        return Ended(
            code=code,
            said=self._pipes[self._said].decode(),
            reported={tuple(key): digest for key, digest in rows},
            seconds=time.monotonic() - self._start,
        )


@dataclass
class Victim:
    """One OUT; it remembers every committed row that was seen or reported, and which of them were lost."""

    out: Path
    seen: dict[Key, str] = field(default_factory=dict)
    lost: set[Key] = field(default_factory=set)

    def look(self) -> None:
        """Remember what a reader in this process sees now."""
        self.seen.update(rows_of(self.out))

    def judge(self, ended: Ended) -> None:
        """After a fault: what was seen, or reported by the run, must be there and be the same."""
        self.seen.update(ended.reported)
        now = rows_of(self.out)
        self.lost.update(key for key, digest in self.seen.items() if now.get(key) != digest)
        self.seen.update(now)


def rows_of(out: Path) -> dict[Key, str]:
    """Scored rows that another process sees, each with the hash of its record; none if it cannot read.

    Unscored rows are sampled again by design, so they may change.
    """
    try:
        with JournalReader(out / JOURNAL) as journal:
            return {t.key: digest_of(t) for t in journal.trajectories() if t.scored}
    except (FileNotFoundError, ValueError):
        return {}


def digest_of(trajectory: Trajectory) -> str:
    """Of the record as the journal stores it."""
    return hashlib.sha256(msgspec.msgpack.encode(trajectory)).hexdigest()


def exported(out: Path) -> dict[str, bytes]:
    """Every file of the export, by name."""
    folder = out / TRAJECTORIES
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def doubled(out: Path) -> int:
    """Rows of the export beyond one a key."""
    keys = []
    for file in folder_shards(out / TRAJECTORIES, "trajectories")[0]:
        columns = pq.ParquetFile(file).read(["prompt_id", "round", "policy", "sample"], use_threads=False)
        keys += [tuple(row.values()) for row in columns.to_pylist()]
    return len(keys) - len(set(keys))


def is_half(out: Path) -> bool:
    """Whether a trajectories folder is there and is not whole."""
    if not (out / TRAJECTORIES).exists():
        return False
    try:
        folder_shards(out / TRAJECTORIES, "trajectories")
    except (ValueError, FileNotFoundError):
        return True
    return False


def left_behind(out: Path) -> list[str]:
    """What lies in OUT besides the journal, its lock and the export."""
    return sorted({path.name for path in out.iterdir()} - {JOURNAL, f"{JOURNAL}.lock", TRAJECTORIES})


def _become(words: Sequence[str], prepare: Sequence[Prepare], says: int, reports: int) -> NoReturn:
    """Be the command; leave without what the parent would do at its end."""
    code = ERROR
    try:
        sys.stdout = sys.stderr = os.fdopen(says, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for prepared in prepare:
            prepared()
        _report_commits(reports)
        main(list(words))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        if code == ERROR:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)


def _report_commits(reports: int) -> None:
    """Say of every batch, once `add` has returned, that it is committed."""
    add = Journal.add

    def reporting(self: Journal, trajectories: Sequence[Trajectory], failures: Failures) -> list[Finished]:
        rows = add(self, trajectories, failures)
        line = json.dumps([(t.key, digest_of(t)) for t in trajectories if t.scored]) + "\n"
        os.write(reports, line.encode())
        return rows

    Journal.add = reporting  # type: ignore[method-assign]
