"""Schedules on the simulated engine: what it counts, what is wanted of ours, the same dialogues for all."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from drift_rollout.engine import Request, Sampling

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
simulated = importlib.import_module("rollout_simulated")
# By its place: `rollout` is a package of tests.
spec = importlib.util.spec_from_file_location("benchmark_of_rollout", BENCHMARKS / "rollout.py")
assert spec is not None
assert spec.loader is not None
rollout = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = rollout
spec.loader.exec_module(rollout)


def request(name: str, seed: int, continues: str | None = None) -> Request:
    sampling = Sampling(max_new_tokens=512)
    return Request(id=name, messages=(), token_ids=None, sampling=sampling, seed=seed, continues=continues)


def test_the_clock_counts_steps_and_prefill() -> None:
    """Two requests of one prompt by hand: 150 + 1 tokens of prefill, then steps of two and of one."""
    engine = simulated.SimulatedEngine()
    engine.submit([request("p/0/0/1", 1), request("p/0/1/1", 2)])
    short, long = sorted(simulated.drawn(seed)[0] for seed in (1, 2))
    engine.poll()
    assert engine.seconds == pytest.approx(151 / 40_000 + short * (0.010 + 2 * 12e-6))
    engine.poll()
    assert engine.seconds == pytest.approx(
        151 / 40_000 + short * (0.010 + 2 * 12e-6) + (long - short) * (0.010 + 12e-6)
    )
    assert (engine.reusable, engine.reused) == (149, 149)


@pytest.mark.parametrize("kept", [True, False])
def test_a_history_is_prefilled_unless_it_is_continued(kept: bool) -> None:
    engine = simulated.SimulatedEngine()
    engine.submit([request("p/0/0/1", 1)])
    engine.poll()
    engine.submit([request("p/0/0/2", 2, continues="p/0/0/1" if kept else None)])
    engine.poll()
    history = 150 + simulated.drawn(1)[0]
    assert engine.prefilled == 150 + (20 + 1 if kept else history + 20)
    assert engine.reusable == history - 1
    assert engine.reused == (history - 1 if kept else 0)


def test_lengths_and_verdicts_are_the_ones_named() -> None:
    drawn = [simulated.drawn(seed) for seed in range(4000)]
    lengths = sorted(length for length, _ in drawn)
    assert lengths[2000] == pytest.approx(200, rel=0.05)
    assert lengths[-1] == 512
    assert sum(right for _, right in drawn) / 4000 == pytest.approx(0.35, abs=0.03)


@pytest.mark.parametrize(("prompts", "over_barrier", "over_authors"), [(32, 1.2, 2.0), (256, 1.05, 2.0)])
def test_what_is_wanted_of_ours(prompts: int, over_barrier: float, over_authors: float) -> None:
    rows = {row.schedule: row for row in rollout.simulate(prompts)}
    assert rows["barrier"].seconds >= over_barrier * rows["ours"].seconds
    assert rows["sub-batches"].seconds >= over_authors * rows["ours"].seconds
    assert rows["ours"].reuse >= 0.95
    assert len({row.decoded for row in rows.values()}) == 1


def test_greedy_dialogues_on_the_real_engine_are_those_of_a_serial_run() -> None:
    found = rollout.measure(prompts=3, rounds=1)
    assert found["greedy_dialogues"] == 3
    assert all(len(seconds) == 1 for seconds in found["seconds"].values())
