"""The faults: what is done to a run, how often, and what is counted afterwards."""

from __future__ import annotations

import io
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from drift_rollout.cli import main
from rollout.broken_journals import BROKEN
from rollout.fault_runs import Ended, Prepare, Run, Victim, doubled, exported, is_half, left_behind
from rollout.faulty_children import (
    dropped_rights,
    killed_at_line,
    lines_run,
    rights_taken,
    verifications_time_out,
)
from rollout.own_engine import guessing

SAMPLES = 4
WAIT = 0.001
"""Seconds a request takes in a run that is interrupted, so that most of its life is sampling."""
AGAIN = 5
"""Runs after which the length of an uninterrupted one is measured again."""


@dataclass
class Line:
    """One line of the board."""

    fault: str
    times: int = 0
    lost: int = 0
    doubled: int = 0
    endings: int = 0
    identical: int = 0
    left: int = 0
    """Files or folders that nobody needs, or half a folder."""

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled, different or left behind."""
        wrong = self.lost + self.doubled + self.left
        return self.times > 0 and wrong == 0 and self.identical == self.endings

    def __str__(self) -> str:
        same = f"{self.identical:,} of {self.endings:,}"
        return f"| {self.fault} | {self.times:,} | {self.lost} | {self.doubled} | {same} | {self.left} |"


class Board:
    """Runs the faults, one line each.

    Args:
        base: a folder for everything, that anybody may enter.
        seed: of the times and places of the faults.
        problems: of a run, with four samples each.
        broken: a journal that is broken on purpose, from BROKEN.
    """

    def __init__(self, base: Path, seed: int, problems: int, broken: str | None = None) -> None:
        self.notes: dict[str, int] = {}
        self._base, self._random, self._count = base, random.Random(seed), 0
        self._broken: list[Prepare] = [BROKEN[broken]] if broken else []
        rows = "".join(f'{{"problem": "q{n}", "answer": {n % 3}}}\n' for n in range(problems))
        self._total = SAMPLES * problems
        (base / "problems.jsonl").write_text(rows)
        straight = base / "straight"
        # In this process, so that every fork of it has imported what is imported late.
        with redirect_stdout(io.StringIO()):
            main(self.words(base / "warm"))
        self._lives: list[tuple[float, float]] = []
        """Seconds that a run takes, and one with nothing left but its export."""
        ended = Run(self.words(straight)).wait()
        assert ended.code == 0, ended.said
        self._straight = exported(straight)
        self.journal_bytes = (straight / "journal.sqlite").stat().st_size
        self.export_bytes = max(map(len, self._straight.values()))

    def words(self, out: Path, samples: int = SAMPLES, **options: object) -> list[str]:
        """Of the command line of a run."""
        given = ["sample", str(self._base / "problems.jsonl"), "guess", str(out), f"--samples={samples}"]
        return [*given, *guessing(**options)]

    def kills(self, count: int) -> Line:
        """Kill -9 at any time of a run's life; resumed, it is killed again, up to four times."""
        line = Line("kill -9 at a random time, again while it resumes")
        while line.times < count:
            victim = self._victim()
            for _ in range(self._random.randint(1, 4)):
                ended = self._interrupted(victim, signal.SIGKILL)
                line.times += ended.code == -signal.SIGKILL
                self._note_kill(victim, ended)
                victim.judge(ended)
            self._finish(victim, line)
        return line

    def signals(self, count: int, number: signal.Signals) -> Line:
        """SIGINT or SIGTERM at any time."""
        line = Line(f"{number.name} at a random time")
        while line.times < count:
            victim = self._victim()
            ended = self._interrupted(victim, number)
            # Before the command has begun, or after its last word, a signal is Python's.
            early = ended.code == -number or (ended.code != 130 and "KeyboardInterrupt" in ended.said)
            assert ended.code in (0, 130) or early, ended
            line.times += ended.code != 0
            if ended.code == 130:
                assert ended.said.endswith("is in the journal, the same command goes on\n"), ended.said
                line.left += len(left_behind(victim.out)) if victim.out.exists() else 0
            victim.judge(ended)
            self._finish(victim, line)
        return line

    def full_disk(
        self, count: int, how: Callable[[int], Prepare], sizes: tuple[int, int], name: str
    ) -> Line:
        """A write that fails with an error, at a random size."""
        line = Line(name)
        while line.times < count:
            victim = self._victim()
            ended = Run(self.words(victim.out), *self._broken, how(self._random.randint(*sizes))).wait()
            if ended.code != 0:
                one_line(ended, victim.out.name)
                line.times += 1
                line.left += len(left_behind(victim.out)) if victim.out.exists() else 0
            victim.judge(ended)
            self._finish(victim, line)
        return line

    def no_rights(self, count: int) -> Line:
        """A folder or a file that may not be written; the run says so in one line."""
        line = Line("a journal or its folder that cannot be written")
        for n in range(count):
            victim = self._victim()
            if n % 2:
                victim.judge(Run(self.words(victim.out, die_at=60), *self._broken).wait())
            with rights_taken(victim.out, file=n % 4 == 3):
                ended = Run(self.words(victim.out), *self._broken, dropped_rights).wait()
                one_line(ended, str(victim.out))
                victim.judge(ended)
            line.times += 1
            self._finish(victim, line)
        return line

    def dying_engine(self, calls: Iterable[int]) -> Line:
        """An engine that dies at its n-th request."""
        line = Line("the engine dies at request n, for n up to 50")
        for call in calls:
            victim = self._victim()
            ended = Run(self.words(victim.out, die_at=call), *self._broken).wait()
            assert ended.code == 1, ended
            assert ended.said.endswith(f"died at request {call}\nthe same command goes on\n")
            line.times += 1
            victim.judge(ended)
            self._finish(victim, line)
        return line

    def failing_requests(self, count: int) -> Line:
        """Requests that fail at random, in two runs; those dialogues are sampled anew by the next."""
        line = Line("30 % of the requests fail, in two runs one after the other")
        for _ in range(count):
            victim = self._victim()
            for _ in range(2):
                ended = Run(self.words(victim.out, fail=0.3), *self._broken).wait()
                assert ended.code == 0, ended
                assert "ended unscored; run again to verify or sample them again" in ended.said
                victim.judge(ended)
            line.times += 1
            self._finish(victim, line)
        return line

    def late_verdicts(self, count: int) -> Line:
        """Verifications that time out, in two runs that are killed; no response is sampled again for it."""
        line = Line("10 % of the verifications time out, in two runs that are killed")
        while line.times < count:
            victim = self._victim()
            for _ in range(2):
                ended = self._interrupted(victim, signal.SIGKILL, verifications_time_out)
                line.times += ended.code == -signal.SIGKILL
                victim.judge(ended)
            self._finish(victim, line)
        return line

    def two_at_once(self, count: int) -> Line:
        """Two runs that start together: one is refused, the other ends well."""
        line = Line("two runs started at once on one OUT")
        for _ in range(count):
            victim = self._victim()
            both = [Run(self.words(victim.out, wait=0.005), *self._broken) for _ in range(2)]
            ended = sorted((run.wait() for run in both), key=lambda one: one.code)
            assert [one.code for one in ended] == [0, 2], ended
            assert "another run is writing to" in one_line(ended[1], str(victim.out)), ended[1]
            line.times += 1
            for one in ended:
                victim.judge(one)
            self._finish(victim, line)
        return line

    def export_kills(self, step: int, *, replacing: bool) -> Line:
        """Kill -9 at each line of Python that writes the export: no folder, or a whole one."""
        what = "the export that replaces one" if replacing else "the first export"
        line = Line(f"kill -9 at every line of {what}")
        source = self._sampled(replacing)
        total = self._lines(source)
        for at in range(1, total + 1, step):
            victim = self._victim()
            shutil.copytree(source, victim.out)
            victim.look()
            ended = Run(self.words(victim.out), *self._broken, killed_at_line(at)).wait()
            assert ended.code == -signal.SIGKILL, (at, ended)
            line.times += 1
            line.left += is_half(victim.out)
            victim.judge(ended)
            self._finish(victim, line)
        return line

    def _sampled(self, exported_before: bool) -> Path:
        """An OUT whose journal is full; with the export of a smaller K, or with none."""
        out = self._victim().out
        if exported_before:
            Run(self.words(out, samples=SAMPLES // 2), *self._broken).wait()
        dead = Run(self.words(out), *self._broken, killed_at_line(1)).wait()
        assert dead.code == -signal.SIGKILL, dead
        return out

    def _lines(self, source: Path) -> int:
        """How many lines an export from there runs."""
        out = self._victim().out
        shutil.copytree(source, out)
        counted = self._base / "lines"
        Run(self.words(out), *self._broken, lines_run(counted)).wait()
        return int(counted.read_text())

    def _victim(self) -> Victim:
        self._count += 1
        return Victim(self._base / f"run-{self._count}")

    def _interrupted(self, victim: Victim, number: signal.Signals, *more: Prepare) -> Ended:
        """Send a signal at a time drawn over what is left of a run's life, and look just before."""
        whole, nothing = self._life()
        left = 1 - len(victim.seen) / self._total
        life = nothing + left * max(0.0, whole - nothing)
        after, since = self._random.uniform(0, life), self._random.uniform(0, 0.02)
        run = Run(self.words(victim.out, wait=WAIT), *self._broken, *more)
        begin = time.monotonic()
        time.sleep(max(0.0, after - since))
        victim.look()
        time.sleep(max(0.0, begin + after - time.monotonic()))
        run.fault(number)
        return run.wait()

    def _life(self) -> tuple[float, float]:
        """Medians of recent runs that nobody interrupted; measured again and again, for a busy machine."""
        if self._count >= AGAIN * len(self._lives):
            out = self._base / "measured"
            whole, nothing = (Run(self.words(out, wait=WAIT)).wait() for _ in range(2))
            shutil.rmtree(out)
            self._lives.append((whole.seconds, nothing.seconds))
        wholes, nothings = zip(*self._lives[-3:], strict=True)
        return median(wholes), median(nothings)

    def _note_kill(self, victim: Victim, ended: Ended) -> None:
        """Where a kill hit; a journal that it left hot is first read by `status`."""
        if ended.code != -signal.SIGKILL:
            return
        if (victim.out / "journal.sqlite-journal").exists():
            self._note("inside a transaction")
            shown = Run(["status", str(victim.out)]).wait()
            assert shown.code == 0 or "holds nothing yet" in one_line(shown, str(victim.out)), shown
        scratch = victim.out.exists() and any(victim.out.glob(".trajectories.*"))
        if scratch:
            self._note("inside an export")
        if not victim.seen and not ended.reported:
            self._note("before the first commit")

    def _note(self, place: str) -> None:
        self.notes[place] = self.notes.get(place, 0) + 1

    def _finish(self, victim: Victim, line: Line) -> None:
        """Let the run end, and count."""
        ended = Run(self.words(victim.out), *self._broken).wait()
        assert ended.code == 0, ended
        victim.judge(ended)
        line.endings += 1
        line.lost += len(victim.lost)
        line.doubled += doubled(victim.out)
        line.identical += exported(victim.out) == self._straight
        line.left += len(left_behind(victim.out))
        shutil.rmtree(victim.out)


def one_line(ended: Ended, name: str) -> str:
    """What a refused run says in the end: one line, with the place in it."""
    last = ended.said.splitlines()[-1]
    assert ended.code in (1, 2), ended
    assert "Traceback" not in ended.said, ended.said
    assert name in last, ended.said
    return last
