"""What an engine is: requests in, completions out, in any order. And a scripted one for tests."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from drift_weights.types import FinishReason, Message


# No slots: jsonargparse reads the fields of a default from its __dict__.
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a response is drawn.

    Raises:
        ValueError: a value out of its range.

    Source: D.2 (temperature and 512 tokens), checklist M4 (top_p).
    """

    temperature: float = 1.0
    """≥ 0; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass in (0, 1]; 1 keeps the whole distribution."""
    max_new_tokens: int = 512
    """Tokens a response at most, ≥ 1."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One response wanted: a history, how to sample, and a seed of its own."""

    id: str
    """Unique among the requests that the engine has not released."""
    messages: tuple[Message, ...]
    """x_t as messages, for engines that take text."""
    token_ids: tuple[int, ...] | None
    """x_t as ids; None only where the engine has no tokenizer."""
    sampling: Sampling
    seed: int
    """In [0, 2^63): the only source of randomness of this response."""
    continues: str | None = None
    """A finished request whose token_ids + sampled ids are a prefix of ours: its cache passes to us."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The answer to one request; a failed one carries its error."""

    id: str
    text: str
    """The sampled ids decoded, special tokens kept, without the stop token that ended it."""
    token_ids: tuple[int, ...] | None = None
    """What was sampled, with its stop token if and only if that was sampled."""
    logprobs: tuple[float, ...] | None = None
    """log π(token | history) of the unmodified model (temperature 1, no top_p), one a token."""
    finish_reason: FinishReason = "stop"
    error: str | None = None
    no_room: bool = False
    """With an error: the history leaves no room for a response. An engine that takes text may find out."""


class EngineError(RuntimeError):
    """An engine that died, or does not do what an engine has to: no request of it will be answered."""


class Engine(Protocol):
    """A frozen policy that answers requests, continuously batched.

    `poll` blocks until something finished or `timeout` seconds passed. A request that fails is a
    Completion with its error; an engine that dies raises an EngineError. A finished request keeps its
    cache until it is continued or released. Releasing every id that was submitted leaves the engine as
    good as new.

    An engine may have a `capacity` ≥ `concurrency`: dialogues whose caches it can keep while others are
    answered. With it the end of a run, where fewer and fewer are left, takes less time.
    """

    @property
    def policy(self) -> str:
        """Fingerprint of weights and tokenizer, or a declared name."""

    @property
    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer with a chat template, or None for engines that take text."""

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and response together."""

    @property
    def seeded(self) -> bool:
        """Whether equal requests with equal seeds give equal responses."""

    @property
    def concurrency(self) -> int:
        """Requests that are worth having in flight."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; those with equal prompts, submitted together, may share their prefill."""

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """What finished since the last call; blocks up to `timeout` seconds, None without limit.

        Without a timeout it returns nothing only if no request is pending.
        """

    def release(self, request_id: str) -> None:
        """Free what a finished request holds, and cancel one that is queued or running.

        The completion of a cancelled request never comes. Unknown ids are ignored.
        """

    def close(self) -> None:
        """Free everything."""


Script = Callable[[Request], Completion]


class ScriptedEngine:
    """An engine that answers from a function, for exact tests of everything around an engine.

    Completions come back in submission order, `batch` at a time, so a loop sees turns interleave.
    With a tokenizer, a prompt that is empty or leaves no room fails, and the script does not see it.

    Args:
        script: the completion of a request; its id is filled in if empty.
        tokenizer: rendered with, or None for a text engine.
        batch: completions a poll.
    """

    def __init__(
        self,
        script: Script,
        *,
        tokenizer: Any = None,
        policy: str = "scripted",
        context_length: int = 1 << 20,
        concurrency: int = 8,
        batch: int = 3,
    ) -> None:
        self.policy = policy
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.seeded = True
        self.concurrency = concurrency
        self.requests: list[Request] = []
        self.released: list[str] = []
        self._script = script
        self._batch = batch
        self._queue: deque[Request] = deque()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests.

        Raises:
            ValueError: an id that is queued already, or twice in this call; nothing is queued then.
        """
        refuse_duplicates(requests, {request.id for request in self._queue})
        self.requests.extend(requests)
        self._queue.extend(requests)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Answer the next few requests."""
        count = min(self._batch, len(self._queue))
        return [self._answer(self._queue.popleft()) for _ in range(count)]

    def release(self, request_id: str) -> None:
        """Note the release, and forget the request if it is queued."""
        self.released.append(request_id)
        self._queue = deque(request for request in self._queue if request.id != request_id)

    def close(self) -> None:
        """Forget what is queued."""
        self._queue.clear()

    def _answer(self, request: Request) -> Completion:
        error = None if request.token_ids is None else no_room(request.token_ids, self.context_length)
        if error is not None:
            return failed(request.id, error)
        completion = self._script(request)
        return completion if completion.id else replace(completion, id=request.id)


def failed(request_id: str, error: str) -> Completion:
    """The completion of a request that got no response."""
    return Completion(id=request_id, text="", token_ids=(), logprobs=(), finish_reason="error", error=error)


def no_room(prompt: Sequence[int], context_length: int) -> str | None:
    """What is wrong with a prompt that is empty or leaves no room for a response; None if nothing is."""
    if not prompt:
        return "the prompt is empty"
    if len(prompt) >= context_length:
        return f"{len(prompt)} prompt tokens leave no room in a context of {context_length}"
    return None


def refuse_duplicates(requests: Sequence[Request], taken: Collection[str]) -> None:
    """Refuse requests whose id is taken, or that two of them share.

    Raises:
        ValueError: the first such id.
    """
    seen: set[str] = set()
    for request in requests:
        if request.id in taken or request.id in seen:
            raise ValueError(f"request {request.id!r} exists already; release it or rename this one")
        seen.add(request.id)


def turn_seed(run_seed: int, prompt_id: str, round_: int, sample: int, turn: int) -> int:
    """The seed of one turn: a hash of (run, prompt, round, sample, turn), in [0, 2^63).

    Turns of different samples never share a seed, so equal histories still draw independently.
    """
    text = f"{run_seed}/{prompt_id}/{round_}/{sample}/{turn}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
