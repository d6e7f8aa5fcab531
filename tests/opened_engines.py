"""Engines by import path, to be opened in this process or another; torch only where it is needed."""

from __future__ import annotations

import os
import random
import time
from functools import cache
from pathlib import Path
from typing import Any

from drift_rollout import Completion, ScriptedEngine
from drift_rollout.engine import Request


@cache
def tokenizer() -> Any:
    from tiny import bpe_tokenizer

    return bpe_tokenizer()


def babble(request: Request) -> Completion:
    """Letters at random, from prompt and seed alone, that end one time in ten."""
    greedy = request.sampling.temperature == 0
    key = (request.token_ids or request.messages, None if greedy else request.seed)
    chance = random.Random(repr(key))
    letters: list[str] = []
    stopped = False
    while len(letters) < request.sampling.max_new_tokens and not stopped:
        letters.append(chance.choice("abcdefgh"))
        stopped = chance.random() < 0.1
    reason = "stop" if stopped else "length"
    if request.token_ids is None:
        return Completion(
            id=request.id, text="".join(letters[:-1] if stopped else letters), finish_reason=reason
        )
    ids = tokenizer().convert_tokens_to_ids(letters)
    return Completion(
        id="",
        text=tokenizer().decode(ids[:-1] if stopped else ids),
        token_ids=tuple(ids),
        logprobs=(-1.0,) * len(ids),
        finish_reason=reason,
    )


def guess(request: Request) -> Completion:
    """An answer from 0 to 3, by prompt, turn and seed."""
    return Completion(
        id=request.id, text=f"<answer> {random.Random(repr(request.seed)).randrange(4)} </answer>"
    )


def guessing(
    model: str,
    *,
    revision: str | None = None,
    folder: str,
    policy: str = "guessing",
    capacity: int | None = None,
) -> ScriptedEngine:
    """Answers one request a poll, 5 ms each, and leaves the process id that it was opened in."""
    own = os.getpid()
    (Path(folder) / str(own)).touch()

    def script(request: Request) -> Completion:
        time.sleep(0.005)
        return guess(request)

    engine = ScriptedEngine(script, policy=policy.format(pid=own), concurrency=4, batch=1)
    if capacity is not None:
        engine.capacity = capacity
    return engine


class _Gated(ScriptedEngine):
    """Gives no answer before a file is there."""

    gate: Path

    def poll(self, timeout: float | None = None) -> list[Completion]:
        if not self.gate.exists():
            time.sleep(timeout or 0)
            return []
        return super().poll(timeout)


def gated(model: str, *, revision: str | None = None, folder: str) -> ScriptedEngine:
    """The first one that is opened waits for FOLDER/open; the others answer at once."""
    try:
        (Path(folder) / "first").touch(exist_ok=False)
    except FileExistsError:
        return ScriptedEngine(guess)
    engine = _Gated(guess)
    engine.gate = Path(folder) / "open"
    return engine


class _Failing(ScriptedEngine):
    """Refuses messages that say so, and breaks on others."""

    def submit(self, requests: Any) -> None:
        if any("refuse" in request.messages[0].content for request in requests):
            raise ValueError("refused, as asked")
        super().submit(requests)


def failing(model: str, *, revision: str | None = None) -> ScriptedEngine:
    """Raises while it works when a message says break."""

    def script(request: Request) -> Completion:
        if "break" in request.messages[0].content:
            raise RuntimeError("broken, as asked")
        return guess(request)

    return _Failing(script, concurrency=4)


def absent(model: str, *, revision: str | None = None) -> ScriptedEngine:
    """Cannot be opened; says where its environment has the model."""
    raise OSError(f"there is no model {os.environ.get('MODEL_AT')}")


def stopping(model: str = "", *, revision: str | None = None, **options: Any) -> Any:
    """TransformersEngine in float64 on a tiny model that stops at one token in ten of its vocabulary."""
    from drift_rollout.engines.transformers import TransformersEngine
    from tiny import tiny_model

    tiny = tiny_model(vocab=len(tokenizer())).double()
    tiny.generation_config.eos_token_id = list(range(300, 340))
    return TransformersEngine(tiny, tokenizer=tokenizer(), **options)


def stopping_logprobs(ids: tuple[int, ...], sampled: tuple[int, ...]) -> list[float]:
    """Of the policy of `stopping`, from whole forward passes."""
    from embedded import plain_logprobs

    return plain_logprobs(stopping()._decoder._model, ids, sampled)
