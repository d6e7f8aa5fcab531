"""Three ways to put the turns of many dialogues before an engine.

- ours: `drift_rollout.sampler`: a dialogue's next turn is ready when its verdict is in.
- barrier: all dialogues take turn t, and nobody begins turn t + 1 before the last of them has ended.
- sub-batches: the authors' code: a barrier, and within a turn 256 requests at a time, to the last of them;
  a turn's whole history is prefilled again, and only the K samples of a prompt share theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from drift_rollout.engine import Completion, Engine, Request, turn_seed
from drift_rollout.problems import Problem
from drift_rollout.protocol import Dialogue, advance
from drift_rollout.rendering import ChatRenderer
from drift_rollout.sampler import RolloutConfig, sample_batches
from drift_rollout.verify import Verifier
from drift_weights.types import Turn

Responses = dict[tuple[str, int], list[str]]
"""(prompt_id, sample) → what was said, turn by turn."""
SUB_BATCH = 256


def ours(
    problems: Sequence[Problem], engine: Engine, verifier: Verifier, config: RolloutConfig
) -> Responses:
    """Without a barrier."""
    found: Responses = {}
    for batch in sample_batches(problems, engine, verifier, config):
        for trajectory in batch:
            key = (trajectory.prompt_id, trajectory.sample)
            found[key] = [turn.response for turn in trajectory.turns]
    return found


def barrier(
    problems: Sequence[Problem], engine: Engine, verifier: Verifier, config: RolloutConfig
) -> Responses:
    """Turn by turn, caches kept."""
    return _by_turns(problems, engine, verifier, config, size=None, keep=True)


def sub_batches(
    problems: Sequence[Problem], engine: Engine, verifier: Verifier, config: RolloutConfig
) -> Responses:
    """Turn by turn, 256 requests at a time, histories prefilled again."""
    return _by_turns(problems, engine, verifier, config, size=SUB_BATCH, keep=False)


SCHEDULES: dict[str, Callable[[Sequence[Problem], Engine, Verifier, RolloutConfig], Responses]] = {
    "ours": ours,
    "barrier": barrier,
    "sub-batches": sub_batches,
}


class _Dialogue:
    """One dialogue under a barrier."""

    def __init__(self, problem: Problem, sample: int, config: RolloutConfig, ids: Any) -> None:
        self.problem, self.sample, self.config = problem, sample, config
        self.state = Dialogue(prompt=problem.messages, protocol=config.protocol)
        self.ids = ids
        self.before: str | None = None

    def request(self, *, keep: bool) -> Request:
        turn = len(self.state.turns) + 1
        identity = f"{self.problem.prompt_id}/{self.config.round}/{self.sample}/{turn}"
        request = Request(
            id=identity,
            messages=self.state.messages,
            token_ids=self.ids,
            sampling=self.config.sampling,
            seed=turn_seed(self.config.seed, self.problem.prompt_id, self.config.round, self.sample, turn),
            continues=self.before if keep else None,
        )
        self.before = identity
        return request

    def take(self, completion: Completion, verifier: Verifier, renderer: ChatRenderer | None) -> None:
        judged = verifier.verify(completion.text, self.problem.target or "")
        turn = Turn(
            response=completion.text,
            answer=judged.answer,
            verdict=judged.verdict,
            finish_reason=completion.finish_reason,
        )
        self.state = advance(self.state, turn)
        if renderer is not None and self.state.ended is None:
            stopped = completion.finish_reason == "stop"
            feedback = self.config.protocol.feedback
            self.ids = renderer.next_ids(self.ids, completion.token_ids or (), feedback, stopped=stopped)


def _by_turns(
    problems: Sequence[Problem],
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig,
    *,
    size: int | None,
    keep: bool,
) -> Responses:
    renderer = None if engine.tokenizer is None else ChatRenderer(engine.tokenizer)
    dialogues = [
        _Dialogue(problem, k, config, renderer and renderer.prompt_ids(problem.messages))
        for problem in problems
        for k in range(config.samples)
    ]
    running = dialogues
    while running:
        for part in _parts(running, size or len(running)):
            _answer(part, engine, verifier, renderer, keep=keep)
        running = [dialogue for dialogue in running if dialogue.state.ended is None]
    return {(d.problem.prompt_id, d.sample): [t.response for t in d.state.turns] for d in dialogues}


def _parts(dialogues: list[_Dialogue], size: int) -> Iterator[list[_Dialogue]]:
    for start in range(0, len(dialogues), size):
        yield dialogues[start : start + size]


def _answer(
    dialogues: Sequence[_Dialogue],
    engine: Engine,
    verifier: Verifier,
    renderer: ChatRenderer | None,
    *,
    keep: bool,
) -> None:
    """One turn of some dialogues, to the last of them."""
    asked = {}
    for dialogue in dialogues:
        request = dialogue.request(keep=keep)
        asked[request.id] = (dialogue, request)
    engine.submit([request for _, request in asked.values()])
    while asked:
        for completion in engine.poll():
            dialogue, _ = asked.pop(completion.id)
            dialogue.take(completion, verifier, renderer)
            if not keep or dialogue.state.ended is not None:
                engine.release(completion.id)


def serial(
    problems: Sequence[Problem], engine: Engine, verifier: Verifier, config: RolloutConfig
) -> Responses:
    """One request at a time: what every schedule must say when it decodes greedily."""
    found: Responses = {}
    for problem in problems:
        found |= _by_turns([problem], engine, verifier, replace(config, samples=1), size=1, keep=False)
    return found
