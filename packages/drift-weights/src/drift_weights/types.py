"""The frozen records that go through the house: Message, Turn, Trajectory. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Verdict = Literal["correct", "wrong", "malformed", "timeout", "error"]
FinishReason = Literal["stop", "length", "error"]
Ended = Literal["solved", "budget", "context", "error"]
Malformed = Literal["count", "skip"]

VERDICTS: tuple[str, ...] = get_args(Verdict)
UNSCORED: frozenset[str] = frozenset({"timeout", "error"})
"""Verdicts that say nothing about the answer; they end a trajectory unscored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One chat message, verbatim."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One response of the policy, its verdict, and the feedback that followed (y_t and f of eq. 11).

    Raises:
        ValueError: unknown verdict or finish reason; an answer that contradicts the verdict.
    """

    response: str
    """What the policy wrote, verbatim."""
    answer: str | None
    """The verifier's canonical string; None if and only if a scored turn is malformed."""
    verdict: Verdict
    finish_reason: FinishReason = "stop"
    feedback: str | None = None
    """The user message that followed; None after the last turn."""

    def __post_init__(self) -> None:
        if not isinstance(self.response, str):
            raise ValueError(f"a response must be text, got {self.response!r}")
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r} is not one of {', '.join(VERDICTS)}")
        if self.finish_reason not in get_args(FinishReason):
            raise ValueError(f"finish_reason {self.finish_reason!r} is not stop, length or error")
        if self.verdict == "malformed" and self.answer is not None:
            raise ValueError(f"a malformed turn has no answer, got {self.answer!r}")
        if self.verdict in ("correct", "wrong") and self.answer is None:
            raise ValueError(f"a {self.verdict} turn needs an answer; without one it is malformed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One correction dialogue τ = (x_1, y_1, …, x_L, y_L) of a frozen policy (sec. 2).

    The key (prompt_id, round, policy, sample) is unique in a data set; the rows of one
    (prompt_id, round, policy) form a group. Token fields are optional and come together:
    `token_ids` is x_L and y_L end to end, `response_spans` the [start, end) of y_1 … y_L in it,
    `logprobs` the sampled tokens' log-probabilities, span after span.

    Raises:
        ValueError: zero turns, more turns than `max_turns`, a correct or unscored turn that is not
            the last, feedback missing between turns or given after the last, `ended` against the
            turns, or token fields that do not fit together.
    """

    prompt_id: str
    sample: int
    round: int = 0
    policy: str
    prompt: tuple[Message, ...]
    target: str | None
    turns: tuple[Turn, ...]
    max_turns: int
    ended: Ended
    metadata: Mapping[str, Any] = field(default_factory=dict)
    token_ids: tuple[int, ...] | None = None
    response_spans: tuple[tuple[int, int], ...] | None = None
    logprobs: tuple[float, ...] | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        name = f"trajectory {self.key}"
        if not self.turns:
            raise ValueError(f"{name} has no turns")
        if len(self.turns) > self.max_turns:
            raise ValueError(f"{name} has {len(self.turns)} turns, more than max_turns {self.max_turns}")
        for number, turn in enumerate(self.turns[:-1], start=1):
            if turn.verdict == "correct" or turn.verdict in UNSCORED:
                raise ValueError(f"{name}: turn {number} is {turn.verdict} but not the last turn")
            if turn.feedback is None:
                raise ValueError(f"{name}: turn {number} has no feedback but is not the last turn")
        if self.turns[-1].feedback is not None:
            raise ValueError(f"{name}: there is feedback after the last turn")
        last = self.turns[-1].verdict
        expected = {"correct": {"solved"}, "timeout": {"error"}, "error": {"error"}}
        if self.ended not in expected.get(last, {"budget", "context"}):
            raise ValueError(f"{name} ended {self.ended!r}, but its last verdict is {last!r}")
        self._check_tokens(name)

    def _check_tokens(self, name: str) -> None:
        if (self.token_ids is None) != (self.response_spans is None):
            raise ValueError(f"{name}: token_ids and response_spans come together")
        if self.token_ids is None or self.response_spans is None:
            if self.logprobs is not None:
                raise ValueError(f"{name}: logprobs without token_ids")
            return
        if len(self.response_spans) != len(self.turns):
            raise ValueError(f"{name}: {len(self.response_spans)} spans for {len(self.turns)} turns")
        end_before = 0
        for start, end in self.response_spans:
            if not end_before <= start <= end <= len(self.token_ids):
                raise ValueError(f"{name}: span [{start}, {end}) is out of order or out of range")
            end_before = end
        if end_before != len(self.token_ids):
            raise ValueError(f"{name}: token_ids go on after the terminal response")
        sampled = sum(end - start for start, end in self.response_spans)
        if self.logprobs is not None and len(self.logprobs) != sampled:
            raise ValueError(f"{name}: {len(self.logprobs)} logprobs for {sampled} sampled tokens")

    @property
    def key(self) -> tuple[str, int, str, int]:
        """(prompt_id, round, policy, sample), unique everywhere."""
        return (self.prompt_id, self.round, self.policy, self.sample)

    @property
    def length(self) -> int:
        """L, the number of turns, ≥ 1."""
        return len(self.turns)

    @property
    def solved(self) -> bool:
        """Whether the terminal turn is correct: 1[y_L correct]."""
        return self.turns[-1].verdict == "correct"

    @property
    def scored(self) -> bool:
        """Whether every verdict speaks about the answer: no timeout, no error."""
        return self.turns[-1].verdict not in UNSCORED

    @property
    def terminal_prompt(self) -> tuple[Message, ...]:
        """x_L, the whole history before the terminal response (eq. 11)."""
        messages = list(self.prompt)
        for turn in self.turns[:-1]:
            messages.append(Message(role="assistant", content=turn.response))
            assert turn.feedback is not None
            messages.append(Message(role="user", content=turn.feedback))
        return tuple(messages)

    def unique_answers(self, malformed: Malformed = "count") -> int:
        """E of eq. 12: distinct answers; all malformed answers are one value, or none under `skip`."""
        answers = {turn.answer for turn in self.turns}
        return len(answers) if malformed == "count" else len(answers - {None})

    def counted_turns(self, malformed: Malformed = "count") -> int:
        """The denominator under E in eq. 12: L, or the readable turns under `skip`."""
        if malformed == "count":
            return self.length
        return sum(turn.answer is not None for turn in self.turns)


def prompt_id(messages: Sequence[Message], target: str | None) -> str:
    """sha256 of the UTF-8 JSON {messages, target}, sorted keys, no spaces: stable under shuffles."""
    content = {
        "messages": [{"content": m.content, "role": m.role} for m in messages],
        "target": target,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
