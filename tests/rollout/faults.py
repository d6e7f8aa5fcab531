"""Does a rollout lose anything? Every fault many times, in processes of their own, as one table.

    uv run tests/rollout/faults.py --kills 200 --seed 0 --out scoreboard.md

A row is committed once another process has read it from the journal, or once the run itself went on
from its commit. It is lost if afterwards it is not there, or not the same.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rollout.broken_journals import BROKEN
from rollout.fault_board import Board, Line
from rollout.faulty_children import export_size_limit, file_size_limit, page_limit

HEAD = """\
| fault | times | committed rows lost | doubled | export byte-identical | left behind |
| --- | ---: | ---: | ---: | ---: | ---: |"""


def lines_of(board: Board, kills: int, others: int, step: int) -> Iterable[Line]:
    """So many random kills, and so many of every other fault; 0 leaves them out."""
    if kills:
        yield board.kills(kills)
    if not others:
        return
    yield board.export_kills(step, replacing=False)
    yield board.export_kills(step, replacing=True)
    yield board.signals(others, signal.SIGINT)
    yield board.signals(others, signal.SIGTERM)
    size, pages = board.journal_bytes - 1, board.journal_bytes // 4096 - 1
    yield board.full_disk(others, file_size_limit, (512, size), "a full disk: no file beyond a random size")
    yield board.full_disk(others, page_limit, (1, pages), "a full disk: SQLite's max_page_count")
    most = board.export_bytes - 1
    yield board.full_disk(others, export_size_limit, (0, most), "a full disk while the export is written")
    yield board.no_rights(others)
    yield board.dying_engine(range(1, 51, step))
    yield board.failing_requests(others)
    yield board.late_verdicts(others)
    yield board.two_at_once(others)


def scoreboard(
    kills: int, others: int, seed: int, problems: int, step: int, broken: str | None
) -> tuple[bool, str]:
    """Whether everything is clean, and the table."""
    with tempfile.TemporaryDirectory(prefix="faults-") as base:
        Path(base).chmod(0o755)
        board = Board(Path(base), seed, problems, broken)
        start, lines = time.monotonic(), []
        for line in lines_of(board, kills, others, step):
            lines.append(line)
            print(f"{time.monotonic() - start:4.0f} s {line}", file=sys.stderr, flush=True)  # noqa: T201
        places = ", ".join(f"{count} {place}" for place, count in sorted(board.notes.items()))
        note = f"Of the random kills: {places or 'none'}. {time.monotonic() - start:.0f} s."
    return all(line.clean for line in lines), "\n".join([HEAD, *map(str, lines), "", note, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="random kills")
    parser.add_argument("--others", type=int, default=20, help="times of every other fault")
    parser.add_argument("--seed", type=int, default=0, help="of their times")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    parser.add_argument("--problems", type=int, default=24, help="of a run, with four samples each")
    parser.add_argument(
        "--step", type=int, default=1, help="every so-manieth request and line of an export"
    )
    parser.add_argument("--broken", choices=sorted(BROKEN), help="a broken journal, to see the board fail")
    given = parser.parse_args()
    clean, table = scoreboard(
        given.kills, given.others, given.seed, given.problems, given.step, given.broken
    )
    sys.stdout.write(table)
    if given.out:
        given.out.write_text(table)
    sys.exit(0 if clean else 1)
