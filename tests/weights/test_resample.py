"""Laws of resampling: systematic within each group, an offset of its own for each group.

Ours, not the paper's. Suffix legend: N rows, K rows of one group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.weights import group_weights, resample
from strategies import KeyedReturns, betas, group_keys, keyed_returns, return_groups

Weights = st.lists(st.floats(0.0, 5.0, allow_subnormal=False), min_size=1, max_size=12)
Seeds = st.integers(0, 2**32)
HALVES = [1.5, 0.5]
"""A group of two in which one draw is certain and the other is a coin."""


def draw(weight_K: list[float], *, seed: int, group: Hashable = "g", epoch: int = 0) -> list[int]:
    """The counts of one group whose rows come in sample order."""
    rows = len(weight_K)
    counts = resample(weight_K, [group] * rows, range(rows), seed=seed, epoch=epoch)
    return [int(count) for count in counts]


@given(return_groups(max_size=16), betas(), Seeds)
def test_a_whole_group_yields_exactly_its_size(return_K: list[float], beta: float, seed: int) -> None:
    weight_K = group_weights(return_K, ["g"] * len(return_K), beta=beta).tolist()
    assert sum(draw(weight_K, seed=seed)) == len(return_K)


@given(return_groups(max_size=16), betas(), Seeds)
def test_every_row_is_drawn_its_weight_rounded_down_or_up(
    return_K: list[float], beta: float, seed: int
) -> None:
    weight_K = group_weights(return_K, ["g"] * len(return_K), beta=beta).tolist()
    for count, weight in zip(draw(weight_K, seed=seed), weight_K, strict=True):
        assert math.floor(weight) <= count <= math.ceil(weight)


@pytest.mark.parametrize("offset", [0, 2**59, 2**60 - 1])
def test_rounding_loses_no_draw_at_the_ends_of_the_unit_interval(
    offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets that a hash gives once in 2^60 draws, where Σ w = K up to rounding is not enough."""
    monkeypatch.setattr("drift_weights.weights.offset_of", lambda *_: offset)
    generator = np.random.default_rng(6)
    for size in (3, 7, 16):
        group_N = np.repeat(np.arange(100), size)
        return_N = generator.uniform(-0.4, 1.0, len(group_N))
        weight_N = group_weights(return_N, group_N)
        count_N = resample(weight_N, group_N, np.arange(len(group_N)), seed=0)
        assert np.bincount(group_N, weights=count_N).tolist() == [size] * 100
        assert (np.abs(count_N - weight_N) < 1 + 1e-9).all()


@given(Weights, Seeds)
def test_a_group_that_is_not_whole_yields_its_mass_rounded_down_or_up(
    weight_K: list[float], seed: int
) -> None:
    """Rows that were pruned are not made up for."""
    counts = draw(weight_K, seed=seed)
    mass = sum(Fraction(w) for w in weight_K)
    assert math.floor(mass - Fraction(1, 10**6)) <= sum(counts) <= math.ceil(mass + Fraction(1, 10**6))
    for count, weight in zip(counts, weight_K, strict=True):
        assert math.floor(weight - 1e-6) <= count <= math.ceil(weight + 1e-6)


def explains(counts: list[int], weight_K: list[float], u: Fraction) -> bool:
    """Whether count_i = ⌊C_i + u⌋ − ⌊C_{i−1} + u⌋ for this u, in exact arithmetic."""
    sums = [u, *itertools.accumulate((Fraction(w) for w in weight_K), initial=u)][1:]
    return counts == [math.floor(b) - math.floor(a) for a, b in itertools.pairwise(sums)]


@given(Weights, Seeds, st.data())
def test_one_offset_in_sample_order_explains_all_counts(
    weight_K: list[float], seed: int, data: st.DataObject
) -> None:
    """Weights in steps of 2^-20, so that no breakpoint lies within rounding of the offset."""
    weight_K = [round(w * 2**20) / 2**20 for w in weight_K]
    order = data.draw(st.permutations(range(len(weight_K))))
    found = resample([weight_K[i] for i in order], ["g"] * len(order), order, seed=seed)
    counts = [int(found[order.index(sample)]) for sample in range(len(order))]
    breaks = {-sum(map(Fraction, weight_K[:i]), Fraction(0)) % 1 for i in range(len(order) + 1)}
    edges = sorted(breaks | {Fraction(0), Fraction(1)})
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    assert any(explains(counts, weight_K, u) for u in middles)


@given(keyed_returns(), st.data(), Seeds)
def test_counts_follow_the_key_under_any_order_and_sharding(
    table: KeyedReturns, data: st.DataObject, seed: int
) -> None:
    weight_N = group_weights(table.return_N, table.group_N, beta=0.5)
    everything = list(range(len(weight_N)))
    samples = data.draw(st.permutations(everything))

    def counts(rows: list[int]) -> dict[int, int]:
        keys, own = [table.group_N[i] for i in rows], [samples[i] for i in rows]
        return dict(zip(rows, resample(weight_N[rows], keys, own, seed=seed).tolist(), strict=True))

    whole = counts(everything)
    assert counts(data.draw(st.permutations(everything))) == whole
    chosen = table.group_N[0]
    shard = [i for i in everything if table.group_N[i] == chosen]
    assert counts(shard) == {i: whole[i] for i in shard}


@given(Weights, Seeds, group_keys())
def test_only_the_order_of_samples_counts_not_their_values(
    weight_K: list[float], seed: int, key: Hashable
) -> None:
    samples = [7 * i - 3 for i in range(len(weight_K))]
    spread = resample(weight_K, [key] * len(weight_K), samples, seed=seed)
    assert spread.tolist() == draw(weight_K, seed=seed, group=key)


