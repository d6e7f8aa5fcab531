"""The paper's theory in numbers: Theorems 1, 2 and 5, Lemmas 3 and 4 (M18-M22).

On a dialogue small enough to enumerate: three answers of which `a` is right, at most three turns,
stop on success. Prop. 6 is in test_terminal_retention.py, Prop. 7 in test_diagnostics.py.
Suffix legend: T trajectories, N rows.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drift_weights.weights import group_weights
from strategies import DIALOGUES, Floats, Space, distributions, kl, spaces

Spaces = spaces()


def test_the_space_is_the_protocol() -> None:
    assert len(DIALOGUES) == 1 + 2 + 4 * 3
    assert all("a" not in dialogue[:-1] for dialogue in DIALOGUES)


@given(Spaces)
def test_p_ref_and_p_star_are_distributions(space: Space) -> None:
    assert sum(space.chance_T) == 1
    assert math.fsum(space.optimum) == pytest.approx(1.0, rel=1e-12)


# Theorem 1 (M18)


@given(Spaces)
def test_the_optimum_is_worth_beta_log_z(space: Space) -> None:
    with mpmath.workdps(40):
        terms = [
            mpmath.mpf(p.numerator) / p.denominator * mpmath.exp(mpmath.mpf(r) / space.beta)
            for p, r in zip(space.chance_T, space.return_T.tolist(), strict=True)
        ]
        expected = float(space.beta * mpmath.log(mpmath.fsum(terms)))
    assert space.objective(space.optimum) == pytest.approx(expected, rel=1e-11, abs=1e-11)


@given(Spaces, distributions())
def test_no_distribution_beats_the_optimum(space: Space, p_T: Floats) -> None:
    assert space.objective(p_T) <= space.objective(space.optimum) + 1e-11


@given(Spaces)
def test_nor_do_those_made_to_beat_it(space: Space) -> None:
    best = space.return_T == space.return_T.max()
    rivals = list(np.eye(len(DIALOGUES)))
    rivals += [space.reference, best / best.sum(), best * space.reference]
    for factor in (0.5, 0.9, 1.1, 2.0):
        rivals.append(space.reference * np.exp(space.return_T / (space.beta * factor)))
    top = space.objective(space.optimum)
    for rival in rivals:
        assert space.objective(rival / rival.sum()) <= top + 1e-11


@given(Spaces, distributions(), st.floats(0.01, 1.0))
def test_every_step_away_from_the_optimum_loses(space: Space, p_T: Floats, step: float) -> None:
    """It is the only maximiser: a step of total variation δ costs at least 2βδ² (Pinsker)."""
    moved_T = (1 - step) * space.optimum + step * p_T
    distance = float(np.abs(moved_T - space.optimum).sum()) / 2
    loss = space.objective(space.optimum) - space.objective(moved_T)
    assert loss >= 2 * space.beta * distance**2 - 1e-11


# Theorem 2 (M19)


@given(Spaces, distributions())
def test_the_objective_is_a_divergence_from_the_optimum(space: Space, p_T: Floats) -> None:
    expected = space.beta * math.log(space.partition) - space.beta * kl(p_T, space.optimum)
    assert space.objective(p_T) == pytest.approx(expected, rel=1e-9, abs=1e-10)


# Lemma 3 (M20)


@given(Spaces, distributions())
def test_both_divergences_vanish_at_the_optimum_and_nowhere_else(space: Space, p_T: Floats) -> None:
    target_T = space.optimum
    assert kl(target_T, target_T) == 0.0
    mixed_T = 0.5 * p_T + 0.5 * target_T  # on the support of both, so that both are finite
    distance = float(np.abs(mixed_T - target_T).sum()) / 2
    assert kl(mixed_T, target_T) >= 2 * distance**2 - 1e-12
    assert kl(target_T, mixed_T) >= 2 * distance**2 - 1e-12


@settings(max_examples=5)
@given(spaces(smallest_beta=0.5), st.integers(0, 2**32 - 1))
def test_descent_on_either_divergence_ends_at_the_optimum(space: Space, seed: int) -> None:
    """Realizable case: softmax over all dialogues, from a random start."""
    target_T = space.optimum
    start = np.random.default_rng(seed).normal(size=len(DIALOGUES))
    for direction in ("forward", "reverse"):
        logit_T = start.copy()
        for _ in range(6000):
            p_T = np.exp(logit_T - logit_T.max())
            p_T /= p_T.sum()
            surprise = np.log(p_T / target_T)
            reverse = p_T * (surprise - p_T @ surprise)
            logit_T -= 2.0 * (p_T - target_T if direction == "forward" else reverse)
        assert np.abs(p_T - target_T).max() < 1e-3


def test_projections_differ_where_the_optimum_is_out_of_reach() -> None:
    """Lemma 3 needs realizability: on one parameter, p = (q², 2q(1−q), (1−q)²), they part."""
    target = np.array([0.6, 0.05, 0.35])
    grid = np.linspace(0.001, 0.999, 2000)
    family = [np.array([q * q, 2 * q * (1 - q), (1 - q) ** 2]) for q in grid]
    forward = grid[np.argmin([kl(target, p) for p in family])]
    reverse = grid[np.argmin([kl(p, target) for p in family])]
    assert abs(forward - reverse) > 0.05


# Lemma 4 (M21)


def divergences(p_T: list[Any], step_T: list[Any]) -> tuple[Any, Any]:
    """KL(Q‖P) and KL(P‖Q) for Q = P(1 + r), in the precision at work."""
    there = mpmath.fsum(p * (1 + r) * mpmath.log1p(r) for p, r in zip(p_T, step_T, strict=True))
    back = mpmath.fsum(-p * mpmath.log1p(r) for p, r in zip(p_T, step_T, strict=True))
    return there, back


@settings(max_examples=25)
@given(spaces(smallest_beta=0.5), distributions())
def test_the_two_divergences_part_only_in_third_order(space: Space, p_T: Floats) -> None:
    """Their difference is Σ P r³/6 to leading order, so its log-log slope over TV is 3."""
    with mpmath.workdps(60):
        base = [mpmath.mpf(float(p)) for p in space.optimum]
        base = [p / mpmath.fsum(base) for p in base]
        mass = mpmath.fsum(map(mpmath.mpf, p_T.tolist()))
        aim = [mpmath.mpf(q) / mass for q in p_T.tolist()]
        scale = max(abs(q / p - 1) for p, q in zip(base, aim, strict=True))
        unit = [(q / p - 1) / scale for p, q in zip(base, aim, strict=True)]
        skew = mpmath.fsum(p * r**3 for p, r in zip(base, unit, strict=True)) / 6
        if abs(skew) < mpmath.mpf("1e-3") * mpmath.fsum(
            p * abs(r) ** 3 for p, r in zip(base, unit, strict=True)
        ):
            return  # symmetric to leading order: faster than cubic, where a slope says nothing
        gaps = []
        for power in (4, 5, 6):
            step = [r * mpmath.mpf(10) ** -power for r in unit]
            there, back = divergences(base, step)
            gaps.append(there - back)
            assert (there - back) / (skew * mpmath.mpf(10) ** (-3 * power)) == pytest.approx(1.0, abs=0.5)
            assert abs(there / back - 1) < 0.1
        slopes = [float(mpmath.log10(abs(a / b))) for a, b in itertools.pairwise(gaps)]
    assert slopes == pytest.approx([3.0, 3.0], abs=0.15)


@given(spaces(smallest_beta=0.5), distributions(), st.floats(0.001, 0.5))
def test_within_half_the_smallest_chance_the_cubic_bound_holds(
    space: Space, p_T: Floats, share: float
) -> None:
    """For |r| ≤ 1/2, |(2 + r)·log(1 + r) − 2r| ≤ |r|³, hence the gap ≤ 8·TV³/min P²."""
    base_T = space.optimum
    reach = float(np.abs(p_T / base_T - 1).max())
    if reach == 0:
        return
    moved_T = base_T * (1 + share / max(reach, 1.0) * (p_T / base_T - 1))
    variation = float(np.abs(moved_T - base_T).sum()) / 2
    gap = abs(kl(moved_T, base_T) - kl(base_T, moved_T))
    assert gap <= 8 * variation**3 / base_T.min() ** 2 + 1e-14


# Theorem 5 (M22)


def realised(space: Space) -> NDArray[np.int64]:
    """Rows in which each dialogue occurs exactly as often as p_ref says: its index, repeated."""
    size = math.lcm(*(p.denominator for p in space.chance_T))
    return np.repeat(np.arange(len(DIALOGUES)), [int(p * size) for p in space.chance_T])


@given(Spaces, st.randoms(use_true_random=False))
def test_group_weights_are_the_density_of_the_optimum(space: Space, random: Any) -> None:
    """Eq. 10 by the code that trains: w = p*/p_ref, with two more prompts mixed in between."""
    index_N = realised(space)
    order = list(range(len(index_N)))
    random.shuffle(order)
    return_N = space.return_T[index_N[order]]
    everything = np.concatenate([return_N, return_N - 3.0, [5.0]])
    prompts = ["x"] * len(order) + ["y"] * len(order) + ["z"]
    weight_N = group_weights(everything, prompts, beta=space.beta)
    density_N = (space.optimum / space.reference)[index_N[order]]
    assert weight_N[: len(order)] == pytest.approx(density_N, rel=1e-11)
    assert weight_N[len(order) : -1] == pytest.approx(density_N, rel=1e-9)
    assert weight_N[-1] == 1.0


@given(Spaces, distributions())
def test_weighted_likelihood_is_the_likelihood_under_the_optimum(space: Space, p_T: Floats) -> None:
    """E_p*[−log p_θ] = E_ref[−w log p_θ], the right side by group_weights over realised rows."""
    model_T = 0.9 * p_T + 0.1 * space.reference  # full support: a finite loss
    index_N = realised(space)
    weight_N = group_weights(space.return_T[index_N], ["x"] * len(index_N), beta=space.beta)
    found = math.fsum(weight_N * -np.log(model_T[index_N])) / len(index_N)
    assert found == pytest.approx(math.fsum(space.optimum * -np.log(model_T)), rel=1e-10)


@given(Spaces)
def test_the_weighted_likelihood_is_best_at_the_optimum(space: Space) -> None:
    """Counting rows by their weight gives p*, the maximum-likelihood fit to weighted rows."""
    index_N = realised(space)
    weight_N = group_weights(space.return_T[index_N], ["x"] * len(index_N), beta=space.beta)
    fitted_T = np.bincount(index_N, weights=weight_N) / len(index_N)
    assert fitted_T == pytest.approx(space.optimum, rel=1e-10)
