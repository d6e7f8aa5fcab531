"""Rollouts with vLLM in this process: its asynchronous engine on a thread, behind a blocking interface."""

from __future__ import annotations

import asyncio
import itertools
import math
import multiprocessing
import queue
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any

from drift_rollout.engine import Completion, EngineError, Request
from drift_rollout.engines import vllm_arguments
from drift_rollout.engines.options import VLLMOptions
from drift_weights.names import check_model

_LOOK = 1.0
"""Seconds between two looks at whether the engine lives."""
_GONE = 10.0
"""Seconds that a killed process may take to vanish."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A request in flight."""

    request: Request
    number: int
    """Unique in the life of the engine: an id may come back, and what its earlier owner left must not."""
    copy: int | None
    """Of the model, if there are several."""


class VLLMEngine:
    """Samples with vLLM: ids in and ids out, continuously batched, with prefix caching.

    Samples of one prompt share its prefill, and a dialogue's next turn finds what vLLM still has of the
    last one. Log-probabilities are the unmodified model's. On a CPU requests cannot bring their seeds,
    and the engine says so.

    Args:
        model: a folder or Hub id.
        revision: of a Hub id.
        options: precision, lengths, devices, adapter.

    Raises:
        ValueError: vLLM is not installed, options or a model that it refuses, or a folder without
            weights or without the adapter that it should hold.
        FileNotFoundError: a model that is neither a folder nor a Hub id.
        EngineError: the engine did not start.
    """

    def __init__(
        self, model: str, *, revision: str | None = None, options: VLLMOptions = VLLMOptions()
    ) -> None:
        name = check_model(str(model))
        self.cached_tokens = 0
        """Tokens of prompts, so far, that vLLM found in its cache."""
        self._numbers = itertools.count()
        self._pending: dict[str, _Job] = {}
        self._finished: dict[str, _Job] = {}
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._outcomes: queue.SimpleQueue[tuple[_Job, Any]] = queue.SimpleQueue()
        self._copies = options.data_parallel_size
        before = set(multiprocessing.active_children())
        self._engine: Any
        self._engine, revision = vllm_arguments.start(name, revision, options)
        self._processes = [one for one in multiprocessing.active_children() if one not in before]
        self._thread = _LoopThread()
        with ExitStack() as stack:
            stack.callback(self.close)
            # The first call starts to listen, so that a death before the first request is heard.
            self._thread.call(self._engine.get_supported_tasks())
            self.tokenizer = vllm_arguments.tokenizer_of(name, revision)
            self.policy = vllm_arguments.policy_of(name, revision, self.tokenizer, options)
            config = self._engine.vllm_config
            self.concurrency = config.scheduler_config.max_num_seqs * self._copies
            self.capacity = vllm_arguments.kept_dialogues(config) * self._copies
            self.context_length = config.model_config.max_model_len
            self.seeded = vllm_arguments.takes_seeds()
            self._vocabulary = config.model_config.get_vocab_size()
            self._stops = vllm_arguments.stop_ids(config.model_config, self.tokenizer)
            self._adapter = vllm_arguments.adapter_request(options)
            if self._adapter is not None:
                self._thread.call(self._engine.add_lora(self._adapter))
            stack.pop_all()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests.

        Raises:
            ValueError: an id in use, no token_ids, ids outside the vocabulary, or a continuation of a
                request that has not finished; nothing is queued then.
            EngineError: the engine died.
        """
        self._check(requests)
        self._check_alive()
        jobs = self._place(requests)
        self._pending |= {job.request.id: job for job in jobs}
        self._thread.soon(self._begin, jobs)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """What finished since the last call; blocks until something does. Empty if nothing is queued.

        Raises:
            EngineError: the engine died.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        completions: list[Completion] = []
        while self._pending and not completions:
            left = max(deadline - time.monotonic(), 0)
            try:
                outcomes = [self._outcomes.get(timeout=min(left, _LOOK))]
            except queue.Empty:
                self._check_alive()
                if left == 0:
                    break
                continue
            while not self._outcomes.empty():
                outcomes.append(self._outcomes.get())
            completions = [self._finish(job, outcome) for job, outcome in outcomes if self._waits_for(job)]
        return completions

    def release(self, request_id: str) -> None:
        """Forget a finished request, and cancel one that is queued or running; unknown ids are ignored."""
        self._finished.pop(request_id, None)
        job = self._pending.pop(request_id, None)
        if job is not None:
            self._thread.soon(self._cancel, job.number)

    def close(self) -> None:
        """Forget every request, and end the engine's processes."""
        self._pending.clear()
        self._finished.clear()
        engine, self._engine = self._engine, None
        if engine is not None:
            self._thread.close(engine.shutdown)
        # It kills those that linger without waiting for their end, which is what frees their memory.
        for process in self._processes:
            process.join(_GONE)

    def _check(self, requests: Sequence[Request]) -> None:
        taken = self._pending.keys() | self._finished.keys()
        for request in requests:
            if request.id in taken:
                raise ValueError(f"request {request.id!r} exists already; release it or rename this one")
            if request.token_ids is None:
                raise ValueError(f"request {request.id!r} has no token_ids; render its messages first")
            if request.continues in self._pending:
                raise ValueError(f"request {request.id!r} continues {request.continues!r}, still running")
            outside = [i for i in request.token_ids if not 0 <= i < self._vocabulary]
            if outside:
                raise ValueError(
                    f"request {request.id!r} has token {outside[0]}, outside the vocabulary of "
                    f"{self._vocabulary}; was it made with this model's tokenizer?"
                )
            taken.add(request.id)

    def _check_alive(self) -> None:
        if self._engine is None:
            raise RuntimeError("the engine is closed; start another one")
        if self._engine.errored:
            raise _dead()

    def _place(self, requests: Sequence[Request]) -> list[_Job]:
        """Choose a copy for each: the one that has its cache, else the idlest, equal prompts together."""
        load = Counter(job.copy for job in self._pending.values())
        copies: dict[tuple[int, ...] | None, int] = {}
        jobs = []
        for request in requests:
            before = self._finished.pop(request.continues, None) if request.continues else None
            copy = before.copy if before is not None else copies.get(request.token_ids)
            if copy is None and self._copies > 1:
                copy = min(range(self._copies), key=lambda one: load[one])
                copies[request.token_ids] = copy
            load[copy] += 1
            jobs.append(_Job(request, next(self._numbers), copy))
        return jobs

    def _begin(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            task = asyncio.get_running_loop().create_task(self._answer(job))
            self._tasks[job.number] = task
            task.add_done_callback(partial(self._end, job))

    async def _answer(self, job: _Job) -> Any:
        seed = job.request.seed if self.seeded else None
        prompt, sampling = vllm_arguments.prompt_and_sampling(job.request, self._stops, seed)
        answers = self._engine.generate(
            prompt,
            sampling,
            str(job.number),
            lora_request=self._adapter,
            data_parallel_rank=job.copy,
        )
        return [answer async for answer in answers][-1]

    def _end(self, job: _Job, task: asyncio.Task[Any]) -> None:
        del self._tasks[job.number]
        if not task.cancelled():
            self._outcomes.put((job, task.exception() or task.result()))

    def _cancel(self, number: int) -> None:
        task = self._tasks.get(number)
        if task is not None:
            task.cancel()

    def _waits_for(self, job: _Job) -> bool:
        return self._pending.get(job.request.id) is job

    def _finish(self, job: _Job, outcome: Any) -> Completion:
        if isinstance(outcome, BaseException):
            if not vllm_arguments.concerns_one_request(outcome):
                raise _dead() from outcome
            completion = _failed(job.request, str(outcome))
        else:
            self.cached_tokens += outcome.num_cached_tokens or 0
            completion = self._completion(job.request, outcome.outputs[0])
        self._finished[job.request.id] = self._pending.pop(job.request.id)
        return completion

    def _completion(self, request: Request, found: Any) -> Completion:
        sampled, reason = tuple(found.token_ids), found.finish_reason
        # Of each position the sampled token comes first.
        logprobs = tuple(found.logprobs.logprobs[start] for start in found.logprobs.start_indices)
        assert len(logprobs) == len(sampled)
        if reason not in ("stop", "length"):
            return _failed(request, f"vLLM ended the request with {reason!r}")
        if not all(map(math.isfinite, logprobs)):
            error = "the model gave logits that are not a number; try another dtype"
            return _failed(request, error)
        shown = sampled[:-1] if reason == "stop" else sampled
        text = self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Completion(
            id=request.id, text=text, token_ids=sampled, logprobs=logprobs, finish_reason=reason
        )


class _LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="drift-vllm", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Its result, or what it raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def soon(self, function: Any, *arguments: Any) -> None:
        """Call a function on the thread, in the order of these calls."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def close(self, last: Any) -> None:
        """Cancel what runs, call a last function, and end the thread."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            last()
            await asyncio.gather(*others, return_exceptions=True)

        self.call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _failed(request: Request, error: str) -> Completion:
    return Completion(id=request.id, text="", token_ids=(), logprobs=(), finish_reason="error", error=error)


def _dead() -> EngineError:
    return EngineError(
        "vLLM's engine died; its own lines above say why. Start another one: a run goes on from its journal"
    )
