"""What is done to a process so that it meets a fault: limits, rights, and kills at a line of Python."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from drift_rollout import run
from drift_rollout.journal import Journal
from drift_rollout.verifiers.exact import ExactVerifier
from drift_rollout.verify import Verified
from drift_weights import folder, writers

Prepare = Callable[[], None]
NOBODY = 65534


def file_size_limit(size: int) -> Prepare:
    """No file may grow beyond so many bytes; a write beyond fails with an error."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def export_size_limit(size: int) -> Prepare:
    """The same, from the moment on when the export begins."""
    return lambda: _before_export(file_size_limit(size))


def page_limit(pages: int) -> Prepare:
    """SQLite takes the disk for full at so many pages beyond those that are there."""

    def prepare() -> None:
        connect = Journal._connect

        def limited(self: Journal, path: Path) -> None:
            connect(self, path)
            self._db.execute(f"PRAGMA max_page_count = {pages}")

        Journal._connect = limited  # type: ignore[method-assign]

    return prepare


def dropped_rights() -> None:
    """Be nobody, where this is root, whom no rights hold."""
    if os.geteuid() == 0:
        os.seteuid(NOBODY)


@contextmanager
def rights_taken(out: Path, *, file: bool) -> Iterator[None]:
    """OUT (made, if need be), or the journal in it alone, cannot be written."""
    out.mkdir(exist_ok=True)
    out.chmod(0o777 if file else 0o555)
    files = [path for path in out.iterdir() if path.is_file()]
    for path in files:
        path.chmod(0o444 if path.suffix == ".sqlite" else 0o666)
    yield
    out.chmod(0o755)
    for path in files:
        path.chmod(0o644)


def verifications_time_out() -> None:
    """One in ten, drawn anew in every process."""
    verify, draw = ExactVerifier.verify, random.Random()

    def late(self: ExactVerifier, response: str, target: str) -> Verified:
        if draw.random() < 0.1:
            return Verified(answer=None, verdict="timeout")
        return verify(self, response, target)

    ExactVerifier.verify = late  # type: ignore[method-assign]


def killed_at_line(number: int) -> Prepare:
    """SIGKILL before the so-manieth line of Python that writes the export."""

    def passed(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: _count_lines(passed)


def lines_run(counted: Path) -> Prepare:
    """Write how many lines of Python write the export."""
    return lambda: _count_lines(lambda count: counted.write_text(str(count)))


def _count_lines(passed: Callable[[int], Any]) -> None:
    """Call at every line of the modules that write a folder, with how many there were, once it begins."""
    count, files = 0, {folder.__file__, writers.__file__}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count += 1
            passed(count)
        return trace

    _before_export(lambda: sys.settrace(trace))


def _before_export(prepare: Prepare) -> None:
    write = run.write_trajectories

    def prepared(*given: Any, **named: Any) -> Path:
        prepare()
        return write(*given, **named)

    run.write_trajectories = prepared
