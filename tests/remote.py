"""Engines on scripted servers, and how to ask them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from drift_rollout.engine import Completion, Request, Sampling
from drift_rollout.engines.openai import OpenAIEngine
from drift_rollout.engines.options import OpenAIOptions
from drift_weights import Message
from loopback_openai import LoopbackOpenAI, Reply, Script, chat


@contextmanager
def opened(
    script: Script = lambda call: chat(), *, models: Any = 404, **options: Any
) -> Iterator[tuple[LoopbackOpenAI, OpenAIEngine]]:
    """A server and an engine on it, which does not try again unless it is told to."""
    with LoopbackOpenAI(script, models=models) as server:
        settings = {"base_url": server.base_url, "retries": 0, "timeout": 5.0, **options}
        with closing(OpenAIEngine("m", options=OpenAIOptions(**settings))) as engine:
            yield server, engine


def failing(times: int, reply: Reply) -> Script:
    """The first few replies are this one, the others good."""
    return lambda call: reply if call.number < times else chat()


def ask(name: str = "a", text: str = "1 + 2", **changes: Any) -> Request:
    """A request by message."""
    request = Request(
        id=name,
        messages=(Message(role="user", content=text),),
        token_ids=None,
        sampling=Sampling(temperature=0.6, top_p=0.9, max_new_tokens=7),
        seed=(1 << 63) - 1,
    )
    return replace(request, **changes)


def gather(engine: OpenAIEngine, count: int) -> dict[str, Completion]:
    """The next completions by id; gives up after 20 seconds."""
    got: dict[str, Completion] = {}
    limit = time.monotonic() + 20
    while len(got) < count and time.monotonic() < limit:
        got |= {completion.id: completion for completion in engine.poll(timeout=1)}
    return got


def answered(engine: OpenAIEngine, request: Request) -> Completion:
    """One request's completion."""
    engine.submit([request])
    return gather(engine, 1)[request.id]
