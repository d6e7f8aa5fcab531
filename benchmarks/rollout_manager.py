"""transformers' own continuous batching as an engine, as well as its public interface allows.

What it decides for all requests at once (greedy or not, one generator of random numbers) is set when it is
opened. The K samples of a prompt are forks of one request, and a next turn finds its history in the blocks
that the manager keeps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count, groupby
from typing import Any

from transformers.generation.configuration_utils import ContinuousBatchingConfig, GenerationConfig

from drift_rollout.engine import Completion, EngineError, Request, Sampling, failed

PAGE = 16
"""Tokens of a cache block: what is shared are whole blocks."""
BLOCKS, BATCH = 48, 1024
"""Blocks of the cache for each request of a batch, and tokens of a pass; left to itself it sizes both by
the machine's memory."""


class ManagerEngine:
    """The Engine protocol over a ContinuousBatchingManager.

    Args:
        model: a loaded causal LM.
        tokenizer: its tokenizer.
        sampling: greedy or not for all requests; temperature and top-p of those that are `varied`.
        width: requests in a batch, ≥ 1.
        varied: whether requests bring temperature and top-p of their own.
        pass_seed: hand over each request's seed, too.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any,
        sampling: Sampling,
        width: int,
        varied: bool = False,
        pass_seed: bool = False,
    ) -> None:
        self.policy = "manager"
        self.tokenizer = tokenizer
        self.context_length = model.config.max_position_embeddings
        self.seeded = False
        self.concurrency = width
        self._varied, self._pass_seed = varied, pass_seed
        self._stop = tokenizer.eos_token_id
        self._names = count()
        self._pending: dict[str, Request] = {}
        self._manager = model.init_continuous_batching(
            generation_config=_generation(sampling, self._stop, varied=varied),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=max(512, BLOCKS * width),
                max_batch_tokens=BATCH,
                max_requests_per_batch=width,
                return_logprobs=True,
                per_request_processors=varied,
                seed=0,
            ),
        )
        # So that it allocates its cache now, and not in its thread.
        self._manager.warmup()
        self._manager.start()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; equal first turns next to each other become forks of one."""
        for _, group in groupby(requests, key=_alike):
            self._fork(list(group))

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """What finished since the last call.

        Raises:
            EngineError: the manager's thread has died.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        found: list[Completion] = []
        while self._pending and not found:
            result = self._manager.get_result(timeout=0.05)
            while result is not None:
                request = self._pending.pop(result.request_id, None)
                found += [] if request is None else [self._completion(request, result)]
                result = self._manager.get_result(timeout=0)
            if not found and not self._manager.is_running():
                raise EngineError(str(self._manager.background_thread_status.fatal_error))
            if deadline is not None and time.monotonic() >= deadline:
                break
        return found

    def release(self, request_id: str) -> None:
        """Cancel a request; what a finished one holds is the manager's to forget."""
        for name, request in list(self._pending.items()):
            if request.id == request_id:
                del self._pending[name]
                self._manager.cancel_request(name)

    def close(self) -> None:
        """End the manager's thread."""
        self._pending.clear()
        self._manager.stop(block=True, hard_stop=True)
        self._manager.destroy()

    def _fork(self, group: list[Request]) -> None:
        first, name = group[0], str(next(self._names))
        names = [name, *(f"{name}__child#{n}" for n in range(len(group) - 1))]
        self._pending |= dict(zip(names, group, strict=True))
        assert first.token_ids is not None
        room = self.context_length - len(first.token_ids)
        own: dict[str, Any] = {"seed": first.seed} if self._pass_seed else {}
        if self._varied:
            own |= {"temperature": first.sampling.temperature, "top_p": first.sampling.top_p}
        self._manager.num_return_sequences = len(group)
        self._manager.add_request(
            list(first.token_ids),
            request_id=name,
            max_new_tokens=min(first.sampling.max_new_tokens, room),
            eos_token_id=self._stop,
            **own,
        )

    def _completion(self, request: Request, result: Any) -> Completion:
        if result.error is not None:
            return failed(request.id, result.error)
        stopped = result.generated_tokens[-1] == self._stop
        shown = result.generated_tokens[:-1] if stopped else result.generated_tokens
        return Completion(
            id=request.id,
            text=self.tokenizer.decode(shown, clean_up_tokenization_spaces=False),
            token_ids=tuple(result.generated_tokens),
            logprobs=tuple(result.logprobs),
            finish_reason="stop" if stopped else "length",
        )


def _alike(request: Request) -> tuple[Any, ...]:
    # Not later turns: forks of a history that the cache holds but for a token make a batch of no tokens,
    # and end the manager's thread.
    return request.token_ids, request.sampling, request.continues


def _generation(sampling: Sampling, stop: int, *, varied: bool) -> GenerationConfig:
    if sampling.temperature == 0:
        return GenerationConfig(do_sample=False, eos_token_id=stop, pad_token_id=stop)
    # Of a setting that is 1 it makes no processor, and then refuses it from a request.
    temperature, top_p = (0.7, 0.9) if varied else (sampling.temperature, sampling.top_p)
    return GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        eos_token_id=stop,
        pad_token_id=stop,
    )
