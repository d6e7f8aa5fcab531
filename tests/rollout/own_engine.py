"""Engines of a user's own, by import path: `--engine rollout.own_engine.Guessing`."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from drift_rollout.engine import Completion, EngineError, Request, ScriptedEngine


class Guessing(ScriptedEngine):
    """Answers the digit that its seed gives; deterministic, without a model.

    Args:
        digits: answers are 0 … digits − 1.
        die_at: the request at which it dies; 0 for never.
        wait: seconds a request takes.
        fail: share of the requests that fail, drawn anew in every process.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None,
        digits: int = 3,
        die_at: int = 0,
        wait: float = 0.0,
        fail: float = 0.0,
    ) -> None:
        self._asked = 0
        draw = random.Random()

        def script(request: Request) -> Completion:
            self._asked += 1
            if self._asked == die_at:
                raise EngineError(f"died at request {die_at}")
            time.sleep(wait)
            if draw.random() < fail:
                return Completion(id=request.id, text="", finish_reason="error", error="drawn to fail")
            return Completion(id=request.id, text=f"<answer> {request.seed % digits} </answer>")

        super().__init__(script, policy=model, concurrency=8, batch=3)


def guessing(**options: Any) -> list[str]:
    """The words that choose it."""
    own = [f"--engine.own.{name}={value}" for name, value in options.items()]
    return ["--engine", "rollout.own_engine.Guessing", *own]


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
"""In which a process of its own finds it."""


class Nothing:
    """No engine."""

    policy = "nothing"

    def __init__(self, model: str, *, revision: str | None) -> None:
        pass

    def submit(self, requests: Any) -> None:
        pass
