"""The turns of a trajectories table as flat arrays. Suffixes: N trajectories, M turns in all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift_weights.types import UNSCORED, VERDICTS

_CORRECT = VERDICTS.index("correct")
_MALFORMED = VERDICTS.index("malformed")
_UNSCORED = [VERDICTS.index(verdict) for verdict in sorted(UNSCORED)]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Turns:
    """Every turn of N trajectories, trajectory after trajectory, in the order of the table."""

    lengths: NDArray[np.int64]
    """L ≥ 1, the number of turns of each trajectory; shape [N]."""
    rows: NDArray[np.int64]
    """The trajectory of each turn, from 0; shape [M]."""
    numbers: NDArray[np.int64]
    """t, the number of each turn in its trajectory, from 1; shape [M]."""
    verdicts: NDArray[np.int64]
    """Position of each verdict in `drift_weights.types.VERDICTS`; shape [M]."""
    answers: NDArray[np.int64]
    """A number for each distinct answer, −1 where there is none; shape [M]."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """V(y) = 1; shape [M]."""
        return np.asarray(self.verdicts == _CORRECT)

    @property
    def malformed(self) -> NDArray[np.bool_]:
        """No answer could be read; shape [M]."""
        return np.asarray(self.verdicts == _MALFORMED)

    @property
    def unscored(self) -> NDArray[np.bool_]:
        """Verifier or engine failed, nothing is known about the answer; shape [M]."""
        return np.isin(self.verdicts, _UNSCORED)


def flatten_turns(table: pa.Table) -> Turns:
    """The flat turns of a TRAJECTORIES table (its `turns` column alone is read).

    Raises:
        ValueError: a trajectory with no turns, or a verdict that is unknown, naming the row.
    """
    column = table.column("turns")
    length_N = _whole(pc.fill_null(pc.list_value_length(column), 0))
    if (length_N < 1).any():
        raise ValueError(f"row {np.argmin(length_N)}: a trajectory has at least one turn, got none")
    flat = pc.list_flatten(column)
    row_M = np.repeat(np.arange(len(length_N)), length_N)
    start_N = np.cumsum(length_N) - length_N
    return Turns(
        lengths=length_N,
        rows=row_M,
        numbers=np.arange(len(row_M)) - start_N[row_M] + 1,
        verdicts=_verdicts(pc.struct_field(flat, "verdict"), row_M),
        answers=_codes(pc.struct_field(flat, "answer")),
    )


def _verdicts(names: Any, row_M: NDArray[np.int64]) -> NDArray[np.int64]:
    verdict_M = _whole(pc.fill_null(pc.index_in(names, value_set=pa.array(VERDICTS)), -1))
    if (verdict_M < 0).any():
        turn = int(np.argmin(verdict_M))
        found = names[turn].as_py()
        raise ValueError(f"row {row_M[turn]}: verdict {found!r} is not one of {', '.join(VERDICTS)}")
    return verdict_M


def _codes(strings: Any) -> NDArray[np.int64]:
    values = strings.combine_chunks() if isinstance(strings, pa.ChunkedArray) else strings
    return _whole(pc.fill_null(values.dictionary_encode().indices, -1))


def _whole(column: Any) -> NDArray[np.int64]:
    return np.asarray(column).astype(np.int64)
