"""Processes that can be killed, for computations that may never end."""

from __future__ import annotations

import json
import os
import queue
import selectors
import subprocess
import time
import weakref
from collections.abc import Sequence
from typing import Any

_STARTED = 120.0
"""Seconds until a process must have imported what it needs."""


class WorkerDiedError(Exception):
    """A process ended, or ran out of memory, over what it was asked."""


class WorkerPool:
    """A few processes that answer lines of JSON; one that is late is killed, one that is lost replaced.

    Threads may ask at once; each then has a process of its own, or waits for one. The processes start when
    they are first needed and end with `close`, with the pool, or with this process.

    Args:
        command: what to start; it prints a line when it is ready.
        size: processes at most, ≥ 1.
    """

    def __init__(self, command: Sequence[str], *, size: int) -> None:
        self._command = list(command)
        # Unborn workers are None: nothing starts before there is something to ask.
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)
        self._living: set[_Worker] = set()
        weakref.finalize(self, _end_all, self._living)

    def ask(self, question: Any, *, seconds: float) -> Any:
        """The answer of some process.

        Raises:
            TimeoutError: there was none in time; the process is gone.
            WorkerDiedError: the process ended before it answered, or could not start.
        """
        worker = self._idle.get()
        try:
            if worker is None or not worker.alive:
                self._living.discard(worker)
                worker = _Worker(self._command)
                self._living.add(worker)
            try:
                return worker.ask(question, seconds)
            except BrokenPipeError:
                # It ended while it was idle, and has seen nothing of this.
                self._living.discard(worker)
                worker = _Worker(self._command)
                self._living.add(worker)
                return worker.ask(question, seconds)
        except BaseException:
            if worker is not None:
                worker.end()
            raise
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes; a later question starts new ones."""
        _end_all(self._living)


def _end_all(workers: set[_Worker]) -> None:
    while workers:
        workers.pop().end()


class _Worker:
    """One process; whoever asks has it alone."""

    def __init__(self, command: Sequence[str]) -> None:
        # A session of its own: Ctrl-C is for the parent, which ends its workers itself.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._said = b""
        try:
            self._line(_STARTED)
        except BaseException:
            self.end()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: Any, seconds: float) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        return json.loads(self._line(seconds))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _last_words(self) -> str:
        self._process.kill()
        code = self._process.wait()
        assert self._process.stderr is not None
        said = os.read(self._process.stderr.fileno(), 65536).decode(errors="replace").strip()
        return f"{said.splitlines()[-1]}" if said else f"it ended with code {code}"

    def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._said:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise TimeoutError(f"no answer after {seconds:g} s")
                if not (more := os.read(self._process.stdout.fileno(), 65536)):
                    raise WorkerDiedError(self._last_words())
                self._said += more
        line, self._said = self._said.split(b"\n", 1)
        return line
