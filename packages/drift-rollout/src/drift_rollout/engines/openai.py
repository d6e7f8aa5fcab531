"""The remote engine: any server that speaks the protocol of OpenAI (vLLM, SGLang, llama.cpp …)."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import Any

from drift_rollout.engine import Completion, Request
from drift_rollout.engines.openai_server import Server
from drift_rollout.engines.options import OpenAIOptions
from drift_weights.models import commit_of

_CLOSING_S = 10.0

Arrived = tuple[int, str, Completion | BaseException]
"""Ticket, request and what became of it."""


class OpenAIEngine:
    """Samples from a served model: requests run in a thread of their own, with retries.

    Without `options.tokenizer` messages go to /v1/chat/completions and text alone comes back. With it,
    token ids go to /v1/completions and sampled ids come back, so that what was sampled is what is
    continued; only a server that gives ids can do that (vLLM).

    Log-probabilities are kept only where they are log π of the unmodified model. vLLM's are by default
    (`logprobs_mode` raw_logprobs); of other servers, which may report them after temperature and cuts,
    they are left out unless `options.logprobs` vouches for them.

    To vLLM, SGLang and llama.cpp every request says that there is no top-k, min-p or repetition penalty,
    which their own or the model's defaults may hold. `transformers serve` knows no such fields: it
    samples as the model's generation_config.json says, and is greedy where that has no `do_sample`.

    `policy` is `openai:` and the declared name (of an absolute path its last part), with `@revision` if one
    is given: the prefix marks that nobody verified it.

    Args:
        model: the name under which the model is served.
        revision: what the server is said to serve; noted in the policy's name, and the tokenizer's.
        options: where the server is, and how it is asked.

    Raises:
        ValueError: a model name that is empty, a key that no header can hold, or transformers missing
            for a tokenizer.
        EngineError: nobody listens there.
        PermissionError: the server refuses the key.
    """

    def __init__(
        self, model: str, *, revision: str | None = None, options: OpenAIOptions = OpenAIOptions()
    ) -> None:
        if not model:
            raise ValueError("the model needs the name under which it is served")
        self.policy = _policy(model, revision)
        self.tokenizer = None if options.tokenizer is None else _tokenizer(options.tokenizer, revision)
        self.seeded = options.seeded
        self.concurrency = options.concurrency
        self._running: dict[str, tuple[int, Future[None]]] = {}
        """Requests without completion: ticket and task. A ticket outlives no release, as ids may."""
        self._held: set[str] = set()
        self._tickets = itertools.count()
        self._arrived: queue.SimpleQueue[Arrived] = queue.SimpleQueue()
        self._fatal: BaseException | None = None
        self._server = Server(model, options, self.tokenizer)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="drift-openai", daemon=True)
        self._thread.start()
        refusal = self._run(self._server.describe()).result()
        if refusal is not None:
            self.close()
            raise refusal
        self.context_length = self._server.context_length

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests.

        Raises:
            ValueError: an id in use, a continuation of a request that has not finished, or no token_ids
                where there is a tokenizer; nothing is queued then.
        """
        if self._loop.is_closed():
            raise ValueError("the engine is closed")
        self._check(requests)
        for request in requests:
            self._held.discard(request.continues or "")
            self._held.add(request.id)
            ticket = next(self._tickets)
            task = self._run(self._answer(ticket, request))
            self._running[request.id] = (ticket, task)
            task.add_done_callback(partial(self._relay, ticket, request.id))

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """What finished since the last call; blocks while something runs, up to `timeout` seconds.

        Raises:
            EngineError: the server is dead.
            PermissionError: it refuses the key.
            ValueError: it has no such model, or gives no ids where there is a tokenizer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        completions: list[Completion] = []
        while self._fatal is None and self._running and not completions:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                self._take(completions, self._arrived.get(timeout=left))
            except queue.Empty:
                break
            while not self._arrived.empty():
                self._take(completions, self._arrived.get())
        if self._fatal is not None and not completions:
            raise self._fatal
        return completions

    def release(self, request_id: str) -> None:
        """Forget a request, and hang up on it if it is running; unknown ids are ignored."""
        self._held.discard(request_id)
        _, task = self._running.pop(request_id, (0, None))
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """Cancel what is running, hang up, and end the thread."""
        if self._loop.is_closed():
            return
        for request_id in list(self._running):
            self.release(request_id)
        self._held.clear()
        self._run(self._hang_up()).result(_CLOSING_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSING_S)
        self._loop.close()

    def _check(self, requests: Sequence[Request]) -> None:
        taken = set(self._held)
        for request in requests:
            if request.id in taken:
                raise ValueError(f"request {request.id!r} exists already; release it or rename this one")
            if self.tokenizer is not None and request.token_ids is None:
                raise ValueError(f"request {request.id!r} has no token_ids; render its messages first")
            if request.continues in self._running:
                raise ValueError(f"request {request.id!r} continues {request.continues!r}, still running")
            taken.add(request.id)

    def _take(
        self, completions: list[Completion], item: tuple[int, str, Completion | BaseException]
    ) -> None:
        ticket, request_id, outcome = item
        if self._running.get(request_id, (None, None))[0] != ticket:
            return
        del self._running[request_id]
        if isinstance(outcome, Completion):
            completions.append(outcome)
        else:
            self._fatal = self._fatal or outcome

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _answer(self, ticket: int, request: Request) -> None:
        self._arrived.put((ticket, request.id, await self._server.answer(request)))

    def _relay(self, ticket: int, request_id: str, done: Future[None]) -> None:
        """What nobody expected must not leave `poll` waiting."""
        try:
            error = done.exception()
        except CancelledError:
            return
        if error is not None:
            self._arrived.put((ticket, request_id, error))

    async def _hang_up(self) -> None:
        others = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._server.close()


def _policy(model: str, revision: str | None) -> str:
    """A declared name; where a server's folder lies is nobody's business."""
    name = Path(model).name if Path(model).is_absolute() else model
    return f"openai:{name}" if revision is None else f"openai:{name}@{revision}"


def _tokenizer(name: str, revision: str | None) -> Any:
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; a tokenizer needs drift-rollout[transformers]") from error
    return AutoTokenizer.from_pretrained(name, revision=commit_of(name, revision))
