"""Hypothesis strategies for the whole project; needs nothing beyond drift-weights and numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from numpy.typing import NDArray

from drift_weights.returns import trajectory_return
from drift_weights.schema import WEIGHTED
from drift_weights.types import VERDICTS, Message, Trajectory, Turn

Floats = NDArray[np.float64]
UNSOLVED = ("wrong", "malformed")
ANSWERS = ("1", "2", "3", "x + 1", "−7/2", "中文")
FEEDBACK = "Incorrect. Please think again."


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What eq. 12 needs of one trajectory: solved, L, E and the turns that E speaks about."""

    solved: bool
    length: int
    unique: int
    counted: int


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyedReturns:
    """A table of (group, return) rows in no particular order."""

    group_N: list[Any]
    return_N: list[float]


def betas(smallest: float = 1e-6, largest: float = 1e6) -> st.SearchStrategy[float]:
    """β, spread evenly over the orders of magnitude."""
    exponents = st.floats(float(np.log10(smallest)), float(np.log10(largest)))
    return exponents.map(lambda exponent: float(min(max(10.0**exponent, smallest), largest)))


def gammas() -> st.SearchStrategy[float]:
    """γ in (0, 1]."""
    return st.floats(0.0, 1.0, exclude_min=True, allow_subnormal=False) | st.sampled_from([0.9, 1.0])


def lams() -> st.SearchStrategy[float]:
    """λ ≥ 0."""
    return st.floats(0.0, 4.0, allow_subnormal=False) | st.sampled_from([0.0, 0.5])


@st.composite
def counts(draw: st.DrawFn, max_turns: int = 8, *, skip: bool = False) -> Counts:
    """One row of (solved, L, E, counted); `skip` also leaves turns out of the count, even all."""
    length = draw(st.integers(1, max_turns))
    counted = draw(st.integers(0, length)) if skip else length
    unique = draw(st.integers(1, counted)) if counted else 0
    return Counts(solved=draw(st.booleans()), length=length, unique=unique, counted=counted)


def returns() -> st.SearchStrategy[float]:
    """R: values that eq. 12 takes at the paper's γ and λ, and any others near them."""
    paper = counts(5).map(lambda c: c.solved * 0.9 ** (c.length - 1) - 0.5 * (1 - c.unique / c.length))
    return paper | st.floats(-2.0, 2.0, allow_subnormal=False)


def return_groups(
    min_size: int = 1, max_size: int = 20, values: st.SearchStrategy[float] | None = None
) -> st.SearchStrategy[list[float]]:
    """The returns of one group, K = `min_size` … `max_size`."""
    return st.lists(returns() if values is None else values, min_size=min_size, max_size=max_size)


def group_keys() -> st.SearchStrategy[Any]:
    """Keys of every kind that a log may hold: text, whole numbers, (prompt_id, round, policy)."""
    text = st.text(max_size=6)
    return text | st.integers(-(2**40), 2**40) | st.tuples(text, st.integers(0, 3), text)


@st.composite
def keyed_returns(draw: st.DrawFn, max_groups: int = 5, max_size: int = 12) -> KeyedReturns:
    """Several groups of unequal size, their rows interleaved."""
    keys = draw(st.lists(group_keys(), min_size=1, max_size=max_groups, unique=True))
    rows = [(key, r) for key in keys for r in draw(return_groups(max_size=max_size))]
    shuffled = draw(st.permutations(rows))
    return KeyedReturns(group_N=[key for key, _ in shuffled], return_N=[r for _, r in shuffled])


def dialogues(max_turns: int = 5, *, scored: bool = False) -> st.SearchStrategy[list[str]]:
    """Verdict lists of the protocol: nothing but rejections before the last turn."""
    ends = (*UNSOLVED, "correct") if scored else VERDICTS
    before = st.lists(st.sampled_from(UNSOLVED), max_size=max_turns - 1)
    return st.builds(lambda rejected, last: [*rejected, last], before, st.sampled_from(ends))


@st.composite
def turns(draw: st.DrawFn, verdict: str, *, last: bool = True) -> Turn:
    """A turn with this verdict; feedback follows unless it is the last."""
    answers = st.sampled_from(ANSWERS)
    answer = {"correct": answers, "wrong": answers, "malformed": st.none(), "error": st.none()}
    failed = verdict == "error"
    return Turn(
        response="" if failed else draw(st.text(max_size=20)),
        answer=draw(answer.get(verdict, st.none() | answers)),
        verdict=verdict,
        finish_reason="error" if failed else draw(st.sampled_from(["stop", "length"])),
        feedback=None if last else draw(st.just(FEEDBACK) | st.text(min_size=1, max_size=20)),
    )


def messages() -> st.SearchStrategy[tuple[Message, ...]]:
    """A first prompt x_1: an optional system message, then the user's."""
    user = st.builds(Message, role=st.just("user"), content=st.text(max_size=30))
    system = st.builds(Message, role=st.just("system"), content=st.text(max_size=10))
    return st.tuples(user) | st.tuples(system, user)


def metadata() -> st.SearchStrategy[dict[str, Any]]:
    """A JSON object that survives being written and read."""
    scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8)
    values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=4), scalars)
    return st.dictionaries(st.text(max_size=8), values, max_size=3)


@st.composite
def token_fields(draw: st.DrawFn, number_of_turns: int) -> dict[str, Any]:
    """x_L and y_L as ids: first prompt, then responses with feedback ids between them."""
    ids = st.lists(st.integers(0, 2**31 - 1), max_size=4)
    sequence, spans = draw(ids), []
    for number in range(number_of_turns):
        start = len(sequence)
        sequence += draw(ids)
        spans.append((start, len(sequence)))
        if number < number_of_turns - 1:
            sequence += draw(ids)
    sampled = sum(end - start for start, end in spans)
    logprob = st.floats(-100.0, 0.0, width=32)
    logprobs = st.none() | st.lists(logprob, min_size=sampled, max_size=sampled).map(tuple)
    return {
        "token_ids": tuple(sequence),
        "response_spans": tuple(spans),
        "logprobs": draw(logprobs),
        "tokenizer": draw(st.none() | st.text(min_size=1, max_size=8)),
    }


