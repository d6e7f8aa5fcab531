"""Responses on their way to a verdict: judged at once, or by threads beside the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from drift_rollout.asking import ask
from drift_rollout.engine import Completion
from drift_rollout.problems import Problem
from drift_rollout.verify import Verified, Verifier

Found = TypeVar("Found")
_MOMENT = 0.5
"""Seconds."""


class Judging:
    """What a verifier is asked, and what it has not answered yet.

    Args:
        verifier: it is called by as many threads as its `concurrency` says, or at once.
        opened: what the assistant said ahead of every response.
    """

    def __init__(self, verifier: Verifier, opened: str) -> None:
        self._verifier = verifier
        self._opened = opened
        threads = getattr(verifier, "concurrency", 0)
        self._threads = DaemonThreads(threads) if threads else None
        self._pending: dict[Future[Verified], Completion] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def judge(self, completion: Completion, problem: Problem) -> Iterator[tuple[Completion, Verified]]:
        """Ask for a verdict; it comes now if it is there at once.

        Raises:
            VerifierError: the verifier raised, or gave no `Verified`.
        """
        if completion.error is not None:
            yield completion, Verified(answer=None, verdict="error")
        elif self._threads is None:
            yield completion, self._verify(completion, problem)
        else:
            future = self._threads.submit(lambda: self._verify(completion, problem))
            self._pending[future] = completion

    def verdicts(self) -> Iterator[tuple[Completion, Verified]]:
        """What the threads have answered since.

        Raises:
            VerifierError: the verifier raised, or gave no `Verified`.
        """
        for future in [future for future in self._pending if future.done()]:
            yield self._pending.pop(future), future.result()

    def wait(self) -> None:
        """Until there is another verdict, or for a moment."""
        # A signal that the system gives to another thread does not wake this one.
        wait(self._pending, timeout=_MOMENT, return_when=FIRST_COMPLETED)

    def close(self) -> None:
        """Ask no more; calls that are under way are left to themselves."""
        if self._threads is not None:
            self._threads.close()

    def _verify(self, completion: Completion, problem: Problem) -> Verified:
        response = self._opened + completion.text
        return ask(self._verifier, response, problem.target or "", problem=problem.named)


@contextmanager
def closing_verifier(verifier: Verifier) -> Iterator[Verifier]:
    """Call the verifier's `close` in the end, if it has one."""
    try:
        yield verifier
    finally:
        close = getattr(verifier, "close", None)
        if close is not None:
            close()


class DaemonThreads:
    """Threads that no process waits for at its end, as it does for those of a ThreadPoolExecutor.

    So an interrupt ends a run at once, whatever a verifier is busy with.
    """

    def __init__(self, count: int) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"verify-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], Found]) -> Future[Found]:
        """Call it when a thread is free."""
        future: Future[Found] = Future()
        self._calls.put((future, call))
        return future

    def close(self) -> None:
        """Forget what has not begun, and let each thread end after what it is doing."""
        try:
            while True:
                self._calls.get_nowait()
        except Empty:
            for _ in self._threads:
                self._calls.put(None)

    def _work(self) -> None:
        while (asked := self._calls.get()) is not None:
            future, call = asked
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  the loop raises it
                future.set_exception(error)
