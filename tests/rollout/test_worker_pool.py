"""Processes that can be killed: late ones, dead ones, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from drift_rollout.verifiers.worker_pool import WorkerDiedError, WorkerPool

# Says its pid; does what it is told; repeats the rest.
ECHO = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    what, value = json.loads(line)
    if what == "sleep":
        time.sleep(value)
    if what == "exit":
        sys.exit("it was too much")
    print(json.dumps([os.getpid(), value]), flush=True)
"""
COMMAND = [sys.executable, "-c", ECHO]


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(COMMAND, size=2)
    yield made
    made.close()


def test_a_process_is_used_again(pool: WorkerPool) -> None:
    pids = {pool.ask(["say", number], seconds=20)[0] for number in range(5)}
    assert len(pids) == 1


def test_threads_get_their_own_answers(pool: WorkerPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: pool.ask(["say", number], seconds=20), range(200)))
    assert [value for _, value in answers] == list(range(200))
    assert len({pid for pid, _ in answers}) <= 2


def test_a_late_process_is_killed_and_replaced(pool: WorkerPool) -> None:
    before, _ = pool.ask(["say", 1], seconds=20)
    with pytest.raises(TimeoutError, match=r"0\.3 s"):
        pool.ask(["sleep", 60], seconds=0.3)
    assert not psutil.pid_exists(before)
    after, value = pool.ask(["say", 2], seconds=20)
    assert (after != before, value) == (True, 2)


def test_a_process_that_ends_says_why_and_is_replaced(pool: WorkerPool) -> None:
    with pytest.raises(WorkerDiedError, match="it was too much"):
        pool.ask(["exit", 0], seconds=20)
    assert pool.ask(["say", 3], seconds=20)[1] == 3


def test_an_idle_process_that_was_killed_is_replaced_unseen(pool: WorkerPool) -> None:
    pid, _ = pool.ask(["say", 1], seconds=20)
    os.kill(pid, signal.SIGKILL)
    _until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert pool.ask(["say", 4], seconds=20)[1] == 4


def test_a_command_that_cannot_start_says_so() -> None:
    with pytest.raises(WorkerDiedError, match="No module named 'nowhere'"):
        WorkerPool([sys.executable, "-c", "import nowhere"], size=1).ask(["say", 1], seconds=20)


def test_close_ends_what_computes(pool: WorkerPool) -> None:
    pool.ask(["say", 1], seconds=20)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(pool.ask, ["sleep", 60], seconds=60)
        time.sleep(0.3)
        pool.close()
        with pytest.raises(WorkerDiedError):
            asked.result(timeout=20)


def test_deaths_leave_neither_processes_nor_files_open(pool: WorkerPool) -> None:
    own = psutil.Process()

    def die(times: int) -> tuple[int, int]:
        for _ in range(times):
            with pytest.raises(WorkerDiedError):
                pool.ask(["exit", 0], seconds=20)
        return own.num_fds(), len(own.children())

    assert die(12) == die(2)


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "pass", "raise KeyboardInterrupt"])
def test_no_process_outlives_its_parent(ending: str) -> None:
    script = f"""
import os, sys
from drift_rollout.verifiers.worker_pool import WorkerPool
pool = WorkerPool({COMMAND!r}, size=1)
print(pool.ask(["say", 1], seconds=20)[0], flush=True)
{ending}
"""
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    pid = int(parent.stdout)
    _until(lambda: not psutil.pid_exists(pid))


def test_asking_from_many_threads_while_processes_die(pool: WorkerPool) -> None:
    lock, dead = threading.Lock(), [0]

    def ask(number: int) -> int:
        try:
            return pool.ask(["exit" if number % 5 == 0 else "say", number], seconds=20)[1]
        except WorkerDiedError:
            with lock:
                dead[0] += 1
            return number

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(ask, range(40))) == list(range(40))
    assert dead[0] == 8


def _until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)