@st.composite
def trajectories(
    draw: st.DrawFn, max_turns: int = 5, *, scored: bool = False, tokens: bool | None = None
) -> Trajectory:
    """A valid trajectory: any verdicts, any ending, with token ids, without, or (None) either."""
    verdicts = draw(dialogues(max_turns, scored=scored))
    length = len(verdicts)
    endings = {"correct": ["solved"], "timeout": ["error"], "error": ["error"]}
    with_tokens = draw(st.booleans()) if tokens is None else tokens
    numbered = enumerate(verdicts, start=1)
    return Trajectory(
        prompt_id=draw(st.text(min_size=1, max_size=8)),
        sample=draw(st.integers(0, 2**40)),
        round=draw(st.integers(0, 5)),
        policy=draw(st.text(min_size=1, max_size=8)),
        prompt=draw(messages()),
        target=draw(st.none() | st.text(max_size=8)),
        turns=tuple(draw(turns(v, last=number == length)) for number, v in numbered),
        max_turns=draw(st.integers(length, max_turns)),
        ended=draw(st.sampled_from(endings.get(verdicts[-1], ["budget", "context"]))),
        metadata=draw(metadata()),
        **(draw(token_fields(length)) if with_tokens else {}),
    )


@st.composite
def weighted_tables(draw: st.DrawFn, max_rows: int = 12) -> pa.Table:
    """A WEIGHTED table; weights and returns are any numbers, not those of eq. 12 and 13."""
    rows = draw(st.lists(counts(4), min_size=1, max_size=max_rows))
    weights = st.floats(0.0, 16.0, allow_subnormal=False)
    return pa.Table.from_pylist(
        [_weighted_row(number, row, draw(weights)) for number, row in enumerate(rows)], WEIGHTED
    )


def _weighted_row(number: int, row: Counts, weight: float) -> dict[str, Any]:
    return {
        "prompt_id": f"p{number % 3}",
        "round": 0,
        "policy": "π",
        "sample": number,
        "prompt": [{"role": "user", "content": f"question {number % 3}"}],
        "completion": [{"role": "assistant", "content": f"answer {number}"}],
        "weight": weight,
        "return": float(row.solved),
        "length": row.length,
        "unique_answers": row.unique,
        "counted": row.counted,
        "penalty": 0.0,
        "solved": row.solved,
        "group_size": 4,
        "finish_reason": "stop",
    }


def enumerate_dialogues(history: str = "") -> list[str]:
    """Every dialogue of the protocol that begins so, each answer a letter."""
    if history.endswith("a") or len(history) == 3:
        return [history]
    return [dialogue for answer in "abc" for dialogue in enumerate_dialogues(history + answer)]


DIALOGUES = enumerate_dialogues()
"""At most three answers of which `a` is right, stop on success: fifteen dialogues."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """A reference policy over the fifteen dialogues, their returns, and β."""

    chance_T: tuple[Fraction, ...]
    return_T: Floats
    beta: float

    @property
    def reference(self) -> Floats:
        """p_ref."""
        return np.array([float(p) for p in self.chance_T])

    @property
    def partition(self) -> float:
        """Z = E_ref[exp(R/β)]."""
        return math.fsum(self.reference * np.exp(self.return_T / self.beta))

    @property
    def optimum(self) -> Floats:
        """p* of eq. 4."""
        return np.asarray(self.reference * np.exp(self.return_T / self.beta) / self.partition)

    def objective(self, p_T: Floats) -> float:
        """J of eq. 3."""
        return math.fsum(p_T * self.return_T) - self.beta * kl(p_T, self.reference)


def kl(p_T: Floats, q_T: Floats) -> float:
    """KL(p‖q), 0·log 0 = 0."""
    held = p_T > 0
    return math.fsum(p_T[held] * np.log(p_T[held] / q_T[held]))


@st.composite
def spaces(draw: st.DrawFn, smallest_beta: float = 0.05) -> Space:
    """π_ref answers in sixths in every state; returns are those of eq. 12."""
    sixths = st.sampled_from([(1, 1, 4), (1, 2, 3), (2, 2, 2), (4, 1, 1), (3, 2, 1), (1, 4, 1)])
    states = sorted({d[:t] for d in DIALOGUES for t in range(len(d))})
    policy = {state: dict(zip("abc", draw(sixths), strict=True)) for state in states}
    chances = []
    for dialogue in DIALOGUES:
        parts = [Fraction(policy[dialogue[:t]][y], 6) for t, y in enumerate(dialogue)]
        chances.append(math.prod(parts, start=Fraction(1)))
    returns = trajectory_return(
        [d.endswith("a") for d in DIALOGUES],
        [len(d) for d in DIALOGUES],
        [len(set(d)) for d in DIALOGUES],
        gamma=draw(st.sampled_from([0.5, 0.9, 1.0])),
        lam=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    return Space(chance_T=tuple(chances), return_T=returns, beta=draw(betas(smallest_beta, 10.0)))


def distributions() -> st.SearchStrategy[Floats]:
    """Any distribution over the dialogues, some without full support."""
    masses = st.lists(st.integers(0, 1000), min_size=len(DIALOGUES), max_size=len(DIALOGUES))
    return masses.filter(any).map(lambda m: np.array(m, dtype=np.float64) / sum(m))