@pytest.mark.parametrize("varied", ["seed", "epoch", "group"])
def test_the_mean_count_is_the_weight(varied: str) -> None:
    """Over seeds, over epochs and over groups: each count is a rounding, so its variance is ≤ 1/4."""
    weight_K = group_weights([1.0, 0.9, 0.75, 0.56, 0.0, -0.4], ["g"] * 6, beta=0.5).tolist()
    draws = 2000
    settings: list[dict[str, Any]] = [{"seed": 3} | {varied: i} for i in range(draws)]
    mean_K = np.mean([draw(weight_K, **setting) for setting in settings], axis=0)
    assert np.abs(mean_K - weight_K).max() < 4.5 * 0.5 / math.sqrt(draws)


@pytest.mark.parametrize("varied", ["seed", "epoch", "group"])
def test_offsets_are_spread_evenly(varied: str) -> None:
    """With weights (u₀, 1 − u₀) the first row is drawn for the share u₀ of offsets, for every u₀."""
    draws = 1000
    for share in (0.1, 0.3, 0.5, 0.9):
        settings: list[dict[str, Any]] = [{"seed": 11} | {varied: i} for i in range(draws)]
        hits = sum(draw([share, 1 - share], **setting)[0] for setting in settings)
        assert abs(hits / draws - share) < 4.5 * math.sqrt(share * (1 - share) / draws)


def test_like_groups_do_not_choose_in_lockstep() -> None:
    groups = 600
    group_N = np.repeat(np.arange(groups), 2)
    count_N = resample(HALVES * groups, group_N, [0, 1] * groups, seed=1)
    twice = int((count_N[::2] == 2).sum())
    assert abs(twice / groups - 0.5) < 4.5 * 0.5 / math.sqrt(groups)
    same_as_next = float((count_N[:-2:2] == count_N[2::2]).mean())
    assert abs(same_as_next - 0.5) < 4.5 * 0.5 / math.sqrt(groups - 1)


def test_epochs_and_seeds_are_new_draws_and_each_is_repeatable() -> None:
    def outcome(seed: int, epoch: int) -> list[int]:
        group_N = np.repeat(np.arange(40), 2)
        return list(resample(HALVES * 40, group_N, [0, 1] * 40, seed=seed, epoch=epoch))

    drawn = [outcome(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert outcome(2, 3) == drawn[11]
    assert len({tuple(counts) for counts in drawn}) == 16


@pytest.mark.parametrize(
    ("plain", "others"),
    [
        (3, [np.int8(3), np.int64(3), np.array([3])[0], pa.array([3])[0].as_py()]),
        ("p", [np.str_("p"), np.array(["p"])[0]]),
        (("p", 0, "π"), [("p", np.int64(0), "π"), (np.str_("p"), 0, np.str_("π"))]),
    ],
)
def test_a_key_draws_the_same_whatever_type_carries_it(plain: Hashable, others: list[Any]) -> None:
    expected = [draw(HALVES, seed=seed, group=plain) for seed in range(30)]
    for other in others:
        assert [draw(HALVES, seed=seed, group=other) for seed in range(30)] == expected


def test_a_column_draws_the_same_in_every_container() -> None:
    names = [f"p{i // 2}" for i in range(60)]
    columns = [names, np.array(names), pa.array(names), pa.chunked_array([names[:7], names[7:]])]
    drawn = [resample(HALVES * 30, column, [0, 1] * 30, seed=4).tolist() for column in columns]
    assert drawn == [drawn[0]] * 4


def test_keys_that_only_look_alike_have_offsets_of_their_own() -> None:
    keys: list[Hashable] = [1, "1", (1,), ("1",), ("1", 0), ("1", "0")]
    drawn = [tuple(draw(HALVES, seed=s, group=k)[0] for s in range(40)) for k in keys]
    assert len(set(drawn)) == len(keys)


def test_whole_weights_leave_nothing_to_chance() -> None:
    for seed in range(50):
        assert draw([1.0] * 16, seed=seed) == [1] * 16
        assert draw([0.0, 3.0, 1.0, 0.0], seed=seed) == [0, 3, 1, 0]


@pytest.mark.parametrize(
    ("weight_N", "group_N", "sample_N", "message"),
    [
        ([], [], np.array([], int), "weight must be a non-empty column"),
        ([1.0, -1.0], "ab", [0, 1], "row 1: weight must be finite and not negative, got -1.0"),
        ([1.0, float("nan")], "ab", [0, 1], "row 1: weight must be finite"),
        ([1.0, 1.0, 1.0], "aba", [4, 4, 4], "row 2: sample 4 of group 'a' appears twice"),
        ([1.0, 1.0], "aa", [0.5, 1.5], "sample must be whole numbers"),
        ([1.0, 1.0], "aa", ["x", "y"], "sample must be whole numbers"),
        ([1.0, 1.0], "aa", [0], "sample must be whole numbers, one a row"),
        ([1.0, 1.0], ["a", None], [0, 1], "row 1: the group key is null"),
        ([1.0, 1.0], ["a"], [0, 1], "group has 1 rows, expected 2"),
    ],
)
def test_bad_input_names_the_row(weight_N: Any, group_N: Any, sample_N: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resample(weight_N, list(group_N), sample_N, seed=0)


def test_a_key_that_cannot_enter_the_hash_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="group"):
        resample([1.0], [b"bytes"], [0], seed=0)
