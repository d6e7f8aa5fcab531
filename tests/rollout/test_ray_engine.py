"""Engines in two Ray actors behind one: the contract, a killed actor, a slow one, one that raises."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from drift_rollout import ExactVerifier, RolloutConfig, ScriptedEngine, make_problem
from drift_rollout.engine import Engine, EngineError
from drift_rollout.engines.opening import EngineOptions, open_engine
from drift_rollout.engines.options import RayOptions
from drift_rollout.engines.ray import RayEngine, import_ray
from drift_rollout.finished import Finished
from drift_rollout.problems import problem_set
from drift_rollout.protocol import Protocol
from drift_rollout.run import rollout
from drift_rollout.sampler import sample
from drift_weights import Message, from_table, read_folder
from opened_engines import guess, stopping, stopping_logprobs
from rollout.engine_contract import (
    CONTRACT,
    Check,
    HashVerifier,
    Subject,
    dialogues,
    names,
    requests_of,
    texts,
)

ray = import_ray(None)
TESTS = str(Path(__file__).parents[1])
ACTORS = RayOptions(actors=2, cpus_per_actor=0, start_timeout=120)
PROBLEMS = [make_problem((Message(role="user", content=f"q{n}"),), str(n % 4)) for n in range(8)]
CONFIG = RolloutConfig(samples=6, protocol=Protocol(max_turns=4))
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


def processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def on_ray(name: str, options: RayOptions = ACTORS, **own: Any) -> RayEngine:
    """Engines of `opened_engines`, opened in actors as a configuration would have it."""
    engine = open_engine(EngineOptions(name=f"opened_engines.{name}", own=own, ray=options), "model")
    assert isinstance(engine, RayEngine)
    return engine


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(
    engine: Engine, out: Path, on_finished: Callable[[Sequence[Finished]], None] = lambda batch: None
) -> dict[str, bytes]:
    """Roll out into a journal; returns the exported files."""
    folder = rollout(
        problem_set(PROBLEMS, source="here"), engine, ExactVerifier(), CONFIG, out, on_finished=on_finished
    )
    return files(folder)


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """TransformersEngine on a tiny model in both actors, and the cluster that it starts for itself.

    All other tests run on that cluster. It is on loopback, and every process of it is gone in the end.
    """
    others = processes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TESTS)
        opened = on_ray("stopping", replace(ACTORS, cpus_per_actor=1), max_slots=8)
    with closing(opened):
        yield opened
        started = list(processes() - others)
        sockets = [socket for process in started for socket in process.net_connections("inet")]
        opened.submit(requests_of(opened, texts(5)))
    assert not ray.is_initialized()
    opened.close()
    assert psutil.wait_procs(started, timeout=90)[1] == []
    assert {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets} == {"127.0.0.1"}


class TestContract:
    """What one engine says and does, two do."""

    def test_dialogues_are_those_of_one_engine(self, engine: RayEngine) -> None:
        torch.set_num_threads(1)
        alone = stopping()
        assert engine.policy == alone.policy
        assert engine.concurrency == 16
        assert engine.context_length == alone.context_length
        for temperature in (0.0, 1.0):
            first, second = (dialogues(PROBLEMS, used, temperature) for used in (engine, alone))
            assert [t.turns for t in first] == [t.turns for t in second]
            assert [t.token_ids for t in first] == [t.token_ids for t in second]
            assert [t.logprobs for t in first] == [pytest.approx(t.logprobs, abs=1e-9) for t in second]
            assert max(t.length for t in first) > 1

    def test_an_abandoned_sample_leaves_nothing(self, engine: RayEngine) -> None:
        with closing(sample(PROBLEMS, engine, HashVerifier(), CONFIG)) as stream:
            next(stream)
        assert engine.poll() == []
        assert engine._places == {}

    @pytest.mark.parametrize("check", CONTRACT[:-1], ids=names[:-1])
    def test_it_keeps_the_contract(self, check: Check, engine: RayEngine) -> None:
        check(Subject(make=lambda: engine, keep=True, logprobs=stopping_logprobs, tolerance=1e-8))


@pytest.mark.usefixtures("engine")
class TestActors:
    """Cheap engines, opened anew in each test."""

    def test_a_killed_actor_costs_only_what_it_was_doing(self, tmp_path: Path) -> None:
        """Killed in the middle of a rollout: the same bytes, and no dialogue lost or there twice."""
        opened = tmp_path / "opened"
        opened.mkdir()
        expected = run(ScriptedEngine(guess, policy="guessing"), tmp_path / "whole")
        counts: Counter[Any] = Counter()
        killed: list[int] = []
        with closing(on_ray("guessing", folder=str(opened))) as engine:

            def on_finished(batch: Sequence[Finished]) -> None:
                counts.update(trajectory.key for trajectory in batch)
                if len(counts) >= 10 and not killed:
                    killed.append(int(next(opened.iterdir()).name))
                    os.kill(killed[0], signal.SIGKILL)

            got = run(engine, tmp_path / "broken", on_finished)
            assert engine.poll() == []
        assert len(list(opened.iterdir())) == 3, "a new actor took the place of the killed one"
        assert got == expected
        assert len(got) == 2
        assert set(counts.values()) == {1}
        table, _ = read_folder(tmp_path / "broken" / "trajectories", "trajectories")
        assert counts.keys() == {t.key for t in from_table(table)}
        assert len(counts) == len(PROBLEMS) * CONFIG.samples

    def test_restarts_are_bounded_and_the_journal_keeps_what_was_done(self, tmp_path: Path) -> None:
        opened = tmp_path / "opened"
        opened.mkdir()
        counts: list[int] = []
        with closing(
            on_ray("guessing", replace(ACTORS, actors=1, max_restarts=1), folder=str(opened))
        ) as engine:
            tried: set[str] = set()

            def on_finished(batch: Sequence[Finished]) -> None:
                counts.append(len(batch))
                for path in opened.iterdir():
                    if sum(counts) >= 5 and path.name not in tried:
                        tried.add(path.name)
                        os.kill(int(path.name), signal.SIGKILL)

            with pytest.raises(EngineError, match=r"died .* 1 restarts are used up \(engine.ray.max_"):
                run(engine, tmp_path / "run", on_finished)
        before = sum(counts)
        assert 5 <= before < len(PROBLEMS) * CONFIG.samples
        again: list[int] = []
        run(
            ScriptedEngine(guess, policy="guessing"),
            tmp_path / "run",
            lambda batch: again.append(len(batch)),
        )
        assert again[0] == before
        assert sum(again) == len(PROBLEMS) * CONFIG.samples

    def test_a_slow_actor_holds_up_nobody(self, tmp_path: Path) -> None:
        """It gives nothing while the other one answers all of its own; then it goes on."""
        with closing(on_ray("gated", folder=str(tmp_path))) as engine:
            requests = requests_of(engine, texts(8))
            engine.submit(requests)
            got: list[str] = []
            while len(got) < 4:
                got += [completion.id for completion in engine.poll()]
            assert engine.poll(timeout=0.2) == []
            late = requests_of(engine, texts(4), prefix="late")
            engine.submit(late)
            assert {c.id for c in engine.poll()} <= {r.id for r in late}, "it goes where there is room"
            (tmp_path / "open").touch()
            while batch := engine.poll():
                got += [completion.id for completion in batch]
            assert {r.id for r in requests} <= set(got)

    def test_samples_of_a_prompt_stay_together_unless_that_is_uneven(self, tmp_path: Path) -> None:
        """Up to half of the 8 that each engine works on."""
        (tmp_path / "first").touch()
        with closing(on_ray("gated", folder=str(tmp_path))) as engine:
            for sizes in ((4, 4), (2, 2, 2), (16,), (6,), (3, 9), (4, 3, 4, 1, 4, 2)):
                prompts = [text for text, size in zip(texts(9), sizes, strict=False) for _ in range(size)]
                requests = requests_of(engine, prompts)
                engine.submit(requests)
                where = [engine._places[request.id][0].number for request in requests]
                for prompt, size in zip(texts(9), sizes, strict=False):
                    actors = {actor for actor, asked in zip(where, prompts, strict=True) if asked == prompt}
                    assert size > 4 or len(actors) == 1
                assert abs(where.count(0) - where.count(1)) <= 4
                for request in requests:
                    engine.release(request.id)
            assert engine.poll() == []

    def test_an_engine_that_raises_is_replaced_and_a_refusal_is_passed_on(self) -> None:
        with closing(on_ray("failing", replace(ACTORS, actors=1, max_restarts=1))) as engine:
            good, bad = requests_of(engine, ["one", "refuse me"])
            engine.submit([good])
            assert [c.id for c in engine.poll()] == [good.id]
            engine.submit([bad])
            with pytest.raises(ValueError, match="refused, as asked"):
                engine.poll()
            assert engine.poll() == []
            engine.submit([replace(good, id=bad.id)])
            assert [c.id for c in engine.poll()] == [bad.id], "the refused one is forgotten"
            engine.submit(requests_of(engine, ["break it"], prefix="break"))
            with pytest.raises(EngineError, match=r"broken, as asked.* restarts are used up"):
                engine.poll()

    @pytest.mark.parametrize(("each", "both"), [(None, 8), (9, 18)])
    def test_what_the_actors_remember_adds_up(self, tmp_path: Path, each: int | None, both: int) -> None:
        """An engine that names no capacity has its concurrency."""
        with closing(on_ray("guessing", folder=str(tmp_path), capacity=each)) as engine:
            assert (engine.concurrency, engine.capacity) == (8, both)

    def test_actors_of_different_policies_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"opened policy p\d+, the others p\d+; give every node"):
            on_ray("guessing", folder=str(tmp_path), policy="p{pid}")

    def test_what_cannot_be_opened_is_said_as_one_engine_would(self) -> None:
        with pytest.raises(OSError, match=r"^there is no model nowhere$"):
            on_ray("absent", replace(ACTORS, actors=1, runtime_env={"env_vars": {"MODEL_AT": "nowhere"}}))

    def test_actors_without_room_are_named(self) -> None:
        with pytest.raises(EngineError, match=r"1 of 1 Ray actors did not open .* asks for 64 CPUs"):
            on_ray("failing", RayOptions(actors=1, cpus_per_actor=64, start_timeout=0.5))


@pytest.mark.parametrize("name", ["actors", "cpus_per_actor", "gpus_per_actor", "max_restarts"])
def test_settings_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
        RayOptions(**{name: -1})
