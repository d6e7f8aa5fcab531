"""The rollout loop: problems × engine × verifier → trajectories, without a barrier between turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from drift_rollout.engine import Engine, Sampling
from drift_rollout.finished import Finished
from drift_rollout.journal import Journal
from drift_rollout.loop import DialogueLoop
from drift_rollout.problems import Problem, check_targets
from drift_rollout.protocol import Protocol
from drift_rollout.unscored import Failures, Key, Recall
from drift_rollout.verify import Verifier
from drift_weights.types import Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    """What makes a trajectory what it is, besides problem, policy and verifier.

    Defaults are the paper's (D.2): K = 16, T = 5, temperature 1, 512 new tokens.
    """

    samples: int = 16
    """K ≥ 1 trajectories a problem."""
    protocol: Protocol = field(default_factory=Protocol)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """Of the run; each turn derives its own from it."""
    round: int = 0
    """Rollout round; groups of different rounds never mix."""
    prefill: str = ""
    """Put into the assistant's mouth at every turn, such as `<think>`; not part of a response."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if not 0 <= self.round < 1 << 31:
            raise ValueError(f"round must lie in [0, 2^31), got {self.round}")


def sample(
    problems: Iterable[Problem],
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig | None = None,
    *,
    done: Collection[Key] = (),
) -> Generator[Trajectory]:
    """Sample K correction dialogues a problem and yield each as it finishes (Alg. 1, lines 2-4).

    A trajectory's next turn is ready as soon as its verdict is in; no turn waits for another trajectory's,
    and the engine never waits for a verdict. All K first turns of a problem are submitted
    together, so that the engine can share their prefill. All problems are checked before the first
    request. A generator that is closed early, or that fails, cancels its requests, so that the engine
    can be used again.

    Args:
        problems: with unique prompt_ids and a target each.
        engine: the frozen policy.
        verifier: judges each response.
        config: K, T, f, sampling and seed; the paper's by default.
        done: keys to leave out, from a journal.

    Raises:
        ValueError: a problem without target or with one that the verifier refuses, one that appears
            twice, or a prompt that leaves the engine no room for a response.
        EngineError: the engine went idle with requests unanswered.
        UnscoredError: a hundred of the last two hundred dialogues ended with a timeout or an error.
        VerifierError: the verifier raised, or gave no `Verified`.
    """
    with closing(
        sample_batches(problems, engine, verifier, config or RolloutConfig(), done=done)
    ) as batches:
        for batch in batches:
            yield from batch


def sample_to_journal(
    journal: Journal,
    problems: Iterable[Problem],
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig,
    *,
    on_finished: Callable[[Sequence[Finished]], None] = lambda batch: None,
) -> None:
    """Like `sample`, with every finished trajectory committed before the next ones are asked for.

    What the journal holds already is left out, so a killed run goes on where it was. Where only the
    verdict of the last response is missing, because the verifier failed, that response is verified again,
    and the dialogue goes on from there; other unscored dialogues are sampled anew. A verification that
    fails in three runs settles its turn as wrong.
    """
    failures = journal.failures()
    sampled = sample_batches(
        problems,
        engine,
        verifier,
        config,
        done=journal.scored_keys(),
        recall=journal.unscored,
        failures=failures,
    )
    with closing(sampled) as batches:
        for batch in batches:
            on_finished(journal.add(batch, failures))


def sample_batches(
    problems: Iterable[Problem],
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig,
    *,
    done: Collection[Key] = (),
    recall: Recall = lambda key: None,
    failures: Failures | None = None,
) -> Generator[list[Trajectory]]:
    """`sample`, yielding together what finished together.

    Args:
        recall: the unscored trajectory that an earlier run left under a key.
        failures: failed verifications of earlier runs; what is yielded is counted in it by then.
    """
    wanted = tuple(problems)
    check_targets(wanted, verifier)
    loop = DialogueLoop(engine, verifier, config, recall, {} if failures is None else failures)
    pending = deque(_groups(wanted, engine.policy, config, done))
    loop.check_prompts(problem for problem, _ in pending)
    left = sum(len(samples) for _, samples in pending)
    try:
        while pending or loop.running:
            while pending and loop.has_room(left):
                problem, samples = pending.popleft()
                left -= len(samples)
                loop.start(problem, samples)
            # What finished before is safe by now, whatever fails here.
            loop.submit()
            finished = loop.step()
            if finished:
                yield finished
    finally:
        loop.close()


def _groups(
    problems: Iterable[Problem], policy: str, config: RolloutConfig, done: Collection[Key]
) -> Iterator[tuple[Problem, list[int]]]:
    seen = set()
    for problem in problems:
        if problem.prompt_id in seen:
            raise ValueError(f"problem {problem.prompt_id} appears twice; keep it once")
        seen.add(problem.prompt_id)
        key = (problem.prompt_id, config.round, policy)
        missing = [k for k in range(config.samples) if (*key, k) not in done]
        if missing:
            yield problem, missing
