"""Rows of a TRAJECTORIES table, held to the rules of `Trajectory` column by column.

Suffix legend: N rows, M turns of all rows.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift_weights.schema import TRAJECTORIES, check
from drift_weights.types import UNSCORED, VERDICTS

KEY = ("prompt_id", "round", "policy", "sample")


def check_trajectories(table: pa.Table, *, source: str = "the trajectories") -> pa.Table:
    """Hold a table to the schema, to its key, and every row to the rules of `Trajectory`.

    Returns:
        The table as `check` returns it.

    Raises:
        ValueError: what `check` refuses; a key that appears twice; a row that is no trajectory (zero
            or too many turns, an unknown verdict, a null or surplus field, a correct or unscored
            turn that is not the last, `ended` against the last verdict). The first row is named.
    """
    checked = check(table, TRAJECTORIES, source=source)
    _refuse_duplicate_keys(checked, source)
    turns_list = checked.column("turns").combine_chunks()
    length_N = pc.list_value_length(turns_list).to_numpy().astype(np.int64)
    _refuse(length_N < 1, "it has no turns", source)
    budget_N = checked.column("max_turns").to_numpy()
    _refuse(length_N > budget_N, "it has more turns than max_turns", source)
    _check_turns(turns_list.flatten(), checked.column("ended").to_pylist(), length_N, source)
    return checked


def _check_turns(turns: pa.StructArray, ended: list[str], length_N: NDArray[np.int64], source: str) -> None:
    row_M = np.repeat(np.arange(len(length_N)), length_N)
    last_M = np.zeros(len(row_M), dtype=bool)
    last_M[np.cumsum(length_N) - 1] = True
    verdict_M = np.asarray(turns.field("verdict").to_pylist(), dtype=object)
    missing_M = {name: _is_null(turns, name) for name in ("response", "answer", "feedback")}
    graded_M = np.isin(verdict_M, ("correct", "wrong"))
    scored_M = ~np.isin(verdict_M, list(UNSCORED))
    reason_M = np.asarray(turns.field("finish_reason").to_pylist(), dtype=object)
    rules = {
        f"a verdict is not one of {', '.join(VERDICTS)}": ~np.isin(verdict_M, VERDICTS),
        "a finish_reason is not stop, length or error": ~np.isin(reason_M, ("stop", "length", "error")),
        "a response is null": missing_M["response"],
        "a malformed turn has an answer": (verdict_M == "malformed") & ~missing_M["answer"],
        "a correct or wrong turn has no answer": graded_M & missing_M["answer"],
        "a correct turn is not the last": (verdict_M == "correct") & ~last_M,
        "a timeout or error is not the last turn": ~scored_M & ~last_M,
        "a turn before the last has no feedback": missing_M["feedback"] & ~last_M,
        "there is feedback after the last turn": ~missing_M["feedback"] & last_M,
    }
    for says, broken_M in rules.items():
        if broken_M.any():
            raise ValueError(f"{source}, row {row_M[np.argmax(broken_M)]}: {says}")
    ended_N, final_N = np.asarray(ended, dtype=object), verdict_M[last_M]
    rejected_N = np.isin(final_N, ("wrong", "malformed"))
    fits_N = (
        ((final_N == "correct") & (ended_N == "solved"))
        | (~scored_M[last_M] & (ended_N == "error"))
        | (rejected_N & np.isin(ended_N, ("budget", "context")))
    )
    _refuse(~fits_N, "`ended` contradicts the last verdict", source)


def _is_null(turns: pa.StructArray, name: str) -> NDArray[np.bool_]:
    found = turns.field(name).is_null().to_numpy(zero_copy_only=False)
    return np.asarray(found, dtype=bool)


def _refuse(broken_N: NDArray[np.bool_], says: str, source: str) -> None:
    if broken_N.any():
        raise ValueError(f"{source}, row {int(np.argmax(broken_N))}: {says}")


def _refuse_duplicate_keys(table: pa.Table, source: str) -> None:
    counted = table.select(KEY).group_by(list(KEY)).aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted.column("count_all"), 1))
    if twice.num_rows:
        first = {name: twice.column(name)[0].as_py() for name in KEY}
        raise ValueError(
            f"{source}: {twice.num_rows} keys appear more than once, first {first}; keep one row each"
        )
