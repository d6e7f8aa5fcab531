"""Whatever happens to a rollout, it loses nothing; and the scoreboard that says so can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.broken_journals import BROKEN

COMMAND = [sys.executable, str(Path(__file__).with_name("faults.py")), "--seed=1", "--problems=12"]
MEMORY = Path("/dev/shm")
"""A kill spares what a process has written, on any file system; here it does not wait for a disk."""
ENVIRONMENT = {**os.environ, **({"TMPDIR": str(MEMORY)} if MEMORY.is_dir() else {})}


def board(*more: str) -> tuple[int, dict[str, list[str]]]:
    """The exit code, and by fault: times, lost, doubled, identical, left behind."""
    done = subprocess.run([*COMMAND, *more], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")]
    return done.returncode, {name: values for name, *values in rows[2:]}


def test_no_fault_loses_doubles_or_changes_anything() -> None:
    code, lines = board("--kills=20", "--others=4", "--step=16")
    assert len(lines) == 13
    for fault, (times, lost, doubled, identical, left) in lines.items():
        same, endings = identical.split(" of ")
        assert int(times) >= 4, fault
        assert (lost, doubled, left) == ("0", "0", "0"), fault
        assert same == endings != "0", fault
    assert code == 0


@pytest.mark.parametrize("broken", sorted(BROKEN))
def test_a_broken_journal_is_found_out(broken: str) -> None:
    code, lines = board("--kills=6", "--others=0", f"--broken={broken}")
    ((_, lost, *_),) = lines.values()
    assert int(lost) > 0
    assert code == 1
