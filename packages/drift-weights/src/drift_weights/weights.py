"""Group-normalised importance weights and resampling.

Suffix legend: N rows, K rows of a group, G groups.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

BETA = 0.1
_LIMB = 2.0**31
"""One limb of a fixed-point sum."""
_BITS = 60
"""Fixed-point fraction bits of a resampling position; a weight's own last bit is 2^-52 of it."""

Groups = Any
"""One key a row: a sequence of hashables, a NumPy array, an Arrow array or chunked array."""


def group_weights(return_N: ArrayLike, group_N: Groups, *, beta: float = BETA) -> NDArray[np.float64]:
    """Exponential tilt of each trajectory over its group's mean.

    w_i = exp(R_i/β) / Ẑ,  Ẑ = (1/K) Σ_j exp(R_j/β) over the K rows of the group (eq. 13).

    The maximum of a group is subtracted before exp, and the terms are summed in fixed point
    (`TiltSums`), so a weight does not change in any bit when rows are reordered or sharded.

    Args:
        return_N: R, finite.
        group_N: one key a row, of any hashable type, in any order.
        beta: β > 0, the KL strength of eq. 3.

    Returns:
        w, shape [N], in [0, K]; Σ w = K in every group. 0 only where (R_max − R)/β > 700 underflows.

    Raises:
        ValueError: no rows, a return that is not finite, a null key, β ≤ 0 or not finite.

    Source: arXiv 2605.31455, eq. 13; β = 0.1 from D.2.
    """
    check_beta(beta)
    returns = finite_returns(return_N)
    code_N, keys = group_codes(group_N, rows=len(returns))
    sums = TiltSums(beta)
    sums.see(code_N, returns, len(keys))
    sums.add(code_N, returns)
    return sums.weights(code_N, returns)


