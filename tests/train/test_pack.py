"""The batch plan: pure, independent of the world size, exact in its counts (M15)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_train import BatchPlan, Example, MicroBatch, encode, step_batch
from drift_train.layout import deal
from drift_weights.weights import group_weights, resample
from train.weighted_rows import grouped_rows, token_row, weighted_table


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


def whole(micro: MicroBatch, n: int) -> tuple[int, ...]:
    """The ids of one example of a micro-batch, from what its last supervised token's place sees."""
    last = micro.source_R[micro.example_R == n][-1]
    ids = micro.input_ids.flatten()
    if micro.segments is None:
        width = micro.input_ids.shape[1]
        seen = range(int(last) // width * width, int(last) + 1)
    else:
        (part,) = [p for p in micro.segments.parts if p.start <= last < p.end]
        seen = [*range(part.prefix_start, part.prefix_end), *range(part.start, int(last) + 1)]
        assert micro.position_ids[0, seen].tolist() == list(range(len(seen)))
    # These rows are supervised to their last token.
    return (*ids[list(seen)].tolist(), int(micro.target_R[micro.example_R == n][-1]))


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    world_size=st.integers(1, 7),
    batch_size=st.integers(1, 12),
    micro_tokens=st.integers(1, 200),
    packed=st.booleans(),
)
def test_the_world_size_only_decides_who_gets_what(
    seed: int, world_size: int, batch_size: int, micro_tokens: int, packed: bool
) -> None:
    rows = grouped_rows(3, 4, vocab=512, seed=seed)
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
            packed=packed,
        )
        assert share.num_examples == batch_size
        counts.add(len(share.micro_batches))
        for micro in share.micro_batches:
            tokens = micro.input_ids.numel()
            assert tokens <= micro_tokens or len(set(micro.weight.tolist())) == 1
            assert micro.idle <= (not micro.weight.any())
            for n in range(0 if micro.idle else len(micro.weight)):
                given_out[(float(micro.weight[n]), whole(micro, n))] += 1
    assert len(counts) == 1, "sharded models meet in every forward"
    wanted = Counter((examples[i].weight, tuple(examples[i].input_ids.tolist())) for i in indices)
    assert given_out == wanted


def test_padding_stands_on_the_right_so_that_every_query_sees_a_token() -> None:
    rows = [token_row(0, [7, 8, 9], [(2, 3)]), token_row(1, [1, 2, 3, 4, 5], [(1, 2), (3, 5)])]
    short, long = encode(weighted_table(rows), vocab_size=10, supervise="all").examples
    weights, both = np.array([0.5, 2.0]), np.arange(2)
    (micro,) = step_batch([short, long], weights, both, micro_tokens=99, packed=False).micro_batches
    assert micro.input_ids.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 0, 0]]
    assert micro.source_R.tolist() == [0, 2, 3, 6]
    assert micro.target_R.tolist() == [2, 4, 5, 9]
    assert micro.example_R.tolist() == [0, 0, 0, 1]
    assert micro.weight.tolist() == [2.0, 0.5]
    assert (micro.tokens, micro.computed) == (8, 8)


def test_a_common_beginning_is_there_once_and_rows_of_other_groups_share_nothing() -> None:
    begin = [1, 2, 3, 4]
    rows = [token_row(n, [*begin, 5 + n, 6], [(4, 6)], prompt_id="one") for n in range(2)]
    rows.append(token_row(2, [*begin, 9], [(4, 5)], prompt_id="other"))
    examples = encode(weighted_table(rows), vocab_size=10).examples
    (micro,) = step_batch(examples, np.ones(3), np.arange(3), micro_tokens=99).micro_batches
    assert micro.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 6, 6, 1, 2, 3, 4, 9]]
    assert micro.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 0, 1, 2, 3, 4]]
    assert micro.segments.parts == ((0, 4, 0, 0), (4, 6, 0, 4), (6, 8, 0, 4), (8, 13, 0, 0))
    assert micro.source_R.tolist() == [3, 4, 3, 6, 11]
    assert (micro.tokens, micro.computed) == (17, 13)


