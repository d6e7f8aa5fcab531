"""A generator that is left or that fails gives its requests back, and the engine can go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import torch

from drift_rollout import Completion, ExactVerifier, RolloutConfig, ScriptedEngine, make_problem, sample
from drift_rollout.asking import VerifierError
from drift_rollout.engine import Sampling
from drift_rollout.protocol import Protocol
from drift_rollout.verify import Verified
from drift_weights import Message, Trajectory
from embedded import answers, ask, build, prompt

CONFIG = RolloutConfig(
    samples=3, protocol=Protocol(max_turns=3), sampling=Sampling(max_new_tokens=5), seed=1
)
PROBLEMS = [make_problem((Message(role="user", content=f"what is {n}"),), str(n)) for n in range(6)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine take longer than these models need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scripted() -> ScriptedEngine:
    return ScriptedEngine(lambda r: Completion(id=r.id, text=f"<answer> {r.seed % 4} </answer>"))


class TiredError(Exception):
    """What a broken verifier raises."""


class Tired(ExactVerifier):
    """Judges a few responses, then fails in the middle of a batch."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        object.__setattr__(self, "left", calls)

    def verify(self, response: str, target: str) -> Verified:
        object.__setattr__(self, "left", self.left - 1)
        if self.left < 0:
            raise TiredError
        return super().verify(response, target)


def leave(engine: Any) -> None:
    with closing(sample(PROBLEMS, engine, ExactVerifier(), CONFIG)) as stream:
        next(stream)


def fail(engine: Any) -> None:
    with pytest.raises(VerifierError):
        list(sample(PROBLEMS, engine, Tired(7), CONFIG))


def everything(engine: Any) -> list[Trajectory]:
    return sorted(sample(PROBLEMS, engine, ExactVerifier(), CONFIG), key=lambda t: t.key)


@pytest.mark.parametrize("stop", [leave, fail])
@pytest.mark.parametrize("make", [scripted, lambda: build(max_slots=4)], ids=["scripted", "transformers"])
def test_an_engine_can_be_used_again(make: Callable[[], Any], stop: Callable[[Any], None]) -> None:
    engine = make()
    stop(engine)
    assert engine.poll() == [], "what was asked for is still under way"
    again, fresh = everything(engine), everything(make())
    assert [t.turns for t in again] == [t.turns for t in fresh]
    assert [t.token_ids for t in again] == [t.token_ids for t in fresh]


@pytest.mark.parametrize("stop", [leave, fail])
def test_nothing_stays_in_the_cache(stop: Callable[[Any], None]) -> None:
    engine = build(max_slots=4)
    stop(engine)
    assert engine._slots.demand == (0, 0)
    assert [*engine._waiting, *engine._active, *engine._finished] == []


def test_release_cancels_queued_running_and_unread_requests() -> None:
    """One that runs, one that waits, one that failed at once and was not read, beside one that stays."""
    engine = build(max_slots=2, context_length=40)
    requests = [ask(f"r{n}", prompt(6 + n), seed=n, temperature=1.0) for n in range(4)]
    alone = answers(build(), [requests[1]])["r1"]
    engine.submit([*requests, ask("full", prompt(40))])
    assert [c.id for c in engine.poll(timeout=0)] == ["full"]
    engine.submit([ask("full", prompt(40))])
    engine._step()
    assert (len(engine._active), len(engine._waiting)) == (2, 2)
    for name in ("r0", "r2", "full", "never seen"):
        engine.release(name)
    left = {}
    while batch := engine.poll():
        left |= {completion.id: completion for completion in batch}
    assert left.keys() == {"r1", "r3"}
    assert left["r1"].token_ids == alone.token_ids
    assert answers(engine, [requests[0]]).keys() == {"r0"}
