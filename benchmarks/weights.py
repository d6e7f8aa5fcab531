"""Adding weights to a log: drift-weights, other tools and the floor, in CPU seconds, wall time and memory.

uv run benchmarks/weights.py --out results.json       numbers, and results.md beside them
uv run benchmarks/weights.py --huge                   and 50 million narrow rows, ours alone
uv run benchmarks/weights.py --quick                  small logs, one round
uv run benchmarks/weights.py --tasks wide-jsonl --rounds 5

Every run is a fresh process, imports and all, and its cost is what the kernel counted for it (wait4), its
children included. Contenders take turns within a round and the order rotates; the source is in the page
cache, and everyone's output is on the disk (fsync) before the clock stops. After each round the weights of
all are compared, outside of what is timed. This process imports little on purpose: a child's peak memory
starts at its parent's. For Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from weights_peers import CONTENDERS
from weights_results import Result, Run, Task

HERE = Path(__file__).parent
WIDE_KEYS, NARROW_KEYS = ("prompt_id", "round", "policy"), ("prompt_id",)
NARROW_CONTENDERS = ("ours", "duckdb", "polars", "copy")
FULL_ROWS, QUICK_ROWS, HUGE_ROWS = (100_000, 5_000_000), (2_000, 50_000), 50_000_000
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def main() -> None:
    """Parse, measure, show."""
    options = _options()
    wide, narrow = options.rows or (QUICK_ROWS if options.quick else FULL_ROWS)
    tasks = [
        task for task in all_tasks(wide, narrow) if options.tasks is None or task.name in options.tasks
    ]
    if options.huge:
        tasks.append(huge_task(HUGE_ROWS))
    rounds = options.rounds or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="drift-benchmark-") as scratch:
        data = options.data or Path(scratch)
        results = [run_task(task, data, rounds) for task in tasks]
    # Only now, for they are large.
    from weights_report import document, markdown, show

    found = document(results, quick=options.quick)
    show(found, results)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(markdown(found, results), encoding="utf-8")


def all_tasks(wide: int, narrow: int) -> list[Task]:
    """What is measured, but for the huge log."""
    everyone = {form: tuple(contenders) for form, contenders in CONTENDERS.items()}
    return [
        Task(
            name="wide-parquet",
            title="Wide Parquet, written again with its weights",
            kind="wide-parquet",
            rows=wide,
            form="parquet",
            keys=WIDE_KEYS,
            contenders=everyone["parquet"],
        ),
        Task(
            name="wide-side",
            title="Wide Parquet, row numbers and weights alone",
            kind="wide-parquet",
            rows=wide,
            form="side",
            keys=WIDE_KEYS,
            contenders=everyone["side"],
        ),
        Task(
            name="wide-jsonl",
            title="Wide JSONL, written again with its weights",
            kind="wide-jsonl",
            rows=wide,
            form="jsonl",
            keys=WIDE_KEYS,
            contenders=everyone["jsonl"],
        ),
        *(
            Task(
                name=f"narrow-{order}",
                title=f"Narrow Parquet, {order} groups, written again with its weights",
                kind=f"narrow-{order}",
                rows=narrow,
                form="parquet",
                keys=NARROW_KEYS,
                contenders=NARROW_CONTENDERS,
            )
            for order in ("contiguous", "shuffled")
        ),
    ]


def huge_task(rows: int) -> Task:
    """Whether memory follows the groups and not the rows; peers are left out for their time."""
    return Task(
        name="narrow-huge",
        title="Narrow Parquet, shuffled groups, ten times as many rows",
        kind="narrow-shuffled",
        rows=rows,
        form="parquet",
        keys=NARROW_KEYS,
        contenders=("ours", "copy"),
    )


def run_task(task: Task, data: Path, rounds: int) -> Result:
    """All rounds of a task; weights are compared after each."""
    source = _make(task, data)
    runs: dict[str, list[Run]] = {name: [] for name in task.contenders}
    for number in range(rounds):
        turn = number % len(task.contenders)
        outputs = {}
        for name in (*task.contenders[turn:], *task.contenders[:turn]):
            folder = data / "outputs" / name.replace(" ", "-")
            folder.mkdir(parents=True)
            outputs[name] = folder / f"weighed.{'jsonl' if task.form == 'jsonl' else 'parquet'}"
            _read_once(source)
            words = [name, task.form, str(source), str(outputs[name]), *task.keys]
            runs[name].append(measure([sys.executable, str(HERE / "weights_peers.py"), *words]))
            shutil.rmtree(folder / "cache", ignore_errors=True)
            _say(f"{task.name}, round {number + 1} of {rounds}: {name}, {runs[name][-1].cpu_s:.2f} CPU s")
        check(task.form, source, outputs)
        shutil.rmtree(data / "outputs")
    return Result(task=task, source_bytes=source.stat().st_size, runs=runs)


def measure(command: Sequence[str]) -> Run:
    """Run a command in a process of its own, and take what the kernel counted.

    Raises:
        RuntimeError: it failed; its last words are in the message.
    """
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            words = errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}: {words}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Run(cpu_s=cpu_s, wall_s=wall_s, peak_bytes=usage.ru_maxrss * MAXRSS_UNIT)


def check(form: str, source: Path, outputs: dict[str, Path]) -> None:
    """Refuse unless all that were to write weights wrote the same, in a process of its own.

    Raises:
        RuntimeError: a weight is off, or rows are missing.
    """
    pairs = [f"{name}={output}" for name, output in outputs.items() if name not in ("copy", "pyarrow")]
    measure([sys.executable, str(HERE / "weights_check.py"), form, str(source), *pairs])


def _make(task: Task, data: Path) -> Path:
    _say(f"{task.name}: {task.rows:,} rows")
    words = [task.kind, str(task.rows), str(data)]
    command = [sys.executable, str(HERE / "weights_data.py"), *words]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Path(made.stdout.strip())


def _read_once(path: Path) -> None:
    """Into the page cache, so that no one pays for another's eviction."""
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    names = [task.name for task in all_tasks(16, 16)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers; tables go to .md beside it")
    parser.add_argument(
        "--data", type=Path, help="a folder that keeps the logs; a temporary one by default"
    )
    parser.add_argument("--rows", type=int, nargs=2, metavar=("WIDE", "NARROW"), help="sizes of the logs")
    parser.add_argument("--rounds", type=int, help="3 by default, 1 if quick")
    parser.add_argument("--tasks", nargs="*", choices=names, help="all by default")
    parser.add_argument("--huge", action="store_true", help="also 50 million narrow rows, ours alone")
    parser.add_argument("--quick", action="store_true", help="small logs, one round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
