"""Seeded sampling: the counter stream, the inverse CDF, temperature and nucleus."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from drift_rollout.engines import sampling
from drift_rollout.engines.sampling import draw, uniforms

LAST = 1 - 2.0**-53
"""The largest number that `uniforms` can give."""


def splitmix(value: int) -> int:
    """SplitMix64's finalizer in unbounded integers."""
    word = (1 << 64) - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & word
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & word
    return value ^ (value >> 31)


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**20)), min_size=1, max_size=8))
def test_uniforms_are_a_function_of_seed_and_index_alone(pairs: list[tuple[int, int]]) -> None:
    got = uniforms([seed for seed, _ in pairs], [index for _, index in pairs])
    for value, (seed, index) in zip(got, pairs, strict=True):
        bits = splitmix((splitmix(seed) + (index + 1) * 0x9E3779B97F4A7C15) % 2**64)
        assert value == (bits >> 11) / 2**53
        assert 0 <= value < 1


@pytest.mark.parametrize("along", ["seeds", "indices"])
def test_uniforms_are_uniform_and_neighbours_independent(along: str) -> None:
    """Small consecutive seeds are the hard case; one seed's stream is the other."""
    run, fixed = np.arange(20_000), np.full(20_000, 3)
    values = uniforms(run, fixed) if along == "seeds" else uniforms(fixed, run)
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / math.sqrt(20_000)


def counts(logits: list[float], temperature: float, top_p: float, draws: int) -> list[int]:
    """How often each token comes out for evenly spaced uniforms: within one of draws · q."""
    uniform = (np.arange(draws) + 0.5) / draws
    tokens, _ = draw(torch.tensor([logits] * draws), [temperature] * draws, [top_p] * draws, uniform)
    return np.bincount(tokens, minlength=len(logits)).tolist()


def wanted(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """q by loops: softmax, then the likeliest tokens one by one until they hold top_p."""
    exps = [math.exp((x - max(logits)) / temperature) for x in logits]
    probs = [value / math.fsum(exps) for value in exps]
    kept: list[int] = []
    for token in sorted(range(len(probs)), key=lambda v: -probs[v]):
        if math.fsum(probs[v] for v in kept) >= top_p:
            break
        kept.append(token)
    mass = math.fsum(probs[v] for v in kept)
    return [probs[v] / mass if v in kept else 0.0 for v in range(len(probs))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [1e-6, 0.45, 0.9, 1.0])
def test_tokens_come_out_in_proportion(temperature: float, top_p: float) -> None:
    logits = [0.3, -1.0, 2.0, -math.inf, 1.2, 0.0, -4.0]
    expected = wanted(logits, temperature, top_p)
    for count, share in zip(counts(logits, temperature, top_p, 2000), expected, strict=True):
        assert abs(count - 2000 * share) <= 1.01
        assert (count == 0) if share == 0 else True


@given(
    st.lists(st.one_of(st.floats(-80, 80), st.just(-math.inf)), min_size=1, max_size=12).filter(
        lambda logits: max(logits) > -math.inf
    ),
    st.sampled_from([0.0, 1e-60, 0.5, 1.0, 7.0]),
    st.sampled_from([1e-9, 0.5, 1.0]),
    st.one_of(st.floats(0, LAST), st.sampled_from([0.0, LAST])),
)
@example([0.0, -1.175494351e-38], 1e-60, 1.0, 0.75)
def test_no_token_of_probability_zero_is_ever_drawn(
    logits: list[float], temperature: float, top_p: float, uniform: float
) -> None:
    row = torch.tensor([logits])
    (token,), (logprob,) = draw(row, [temperature], [top_p], np.array([uniform]))
    assert logits[token] > -math.inf
    assert math.isfinite(logprob)
    if temperature < 1e-50:
        assert row[0, token] == row.max()


def test_the_ends_of_the_range_meet_the_ends_of_the_distribution() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 1.0, 0.0, -math.inf]] * 2)
    tokens, _ = draw(logits, [1.0, 1.0], [1.0, 1.0], np.array([0.0, LAST]))
    assert tokens == [1, 3]


def test_a_sum_that_is_not_monotone_still_draws_a_possible_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accelerators add in parallel: let a token of probability 0 seem to take a step."""
    monkeypatch.setattr(
        torch.Tensor, "cumsum", lambda self, dim, dtype: torch.tensor([[0.5, 0.6, 1.0]], dtype=dtype)
    )
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    tokens, _ = draw(logits, [1.0], [1.0], np.array([0.55]))
    assert tokens != [1]


def test_a_batch_is_its_rows_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed samplings share a batch, and its division into pieces is not seen."""
    torch.manual_seed(0)
    logits = torch.randn(12, 50) * 3
    temperatures, top_ps = [0.0, 0.7, 1.0] * 4, [1.0, 0.5, 0.9, 1.0] * 3
    values = uniforms(range(12), [0] * 12)
    whole = draw(logits, temperatures, top_ps, values)
    monkeypatch.setattr(sampling, "_PIECE", 250)
    assert draw(logits, temperatures, top_ps, values) == whole
    for i in range(12):
        row = draw(logits[i : i + 1], temperatures[i : i + 1], top_ps[i : i + 1], values[i : i + 1])
        assert row[0] == whole[0][i : i + 1]
        assert row[1] == pytest.approx(whole[1][i : i + 1], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_logprobs_are_those_of_the_unmodified_logits(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    logits = (torch.randn(40, 30) * 2).to(dtype)
    tokens, logprobs = draw(logits, [0.5] * 40, [0.7] * 40, uniforms(range(40), [0] * 40))
    exact = logits.double().log_softmax(-1)
    expected = [float(exact[i, token]) for i, token in enumerate(tokens)]
    assert logprobs == pytest.approx(expected, abs=1e-5)
