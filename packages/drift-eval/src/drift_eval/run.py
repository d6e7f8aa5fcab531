"""Greedy evaluation: the rollout loop with one sample a problem at temperature 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import pyarrow as pa

from drift_eval.benchmark import Benchmark
from drift_rollout.engine import Engine, Sampling
from drift_rollout.problems import Problem
from drift_rollout.protocol import FEEDBACK, Protocol
from drift_rollout.sampler import RolloutConfig, sample
from drift_rollout.verify import Verifier
from drift_weights.schema import to_table

Progress = Callable[[int, int], None]


def evaluate(
    problems: Benchmark | Sequence[Problem],
    engine: Engine,
    verifier: Verifier,
    *,
    max_turns: int = 5,
    max_new_tokens: int = 512,
    feedback: str = FEEDBACK,
    on_progress: Progress | None = None,
) -> pa.Table:
    """Let a policy answer every problem greedily, with the feedback f after each wrong answer.

    Everything stays in memory; `drift-eval run` keeps each dialogue on disk as it finishes.

    Args:
        problems: a benchmark, or distinct problems with targets.
        engine: the policy.
        verifier: judges each response; a benchmark wants the one that it names.
        max_turns: T ≥ 1.
        max_new_tokens: tokens a response at most, ≥ 1.
        feedback: f.
        on_progress: told (finished, all) after each dialogue.

    Returns:
        A TRAJECTORIES table, one row a problem, in the order of the problems.

    Raises:
        ValueError: no problems, another verifier than the benchmark's, or what `sample` refuses.

    Source: arXiv 2605.31455, eq. 21 and D.2 (greedy, T = 5, 512 tokens).
    """
    if isinstance(problems, Benchmark):
        _check_verifier(problems, verifier)
        problems = problems.problems
    if not problems:
        raise ValueError("no problems to evaluate on")
    config = greedy(max_turns=max_turns, max_new_tokens=max_new_tokens, feedback=feedback)
    finished = {}
    with closing(sample(problems, engine, verifier, config)) as stream:
        for trajectory in stream:
            finished[trajectory.prompt_id] = trajectory
            if on_progress is not None:
                on_progress(len(finished), len(problems))
    return to_table(finished[problem.prompt_id] for problem in problems)


def greedy(*, max_turns: int = 5, max_new_tokens: int = 512, feedback: str = FEEDBACK) -> RolloutConfig:
    """One dialogue a problem at temperature 0: eq. 21's protocol, the paper's by default.

    Raises:
        ValueError: a value out of its range.
    """
    return RolloutConfig(
        samples=1,
        protocol=Protocol(max_turns=max_turns, feedback=feedback),
        sampling=Sampling(temperature=0.0, max_new_tokens=max_new_tokens),
    )


def _check_verifier(benchmark: Benchmark, verifier: Verifier) -> None:
    if verifier.name != benchmark.verifier:
        raise ValueError(
            f"benchmark {benchmark.name} is judged by {benchmark.verifier}, got {verifier.name}"
        )
