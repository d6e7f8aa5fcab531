"""kill -9 during a write leaves the old output or the new one, and never keeps a second run from its work.

A process repeats one write and kills itself at one of the lines that the write executes: at every line of
ours that writes, and within the library functions that truncate, rename and delete. Other processes, which
write without end, are killed from outside at some moment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_weights import WeightConfig
from drift_weights.columns import Columns
from drift_weights.logs import OpenLog
from drift_weights.outputs import reweight_file

READING = sys.modules[OpenLog.__module__]
OURS = ("writers.py", "folder.py", "json_bytes.py")
LIBRARY = ("write_text", "rename", "unlink", "_rmtree_safe_fd")
BATCH = 16
"""Rows at a time, so that a write takes several batches; row groups depend on it."""
OLD, NEW = WeightConfig(beta=3.0), WeightConfig()
COLUMNS = Columns(group="g", return_column="r", correct="c")
CASES = {
    "log of lines": ("log.jsonl", "out.jsonl", "log"),
    "log as Parquet": ("log.parquet", "out.parquet", "log"),
    "weights alone": ("log.jsonl", "side.parquet", "side"),
    "terminal turns": ("log.jsonl", "turns", "turns"),
    "a log in its own place": ("log.jsonl", "log.jsonl", "log"),
}


def reweighted(folder: Path, case: str, config: WeightConfig = NEW, advance: Any = None) -> Path:
    source, target, form = CASES[case]
    reweight_file(
        folder / source,
        folder / target,
        config,
        COLUMNS,
        form=form,
        format="chat",
        overwrite=True,
        advance=advance,
    )
    return folder / target


def write_logs(folder: Path, rows: int = 40) -> None:
    folder.mkdir()
    found = [
        {"g": f"q{n % 7}", "r": n % 5 / 4, "c": n % 2, "prompt": "x" * 50, "completion": f"{n}"}
        for n in range(rows)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in found)
    (folder / "log.jsonl").write_text(lines, encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(found), folder / "log.parquet", row_group_size=8)


def content(path: Path) -> dict[str, bytes] | bytes | None:
    """All bytes of a file or folder; None where there is nothing."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path)): file.read_bytes() for file in files}
    return path.read_bytes() if path.exists() else None


def steps(end: int | None, seen: list[tuple[str, int]]) -> Callable[..., Any]:
    """A trace function that notes every line of a write, and kills the process at the line number `end`."""

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        ours = "drift_weights" in file and file.endswith(OURS)
        if not ours and not (name in LIBRARY and ("pathlib" in file or "shutil" in file)):
            return None
        if event == "line":
            seen.append((file, frame.f_lineno))
            if len(seen) == end:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def fork(work: Callable[[], object]) -> int:
    """A new process that does this and nothing else."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def rehearse(folder: Path, case: str) -> list[int]:
    """Where to kill: the last time that each line is executed, and the first time where it is ours."""
    noted = folder / "noted.json"

    def work() -> None:
        seen: list[tuple[str, int]] = []
        sys.settrace(steps(None, seen))
        reweighted(folder, case)
        sys.settrace(None)
        noted.write_text(json.dumps(seen), encoding="utf-8")

    assert os.waitpid(fork(work), 0)[1] == 0
    seen = [(file, line) for file, line in json.loads(noted.read_text(encoding="utf-8"))]
    last = {place: number for number, place in enumerate(seen, start=1)}
    first = {place: seen.index(place) + 1 for place in last if place[0].endswith("writers.py")}
    return sorted({*first.values(), *last.values()})


def kill_at_every_step(root: Path, case: str) -> None:
    """For each step a copy of the template in which a process wrote up to there."""
    for step in rehearse(root / "rehearsal", case):
        folder = root / f"killed-{step}"
        shutil.copytree(root / "template", folder)

        def work(folder: Path = folder, step: int = step) -> None:
            sys.settrace(steps(step, []))
            reweighted(folder, case)

        status = os.waitpid(fork(work), 0)[1]
        assert os.WIFSIGNALED(status), f"step {step} was not reached"


def kill_from_outside(root: Path, case: str) -> None:
    """Copies of the template in which a process wrote again and again until it was killed."""
    for moment in range(8):
        folder = root / f"killed-outside-{moment}"
        shutil.copytree(root / "template", folder)

        def work(folder: Path = folder) -> None:
            for config in cycle((NEW, OLD)):
                reweighted(folder, case, config, lambda rows: time.sleep(0.001))

        child = fork(work)
        time.sleep(0.05 + 0.03 * moment)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL


def make_killed(root: Path, case: str) -> None:
    READING.BATCH = BATCH
    # Whatever is imported on first use is then there in every child.
    reweighted(shutil.copytree(root / "template", root / "warming"), case)
    shutil.copytree(root / "template", root / "rehearsal")
    kill_at_every_step(root, case)
    kill_from_outside(root, case)


def killed(root: Path, case: str) -> list[Path]:
    # A process of its own, since a test run has threads, and threads and forks do not mix.
    subprocess.run([sys.executable, __file__, str(root), case], check=True, timeout=300)
    found = sorted(root.glob("killed-*"))
    assert len(found) > 20
    return found


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(READING, "BATCH", BATCH)
    write_logs(tmp_path / "template")
    write_logs(tmp_path / "expected")
    return tmp_path


def is_whole(folder: Path, case: str, whole: list[Any]) -> bool:
    """Whether the output is one of these, or a folder that was moved aside for the moment of its change."""
    target = CASES[case][1]
    found = content(folder / target)
    return found in whole or (found is None and content(folder / f".{target}.old") in whole)


@pytest.mark.parametrize("case", CASES)
def test_an_output_that_is_overwritten_stays_old_or_becomes_new(root: Path, case: str) -> None:
    old = content(reweighted(root / "template", case, OLD))
    new = content(reweighted(shutil.copytree(root / "template", root / "again"), case))
    assert old is not None
    assert old != new
    side = f"{CASES[case][1]}.drift.json"
    both = [content(folder / CASES[case][0]) for folder in (root / "template", root / "again")]
    for folder in killed(root, case):
        assert is_whole(folder, case, [old, new]), folder.name
        assert content(folder / CASES[case][0]) in both, folder.name
        vouching = content(folder / side)
        assert vouching is None or "sha256" in json.loads(vouching), folder.name
        assert content(reweighted(folder, case)) == new, folder.name


@pytest.mark.parametrize("case", ["log of lines", "terminal turns"])
def test_an_output_that_is_new_is_whole_or_not_there(root: Path, case: str) -> None:
    before = content(root / "template" / CASES[case][1])
    new = content(reweighted(root / "expected", case))
    old = content(reweighted(root / "expected", case, OLD))
    for folder in killed(root, case):
        outside = [old] if "outside" in folder.name else []
        assert content(folder / CASES[case][1]) in [before, new, *outside], folder.name
        assert content(reweighted(folder, case)) == new, folder.name


if __name__ == "__main__":
    make_killed(Path(sys.argv[1]), sys.argv[2])
