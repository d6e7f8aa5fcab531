"""An engine in a process of its own: it works on by itself, whoever asks or does not ask for results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any

from drift_rollout.engine import Completion, Engine, Request

_TICK = 0.02
"""Seconds that new commands wait at most for the engine's poll to come back, engine steps apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What an engine says of itself, as its `Engine` properties do."""

    policy: str
    tokenizer: Any
    context_length: int
    seeded: bool
    concurrency: int
    capacity: int
    """Of an engine that names none, its concurrency."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What to do next: releases first, then what is submitted together."""

    releases: tuple[str, ...] = ()
    requests: tuple[Request, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Requests that the engine did not take, and what it said."""

    ids: tuple[str, ...]
    error: str


class Host:
    """Runs an engine in a thread of its own; its methods may be called from several other threads.

    Args:
        opener: opens the engine.
    """

    def __init__(self, opener: Callable[[], Engine]) -> None:
        self._opener = opener
        self._changed = threading.Condition()
        self._early: dict[int, Command] = {}
        self._next = 0
        self._inbox: list[Command] = []
        self._outbox: list[Completion | Refusal] = []
        self._stopping = False
        # Its thread is a daemon: an actor that is ended must not wait for its engine.
        self._thread = ThreadPool(1)
        self._work: AsyncResult[None] | None = None
        self._ended = False

    def open(self) -> Facts:
        """Open the engine and start to work; raises what the engine raises."""
        # In the thread that uses it: what an engine holds may belong to one thread.
        engine = self._thread.apply(self._opener)
        self._work = self._thread.apply_async(
            self._run, (engine,), callback=self._end, error_callback=self._end
        )
        return Facts(
            policy=engine.policy,
            tokenizer=engine.tokenizer,
            context_length=engine.context_length,
            seeded=engine.seeded,
            concurrency=engine.concurrency,
            capacity=getattr(engine, "capacity", engine.concurrency),
        )

    def command(self, number: int, command: Command) -> None:
        """Take a command; numbered from 0, they are followed in that order, whichever comes first."""
        with self._changed:
            self._early[number] = command
            while self._next in self._early:
                self._inbox.append(self._early.pop(self._next))
                self._next += 1
            self._changed.notify_all()

    def collect(self) -> list[Completion | Refusal]:
        """Wait until something finished, and return all that did; empty after `close`.

        Raises what the engine raised, once everything before it has been collected.
        """
        work = self._work
        assert work is not None, "open() comes first"
        with self._changed:
            self._changed.wait_for(lambda: self._outbox or self._ended)
            found, self._outbox = self._outbox, []
        if not found:
            work.get()
        return found

    def close(self) -> None:
        """Stop working and close the engine; what is under way is lost."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._work is not None:
            self._work.wait()
        self._thread.terminate()

    def _run(self, engine: Engine) -> None:
        pending: set[str] = set()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._inbox or pending or self._stopping)
                commands, self._inbox = self._inbox, []
            if self._stopping:
                engine.close()
                return
            found: list[Completion | Refusal] = []
            for command in commands:
                found += _follow(engine, command, pending)
            completions = engine.poll(timeout=_TICK) if pending else []
            pending.difference_update(completion.id for completion in completions)
            if found or completions:
                with self._changed:
                    self._outbox += [*found, *completions]
                    self._changed.notify_all()

    def _end(self, _: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _follow(engine: Engine, command: Command, pending: set[str]) -> Sequence[Refusal]:
    for request_id in command.releases:
        engine.release(request_id)
        pending.discard(request_id)
    ids = tuple(request.id for request in command.requests)
    if ids:
        try:
            engine.submit(command.requests)
        except ValueError as error:
            return [Refusal(ids=ids, error=str(error))]
        pending.update(ids)
    return []
