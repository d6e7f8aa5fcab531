"""The batch plan: pure, independent of the world size, exact in its counts (M15)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_train import BatchPlan, Example, encode, pad, step_batch
from drift_train.loss import IGNORED
from drift_weights.weights import group_weights, resample
from train.weighted_rows import random_rows, token_row, weighted_table


def plain(count: int, *, weights: list[float] | None = None) -> list[Example]:
    weights = weights or [1.0] * count
    rows = [token_row(n, [1, 2], [(1, 2)], weight=w) for n, w in enumerate(weights)]
    return list(encode(weighted_table(rows), vocab_size=9).examples)


def whole_groups(groups: int, size: int = 4, seed: int = 0) -> list[Example]:
    returns = np.random.default_rng(seed).normal(size=groups * size)
    weights = group_weights(returns, np.repeat(np.arange(groups), size), beta=0.5)
    return plain(groups * size, weights=weights.tolist())


@settings(deadline=None)
@given(
    count=st.integers(1, 12),
    batch_size=st.integers(1, 30),
    seed=st.integers(0, 2**40),
    steps=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    resampled=st.booleans(),
)
def test_a_step_is_a_pure_function_of_seed_and_step(
    count: int, batch_size: int, seed: int, steps: list[int], resampled: bool
) -> None:
    examples = whole_groups(count)
    weighting = "resample" if resampled else "loss"
    plan = BatchPlan(examples, batch_size=batch_size, seed=seed, weighting=weighting)
    for step in steps:
        fresh = BatchPlan(examples, batch_size=batch_size, seed=seed, weighting=weighting)
        assert plan.step(step).tolist() == fresh.step(step).tolist()
        assert len(plan.step(step)) == batch_size


@pytest.mark.parametrize("weighting", ["loss", "none"])
@pytest.mark.parametrize("batch_size", [3, 10, 25])
def test_every_epoch_holds_every_row_once_also_across_steps(weighting: str, batch_size: int) -> None:
    plan = BatchPlan(plain(10), batch_size=batch_size, seed=1, weighting=weighting)
    drawn = np.concatenate([plan.step(step) for step in range(40)])
    epochs = [tuple(drawn[at : at + 10]) for at in range(0, len(drawn) - 9, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == len(epochs), "each epoch has an order of its own"


def test_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(BatchPlan(plain(20), batch_size=20, seed=seed).step(0)) for seed in range(8)}
    assert len(orders) == 8


@pytest.mark.parametrize("batch_size", [24, 7])
def test_resampled_epochs_hold_each_row_as_often_as_it_is_drawn(batch_size: int) -> None:
    examples = whole_groups(6)
    plan = BatchPlan(examples, batch_size=batch_size, seed=5, weighting="resample")
    drawn = np.concatenate([plan.step(step) for step in range(40)])
    for epoch in range(4):
        wanted = resample(
            [e.weight for e in examples],
            [e.group for e in examples],
            [e.sample for e in examples],
            seed=5,
            epoch=epoch,
        )
        found = np.bincount(drawn[24 * epoch : 24 * (epoch + 1)], minlength=24)
        assert found.tolist() == wanted.tolist()
    assert plan.loss_weights().tolist() == [1.0] * 24


def test_epochs_of_uneven_draws_follow_on_each_other_without_a_gap() -> None:
    """Groups that lost rows yield more draws in one epoch than in another."""
    examples = plain(3, weights=[0.4, 0.9, 0.45])
    plan = BatchPlan(examples, batch_size=2, seed=0, weighting="resample")
    drawn = np.concatenate([plan.step(step) for step in range(30)])
    weights, groups = [e.weight for e in examples], [e.group for e in examples]
    at, sizes = 0, set()
    for epoch in range(20):
        count = resample(weights, groups, [0, 1, 2], seed=0, epoch=epoch)
        part = drawn[at : at + count.sum()]
        assert np.bincount(part, minlength=3).tolist() == count.tolist()
        at += int(count.sum())
        sizes.add(int(count.sum()))
    assert len(sizes) > 1


def test_weights_stay_in_the_loss_or_out_of_it() -> None:
    examples = plain(3, weights=[0.5, 2.0, 0.25])
    plans = {w: BatchPlan(examples, batch_size=1, seed=0, weighting=w) for w in ("loss", "none")}
    assert plans["loss"].loss_weights().tolist() == [0.5, 2.0, 0.25]
    assert plans["none"].loss_weights().tolist() == [1.0, 1.0, 1.0]


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    world_size=st.integers(1, 7),
    batch_size=st.integers(1, 12),
    micro_tokens=st.integers(1, 200),
)
def test_the_world_size_only_decides_who_gets_what(
    seed: int, world_size: int, batch_size: int, micro_tokens: int
) -> None:
    rows = random_rows(12, vocab=512, seed=seed)
    examples = list(encode(weighted_table(rows), vocab_size=512).examples)
    plan = BatchPlan(examples, batch_size=batch_size, seed=seed)
    indices = plan.step(1)
    given_out: Counter[tuple[float, tuple[int, ...]]] = Counter()
    counts = set()
    for rank in range(world_size):
        share = step_batch(
            examples,
            plan.loss_weights(),
            indices,
            micro_tokens=micro_tokens,
            rank=rank,
            world_size=world_size,
        )
        assert share.num_examples == batch_size
        counts.add(len(share.micro_batches))
        for micro in share.micro_batches:
            tokens = micro.input_ids.numel()
            assert tokens <= micro_tokens or len(micro.weight) == 1
            assert micro.idle <= (not micro.weight.any())
            for b in range(0 if micro.idle else len(micro.weight)):
                # These rows are supervised to their last token, so padding is all that is behind it.
                length = int((micro.labels[b] != IGNORED).nonzero().max()) + 1
                assert not micro.input_ids[b, length:].any()
                given_out[(float(micro.weight[b]), tuple(micro.input_ids[b, :length].tolist()))] += 1
    assert len(counts) == 1, "sharded models meet in every forward"
    wanted = Counter((examples[i].weight, tuple(examples[i].input_ids.tolist())) for i in indices)
    assert given_out == wanted


def test_padding_stands_on_the_right_so_that_every_query_sees_a_token() -> None:
    rows = [token_row(0, [7, 8, 9], [(2, 3)]), token_row(1, [1, 2, 3, 4, 5], [(1, 2), (3, 5)])]
    short, long = encode(weighted_table(rows), vocab_size=10, supervise="all").examples
    micro = pad([short, long], np.array([0.5, 2.0]))
    assert micro.input_ids.tolist() == [[7, 8, 9, 0, 0], [1, 2, 3, 4, 5]]
    assert micro.labels.tolist() == [[-100, -100, 9, -100, -100], [-100, 2, -100, 4, 5]]
    assert micro.tokens == 8
    assert micro.logits_to_keep == 5
    assert pad([short], np.ones(1)).logits_to_keep == 2


def test_bad_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        BatchPlan([], batch_size=1, seed=0)
    with pytest.raises(ValueError, match="batch_size must be ≥ 1"):
        BatchPlan(plain(1), batch_size=0, seed=0)
    with pytest.raises(ValueError, match="seed ≥ 0"):
        BatchPlan(plain(1), batch_size=1, seed=-1)
    with pytest.raises(ValueError, match="weighting 'lose' is not one of loss, resample, none"):
        BatchPlan(plain(1), batch_size=1, seed=0, weighting="lose")
    with pytest.raises(ValueError, match="sum to less than 1"):
        BatchPlan(plain(2, weights=[0.0, 0.0]), batch_size=1, seed=0, weighting="resample")
    with pytest.raises(ValueError, match="counted from 0"):
        BatchPlan(plain(1), batch_size=1, seed=0).step(-1)
    with pytest.raises(ValueError, match="micro_tokens must be at least 1"):
        step_batch(plain(1), np.ones(1), np.array([0]), micro_tokens=0)
