"""The embedded engine: a transformers model, continuously batched, its cache carried over turns."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file

from drift_rollout.engine import Completion, Request, failed, no_room, refuse_duplicates
from drift_rollout.engines.decoder import Decoder
from drift_rollout.engines.fingerprint import model_weights
from drift_rollout.engines.sampling import draw, uniforms
from drift_rollout.engines.slots import Sequence, Slots
from drift_weights.fingerprint import folder_weights, policy_fingerprint
from drift_weights.models import commit_of
from drift_weights.types import FinishReason

_PREFILL = 8192
"""Tokens of one prefill pass, padding included."""
_ADMIT = 8
"""New requests wait until they are one to so many active ones: a prefill pass costs about a decode
step, whatever its size, while it is small."""


class TransformersEngine:
    """Samples from a causal LM of transformers, without a barrier between turns.

    Every step decodes one token for all active requests; finished ones leave and waiting ones enter in
    between. A finished request keeps its cache until it is continued or released; when memory runs
    out, the oldest cache that nobody decodes on is dropped, and its continuation is prefilled anew.
    Equal prompts are prefilled once while one of them is cached. Each request draws from its own
    counter stream, so what it says does not depend, up to rounding, on what else is in the batch.

    Args:
        model: a folder or Hub id, or a loaded model (then with its tokenizer); it is put in eval mode.
        tokenizer: of a loaded model.
        revision: of a Hub id.
        device: "auto" takes an accelerator if there is one; ignored for a loaded model.
        dtype: "auto" is the checkpoint's own; ignored for a loaded model.
        attention: "sdpa" or "eager"; None is the model's own choice; ignored for a loaded model.
        max_slots: requests that hold a cache at once, ≥ 1.
        max_cached_tokens: bound on slots × longest length; None takes a share of free memory.
        context_length: a bound below the model's own.

    Raises:
        ValueError: a loaded model without tokenizer, a bound below 1, a device that is not there, or
            a model that the engine cannot batch.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        attention: str | None = None,
        max_slots: int = 256,
        max_cached_tokens: int | None = None,
        context_length: int | None = None,
    ) -> None:
        bounds = {"max_slots": max_slots, "max_cached_tokens": max_cached_tokens}
        for name, bound in (bounds | {"context_length": context_length}).items():
            if bound is not None and bound < 1:
                raise ValueError(f"{name} must be at least 1, got {bound}")
        weights = None
        if isinstance(model, str | Path):
            name, place = str(model), _device(device)
            revision = commit_of(name, revision) or revision
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(name, revision=revision)
            model = _load(name, revision, dtype, attention).to(place)
            # Loading first: it is what brings a Hub model's weights into the folder.
            weights = folder_weights(_folder(name, revision))
        if tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer: pass tokenizer=")
        model.eval()
        self.tokenizer = tokenizer
        self.policy = policy_fingerprint(weights or model_weights(model), tokenizer)
        self.seeded = True
        self.concurrency = max_slots
        self._decoder = Decoder(model, max_slots=max_slots, max_tokens=max_cached_tokens)
        self._cache = self._decoder.cache
        self._slots = Slots(self._cache)
        self.context_length = min(self._decoder.context_length, context_length or 1 << 62)
        self._vocabulary = model.get_input_embeddings().weight.shape[0]
        self._stops = _stop_ids(model, tokenizer)
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []
        self._finished: dict[str, Sequence] = {}
        self._completions: list[Completion] = []

    def submit(self, requests: Many[Request]) -> None:
        """Queue requests; continuations go first, as their caches take room.

        Raises:
            ValueError: an id in use, no token_ids, ids outside the vocabulary, or a continuation of a
                request that has not finished; nothing is queued then.
        """
        self._check(requests)
        for request in requests:
            assert request.token_ids is not None
            prompt = request.token_ids
            error = no_room(prompt, self.context_length)
            if error is not None:
                self._completions.append(failed(request.id, error))
                continue
            limit = min(len(prompt) + request.sampling.max_new_tokens, self.context_length)
            sequence = Sequence(request=request, tokens=list(prompt), limit=limit, root=prompt)
            before = self._finished.pop(request.continues, None) if request.continues else None
            if before is not None:
                self._slots.inherit(sequence, before)
            if sequence.row < 0:
                self._waiting.append(sequence)
            else:
                self._waiting.appendleft(sequence)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """What finished since the last call; decodes until something does. Empty if nothing is queued."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._completions and (self._active or self._waiting):
            self._step()
            if deadline is not None and time.monotonic() >= deadline:
                break
        completions, self._completions = self._completions, []
        return completions

    def release(self, request_id: str) -> None:
        """Free what a request holds, and cancel it if it is queued or running; unknown ids are ignored."""
        sequence = self._finished.pop(request_id, None) or self._cancel(request_id)
        if sequence is not None:
            self._slots.drop(sequence)
        self._completions = [c for c in self._completions if c.id != request_id]

    def close(self) -> None:
        """Forget every request and give the cache's memory back."""
        self._waiting.clear()
        self._active.clear()
        self._finished.clear()
        self._slots.clear()
        self._completions.clear()
        self._cache.clear()

    def _cancel(self, request_id: str) -> Sequence | None:
        for queue in (self._waiting, self._active):
            for sequence in queue:
                if sequence.request.id == request_id:
                    queue.remove(sequence)
                    sequence.active = False
                    return sequence
        return None

    def _check(self, requests: Many[Request]) -> None:
        pending = {s.request.id for s in (*self._waiting, *self._active)}
        refuse_duplicates(requests, pending | self._finished.keys() | {c.id for c in self._completions})
        for request in requests:
            if request.token_ids is None:
                raise ValueError(f"request {request.id!r} has no token_ids; render its messages first")
            if request.continues in pending:
                raise ValueError(f"request {request.id!r} continues {request.continues!r}, still running")
            ids = request.token_ids or (0,)
            outside = min(ids) if min(ids) < 0 else max(ids)
            if not 0 <= outside < self._vocabulary:
                raise ValueError(
                    f"request {request.id!r} has token {outside}, outside the vocabulary of "
                    f"{self._vocabulary}; was it made with this model's tokenizer?"
                )

    def _step(self) -> None:
        """Let waiting requests in if enough of them wait, and sample one token for each active one."""
        if len(self._waiting) * _ADMIT >= len(self._active):
            self._admit()
        self._slots.gather(self._active)
        self._slots.reserve()
        active = sorted(self._active, key=lambda sequence: sequence.row)
        logits_AV = self._decoder.decode([s.tokens[-1] for s in active], [s.cached for s in active])
        uniform_A = uniforms([s.request.seed for s in active], [len(s.logprobs) for s in active])
        samplings = [s.request.sampling for s in active]
        tokens, logprobs = draw(
            logits_AV, [s.temperature for s in samplings], [s.top_p for s in samplings], uniform_A
        )
        for sequence, token, logprob in zip(active, tokens, logprobs, strict=True):
            if not math.isfinite(logprob):
                self._fail(sequence)
                continue
            sequence.cached += 1
            sequence.tokens.append(token)
            sequence.logprobs.append(logprob)
            if token in self._stops:
                self._finish(sequence, "stop")
            elif len(sequence.tokens) >= sequence.limit:
                self._finish(sequence, "length")
        self._active = [s for s in active if s.active]

    def _fail(self, sequence: Sequence) -> None:
        sequence.active = False
        self._cache.wipe(sequence.row)
        self._slots.drop(sequence)
        error = "the model gave logits that are not a number; try another dtype"
        self._completions.append(failed(sequence.request.id, error))

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.active = False
        self._finished[sequence.request.id] = sequence
        sampled = sequence.tokens[-len(sequence.logprobs) :]
        shown = sampled[:-1] if reason == "stop" else sampled
        text = self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        self._completions.append(
            Completion(
                id=sequence.request.id,
                text=text,
                token_ids=tuple(sampled),
                logprobs=tuple(sequence.logprobs),
                finish_reason=reason,
            )
        )

    def _admit(self) -> None:
        """Give waiting requests rows while there is room, and cache all of their prompts but the end."""
        admitted: list[Sequence] = []
        rows, longest = self._slots.demand
        while self._waiting:
            sequence = self._waiting[0]
            rows_then, longest_then = rows + (sequence.row < 0), max(longest, sequence.limit)
            if self._cache.holds(rows_then, longest_then):
                rows, longest = rows_then, longest_then
                self._waiting.popleft()
                self._slots.take(sequence)
                sequence.active = True
                admitted.append(sequence)
            elif self._active or not self._evict(sequence, alone=not admitted):
                break
            else:
                rows, longest = self._slots.demand
        if admitted:
            self._active += admitted
            self._slots.reserve()
            pairs = self._slots.sources(admitted)
            followers = {id(sequence) for _, sequence in pairs}
            self._prefill([s for s in admitted if id(s) not in followers])
            self._slots.copy(pairs)
            self._prefill([sequence for _, sequence in pairs])

    def _evict(self, newcomer: Sequence, *, alone: bool) -> bool:
        """Drop the cache of the request that finished first, or of the last in the queue.

        The queue gives way only to a newcomer that would be alone: something must always run.
        """
        if self._finished:
            self._slots.drop(self._finished.pop(next(iter(self._finished))))
            return True
        for sequence in reversed(self._waiting):
            if alone and sequence.row >= 0 and sequence is not newcomer:
                self._slots.drop(sequence)
                return True
        return False

    def _prefill(self, sequences: Iterable[Sequence]) -> None:
        """Cache all tokens but the last, which the next decode step feeds, in passes of like lengths."""
        todo = [s for s in sequences if _missing(s)]
        while todo:
            todo.sort(key=lambda s: (s.cached > 0, _missing(s)))
            # Lengths ascend within a pass, so that the last one is what all are padded to.
            batch = [s for size, s in enumerate(todo, 1) if size == 1 or size * _missing(s) <= _PREFILL]
            batch = [s for s in batch if (s.cached > 0) == (batch[0].cached > 0)]
            chunks = [s.tokens[s.cached : s.cached + min(_missing(s), _PREFILL)] for s in batch]
            self._decoder.prefill([s.row for s in batch], [s.cached for s in batch], chunks)
            for sequence, chunk in zip(batch, chunks, strict=True):
                sequence.cached += len(chunk)
            todo = [s for s in todo if _missing(s)]


def _missing(sequence: Sequence) -> int:
    """Tokens to cache before its next one can be sampled in a decode step."""
    return len(sequence.tokens) - 1 - sequence.cached


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    named = model.generation_config.eos_token_id
    listed = named if isinstance(named, list | tuple) else [named]
    return frozenset(i for i in (*listed, tokenizer.eos_token_id) if i is not None)


def _load(model: str, revision: str | None, dtype: str, attention: str | None) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        model, revision=revision, dtype=dtype, attn_implementation=attention
    )


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); choose cpu or auto") from error
    return name


def _folder(name: str, revision: str | None) -> Path:
    """Where the files lie that a model was loaded from."""
    if Path(name).is_dir():
        return Path(name)
    file = cached_file(name, "config.json", revision=revision)
    assert file is not None, "a missing file raises"
    return Path(file).parent