@pytest.mark.parametrize("weighting", ["loss", "resample"])
def test_groups_stay_together_and_each_epoch_has_an_order_of_them(weighting: str) -> None:
    rows = [token_row(n, [1, 2], [(1, 2)], weight=1.0) for n in range(24)]
    # Not in the table's order.
    mixed = [rows[n] for n in np.random.default_rng(0).permutation(24)]
    examples = encode(weighted_table(mixed), vocab_size=9).examples
    plan = BatchPlan(examples, batch_size=24, seed=2, weighting=weighting, order="groups")
    orders = set()
    for step in range(4):
        drawn = plan.step(step)
        assert sorted(drawn.tolist()) == list(range(24))
        groups = [examples[i].group for i in drawn]
        assert all(len(set(groups[at : at + 4])) == 1 for at in range(0, 24, 4))
        orders.add(tuple(groups))
    assert len(orders) == 4


def test_an_example_that_is_drawn_twice_is_computed_once_and_counts_twice() -> None:
    rows = [token_row(n, [1, 2 + n], [(1, 2)], prompt_id=f"p{n}") for n in range(2)]
    examples = encode(weighted_table(rows), vocab_size=9).examples
    (micro,) = step_batch(examples, np.ones(2), np.array([1, 0, 1]), micro_tokens=99).micro_batches
    assert (micro.input_ids.numel(), micro.tokens, len(micro.weight)) == (4, 6, 3)


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    micro_tokens=st.integers(61, 300),
    world_size=st.integers(1, 6),
)
def test_ranks_and_micro_batches_carry_about_the_same(
    tokens: list[int], micro_tokens: int, world_size: int
) -> None:
    """No heavier than the lightest by more than the longest row; Graham's bound of the greedy rule."""
    rows = [token_row(n, [1] * (t + 1), [(t, t + 1)], prompt_id=f"p{n}") for n, t in enumerate(tokens)]
    examples = encode(weighted_table(rows), vocab_size=2).examples
    bins = deal(examples, np.arange(len(rows)), micro_tokens=micro_tokens, world_size=world_size)
    loads = [sum(unit.computed for unit in units) for units in bins]
    loads += [0] * (-len(loads) % world_size)
    assert max(loads) <= micro_tokens
    assert max(loads) - min(loads) <= max(tokens) + 1
    assert sorted(loads, reverse=True) == loads


def test_a_group_too_large_for_one_rank_is_split_over_them() -> None:
    rows = [token_row(n, [1] * 10 + [n, 2], [(10, 12)], prompt_id="one", sample=n) for n in range(8)]
    examples = encode(weighted_table(rows), vocab_size=10).examples
    bins = deal(examples, np.arange(8), micro_tokens=99, world_size=4)
    assert len(bins) == 4
    assert sorted(row for units in bins for unit in units for row in unit.rows) == list(range(8))


def test_an_epoch_may_draw_nothing() -> None:
    """Lone rows of little weight: Σw is above 1, and still there are epochs without any."""
    rows = plain(20, weights=[0.06] * 20)
    plan = BatchPlan(rows, batch_size=2, seed=0, weighting="resample")
    assert any(plan.examples_of(n + 1) == plan.examples_of(n) for n in range(12))
    assert [len(plan.step(step)) for step in range(10)] == [2] * 10


def test_bad_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        BatchPlan([], batch_size=1, seed=0)
    with pytest.raises(ValueError, match="batch_size must be ≥ 1"):
        BatchPlan(plain(1), batch_size=0, seed=0)
    with pytest.raises(ValueError, match="seed ≥ 0"):
        BatchPlan(plain(1), batch_size=1, seed=-1)
    with pytest.raises(ValueError, match="weighting 'lose' is not one of loss, resample, none"):
        BatchPlan(plain(1), batch_size=1, seed=0, weighting="lose")
    with pytest.raises(ValueError, match="order 'row' is not one of rows, groups"):
        BatchPlan(plain(1), batch_size=1, seed=0, order="row")
    with pytest.raises(ValueError, match="sum to less than 1"):
        BatchPlan(plain(2, weights=[0.0, 0.0]), batch_size=1, seed=0, weighting="resample")
    with pytest.raises(ValueError, match="counted from 0"):
        BatchPlan(plain(1), batch_size=1, seed=0).step(-1)
    with pytest.raises(ValueError, match="micro_tokens must be at least 1"):
        step_batch(plain(1), np.ones(1), np.array([0]), micro_tokens=0)
