"""Terminal-turn retention against all-turn supervision: Prop. 6 (M23), on an enumerated dialogue.

Suffix legend: T trajectories, D dimensions of a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import DIALOGUES, Floats, Space, spaces

Spaces = spaces()


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradients:
    """Eq. 16 and 17 for every dialogue, under p_ref."""

    chance_T: Floats
    all_TD: Floats
    terminal_TD: Floats

    def mean(self, value_TD: Floats) -> Floats:
        return np.asarray(self.chance_T @ value_TD)

    def cov(self, a_TD: Floats, b_TD: Floats) -> float:
        products = (a_TD - self.mean(a_TD)) * (b_TD - self.mean(b_TD))
        return float(self.chance_T @ products.sum(axis=1))

    def var(self, value_TD: Floats) -> float:
        return self.cov(value_TD, value_TD)


def gradients(space: Space, turn_D: dict[str, Floats]) -> Gradients:
    """From ∇ℓ_t of each history with its answer, and the weights of eq. 10."""
    weight_T = (space.optimum / space.reference)[:, None]
    summed = [sum(turn_D[d[:t]] for t in range(1, len(d) + 1)) for d in DIALOGUES]
    return Gradients(
        chance_T=space.reference,
        all_TD=weight_T * np.array(summed),
        terminal_TD=weight_T * np.array([turn_D[d] for d in DIALOGUES]),
    )


def turns() -> list[str]:
    """Every (x_t, y_t): a history with its answer."""
    return sorted({d[:t] for d in DIALOGUES for t in range(1, len(d) + 1)})


def random_turns(seed: int, anti: float) -> dict[str, Floats]:
    """A random ∇ℓ for each turn; rejected turns point against one direction with force `anti`."""
    generator = np.random.default_rng(seed)
    aim = np.array([1.0, 0.0, 0.0])
    return {
        turn: generator.normal(size=3) * (1 - anti) + aim * (anti if "a" in turn else -anti)
        for turn in turns()
    }


Seeds, Anti = st.integers(0, 2**32 - 1), st.floats(0.0, 1.0)


@given(Spaces, Seeds, Anti)
def test_the_bias_of_terminal_retention_is_bounded(space: Space, seed: int, anti: float) -> None:
    """Eq. 18: ‖E g_all − E g_term‖ ≤ W_max·G_max·E[L − 1]."""
    turn_D = random_turns(seed, anti)
    found = gradients(space, turn_D)
    bias = np.linalg.norm(found.mean(found.all_TD) - found.mean(found.terminal_TD))
    largest = max(float(np.linalg.norm(g)) for g in turn_D.values())
    weight = float((space.optimum / space.reference).max())
    extra_turns = float(space.reference @ [len(d) - 1 for d in DIALOGUES])
    assert bias <= weight * largest * extra_turns * (1 + 1e-12)


@given(Spaces)
def test_the_bound_is_reached_by_equal_weights_and_parallel_gradients(space: Space) -> None:
    flat = Space(chance_T=space.chance_T, return_T=np.zeros(len(DIALOGUES)), beta=space.beta)
    same = np.array([0.0, 3.0, 4.0])
    found = gradients(flat, dict.fromkeys(turns(), same))
    bias = np.linalg.norm(found.mean(found.all_TD) - found.mean(found.terminal_TD))
    extra_turns = float(flat.reference @ [len(d) - 1 for d in DIALOGUES])
    assert bias == pytest.approx(5.0 * extra_turns, rel=1e-12)


@given(Spaces, Seeds, Anti)
def test_variances_differ_by_the_omitted_part_and_its_covariance(
    space: Space, seed: int, anti: float
) -> None:
    """Eq. 63; and eq. 20 holds where eq. 19 does, and not otherwise."""
    found = gradients(space, random_turns(seed, anti))
    omitted = found.all_TD - found.terminal_TD
    condition = found.var(omitted) + 2 * found.cov(found.terminal_TD, omitted)
    whole, terminal = found.var(found.all_TD), found.var(found.terminal_TD)
    assert whole == pytest.approx(terminal + condition, rel=1e-9, abs=1e-9 * (whole + terminal))
    if abs(condition) > 1e-9 * (whole + terminal):
        assert (terminal < whole) == (condition > 0)


def uniform_space() -> Space:
    """Every answer a third, every return 0."""
    return Space(
        chance_T=tuple(Fraction(1, 3) ** len(d) for d in DIALOGUES),
        return_T=np.zeros(len(DIALOGUES)),
        beta=0.1,
    )


def test_terminal_retention_can_raise_the_variance() -> None:
    """A rejected first turn that cancels what follows: eq. 19 fails, and so does eq. 20."""
    turn_D = {turn: np.array([1.0 if len(turn) == 2 else 0.0]) for turn in turns()}
    turn_D |= {"b": np.array([-0.5]), "c": np.array([-0.5])}
    found = gradients(uniform_space(), turn_D)
    omitted = found.all_TD - found.terminal_TD
    assert found.var(omitted) + 2 * found.cov(found.terminal_TD, omitted) < 0
    assert found.var(found.terminal_TD) > found.var(found.all_TD)


def test_independent_noise_in_rejected_turns_is_saved() -> None:
    """The paper's motive: noise in rejected turns, none of it in the terminal one."""
    turn_D = {turn: np.array([0.0]) for turn in turns()}
    turn_D |= {"b": np.array([1.0]), "c": np.array([-1.0])}
    found = gradients(uniform_space(), turn_D)
    assert found.var(found.terminal_TD) == 0.0 < found.var(found.all_TD)
