"""Seeded sampling without a shared generator. Suffix legend: A active requests, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_PIECE = 1 << 24
"""Entries of the distribution that are worked on at once, so that float64 copies stay small."""


def uniforms(seed_A: ArrayLike, index_A: ArrayLike) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, token index), from a counter-based hash.

    u = mix(mix(seed) + (index + 1)·φ64) / 2^64, cut to 53 bits, so u depends on nothing else: not
    on the company a request keeps, nor on how many numbers were drawn before.

    Args:
        seed_A: in [0, 2^64).
        index_A: ≥ 0, the token's number within its response.

    Returns:
        shape [A].

    Source: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), its finalizer applied twice.
    """
    seeds = np.asarray(seed_A, dtype=np.uint64)
    counters = np.asarray(index_A, dtype=np.uint64) + np.uint64(1)
    bits = _mix(_mix(seeds) + counters * np.uint64(_GOLDEN))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(
    logits_AV: torch.Tensor,
    temperature_A: Sequence[float],
    top_p_A: Sequence[float],
    uniform_A: NDArray[np.float64],
) -> tuple[list[int], list[float]]:
    """Draw one token a row by inverse CDF, and tell its log-probability under the unmodified model.

    token = min {v : Σ_{i≤v} q_i > u·Σ q}, where q is softmax(logits / temperature) restricted to the
    smallest set of likeliest tokens that holds top_p of it. Temperature 0 takes the likeliest token.

    Args:
        logits_AV: in any floating type; the arithmetic is at least float32.
        temperature_A: ≥ 0.
        top_p_A: in (0, 1].
        uniform_A: in [0, 1).

    Returns:
        The tokens and log softmax(logits)[token], one a row; never a token of probability 0.
    """
    rows = max(1, _PIECE // logits_AV.shape[1])
    tokens: list[int] = []
    logprobs: list[float] = []
    for start in range(0, len(logits_AV), rows):
        part = slice(start, start + rows)
        logits = logits_AV[part]
        if logits.dtype != torch.float64:
            logits = logits.float()
        token_A = _choose(logits, temperature_A[part], top_p_A[part], uniform_A[part])
        logprob_A = logits.log_softmax(-1).gather(1, token_A[:, None])[:, 0]
        tokens += token_A.tolist()
        logprobs += logprob_A.tolist()
    return tokens, logprobs


def _choose(
    logits_AV: torch.Tensor,
    temperature_A: Sequence[float],
    top_p_A: Sequence[float],
    uniform_A: NDArray[np.float64],
) -> torch.Tensor:
    greedy = [temperature == 0 for temperature in temperature_A]
    if all(greedy):
        return logits_AV.argmax(-1)
    if any(temperature != 1 for temperature in temperature_A):
        smallest = torch.finfo(logits_AV.dtype).tiny
        scale_A = logits_AV.new_tensor([max(t, smallest) for t in temperature_A])
        below_AV = _above_zero(logits_AV)
        drawn_AV = below_AV / scale_A[:, None]
        frozen = [0 < temperature < smallest for temperature in temperature_A]
        if any(frozen):
            # Too small a temperature for this type leaves the likeliest, however near the others are.
            frozen_A = torch.tensor(frozen, device=logits_AV.device)
            drawn_AV = drawn_AV.masked_fill(frozen_A[:, None] & (below_AV < 0), -math.inf)
    else:
        drawn_AV = logits_AV
    prob_AV = drawn_AV.softmax(-1)
    if min(top_p_A) < 1:
        top_p = torch.tensor(top_p_A, dtype=torch.float64, device=prob_AV.device)
        prob_AV = _nucleus(prob_AV, top_p)
    token_A = _inverse_cdf(prob_AV, torch.from_numpy(uniform_A).to(prob_AV.device))
    if any(greedy):
        greedy_A = torch.tensor(greedy, device=logits_AV.device)
        token_A = torch.where(greedy_A, logits_AV.argmax(-1), token_A)
    return token_A


def _above_zero(logits_AV: torch.Tensor) -> torch.Tensor:
    """Shift the largest logit to 0, so that a small temperature cannot overflow."""
    return logits_AV - logits_AV.amax(-1, keepdim=True)


def _nucleus(prob_AV: torch.Tensor, top_p_A: torch.Tensor) -> torch.Tensor:
    ordered_AV, index_AV = prob_AV.sort(stable=True, dim=-1, descending=True)
    before_AV = ordered_AV.cumsum(-1, dtype=torch.float64) - ordered_AV
    # A row with top_p 1 stays whole, whatever its cumulative sum rounds to.
    outside_AV = (before_AV >= top_p_A[:, None]) & (top_p_A[:, None] < 1)
    outside_AV[:, 0] = False
    return torch.zeros_like(prob_AV).scatter(1, index_AV, ordered_AV.masked_fill(outside_AV, 0.0))


def _inverse_cdf(prob_AV: torch.Tensor, uniform_A: torch.Tensor) -> torch.Tensor:
    cumulative_AV = prob_AV.cumsum(-1, dtype=torch.float64)
    goal_A1 = uniform_A[:, None] * cumulative_AV[:, -1:]
    # The first entry above the goal ends a step up, and so belongs to a possible token.
    token_A1 = torch.searchsorted(cumulative_AV, goal_A1, right=True)
    token_A1 = token_A1.clamp(max=prob_AV.shape[1] - 1)
    # Unless u·Σ was rounded up to Σ, or a parallel sum is not monotone to the last bit.
    impossible_A1 = prob_AV.gather(1, token_A1) <= 0
    if bool(impossible_A1.any()):
        token_A1 = torch.where(impossible_A1, prob_AV.argmax(-1, keepdim=True), token_A1)
    return token_A1[:, 0]


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
