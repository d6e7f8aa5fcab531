"""The dialogues under way: what is asked of the engine, what is judged, and what comes next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from drift_rollout.engine import Completion, Engine, EngineError, Request, turn_seed
from drift_rollout.judging import Judging
from drift_rollout.problems import Problem
from drift_rollout.protocol import Dialogue, advance, end_for_context
from drift_rollout.rendering import ChatRenderer
from drift_rollout.unscored import (
    SETTLED_AFTER,
    Cause,
    Failures,
    Key,
    Recall,
    UnscoredBound,
    can_be_verified,
    last_completion,
    settle,
)
from drift_rollout.verify import Verified, Verifier
from drift_weights.fingerprint import tokenizer_fingerprint
from drift_weights.types import UNSCORED, Trajectory, Turn

if TYPE_CHECKING:
    from drift_rollout.sampler import RolloutConfig

_SLICE = 0.02
"""Seconds that the engine is waited for while verdicts are outstanding."""
_BACKLOG = 3
"""Outstanding verdicts, as a multiple of the engine's concurrency, at which no dialogue is begun."""


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
    again: bool = False
    """Whether the response that is judged was judged by an earlier run, without a verdict."""


class DialogueLoop:
    """The dialogues in flight; each request id belongs to exactly one of them.

    A request is ready, is asked of the engine, then its completion is judged: at once, or by a thread. Of
    those that are ready the earliest turns are asked first: who may have the longest way to go must not
    begin last, when nothing else is left to fill the engine.

    Args:
        recall: unscored trajectories of earlier runs; where only the verdict is missing, the response is
            verified again, and the dialogue goes on from there.
        failures: of earlier runs; kept up to date.
    """

    def __init__(
        self,
        engine: Engine,
        verifier: Verifier,
        config: RolloutConfig,
        recall: Recall,
        failures: Failures,
    ) -> None:
        self.running: dict[str, _Run] = {}
        self._held: set[str] = set()
        """Requests that the engine may keep something of."""
        self._engine = engine
        self._config = config
        self._recall = recall
        self._failures = failures
        self._renderer = _renderer(engine, config.prefill)
        self._tokenizer = None if engine.tokenizer is None else tokenizer_fingerprint(engine.tokenizer)
        self._judging = Judging(verifier, "" if self._renderer is None else self._renderer.opened)
        self._bound = UnscoredBound(verifier.name)
        self._recalled: list[Completion] = []
        """Responses of earlier runs that are to be verified again."""
        self._ready: list[tuple[int, int, list[Request]]] = []
        """Turn, order, and requests that are asked together; a heap."""
        self._order = count()
        self._asked = 0

    def check_prompts(self, problems: Iterable[Problem]) -> None:
        """Refuse first prompts that leave the engine no room for a response."""
        if self._renderer is None:
            return
        sizes = {p.prompt_id: len(self._renderer.prompt_ids(p.messages)) for p in problems}
        context = self._engine.context_length
        long = [f"problem {name}: {size} tokens" for name, size in sizes.items() if size >= context]
        if long:
            raise ValueError(
                f"{len(long)} prompts leave no room for a response in a context of {context} tokens; "
                "shorten or remove them:\n  " + "\n  ".join(long[:10])
            )

    def start(self, problem: Problem, samples: Sequence[int]) -> None:
        """Make the first turns of a group ready, to be asked together, and take up what lacks a verdict."""
        runs = []
        for k in samples:
            stored = self._recall(self._key(problem, k))
            if stored is not None and can_be_verified(stored, self._tokenizer):
                self._verify_again(problem, stored)
            else:
                self._failures.pop(self._key(problem, k), None)
                runs.append(k)
        if not runs:
            return
        ids = None if self._renderer is None else self._renderer.prompt_ids(problem.messages)
        dialogue = Dialogue(prompt=problem.messages, protocol=self._config.protocol)
        asked = [_Run(problem=problem, sample=k, dialogue=dialogue, token_ids=ids) for k in runs]
        heappush(self._ready, (1, next(self._order), [self._request(run) for run in asked]))

    def has_room(self, left: int) -> bool:
        """Whether another group is to be begun, when so many dialogues are not begun.

        Towards the end as many are under way as the engine can remember. Not before: a run that is killed
        loses what is under way.
        """
        most = self._engine.concurrency
        capacity = max(most, getattr(self._engine, "capacity", most))
        limit = capacity if left <= capacity else most
        judging = len(self._judging)
        return len(self.running) - judging < limit and judging < _BACKLOG * most

    def step(self) -> list[Trajectory]:
        """Take in completions and verdicts, and return the trajectories that they finished."""
        finished = []
        for completion, judged in self._verdicts(self._completions()):
            run = self.running.pop(completion.id)
            again, run.again = run.again, False
            if completion.no_room and run.dialogue.turns:
                self._end_for_context(run)
            else:
                self._take(run, completion, self._counted(run, completion, judged))
            if run.dialogue.ended is None:
                turn = len(run.dialogue.turns) + 1
                heappush(self._ready, (turn, next(self._order), [self._request(run)]))
            else:
                self._engine.release(completion.id)
                self._held.discard(completion.id)
                finished.append(self._trajectory(run))
                if not (again and run.dialogue.ended == "error"):
                    self._bound.note(_cause(run, completion), completion.error)
        return finished

    def submit(self) -> None:
        """Ask the engine for as much as it wants of what is ready.

        Raises:
            UnscoredError: too many dialogues ended unscored.
        """
        self._bound.check()
        requests: list[Request] = []
        while self._ready and self._asked + len(requests) < self._engine.concurrency:
            requests += heappop(self._ready)[2]
        if not requests:
            return
        # Noted first: what of a call that raises did reach the engine, nobody can say.
        self._held.update(request.id for request in requests)
        self._engine.submit(requests)
        self._asked += len(requests)
        self._held.difference_update(request.continues for request in requests if request.continues)

    def close(self) -> None:
        """Cancel what is under way and free what is kept for continuations; the loop is over."""
        self._judging.close()
        for request_id in self._held:
            self._engine.release(request_id)
        self._held.clear()

    def _completions(self) -> list[Completion]:
        """What earlier runs left, or the engine finished; the wait is short while a verdict may come in."""
        if self._recalled:
            recalled, self._recalled = self._recalled, []
            return recalled
        if not self._asked:
            self._judging.wait()
            return []
        completions = self._engine.poll(_SLICE if self._judging else None)
        if not completions and not self._judging:
            raise EngineError(
                f"the engine returned nothing while {self._asked} requests are pending; poll() "
                "without a timeout must block until one of them has finished"
            )
        self._asked -= len(completions)
        return completions

    def _verdicts(self, completions: Sequence[Completion]) -> Iterator[tuple[Completion, Verified]]:
        """Completions whose verdict is in: new ones that are judged at once, and older ones."""
        for completion in completions:
            yield from self._judging.judge(completion, self.running[completion.id].problem)
        yield from self._judging.verdicts()

    def _counted(self, run: _Run, completion: Completion, judged: Verified) -> Verified:
        """The verdict; a verification that failed is counted, and settled if it was the last attempt."""
        if judged.verdict not in UNSCORED or completion.error is not None:
            return judged
        failed = self._failures.setdefault(self._key(run.problem, run.sample), {})
        turn = len(run.dialogue.turns) + 1
        failed[turn] = failed.get(turn, 0) + 1
        return settle(judged, completion.text) if failed[turn] >= SETTLED_AFTER else judged

    def _verify_again(self, problem: Problem, stored: Trajectory) -> None:
        """Go on with a dialogue where its last response is there and its verdict is not."""
        dialogue = Dialogue(
            prompt=problem.messages, protocol=self._config.protocol, turns=stored.turns[:-1]
        )
        run = _Run(problem=problem, sample=stored.sample, dialogue=dialogue, token_ids=None, again=True)
        if stored.token_ids is not None and stored.response_spans is not None:
            *run.spans, (start, end) = stored.response_spans
            run.token_ids = stored.token_ids[:start]
            before = len(stored.logprobs or ()) - (end - start)
            run.logprobs = None if stored.logprobs is None else list(stored.logprobs[:before])
        request_id = self._request_id(run)
        self.running[request_id] = run
        self._recalled.append(last_completion(stored, request_id))

    def _key(self, problem: Problem, sample: int) -> Key:
        return (problem.prompt_id, self._config.round, self._engine.policy, sample)

    def _request_id(self, run: _Run) -> str:
        turn = len(run.dialogue.turns) + 1
        return f"{run.problem.prompt_id}/{self._config.round}/{run.sample}/{turn}"

    def _request(self, run: _Run) -> Request:
        turn = len(run.dialogue.turns) + 1
        config = self._config
        request = Request(
            id=self._request_id(run),
            messages=run.dialogue.messages,
            token_ids=run.token_ids,
            sampling=config.sampling,
            seed=turn_seed(config.seed, run.problem.prompt_id, config.round, run.sample, turn),
            continues=run.request,
        )
        run.request = request.id
        self.running[request.id] = run
        return request

    def _end_for_context(self, run: _Run) -> None:
        """The engine alone could tell that the last feedback was too much."""
        run.dialogue = end_for_context(run.dialogue)
        if run.token_ids is not None:
            run.token_ids = run.token_ids[: run.spans[-1][1]]

    def _take(self, run: _Run, completion: Completion, judged: Verified) -> None:
        turn = Turn(
            response=completion.text,
            answer=judged.answer,
            verdict=judged.verdict,
            # What is not the engine's failure is verified again by the next run.
            finish_reason=completion.finish_reason if completion.error is None else "error",
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


def _cause(run: _Run, completion: Completion) -> Cause | None:
    """Why a dialogue that ended is unscored; None if it is scored."""
    if run.dialogue.ended != "error":
        return None
    if completion.error is not None:
        return "engine"
    return "timeout" if run.dialogue.turns[-1].verdict == "timeout" else "error"


def _renderer(engine: Engine, prefill: str) -> ChatRenderer | None:
    if engine.tokenizer is not None:
        return ChatRenderer(engine.tokenizer, prefill)
    if prefill:
        raise ValueError("a prefill needs an engine with a tokenizer; this one takes messages")
    return None
