"""Broken logs for every reader: each is refused with our error, or read as a second reader reads it.

    python tests/weights/fuzz_readers.py --cases 100000 [--format NAME] [--seed N] [--keep FOLDER]

A case is a small valid file of one format with a few of its bytes flipped, cut, doubled, moved or replaced.
Cases run in processes with a limit on memory and on time; one that dies or hangs is a failure like a wrong
reading or an error that is not ours, and its file is kept. A case is made again from format, seed and number.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import resource
import select
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_formats import FORMATS, Format, Read

from drift_weights import WeightConfig
from drift_weights.columns import Columns
from drift_weights.outputs import reweight_file
from drift_weights.sources import weighable

MEMORY = 3 << 29
"""Bytes of address space that a case may take above what a worker has at its start."""
SECONDS = 30.0
"""For one case, on a machine that may be busy."""
CHUNK = 500
"""Cases of one worker."""
COLUMNS = Columns(answers="responses")
VALUE = re.compile(rb'"(?:\\.|[^"\\])*"|-?\d[\d.eE+-]*|true|false|null')
TOKENS = [
    *(b"null", b"true", b"false", b"0", b"1", b"-1", b"2", b"0.5", b"1.0", b"-0.0", b"1e999", b"1e-999"),
    *(b"NaN", b"Infinity", b"99999999999999999999", b"-9223372036854775809", b"1" + b"0" * 400, b"01"),
    *(b'""', b'"1"', b'"\\ud800"', b'"\\u0000"', b'"\\q"', b'"assistant"', b'"C"', b'"weight"', b'"P"'),
    *(b"[]", b"{}", b"[null]", b"[[]]", b"[{}]", b'[""]', b'{"role":"assistant"}', b"[" * 3000),
    *(
        b"\xef\xbb\xbf",
        b"\xff",
        b"\xed\xa0\x80",
        b"\0",
        b"\r",
        b"\n",
        b"\n\n",
        b",",
        b":",
        b"}",
        b"]",
        b'"',
    ),
    *(b'"weight":1,', b'"prompt_id":null,', b'"correct":0,', b'"sample":3,', b'"error":"x",', b'"role":1,'),
]


def mutated(name: str, seed: int, number: int) -> bytes:
    """The bytes of a case."""
    draw = random.Random(f"{seed} {name} {number}")
    data = FORMATS[name].seed
    if FORMATS[name].suffix == ".parquet" and draw.random() < 0.7:
        data = other_columns(draw, data)
        if draw.random() < 0.7:
            return data
    for _ in range(draw.choice([1, 1, 1, 2, 3, 6])):
        data = draw.choice(MUTATIONS)(draw, data)
    return data


def flip(draw: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def overwrite(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def truncate(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def piece(draw: random.Random, data: bytes) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + int(draw.expovariate(1 / 20)) + 1)


def delete(draw: random.Random, data: bytes) -> bytes:
    start, end = piece(draw, data)
    return data[:start] + data[end:]


def splice(draw: random.Random, data: bytes) -> bytes:
    """A piece of this file or of another, put somewhere."""
    other = draw.choice([data, data, FORMATS[draw.choice(list(FORMATS))].seed])
    start, end = piece(draw, other)
    at, behind = piece(draw, data)
    return data[:at] + other[start:end] + data[draw.choice([at, behind]) :]


def insert(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(TOKENS) + data[at:]


def replace_value(draw: random.Random, data: bytes) -> bytes:
    """Another token where a JSON value or name stands: most of these are valid JSON."""
    found = [match.span() for match in VALUE.finditer(data)]
    if not found:
        return insert(draw, data)
    start, end = draw.choice(found)
    other = draw.choice(found)
    token = draw.choice([*draw.choices(TOKENS, k=3), data[slice(*other)]])
    return data[:start] + token + data[end:]


def move_lines(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    if draw.random() < 0.5:
        lines.pop(draw.randrange(len(lines)))
    return b"".join(lines)


MUTATIONS = [flip, overwrite, truncate, delete, splice, insert, move_lines, *[replace_value] * 4]


def other_columns(draw: random.Random, data: bytes) -> bytes:
    """A Parquet file with a column of another type, with nulls, doubled or gone."""
    table = pq.read_table(io.BytesIO(data))
    for _ in range(draw.choice([1, 1, 2])):
        place = draw.randrange(table.num_columns)
        name = table.column_names[place]
        kind = draw.randrange(10)
        if kind == 0:
            table = table.remove_column(place)
        elif kind == 1:
            table = table.append_column(draw.choice(table.column_names), table.column(place))
        else:
            table = table.set_column(place, name, other_values(draw, table.column(place)))
        if not table.num_columns:
            break
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=draw.choice([1, 2, 3, 100]))
    return sink.getvalue()


def other_values(draw: random.Random, column: pa.ChunkedArray) -> pa.Array:
    rows = len(column)
    numbers = [draw.choice([0, 1, 2, -1]) for _ in range(rows)]
    doubles = [draw.choice([0.0, -0.0, 1.0, 0.5, float("nan"), float("inf"), 1e300]) for _ in range(rows)]
    whole = pa.array([draw.choice([0, 1]) for _ in range(rows)], pa.int32())
    narrow = draw.choice([pa.int8(), pa.uint8(), pa.float32(), pa.decimal128(20, 3), pa.date32()])
    return draw.choice(
        [
            pa.array(numbers),
            pa.array(doubles),
            pa.nulls(rows),
            whole.cast(pa.bool_()),
            whole.cast(narrow),
            whole.cast(pa.int64()).cast(
                draw.choice([pa.timestamp("us"), pa.time64("us"), pa.duration("s")])
            ),
            pa.array([str(number) for number in numbers]).cast(
                draw.choice([pa.large_string(), pa.binary()])
            ),
            pa.array([str(number) for number in numbers]).dictionary_encode(),
            pa.array([draw.choice([2**63 + n % 2, 1]) for n in numbers], pa.uint64()),
            pa.array([draw.choice([None, number]) for number in numbers], pa.int64()),
            pa.array([[number] for number in numbers]),
            pa.array([{"a": number} for number in numbers]),
            pa.array(draw.sample(column.to_pylist(), rows), column.type),
            pa.array([draw.choice([None, value]) for value in column.to_pylist()], column.type),
        ]
    )


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
    try:
        theirs = log.second(data)
    except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        return "failed", f"read, but the second reader says {error!r}"
    difference = compared(mine, theirs) or len(text) != len(mine) or rewritten(log, data, written, mine)
    return ("failed", f"read otherwise: {difference}") if difference else ("read", "")


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
        rows = tuple([json.loads(line) for line in each.splitlines()] for each in (before, after))
    # Groups that are left out are not written.
    kept = [row for row, each in zip(rows[0], mine, strict=True) if not each.unscored]
    if len(kept) != len(rows[1]):
        return f"{len(rows[1])} rows were written of {len(kept)}"
    for old, new in zip(kept, rows[1], strict=True):
        if old | {"weight": new.get("weight")} != new:
            return f"{old} was written as {new}"
    return ""


def work(name: str, seed: int, first: int, last: int) -> None:
    """Judge some cases; a line of output each."""
    os.fsync = lambda handle: None
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"log{FORMATS[name].suffix}"
        verdict = judge(name, path, FORMATS[name].seed)
        assert verdict[0] == "read", f"{name}: the file that is to be broken is {verdict}"
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
        for number in range(first, last):
            try:
                verdict = judge(name, path, mutated(name, seed, number))
            except Exception:  # noqa: BLE001 any other error is what is looked for
                verdict = "failed", "".join(traceback.format_exc().splitlines(keepends=True)[-4:])
            print(json.dumps((number, *verdict)), flush=True)


def run(name: str, seed: int, first: int, last: int) -> Iterator[tuple[int, str, str]]:
    """Verdicts of cases from workers, of which a new one goes on behind the case that ended the last."""
    while first < last:
        command = [sys.executable, __file__, "--worker", name, str(seed), str(first), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            why = "took too long"
            rest = b""
            # The first answer waits for imports.
            while first < last and select.select([worker.stdout], [], [], SECONDS + 60)[0]:
                chunk = os.read(worker.stdout.fileno(), 1 << 16)
                *answers, rest = (rest + chunk).split(b"\n")
                for answer in answers:
                    number, verdict, detail = json.loads(answer)
                    yield number, verdict, detail
                    first = number + 1
                if not chunk:
                    assert worker.stderr is not None
                    why = f"ended the process: {worker.stderr.read()[-500:].decode(errors='replace')}"
                    break
            worker.kill()
        if first < last:
            yield first, "failed", why
            first += 1


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=100_000)
    options.add_argument("--format", choices=FORMATS)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options.add_argument("--workers", type=int, default=os.cpu_count())
    options.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        work(given.worker[0], *map(int, given.worker[1:]))
        return 0
    names = [given.format] if given.format else list(FORMATS)
    share = -(-given.cases // len(names))
    parts = [(n, given.seed, at, min(at + CHUNK, share)) for at in range(0, share, CHUNK) for n in names]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    with ThreadPoolExecutor(given.workers) as pool:
        for part, verdicts in zip(parts, pool.map(lambda part: [*run(*part)], parts), strict=True):
            for number, verdict, why in verdicts:
                counts[part[0]][verdict] += 1
                if verdict == "failed":
                    keep(given.keep, part[0], given.seed, number, why)
    report(counts)
    return int(any(count["failed"] for count in counts.values()))


def keep(folder: Path, name: str, seed: int, number: int, why: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{seed}-{number}{FORMATS[name].suffix}"
    file.write_bytes(mutated(name, seed, number))
    file.with_suffix(".txt").write_text(why)
    print(f"{file}: {why.strip().splitlines()[-1][:300] if why.strip() else 'died'}")


def report(counts: dict[str, Counter[str]]) -> None:
    for name, count in [*counts.items(), ("all", sum(counts.values(), Counter[str]()))]:
        cases = sum(count.values())
        print(
            f"{name:14} {cases:7} cases {count['refused']:7} refused {count['read']:7} read alike", end=" "
        )
        print(f"{count['failed']:5} failures")


if __name__ == "__main__":
    sys.exit(main())
