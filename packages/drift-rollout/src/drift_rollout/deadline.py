"""A call that is ended when it takes too long, even if it never gives another thread its turn."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from drift_rollout.judging import DaemonThreads

Found = TypeVar("Found")


class TookTooLong(BaseException):
    """No Exception, so that a call which catches those ends nevertheless."""


def within(seconds: float, call: Callable[[], Found]) -> Found:
    """What a call gives.

    In the main thread an alarm interrupts it: what computes in C, such as `9**9**9`, holds the interpreter,
    and no other thread could give up waiting for it. From another thread it is left running.

    Args:
        seconds: > 0.

    Raises:
        TookTooLong: it took longer.
    """
    if threading.current_thread() is threading.main_thread():
        return _alarmed(seconds, call)
    threads = DaemonThreads(1)
    try:
        future = threads.submit(call)
        try:
            return future.result(seconds)
        except TimeoutError:
            if future.done():
                raise
            raise TookTooLong from None
    finally:
        threads.close()


def _alarmed(seconds: float, call: Callable[[], Found]) -> Found:
    start, over = time.monotonic(), False

    def ring(number: int, frame: object) -> None:
        if not over:
            raise TookTooLong

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again, for a call that catches everything.
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        return call()
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            # Somebody else's, such as a test's own limit.
            signal.setitimer(signal.ITIMER_REAL, max(left - time.monotonic() + start, 1e-3), interval)
