"""Verifiers that fail a few times before they answer, and engines whose responses tell them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from drift_rollout.engine import Completion, Request, ScriptedEngine
from drift_rollout.verifiers.exact import ExactVerifier
from drift_rollout.verify import Verified
from drift_weights.types import Verdict


@dataclass(frozen=True, kw_only=True)
class Late(ExactVerifier):
    """Gives the verdict of `exact` on a response after it has failed on it so many times."""

    times: Callable[[str], int]
    """Of a response."""
    verdict: Verdict = "timeout"
    reads: bool = False
    """Whether it reads the answer all the same."""
    concurrency: int = 0
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """That of the verifier that does not fail."""
        return "exact/1"

    def verify(self, response: str, target: str) -> Verified:
        """Fail, or judge."""
        self.asked[response] += 1
        judged = ExactVerifier().verify(response, target)
        if self.asked[response] > self.times(response):
            return judged
        return Verified(answer=judged.answer if self.reads else None, verdict=self.verdict)


def seed_of(response: str) -> int:
    """What an engine of `telling` put into it."""
    return int(response.split()[0])


def telling(tokenizer: Any = None, context_length: int = 1 << 20) -> ScriptedEngine:
    """An engine whose every response is another, with ids that no encoding of its text would give."""

    def script(request: Request) -> Completion:
        text = f"{request.seed} <answer> {request.seed % 5} </answer>"
        if tokenizer is None:
            return Completion(id=request.id, text=text)
        stop = request.seed % 7 > 0
        ids = [i for c in text for i in tokenizer(c, add_special_tokens=False)["input_ids"]]
        ids += [tokenizer.eos_token_id] if stop else []
        return Completion(
            id=request.id,
            text=text,
            token_ids=tuple(ids),
            logprobs=tuple(-(request.seed % 1000 + n) / 8 for n in range(len(ids))),
            finish_reason="stop" if stop else "length",
        )

    return ScriptedEngine(script, tokenizer=tokenizer, context_length=context_length)
