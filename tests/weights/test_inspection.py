"""What inspect says of a log: composition, effective sample size, the cost of pruning, β for a target."""

import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights import (
    WeightConfig,
    effective_sample_size,
    group_composition,
    group_weights,
    partition_relative_error,
    trajectory_return,
)
from drift_weights.columns import Columns, outcomes_of_columns
from drift_weights.inspection import HISTOGRAM_EDGES, beta_for_ess, grid, inspect_ledger
from drift_weights.ledger import Ledger
from drift_weights.reweighting import ledger_of

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.booleans(), st.integers(1, 5)).flatmap(
        lambda row: st.tuples(*map(st.just, row), st.integers(1, row[2]))
    ),
    min_size=1,
    max_size=40,
)
MIXED = [(0, True, 1, 1), (0, False, 5, 1), (0, False, 5, 5), (1, True, 2, 2), (1, True, 2, 2)]


def ledger(rows: list[tuple[int, bool, int, int]]) -> Ledger:
    names = ("prompt_id", "correct", "length", "unique")
    columns = {
        name: pa.array(list(part)) for name, part in zip(names, zip(*rows, strict=True), strict=True)
    }
    return ledger_of(lambda: [outcomes_of_columns(columns, Columns().plain(names))])


def in_memory(rows: list[tuple[int, bool, int, int]], config: WeightConfig) -> tuple[list[int], np.ndarray]:
    group_N, solved_N, length_N, unique_N = (list(part) for part in zip(*rows, strict=True))
    return_N = trajectory_return(solved_N, length_N, unique_N, gamma=config.gamma, lam=config.lam)
    return group_N, return_N


@given(ROWS, st.sampled_from([0.05, 0.1, 1.0]), st.sampled_from([0.0, 0.5]))
def test_every_figure_is_that_of_the_functions_in_memory(rows, beta, lam) -> None:
    config = WeightConfig(beta=beta, lam=lam)
    group_N, return_N = in_memory(rows, config)
    weight_N = group_weights(return_N, group_N, beta=beta)
    found = inspect_ledger(ledger(rows), [config])
    (setting,) = found.settings
    _, ess_G = effective_sample_size(weight_N, group_N)
    _, error_G = partition_relative_error(return_N, group_N, beta=beta)
    assert found.composition == group_composition([row[1] for row in rows], group_N)
    assert found.rows == len(rows)
    assert sum(size * count for size, count in found.group_sizes.items()) == len(rows)
    assert setting.ess_mean == pytest.approx(ess_G.mean())
    assert setting.ess_median == pytest.approx(np.median(ess_G))
    assert setting.largest == weight_N.max()
    finite_G = error_G[np.isfinite(error_G)]
    # Where all returns of a group are equal, the exact error is 0 and the square root magnifies rounding.
    expected = np.median(finite_G) if len(finite_G) else None
    assert setting.partition_error == (None if expected is None else pytest.approx(expected, abs=1e-7))
    wrong_N = np.array([not row[1] for row in rows])
    assert setting.upweighted_wrong.rows == (wrong_N & (weight_N > 1)).sum()
    assert setting.upweighted_wrong.mass == pytest.approx(weight_N[wrong_N].sum() / weight_N.sum())


@given(ROWS)
def test_bins_hold_every_row_and_all_weight_once(rows) -> None:
    group_N, return_N = in_memory(rows, WeightConfig())
    weight_N = group_weights(return_N, group_N)
    (setting,) = inspect_ledger(ledger(rows), [WeightConfig()]).settings
    assert math.fsum(setting.mass) == pytest.approx(1.0)
    for place, (low, high) in enumerate(pairwise(HISTOGRAM_EDGES)):
        inside_N = (weight_N >= low) & (weight_N < high)
        assert setting.histogram[place] == inside_N.sum()
        assert setting.mass[place] == pytest.approx(weight_N[inside_N].sum() / len(rows), abs=1e-12)
    for edge in HISTOGRAM_EDGES[1:-1]:
        fewer, mass, tokens = setting.below(edge)
        assert fewer == (weight_N < edge).sum()
        assert mass == pytest.approx(weight_N[weight_N < edge].sum() / len(rows), abs=1e-12)
        assert tokens is None


@given(ROWS, st.floats(0.05, 0.95))
def test_the_beta_found_has_the_ess_asked_for(rows, share) -> None:
    log = ledger(rows)
    least, most = (
        np.mean(effective_sample_size(group_weights(returns, groups, beta=beta), groups)[1])
        for beta in (1e-4, 1e4)
        for groups, returns in [in_memory(rows, WeightConfig())]
    )
    target = least + share * (most - least)
    if most - least < 1e-3:
        return
    beta = beta_for_ess(log, target, WeightConfig())
    groups, returns = in_memory(rows, WeightConfig())
    near = [
        np.mean(effective_sample_size(group_weights(returns, groups, beta=b), groups)[1])
        for b in (beta / 1.01, beta * 1.01)
    ]
    assert near[0] - 1e-9 <= target <= near[1] + 1e-9


@pytest.mark.parametrize("target", [0.5, 3.0])
def test_an_ess_out_of_reach_is_refused_with_what_is_reachable(target: float) -> None:
    # One group of three with one best row, one of two equal rows: from (1 + 2)/2 to (3 + 2)/2.
    with pytest.raises(ValueError, match=r"reaches 1\.500 to 2\.500"):
        beta_for_ess(ledger(MIXED), target, WeightConfig())


def test_dropping_all_wrong_groups_leaves_them_out_of_every_figure() -> None:
    rows = [*MIXED, (2, False, 5, 1), (2, False, 5, 5)]
    dropped = inspect_ledger(ledger(rows), [WeightConfig(all_wrong="drop")])
    assert dropped == type(dropped)(
        rows=dropped.rows,
        group_sizes=dropped.group_sizes,
        composition=inspect_ledger(ledger(MIXED), [WeightConfig()]).composition,
        settings=inspect_ledger(ledger(MIXED), [WeightConfig()]).settings,
    )
    assert dropped.rows == 5
    assert dropped.group_sizes == {2: 1, 3: 1}
    kept = inspect_ledger(ledger(rows), [WeightConfig()])
    assert kept.settings[0].upweighted_wrong.rows == 1


def test_a_grid_is_every_combination_and_keeps_the_policies() -> None:
    base = WeightConfig(malformed="skip", all_wrong="drop", group_size=4)
    points = grid(base, [0.1, 0.2], [0.9], [0.0, 0.5])
    assert [(point.beta, point.gamma, point.lam) for point in points] == [
        (0.1, 0.9, 0.0),
        (0.1, 0.9, 0.5),
        (0.2, 0.9, 0.0),
        (0.2, 0.9, 0.5),
    ]
    assert {(point.malformed, point.all_wrong, point.group_size) for point in points} == {
        ("skip", "drop", 4)
    }