class TiltSums:
    """Σ exp((R − R_max)/β) of every group, from batches of rows in any order.

    All rows go through `see`, then all of them through `add`, then weights can be had. A term lies
    in [0, 1] and is added as two whole numbers, its first 31 fraction bits and the next 31: sums of
    whole numbers do not depend on their order. The error of a sum is at most K·2⁻⁶³, where it is at
    least 1, and nothing overflows below 2³² rows a group. Memory: 28 bytes a group.
    """

    def __init__(self, beta: float) -> None:
        check_beta(beta)
        self.beta = beta
        self.size_G = np.zeros(0, np.int32)
        self.max_G = np.zeros(0)
        self._high_G = np.zeros(0, np.int64)
        self._low_G = np.zeros(0, np.int64)

    def see(self, code_N: NDArray[np.integer], return_N: NDArray[np.float64], groups: int) -> None:
        """Note sizes and largest returns; `groups` may have grown since the last batch."""
        if groups > len(self.size_G):
            self.size_G = _grown(self.size_G, groups, 0)
            self.max_G = _grown(self.max_G, groups, -np.inf)
        np.add.at(self.size_G, code_N, np.int32(1))
        np.maximum.at(self.max_G, code_N, return_N)

    def add(self, code_N: NDArray[np.integer], return_N: NDArray[np.float64]) -> None:
        """Add the rows' terms to their groups."""
        if len(self._high_G) != len(self.size_G):
            self._high_G = np.zeros(len(self.size_G), np.int64)
            self._low_G = np.zeros(len(self.size_G), np.int64)
        scaled_N = self.tilt(code_N, return_N) * _LIMB
        high_N = np.floor(scaled_N)
        np.add.at(self._high_G, code_N, high_N.astype(np.int64))
        np.add.at(self._low_G, code_N, np.rint((scaled_N - high_N) * _LIMB).astype(np.int64))

    def tilt(self, code_N: NDArray[np.integer], return_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """exp((R − R_max)/β) of each row, in [0, 1]."""
        # In this order: exact zero at the maximum, no overflow for any β.
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.exp((return_N - self.max_G[code_N]) / self.beta))

    def weights(self, code_N: NDArray[np.integer], return_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """w of each row (eq. 13), once every row was added."""
        total_N = self._high_G[code_N] / _LIMB + self._low_G[code_N] / _LIMB**2
        return np.asarray(self.tilt(code_N, return_N) * self.size_G[code_N] / total_N)


def _grown(values: NDArray[Any], groups: int, fill: float) -> NDArray[Any]:
    """The same array with room for `groups`, and as little above as repeated growth allows."""
    grown = np.full(max(groups, len(values) + len(values) // 8), fill, values.dtype)
    grown[: len(values)] = values
    return grown


def effective_sample_size(
    weight_N: ArrayLike, group_N: Groups
) -> tuple[list[Hashable], NDArray[np.float64]]:
    """How many equally weighted rows a group is worth: (Σ w)² / Σ w².

    Args:
        weight_N: w ≥ 0, finite, not all zero within a group.
        group_N: one key a row.

    Returns:
        The G keys in order of first appearance, and the ESS of each, shape [G], in [1, K].

    Raises:
        ValueError: a weight that is negative or not finite, a group of zeros, a null key.

    Source: Kish's effective sample size.
    """
    weights = _weights(weight_N)
    code_N, keys = group_codes(group_N, rows=len(weights))
    max_G = np.zeros(len(keys))
    np.maximum.at(max_G, code_N, weights)
    if (max_G == 0).any():
        raise ValueError(f"group {keys[int(np.argmin(max_G))]!r} has no weight above 0")
    scaled_N = weights / max_G[code_N]
    total_G = group_sums(scaled_N, code_N, len(keys))
    squares_G = group_sums(scaled_N**2, code_N, len(keys))
    return keys, total_G**2 / squares_G


def resample(
    weight_N: ArrayLike, group_N: Groups, sample_N: ArrayLike, *, seed: int, epoch: int = 0
) -> NDArray[np.int64]:
    """How often each row is drawn, by systematic sampling within each group.

    With the group's rows in `sample` order, C_i = Σ_{j≤i} w_j and u uniform in [0, 1) from
    hash(seed, epoch, group key): count_i = ⌊C_i + u⌋ − ⌊C_{i−1} + u⌋. So E[count_i] = w_i,
    count_i is ⌊w_i⌋ or ⌈w_i⌉, and a whole group (Σ w = K) yields exactly K draws. Each group has
    its own u: a shared one would make like groups choose in lockstep.

    This is ours, not the paper's; weights in the loss stay the default.

    Args:
        weight_N: w ≥ 0, finite.
        group_N: one key a row, of JSON scalars or tuples of them; the keys enter the hash.
        sample_N: whole numbers, unique within a group; they decide the order, not the row position.
        seed: of the run.
        epoch: a new epoch is a new draw.

    Returns:
        Counts, shape [N]; they follow the key under any reordering of the rows.

    Raises:
        ValueError: a bad weight, a null key, or a (group, sample) that appears twice.

    Source: ours; for the ground see An, Ying and Zhu, ICLR 2021 (arXiv 2009.13447).
    """
    weights = _weights(weight_N)
    samples = np.asarray(sample_N)
    if samples.shape != weights.shape or samples.dtype.kind not in "iu":
        raise ValueError("sample must be whole numbers, one a row")
    code_N, keys = group_codes(group_N, rows=len(weights))
    order_N = np.lexsort((samples, code_N))
    _refuse_duplicates(code_N, samples, order_N, keys)
    count_N = np.zeros(len(weights), dtype=np.int64)
    bounds = np.searchsorted(code_N[order_N], np.arange(len(keys) + 1))
    for code, key in enumerate(keys):
        rows_K = order_N[bounds[code] : bounds[code + 1]]
        count_N[rows_K] = systematic(weights[rows_K], offset_of(seed, epoch, key))
    return count_N


def finite_returns(return_N: ArrayLike) -> NDArray[np.float64]:
    """Returns as floats, shape [N].

    Raises:
        ValueError: no rows, or a return that is not finite (the row is named).
    """
    returns = np.ascontiguousarray(return_N, dtype=np.float64)
    if returns.ndim != 1 or len(returns) == 0:
        raise ValueError(f"return must be a non-empty column, got shape {returns.shape}")
    if not np.isfinite(returns).all():
        row = int(np.argmin(np.isfinite(returns)))
        raise ValueError(f"row {row}: return must be finite, got {returns[row]}; fix or drop its group")
    return returns


def check_beta(beta: float) -> None:
    """Refuse a KL strength that is not a positive number.

    Raises:
        ValueError: β ≤ 0, NaN or infinite.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be finite and above 0, got {beta}")


def group_codes(group_N: Groups, *, rows: int | None = None) -> tuple[NDArray[np.int64], list[Hashable]]:
    """Number the groups in order of first appearance.

    Returns:
        The code of each row, shape [N], and the G keys as Python values.

    Raises:
        ValueError: a null or NaN key, or a length other than `rows`.
    """
    count = len(group_N)
    if rows is not None and count != rows:
        raise ValueError(f"group has {count} rows, expected {rows}")
    if isinstance(group_N, np.ndarray) and group_N.ndim == 1 and group_N.dtype.kind in "iuU":
        group_N = pa.array(group_N)
    if isinstance(group_N, pa.ChunkedArray):
        group_N = group_N.combine_chunks()
    return _arrow_codes(group_N) if isinstance(group_N, pa.Array) else _object_codes(group_N)


def group_sums(value_N: NDArray[np.float64], code_N: NDArray[np.int64], groups: int) -> NDArray[np.float64]:
    """Σ of each group, correctly rounded and therefore the same in any row order. Returns shape [G]."""
    order_N = np.argsort(code_N, kind="stable")
    bounds = np.searchsorted(code_N[order_N], np.arange(groups + 1)).tolist()
    sorted_N = value_N[order_N].tolist()
    return np.fromiter((math.fsum(sorted_N[a:b]) for a, b in pairwise(bounds)), np.float64, groups)


def _arrow_codes(group_N: pa.Array) -> tuple[NDArray[np.int64], list[Hashable]]:
    if pa.types.is_dictionary(group_N.type):
        # Its own dictionary may hold unused, repeated or null values, in any order.
        group_N = group_N.dictionary_decode()
    if pa.types.is_nested(group_N.type):
        raise ValueError(f"a group key must be a scalar, got {group_N.type}; pass tuples instead")
    missing_N = group_N.is_null(nan_is_null=pa.types.is_floating(group_N.type))
    row = pc.index(missing_N, True).as_py()
    if row >= 0:
        raise ValueError(f"row {row}: the group key is null")
    if pa.types.is_floating(group_N.type):
        # −0.0 + 0.0 is 0.0: equal numbers are one key.
        group_N = pc.add(group_N, 0.0)
    encoded = group_N.dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _object_codes(group_N: Iterable[Any]) -> tuple[NDArray[np.int64], list[Hashable]]:
    codes: dict[Hashable, int] = {}
    code_N = []
    for row, key in enumerate(group_N):
        value = _plain(key)
        if value is None or value != value:
            raise ValueError(f"row {row}: the group key is null")
        code_N.append(codes.setdefault(value, len(codes)))
    return np.asarray(code_N, dtype=np.int64), list(codes)


def _plain(key: Any) -> Any:
    """A key as Python values, so that a NumPy scalar and its Python twin are one key."""
    if isinstance(key, tuple):
        return tuple(_plain(part) for part in key)
    return key.item() if isinstance(key, np.generic) else key


def _weights(weight_N: ArrayLike) -> NDArray[np.float64]:
    weights = np.ascontiguousarray(weight_N, dtype=np.float64)
    if weights.ndim != 1 or len(weights) == 0:
        raise ValueError(f"weight must be a non-empty column, got shape {weights.shape}")
    bad_N = ~(np.isfinite(weights) & (weights >= 0))
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(f"row {row}: weight must be finite and not negative, got {weights[row]}")
    return weights


def _refuse_duplicates(
    code_N: NDArray[np.int64],
    samples: NDArray[Any],
    order_N: NDArray[np.int64],
    keys: list[Hashable],
) -> None:
    code, sample = code_N[order_N], samples[order_N]
    twice = (code[1:] == code[:-1]) & (sample[1:] == sample[:-1])
    if twice.any():
        row = int(order_N[1:][twice][0])
        raise ValueError(f"row {row}: sample {samples[row]} of group {keys[code_N[row]]!r} appears twice")


def offset_of(seed: int, epoch: int, key: Hashable) -> int:
    """u of a group as a fixed-point number in [0, 2^_BITS)."""
    try:
        text = json.dumps([seed, epoch, _hashed(key)], separators=(",", ":"), ensure_ascii=False)
    except TypeError as error:
        raise ValueError(
            f"group key {key!r} cannot enter the hash of a draw; use text or numbers"
        ) from error
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _BITS)


def _hashed(key: Any) -> Any:
    """Keys that compare equal (1, 1.0, True) are one group and must hash alike, whichever comes first."""
    if isinstance(key, tuple):
        return [_hashed(part) for part in key]
    if isinstance(key, bool | float) and key == int(key):
        return int(key)
    return key


def systematic(weight_K: NDArray[np.float64], offset: int) -> list[int]:
    """The counts of one group's rows, in the order given: ⌊C_i + u⌋ − ⌊C_{i−1} + u⌋ (see `resample`).

    Args:
        weight_K: w ≥ 0 of the group.
        offset: u as `offset_of` gives it.
    """
    one = 1 << _BITS
    fixed = [_fixed_point(weight) for weight in weight_K.tolist()]
    residue = len(fixed) * one - sum(fixed)
    # Normalised weights sum to K up to rounding; give that rounding to the largest, so that a whole
    # group yields exactly K. Anything larger is a group that is not whole, and stays as it is.
    if abs(residue) <= one * len(fixed) * 1e-9:
        fixed[fixed.index(max(fixed))] += residue
    counts, position = [], offset
    for step in fixed:
        counts.append(((position + step) >> _BITS) - (position >> _BITS))
        position += step
    return counts


def _fixed_point(weight: float) -> int:
    numerator, denominator = weight.as_integer_ratio()
    return (numerator << _BITS) // denominator
