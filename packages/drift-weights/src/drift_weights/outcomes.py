"""What a return is made of, a batch of rows at a time.

Suffix legend: N rows, T turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift_weights.types import Malformed

GROUP_KEY = ("prompt_id", "round", "policy")
LONGEST = 2**20 - 1
"""The most turns that a trajectory may have."""


class RowError(ValueError):
    """What is wrong with one row; whoever knows the file says which line or row of it that is."""

    def __init__(self, row: int, says: str) -> None:
        super().__init__(f"row {row}: {says}")
        self.row, self.says = row, says


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """Group, success, L, E and counted turns of each row; or, in their place, the return itself."""

    key_columns: tuple[pa.Array, ...]
    """The columns that together name a row's group, without nulls."""
    solved_N: NDArray[np.bool_] | None
    """None where the log does not say which rows are right."""
    length_N: NDArray[np.int64]
    unique_N: NDArray[np.int64]
    counted_N: NDArray[np.int64]
    penalty_N: NDArray[np.float64] | None = None
    return_N: NDArray[np.float64] | None = None
    """The return that the log brought along; it takes the place of eq. 12."""
    weight_N: NDArray[np.float64] | None = None
    """Weights as they are stored."""
    tokens_N: NDArray[np.int64] | None = None
    """Tokens of prompt and response, where the log has them."""
    sample: pa.Array | None = None
    """What tells the rows of a group apart; null where a row has none."""
    unscored_N: NDArray[np.bool_] | None = None
    """Rows without a verdict; their whole groups are left out."""

    def __len__(self) -> int:
        return len(self.length_N)


def check_outcomes(outcomes: Outcomes) -> None:
    """Hold a batch to the ranges of eq. 12.

    Raises:
        RowError: turns below 1 or above 2²⁰ − 1, more distinct answers than counted turns, a return or
            penalty that is not finite.
    """
    length, unique, counted = outcomes.length_N, outcomes.unique_N, outcomes.counted_N
    rules = (
        ((length < 1) | (length > LONGEST), "length", length, f"must lie in 1…{LONGEST}"),
        ((counted < 0) | (counted > length), "counted", counted, "must lie in 0…length"),
        (unique > counted, "unique", unique, "must not exceed the turns it counts"),
        ((unique < 1) & (counted > 0), "unique", unique, "must be at least 1"),
        (unique < 0, "unique", unique, "must not be negative"),
    )
    for bad_N, name, values, rule in rules:
        _refuse(bad_N, name, values, rule)
    for name, numbers in (("return", outcomes.return_N), ("penalty", outcomes.penalty_N)):
        if numbers is not None:
            _refuse(~np.isfinite(numbers), name, numbers, "must be finite")


def _refuse(bad_N: NDArray[np.bool_], name: str, values: NDArray[Any], rule: str) -> None:
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise RowError(row, f"{name} {rule}, got {values[row]}; fix or drop its group")


def outcomes_of_trajectories(table: pa.Table, malformed: Malformed = "count") -> Outcomes:
    """Outcomes of a TRAJECTORIES table that `check_trajectories` has passed; unscored rows are marked."""
    turns_list = table.column("turns").combine_chunks()
    length_N = pc.list_value_length(turns_list).to_numpy().astype(np.int64)
    turns = turns_list.flatten()
    row_T = np.repeat(np.arange(len(length_N)), length_N)
    correct_T = pc.equal(turns.field("verdict"), "correct").to_numpy(zero_copy_only=False)
    # A null answer is a malformed one; as code −1 it is one more value, or it is left out.
    codes = turns.field("answer").dictionary_encode().indices
    code_T = pc.fill_null(codes, -1).to_numpy().astype(np.int64)
    if malformed == "skip":
        readable_T = code_T >= 0
        row_T, code_T = row_T[readable_T], code_T[readable_T]
    pairs = np.unique(np.stack([row_T, code_T]), axis=1)
    return Outcomes(
        key_columns=_columns(table, GROUP_KEY),
        solved_N=correct_T[np.cumsum(length_N) - 1],
        length_N=length_N,
        unique_N=np.bincount(pairs[0], minlength=len(length_N)),
        counted_N=np.bincount(row_T, minlength=len(length_N)),
        tokens_N=_tokens(table.column("token_ids")),
        sample=table.column("sample").combine_chunks(),
        unscored_N=pc.equal(table.column("ended"), "error").to_numpy(),
    )


def outcomes_of_weighted(table: pa.Table) -> Outcomes:
    """Outcomes of a WEIGHTED table, as they were counted when it was made."""
    named = {name: table.column(name).to_numpy() for name in ("length", "unique_answers", "counted")}
    return Outcomes(
        key_columns=_columns(table, GROUP_KEY),
        solved_N=table.column("solved").to_numpy(),
        length_N=named["length"].astype(np.int64),
        unique_N=named["unique_answers"].astype(np.int64),
        counted_N=named["counted"].astype(np.int64),
        penalty_N=table.column("penalty").to_numpy(),
        weight_N=table.column("weight").to_numpy(),
        tokens_N=_tokens(table.column("input_ids")),
        sample=table.column("sample").combine_chunks(),
    )


def _columns(table: pa.Table, names: tuple[str, ...]) -> tuple[pa.Array, ...]:
    return tuple(table.column(name).combine_chunks() for name in names)


def _tokens(column: pa.ChunkedArray) -> NDArray[np.int64] | None:
    if column.null_count:
        return None
    return np.asarray(pc.list_value_length(column).to_numpy(), dtype=np.int64)


def group_keys(table: pa.Table) -> list[tuple[str, int, str]]:
    """(prompt_id, round, policy) of each row of a TRAJECTORIES or WEIGHTED table."""
    return list(zip(*(table.column(name).to_pylist() for name in GROUP_KEY), strict=True))
