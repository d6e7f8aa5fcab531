"""The offset u of a draw can be redone from seed, epoch and key alone: a seed stays the draw it was."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from drift_weights.weights import resample, systematic

# The key as JSON, by hand: equal keys (1, 1.0, True) are written alike.
KEYS: list[tuple[Hashable, str]] = [
    ("p1", '"p1"'),
    ("中文 é", '"中文 é"'),
    (7, "7"),
    (1.0, "1"),
    (True, "1"),
    (np.False_, "0"),
    (2.5, "2.5"),
    (-0.0, "0"),
    (2**70, str(2**70)),
    (("p", 0, "π"), '["p",0,"π"]'),
    (("p", 0.0, ("q", True)), '["p",0,["q",1]]'),
]


@pytest.mark.parametrize(("key", "text"), KEYS)
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (12, 3), (-1, 2**40)])
def test_u_is_the_first_60_bits_of_the_hash_of_seed_epoch_and_key(
    key: Hashable, text: str, seed: int, epoch: int
) -> None:
    digest = hashlib.blake2b(f"[{seed},{epoch},{text}]".encode(), digest_size=8).digest()
    u = Fraction(int.from_bytes(digest, "big") >> 4, 2**60)

    def count(weight: Fraction) -> Any:
        return resample([float(weight)], [key], [0], seed=seed, epoch=epoch).tolist()

    # One row of weight w is drawn ⌊w + u⌋ times: once from w = 1 − u on. Steps of 2^-50 hold in a double.
    step = Fraction(1, 2**50)
    edge = -((u - 1) // step) * step
    assert count(edge + step) == [1]
    assert count(edge - step) == [0]


def test_equal_keys_draw_alike_whichever_comes_first() -> None:
    weights = [0.25, 0.5, 0.75, 0.5]
    for keys in ([1, 1.0, True, np.float64(1)], [True, 1, 1.0, 1], [("a", 1)] * 2 + [("a", True)] * 2):
        drawn = [
            resample(weights, list(order), range(4), seed=seed).tolist()
            for seed in range(20)
            for order in (keys, keys[::-1])
        ]
        assert drawn[::2] == drawn[1::2]


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_a_sum_off_by_rounding_is_a_whole_group_and_one_off_by_more_is_not(rows: int) -> None:
    first, last = 0, 2**60 - 1
    for off in (-5e-10, 5e-10):
        weights = np.full(rows, 1.0 + off)
        assert [sum(systematic(weights, u)) for u in (first, last)] == [rows, rows]
    for off in (-1e-6, 1e-6):
        weights = np.full(rows, 1.0 + off)
        assert {sum(systematic(weights, u)) for u in (first, last)} == {
            rows,
            rows + (1 if off > 0 else -1),
        }


def test_counts_are_whole_numbers_of_64_bits() -> None:
    assert resample([1.5, 0.5], ["a", "a"], [0, 1], seed=0).dtype == np.int64
