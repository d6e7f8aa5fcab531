"""kill -9 during a write leaves the old output or the new one, and never keeps a second run from its work.

A child process repeats the same write and kills itself at one of the lines that the write executes: at each
line of ours that writes, and within the library functions that truncate, rename and delete.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drift_weights.logs.opening
from drift_weights import WeightConfig
from drift_weights.columns import Columns
from drift_weights.folder import read_folder
from drift_weights.outputs import reweight_file

OURS = ("writers.py", "folder.py", "json_bytes.py")
LIBRARY = ("write_text", "open", "rename", "unlink", "mkdir", "_rmtree_safe_fd", "rmtree", "_rmtree_unsafe")
OLD, NEW = WeightConfig(beta=3.0), WeightConfig()
COLUMNS = Columns(group="g", return_column="r", correct="c")
CASES = {
    "log of lines": ("log.jsonl", "out.jsonl", "log"),
    "log as Parquet": ("log.parquet", "out.parquet", "log"),
    "weights alone": ("log.jsonl", "side.parquet", "side"),
    "terminal turns": ("log.jsonl", "turns", "turns"),
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


def steps(case: str, end: int | None, seen: list[tuple[str, int]]) -> Callable[..., Any]:
    """A trace function that notes every line of a write, and kills the process at the line number `end`."""

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        code = frame.f_code
        ours = code.co_filename.endswith(OURS) and "drift_weights" in code.co_filename
        if not ours and not (code.co_name in LIBRARY and ("pathlib" in code.co_filename or "shutil" in code.co_filename)):
            return None
        if event == "line":
            seen.append((code.co_filename, frame.f_lineno))
            if len(seen) == end:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def in_a_child(work: Callable[[], None]) -> int:
    """The status of a forked process that does this and nothing else."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def rehearse(folder: Path, case: str) -> list[int]:
    """Where to kill: the first and the last time that each line is executed."""
    noted = folder / "noted.json"

    def work() -> None:
        seen: list[tuple[str, int]] = []
        sys.settrace(steps(case, None, seen))
        reweighted(folder, case)
        sys.settrace(None)
        noted.write_text(json.dumps(seen))

    assert in_a_child(work) == 0
    seen = [tuple(line) for line in json.loads(noted.read_text())]
    first = {line: number for number, line in reversed([*enumerate(seen, start=1)])}
    last = {line: number for number, line in enumerate(seen, start=1)}
    return sorted({*first.values(), *last.values()})


def kill_everywhere(root: Path, case: str) -> None:
    """For each step a copy of the template in which a process wrote up to there."""
    drift_weights.logs.opening.BATCH = 16
    shutil.copytree(root / "template", root / "rehearsal")
    for step in rehearse(root / "rehearsal", case):
        folder = root / f"killed-{step}"
        shutil.copytree(root / "template", folder)

        def work(folder: Path = folder, step: int = step) -> None:
            sys.settrace(steps(case, step, []))
            reweighted(folder, case)

        status = in_a_child(work)
        assert os.WIFSIGNALED(status), f"step {step} was not reached"
        assert os.WTERMSIG(status) == signal.SIGKILL


def killed(root: Path, case: str) -> list[Path]:
    command = [sys.executable, __file__, str(root), case]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "0"})
    return sorted(root.glob("killed-*"), key=lambda path: int(path.name.removeprefix("killed-")))


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]), sys.argv[2])
