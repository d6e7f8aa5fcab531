"""Beyond one process and one machine: an engine in each of several Ray actors, one engine in front."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from drift_rollout.engine import Completion, Engine, EngineError, Request, refuse_duplicates
from drift_rollout.engines.hosting import Command, Facts, Host, Refusal
from drift_rollout.engines.options import RayOptions

_GOODBYE = 10.0
"""Seconds that actors have to close their engines before they are ended."""
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Seat:
    """One actor and what it works on."""

    number: int
    actor: Any
    news: Any
    """Reference to what it says next: its facts, then what finished."""
    due: float
    """Time by which it must be open."""
    facts: Facts | None = None
    """Kept from the actor before it while a new one opens."""
    open: bool = False
    pending: dict[str, Request] = field(default_factory=dict)
    """What is asked of it, by the name that it has there."""
    releases: list[str] = field(default_factory=list)
    """Names to release with its next command."""
    commands: Iterator[int] = field(default_factory=count)

    @property
    def concurrency(self) -> int:
        """Requests that are worth having here."""
        return self.facts.concurrency if self.facts else 1

    @property
    def load(self) -> float:
        """Requests that it has to those that are worth having; 1 is full."""
        return len(self.pending) / self.concurrency


class RayEngine:
    """Spreads requests over engines in Ray actors.

    A continuation goes where its cache is, anything else to the actor with the least load. Requests
    with equal prompts that are submitted together stay together, so that their prefill can be shared,
    up to half of what an engine works on. Each actor works on by itself; a slow one holds up nobody.

    When an actor dies, or its engine raises, a new one takes its place and its unfinished requests,
    from their beginning; what the others do goes on meanwhile. Only caches and time are lost.

    Args:
        opener: opens the engine inside an actor; every actor must come to the same policy.
        options: how many actors, and what each of them takes.

    Raises:
        ValueError: no actor asked for, actors of different policies, or what an engine refuses when it
            is opened.
        EngineError: the cluster has no room for the actors, now or when one is replaced, or, later, the
            restarts are used up.
        ConnectionError: there is no cluster at that address.
    """

    def __init__(self, opener: Callable[[], Engine], options: RayOptions) -> None:
        if options.actors < 1:
            raise ValueError(f"actors must be at least 1 for an engine on Ray, got {options.actors}")
        self._ray = import_ray(options.address)
        self._opener = opener
        self._options = options
        self._restarts = 0
        self._names = count()
        self._places: dict[str, tuple[_Seat, str]] = {}
        """Of each id that is not released: the actor and its name there."""
        self._completions: list[Completion] = []
        self._seats: list[_Seat] = []
        with ExitStack() as failing:
            self._own_cluster = _connect(self._ray, options)
            failing.callback(self.close)
            for number in range(options.actors):
                actor, news, due = self._start()
                self._seats.append(_Seat(number=number, actor=actor, news=news, due=due))
            while not all(seat.open for seat in self._seats):
                self._listen(math.inf)
            failing.pop_all()

    @property
    def policy(self) -> str:
        """The policy that all actors have."""
        return self._facts[0].policy

    @property
    def tokenizer(self) -> Any:
        """The actors' tokenizer."""
        return self._facts[0].tokenizer

    @property
    def context_length(self) -> int:
        """The shortest of the actors'."""
        return min(facts.context_length for facts in self._facts)

    @property
    def seeded(self) -> bool:
        """Whether all actors are."""
        return all(facts.seeded for facts in self._facts)

    @property
    def concurrency(self) -> int:
        """The sum of the actors'."""
        return sum(facts.concurrency for facts in self._facts)

    @property
    def capacity(self) -> int:
        """The sum of the actors'."""
        return sum(facts.capacity for facts in self._facts)

    def submit(self, requests: Sequence[Request]) -> None:
        """Send requests to actors; what an actor's engine refuses, the next `poll` raises.

        Raises:
            ValueError: an id in use, or a continuation of a request that has not finished; nothing is
                queued then.
        """
        refuse_duplicates(requests, self._places.keys())
        for request in requests:
            seat, name = self._places.get(request.continues or "", (None, ""))
            if seat is not None and name in seat.pending:
                raise ValueError(f"request {request.id!r} continues {request.continues!r}, still running")
        batches: dict[_Seat, list[Request]] = {seat: [] for seat in self._seats}
        fresh: dict[Any, list[Request]] = {}
        for request in requests:
            seat, name = self._places.pop(request.continues or "", (None, ""))
            if seat is not None:
                batches[seat].append(self._assign(seat, request, continues=name))
            else:
                fresh.setdefault(request.token_ids or request.messages, []).append(request)
        for group in fresh.values():
            while group:
                seat, size = self._choose(len(group))
                batches[seat] += [self._assign(seat, request) for request in group[:size]]
                del group[:size]
        for seat, batch in batches.items():
            self._send(seat, batch)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """What finished since the last call, in whichever actor.

        Raises:
            ValueError: an engine refused requests; they are forgotten. Or a new actor has another policy.
            EngineError: another actor died than may be replaced, or a new one does not open its engine.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        for seat in self._seats:
            self._send(seat, [])
        while not self._completions and any(seat.pending for seat in self._seats):
            self._listen(deadline)
            if time.monotonic() >= deadline:
                break
        completions, self._completions = self._completions, []
        return completions

    def release(self, request_id: str) -> None:
        """Free what a request holds in its actor, and cancel it there; unknown ids are ignored."""
        seat, name = self._places.pop(request_id, (None, ""))
        if seat is not None:
            seat.pending.pop(name, None)
            seat.releases.append(name)
        self._completions = [c for c in self._completions if c.id != request_id]

    def close(self) -> None:
        """Close the engines, end the actors, and the cluster if it is ours."""
        # Somebody else may have ended Ray, and with it the actors.
        if self._ray.is_initialized():
            goodbyes = [seat.actor.close.remote() for seat in self._seats if seat.open]
            if goodbyes:
                self._ray.wait(goodbyes, num_returns=len(goodbyes), timeout=_GOODBYE)
            for seat in self._seats:
                self._ray.kill(seat.actor)
        self._seats.clear()
        self._places.clear()
        self._completions.clear()
        if self._own_cluster:
            self._own_cluster = False
            self._ray.shutdown()

    @property
    def _facts(self) -> list[Facts]:
        return [seat.facts for seat in self._seats if seat.facts is not None]

    def _start(self) -> tuple[Any, Any, float]:
        options = self._options
        settings: dict[str, Any] = {
            "num_cpus": options.cpus_per_actor,
            "num_gpus": options.gpus_per_actor,
            "concurrency_groups": {"collect": 1},
        }
        if options.runtime_env:
            settings["runtime_env"] = options.runtime_env
        actor: Any = self._ray.remote(**settings)(Host).remote(self._opener)
        return actor, actor.open.remote(), time.monotonic() + options.start_timeout

    def _choose(self, size: int) -> tuple[_Seat, int]:
        """Where requests with one prompt go, and how many: half of what an engine works on, at most."""
        # Whoever is still opening gets what the others have no room for.
        able = [seat for seat in self._seats if seat.open and seat.load < 1] or self._seats
        seat = min(able, key=lambda seat: seat.load)
        return seat, min(size, max(seat.concurrency // 2, 1))

    def _assign(self, seat: _Seat, request: Request, *, continues: str | None = None) -> Request:
        """Note who has it; the name there is new each time, or a stale completion could be taken for it."""
        name = f"{request.id}@{next(self._names)}"
        seat.pending[name] = request
        self._places[request.id] = (seat, name)
        return replace(request, id=name, continues=continues)

    def _send(self, seat: _Seat, requests: Sequence[Request]) -> None:
        if requests or seat.releases:
            command = Command(releases=tuple(seat.releases), requests=tuple(requests))
            seat.releases.clear()
            seat.actor.command.remote(next(seat.commands), command)

    def _listen(self, deadline: float) -> None:
        """Wait until one of the actors says something, and take in what all of them have said."""
        due = min((seat.due for seat in self._seats if not seat.open), default=math.inf)
        left = min(deadline, due) - time.monotonic()
        speaking = {seat.news: seat for seat in self._seats}
        timeout = None if left == math.inf else max(left, 0.0)
        first, _ = self._ray.wait(list(speaking), num_returns=1, timeout=timeout)
        if first:
            ready, _ = self._ray.wait(list(speaking), num_returns=len(speaking), timeout=0)
            for news in ready:
                self._hear(speaking[news])
        elif time.monotonic() >= due:
            self._give_up_opening()

    def _give_up_opening(self) -> None:
        late, options = sum(not seat.open for seat in self._seats), self._options
        raise EngineError(
            f"{late} of {len(self._seats)} Ray actors did not open their engine within "
            f"{options.start_timeout:g} s (engine.ray.start_timeout); each asks for "
            f"{options.cpus_per_actor:g} CPUs and {options.gpus_per_actor:g} GPUs: has the cluster so many?"
        )

    def _hear(self, seat: _Seat) -> None:
        try:
            said = self._ray.get(seat.news)
        except self._ray.exceptions.RayTaskError as error:
            if seat.facts is None:
                # It never opened: a mistake of the caller, who sees it as one engine would show it.
                raise error.cause from error
            self._replace(seat, repr(error.cause))
            return
        except self._ray.exceptions.RayError as error:
            self._replace(seat, str(error).partition("\n")[0])
            return
        if not seat.open:
            self._welcome(seat, said)
        seat.news = seat.actor.collect.options(concurrency_group="collect").remote()
        if not isinstance(said, Facts):
            self._take(seat, said)

    def _welcome(self, seat: _Seat, facts: Facts) -> None:
        known = self._facts
        if known and facts.policy != known[0].policy:
            raise ValueError(
                f"Ray actor {seat.number} opened policy {facts.policy}, the others {known[0].policy}; "
                "give every node the same model"
            )
        seat.facts, seat.open = facts, True

    def _take(self, seat: _Seat, said: Sequence[Completion | Refusal]) -> None:
        refused = [item for item in said if isinstance(item, Refusal)]
        for item in said:
            if isinstance(item, Completion):
                request = seat.pending.pop(item.id, None)
                # Unless it was released in the meantime.
                if request is not None:
                    self._completions.append(replace(item, id=request.id))
        for name in (name for refusal in refused for name in refusal.ids):
            request = seat.pending.pop(name, None)
            if request is not None:
                del self._places[request.id]
        if refused:
            raise ValueError(refused[0].error)

    def _replace(self, seat: _Seat, reason: str) -> None:
        """A new actor in place of one that died; it gets the requests that the dead one did not finish."""
        self._ray.kill(seat.actor)
        self._restarts += 1
        if self._restarts > self._options.max_restarts:
            raise EngineError(
                f"Ray actor {seat.number} died ({reason}), and {self._options.max_restarts} restarts are "
                "used up (engine.ray.max_restarts)"
            )
        lost = list(seat.pending.values())
        _log.warning("Ray actor %d died (%s); %d requests start over", seat.number, reason, len(lost))
        gone = [request_id for request_id, (holder, _) in self._places.items() if holder is seat]
        for request_id in gone:
            del self._places[request_id]
        seat.pending.clear()
        seat.releases.clear()
        seat.commands, seat.open = count(), False
        seat.actor, seat.news, seat.due = self._start()
        self._send(seat, [self._assign(seat, request) for request in lost])


def import_ray(address: str | None) -> Any:
    """Ray, which takes a second to import, told first what it reads only then.

    It reports nothing, unless its user wants that, and a cluster of our own stays on loopback.

    Args:
        address: of a cluster; None if RAY_ADDRESS names one, or one is to be started on this machine.

    Raises:
        ModuleNotFoundError: the extra [ray] is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address and "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    return ray


def _connect(ray: Any, options: RayOptions) -> bool:
    """Join the cluster that is named, or start one on this machine; whether that is ours to end."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = options.address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, **quiet)
        return True
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, math.ceil(options.actors * options.cpus_per_actor)),
        include_dashboard=False,
        **quiet,
    )
    return True
