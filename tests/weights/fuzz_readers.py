"""Broken logs for every reader: each is refused with our error, or read as a second reader reads it.

    python tests/weights/fuzz_readers.py --cases 100000 [--format NAME] [--seed N] [--keep FOLDER]

A case is a small valid file of one format with a few of its bytes flipped, cut, doubled, moved or replaced.
Cases run in processes with a limit on memory and on time; one that dies or hangs is a failure like a wrong
reading or an error that is not ours, and its file is kept. Format, seed and number make a case again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fuzz_cases import mutated
from fuzz_formats import FORMATS, Format, Read

from drift_weights import WeightConfig
from drift_weights.columns import Columns
from drift_weights.outputs import reweight_file
from drift_weights.sources import weighable

MEMORY = 3 << 29
"""Bytes of address space that a case may take above what a worker has at its start."""
SECONDS = 60.0
"""For one case, or for the start of a worker, on a machine that may be busy."""
CHUNK = 2000
"""Cases of one worker."""
COLUMNS = Columns(answers="responses")


def judge(name: str, path: Path, data: bytes) -> tuple[str, str]:
    """`refused`, `read` or `failed`, and why it failed."""
    path.write_bytes(data)
    log = FORMATS[name]
    try:
        found = weighable(path, WeightConfig(), COLUMNS, format=log.name)
        mine = [*readings(found.ledger)]
        text = [*dialogues(found.source)]
        written = again(path, log)
    except (ValueError, FileNotFoundError) as error:
        return ("refused", "") if str(path) in str(error) else ("failed", f"names no file: {error!r}")
    differences = [difference(second, data, mine) for second in log.seconds]
    if all(differences):
        return "failed", f"read otherwise: {differences[0]}"
    rewrote = rewritten(log, data, written, mine) or ("" if len(text) == len(mine) else "rows() differs")
    return ("failed", rewrote) if rewrote else ("read", "")


def difference(second: Callable[[bytes], list[Read]], data: bytes, mine: list[Read]) -> str:
    """What a second reader says otherwise; empty where they agree."""
    try:
        return compared(mine, second(data))
    except BaseException as error:  # a panic of polars is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        return f"the second reader raised {error!r}"


def readings(ledger: Any) -> Iterator[Read]:
    """What the package read; of groups that are left out only that they are."""
    omitted_G = ledger.omitted_G()
    for entry in ledger.entries():
        columns = (entry.code_N, entry.solved_N, entry.counts_N(2))
        for code, solved, length in zip(*(column.tolist() for column in columns), strict=True):
            yield Read(code, solved, length, bool(omitted_G[code]))


def compared(mine: list[Read], theirs: list[Read]) -> str:
    """The first difference; groups are equal where they part the rows alike."""
    if len(mine) != len(theirs):
        return f"{len(mine)} and {len(theirs)} trajectories"
    left_out = {each.group for each in theirs if each.unscored}
    codes: dict[Any, int] = {}
    for row, (here, there) in enumerate(zip(mine, theirs, strict=True)):
        if codes.setdefault(there.group, here.group) != here.group:
            return f"row {row}: group {here.group}, {there.group!r}"
        if here.unscored != (there.group in left_out):
            return f"row {row}: left out, {here.unscored}"
        if not here.unscored and (here.solved != (there.solved == 1) or here.length != there.length):
            return f"row {row}: {here}, {there}"
    return "" if len(set(codes.values())) == len(codes) else "groups run into each other"


def dialogues(log: Any) -> Iterator[bool]:
    """Whether each row has a terminal turn; one without is refused when turns are written."""
    for row in log.rows():
        try:
            yield bool(log.reader.dialogue(row).completion)
        except (KeyError, ValueError):
            yield False


def again(path: Path, log: Format) -> bytes | None:
    """The log with weights, for the formats that have a place for them."""
    if log.name in ("prime-rl", "inspect"):
        return None
    target = path.with_name(f"out{log.suffix}")
    reweight_file(path, target, columns=COLUMNS, format=log.name, overwrite=True)
    return target.read_bytes()


def rewritten(log: Format, data: bytes, written: bytes | None, mine: list[Read]) -> str:
    """Whether a log with weights holds anything else that is new."""
    if written is None or log.suffix == ".parquet":
        return ""
    mark = b"\xef\xbb\xbf"
    before, after = (each.removeprefix(mark) for each in (data, written))
    if log.suffix == ".json":
        rows = json.loads(before), json.loads(after)
    else:
        rows = tuple(
            [json.loads(line) for line in each.removesuffix(b"\n").split(b"\n")] for each in (before, after)
        )
    # Groups that are left out are not written.
    kept = [row for row, each in zip(rows[0], mine, strict=True) if not each.unscored]
    if len(kept) != len(rows[1]):
        return f"{len(rows[1])} rows were written of {len(kept)}"
    for old, new in zip(kept, rows[1], strict=True):
        if old | {"weight": new.get("weight")} != new:
            return f"{old} was written as {new}"
    return ""


def case(names: list[str], index: int) -> tuple[str, int]:
    """The format, and the number within the format, of a case."""
    return names[index % len(names)], index // len(names)


def work(names: list[str], seed: int, first: int, last: int) -> None:
    """Judge some cases; a line of output each."""
    os.fsync = lambda handle: None
    with TemporaryDirectory() as folder:
        for name, log in FORMATS.items():
            verdict = judge(name, Path(folder) / f"log{log.suffix}", log.seed)
            assert verdict[0] == "read", f"{name}: the file that is to be broken is {verdict}"
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
        for index in range(first, last):
            name, number = case(names, index)
            path = Path(folder) / f"log{FORMATS[name].suffix}"
            # Any other error ends this process, and is the finding.
            verdict = judge(name, path, mutated(name, seed, number))
            say(json.dumps((index, *verdict)))


def run(names: list[str], seed: int, first: int, last: int) -> Iterator[tuple[int, str, str]]:
    """Verdicts of cases from workers, of which a new one goes on behind the case that ended the last."""
    while first < last:
        command = [sys.executable, __file__, "--worker", ",".join(names), str(seed), str(first), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            assert worker.stderr is not None
            why, rest = f"took more than {SECONDS} s", b""
            while first < last and select.select([worker.stdout], [], [], SECONDS)[0]:
                chunk = os.read(worker.stdout.fileno(), 1 << 16)
                if not chunk:
                    why = worker.stderr.read()[-900:].decode(errors="replace")
                    break
                *answers, rest = (rest + chunk).split(b"\n")
                for answer in answers:
                    yield json.loads(answer)
                    first += 1
            worker.kill()
        if first < last:
            yield first, "failed", why
            first += 1


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--cases", type=int, default=100_000)
    options.add_argument("--format", choices=FORMATS)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="for files that failed")
    options.add_argument("--workers", type=int, default=os.cpu_count())
    options.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        work(given.worker[0].split(","), *map(int, given.worker[1:]))
        return 0
    names = [given.format] if given.format else list(FORMATS)
    starts = range(0, given.cases, CHUNK)
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    with ThreadPoolExecutor(given.workers) as pool:
        parts = pool.map(lambda at: [*run(names, given.seed, at, min(at + CHUNK, given.cases))], starts)
        for index, verdict, why in chain.from_iterable(parts):
            name, number = case(names, index)
            counts[name][verdict] += 1
            if verdict == "failed":
                keep(given.keep, name, given.seed, number, why)
    report(counts)
    return int(any(count["failed"] for count in counts.values()))


def keep(folder: Path, name: str, seed: int, number: int, why: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{seed}-{number}{FORMATS[name].suffix}"
    file.write_bytes(mutated(name, seed, number))
    file.with_suffix(".txt").write_text(why)
    say(f"{file}: {why.strip().splitlines()[-1][:300] if why.strip() else 'died'}")


def report(counts: dict[str, Counter[str]]) -> None:
    for name, count in [*counts.items(), ("all", sum(counts.values(), Counter[str]()))]:
        known = f"{count['refused']:7} refused {count['read']:7} read alike {count['failed']:5} failures"
        say(f"{name:14} {sum(count.values()):7} cases {known}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
