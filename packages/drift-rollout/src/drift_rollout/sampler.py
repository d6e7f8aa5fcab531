"""The rollout loop: problems × engine × verifier → trajectories, without a barrier between turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from drift_rollout.engine import Completion, Engine, Request, Sampling, turn_seed
from drift_rollout.journal import Journal
from drift_rollout.problems import Problem
from drift_rollout.protocol import Dialogue, Protocol, advance, end_for_context
from drift_rollout.rendering import ChatRenderer
from drift_rollout.verify import Verified, Verifier
from drift_weights.fingerprint import tokenizer_fingerprint
from drift_weights.types import Trajectory, Turn

Key = tuple[str, int, str, int]


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

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")


@dataclass(slots=True)
class _Run:
    """One trajectory in the making."""

    problem: Problem
    sample: int
    dialogue: Dialogue
    token_ids: tuple[int, ...] | None
    spans: list[tuple[int, int]] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    request: str | None = None


def sample(
    problems: Iterable[Problem],
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig | None = None,
    *,
    done: Collection[Key] = (),
) -> Iterator[Trajectory]:
    """Sample K correction dialogues a problem and yield each as it finishes (Alg. 1, lines 2-4).

    A trajectory's next turn is submitted as soon as its verdict is in; no turn waits for another
    trajectory. All K first turns of a problem are submitted together, so that the engine can share
    their prefill.

    Args:
        problems: with unique prompt_ids and a target each.
        engine: the frozen policy.
        verifier: judges each response.
        config: K, T, f, sampling and seed; the paper's by default.
        done: keys to leave out, from a journal.

    Raises:
        ValueError: a problem without target, one that appears twice, or a prompt that leaves the
            engine no room for a response.
    """
    for batch in sample_batches(problems, engine, verifier, config or RolloutConfig(), done=done):
        yield from batch


def sample_to_journal(
    journal: Journal,
    problems: Iterable[Problem],
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig,
    *,
    on_finished: Callable[[Sequence[Trajectory]], None] = lambda batch: None,
) -> None:
    """Like `sample`, with every finished trajectory committed before the next ones are asked for.

    What the journal holds already is left out, so a killed run goes on where it was.
    """
    done = journal.scored_keys()
    for batch in sample_batches(problems, engine, verifier, config, done=done):
        journal.add(batch)
        on_finished(batch)


def sample_batches(
    problems: Iterable[Problem],
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig,
    *,
    done: Collection[Key] = (),
) -> Iterator[list[Trajectory]]:
    """`sample`, yielding together what finished together."""
    loop = _Loop(engine, verifier, config)
    groups = _groups(problems, engine.policy, config, done)
    waiting = True
    while waiting or loop.running:
        while waiting and len(loop.running) < engine.concurrency:
            group = next(groups, None)
            if group is None:
                waiting = False
            else:
                loop.start(*group)
        if loop.running:
            finished = loop.step()
            if finished:
                yield finished


def _groups(
    problems: Iterable[Problem], policy: str, config: RolloutConfig, done: Collection[Key]
) -> Iterator[tuple[Problem, list[int]]]:
    seen = set()
    for problem in problems:
        if problem.prompt_id in seen:
            raise ValueError(f"problem {problem.prompt_id} appears twice; keep it once")
        if problem.target is None:
            raise ValueError(f"problem {problem.prompt_id} has no target to verify against")
        seen.add(problem.prompt_id)
        key = (problem.prompt_id, config.round, policy)
        missing = [k for k in range(config.samples) if (*key, k) not in done]
        if missing:
            yield problem, missing


class _Loop:
    """The dialogues in flight; each request id belongs to exactly one of them."""

    def __init__(self, engine: Engine, verifier: Verifier, config: RolloutConfig) -> None:
        self.running: dict[str, _Run] = {}
        self._engine = engine
        self._verifier = verifier
        self._config = config
        self._renderer = None if engine.tokenizer is None else ChatRenderer(engine.tokenizer)
        self._tokenizer = None if engine.tokenizer is None else tokenizer_fingerprint(engine.tokenizer)

    def start(self, problem: Problem, samples: Sequence[int]) -> None:
        """Submit the first turns of a group."""
        ids = None if self._renderer is None else self._renderer.prompt_ids(problem.messages)
        if ids is not None and len(ids) >= self._engine.context_length:
            raise ValueError(
                f"problem {problem.prompt_id}: its prompt of {len(ids)} tokens leaves no room in a "
                f"context of {self._engine.context_length}; shorten or remove it"
            )
        dialogue = Dialogue(prompt=problem.messages, protocol=self._config.protocol)
        runs = [_Run(problem=problem, sample=k, dialogue=dialogue, token_ids=ids) for k in samples]
        self._engine.submit([self._request(run) for run in runs])

    def step(self) -> list[Trajectory]:
        """Take in what the engine finished, submit next turns, and return the finished trajectories."""
        finished, following = [], []
        for completion in self._engine.poll():
            run = self.running.pop(completion.id)
            self._take(run, completion)
            if run.dialogue.ended is None:
                following.append(self._request(run))
            else:
                self._engine.release(completion.id)
                finished.append(self._trajectory(run))
        if following:
            self._engine.submit(following)
        return finished

    def _request(self, run: _Run) -> Request:
        turn = len(run.dialogue.turns) + 1
        config = self._config
        request = Request(
            id=f"{run.problem.prompt_id}/{config.round}/{run.sample}/{turn}",
            messages=run.dialogue.messages,
            token_ids=run.token_ids,
            sampling=config.sampling,
            seed=turn_seed(config.seed, run.problem.prompt_id, config.round, run.sample, turn),
            continues=run.request,
        )
        run.request = request.id
        self.running[request.id] = run
        return request

    def _take(self, run: _Run, completion: Completion) -> None:
        if completion.error is not None:
            judged = Verified(answer=None, verdict="error")
        else:
            judged = self._verifier.verify(completion.text, run.problem.target or "")
        turn = Turn(
            response=completion.text,
            answer=judged.answer,
            verdict=judged.verdict,
            finish_reason=completion.finish_reason,
        )
        run.dialogue = advance(run.dialogue, turn)
        self._append(run, completion)

    def _append(self, run: _Run, completion: Completion) -> None:
        """Grow the ids by what was sampled and, if the dialogue goes on, by the feedback turn."""
        sampled = completion.token_ids if completion.error is None else ()
        if run.token_ids is None or sampled is None or self._renderer is None:
            run.token_ids = None
            return
        if completion.logprobs is None and sampled:
            run.logprobs = None
        elif run.logprobs is not None:
            run.logprobs.extend(completion.logprobs or ())
        start = len(run.token_ids)
        run.spans.append((start, start + len(sampled)))
        if run.dialogue.ended is None:
            feedback, stopped = run.dialogue.protocol.feedback, completion.finish_reason == "stop"
            following = self._renderer.next_ids(run.token_ids, sampled, feedback, stopped=stopped)
            if len(following) < self._engine.context_length:
                run.token_ids = following
                return
            run.dialogue = end_for_context(run.dialogue)
        run.token_ids = (*run.token_ids, *sampled)

    def _trajectory(self, run: _Run) -> Trajectory:
        assert run.dialogue.ended is not None
        tokens = run.token_ids is not None
        return Trajectory(
            prompt_id=run.problem.prompt_id,
            sample=run.sample,
            round=self._config.round,
            policy=self._engine.policy,
            prompt=run.problem.messages,
            target=run.problem.target,
            turns=run.dialogue.turns,
            max_turns=self._config.protocol.max_turns,
            ended=run.dialogue.ended,
            metadata=run.problem.metadata,
            token_ids=run.token_ids,
            response_spans=tuple(run.spans) if tokens else None,
            logprobs=tuple(run.logprobs) if tokens and run.logprobs is not None else None,
            tokenizer=self._tokenizer if tokens else None,
        )
