"""The outcomes of a whole log, a few bytes a row, on disk once they are many.

Suffix legend: N rows of a batch, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift_weights.arrays import to_arrow, to_numpy
from drift_weights.group_numbers import GroupNumbers
from drift_weights.outcomes import Outcomes, RowError, check_outcomes
from drift_weights.repeats import Repeats
from drift_weights.returns import trajectory_return
from drift_weights.weights import TiltSums

_IN_MEMORY = 1 << 24
"""Bytes from which on the rows go to a temporary file."""
_FIELD = 20
"""Bits of each count in a packed outcome."""
_MASK = (1 << _FIELD) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A batch of rows as the ledger keeps them."""

    first_row: int
    code_N: NDArray[np.int32]
    """The number of each row's group."""
    packed_N: NDArray[np.int64]
    penalty_N: NDArray[np.float64] | None
    return_N: NDArray[np.float64] | None
    weight_N: NDArray[np.float64] | None
    """Weights as they were stored in the log."""
    tokens_N: NDArray[np.int64] | None

    @property
    def solved_N(self) -> NDArray[np.bool_]:
        """Whether the terminal turn is right; only where the ledger knows it."""
        return np.asarray(self.packed_N >> 3 * _FIELD, dtype=bool)

    def counts_N(self, place: int) -> NDArray[np.int64]:
        """L (2), E (1) or the counted turns (0)."""
        return self.packed_N >> place * _FIELD & _MASK

    def returns(self, *, gamma: float, lam: float) -> NDArray[np.float64]:
        """R of eq. 12, or the return that the log brought along, shape [N]."""
        if self.return_N is not None:
            return self.return_N
        # Few outcomes are distinct: the formula is worked out once for each.
        encoded = to_arrow(self.packed_N).dictionary_encode()
        table = to_numpy(encoded.dictionary)
        length, unique, counted = (table >> place * _FIELD & _MASK for place in (2, 1, 0))
        solved = table >> 3 * _FIELD
        returns = trajectory_return(solved, length, unique, counted_N=counted, gamma=gamma, lam=lam)
        found: NDArray[np.float64] = returns[to_numpy(encoded.indices)]
        return found if self.penalty_N is None else found + self.penalty_N


class Ledger:
    """Group numbers and outcomes of every row, in the log's order; what every later pass reads."""

    def __init__(self) -> None:
        self.rows = 0
        self.numbers = GroupNumbers()
        self.knows_solved = True
        self.numbered = True
        """Whether every row has a whole number of its own within its group."""
        self.has_return = self.has_weight = self.has_tokens = False
        self.repeats = Repeats()
        self._solved_G = np.zeros(0, np.int32)
        self._size_G = np.zeros(0, np.int32)
        self._unscored: set[int] = set()
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 closed with the ledger
        self._layout: list[tuple[int, tuple[str, ...]]] = []

    @property
    def groups(self) -> int:
        """G, the groups so far."""
        return len(self.numbers)

    @property
    def size_G(self) -> NDArray[np.int32]:
        """Rows of each group."""
        return self._size_G[: self.groups]

    @property
    def solved_G(self) -> NDArray[np.int32]:
        """Right rows of each group; only where the log says which are right."""
        return self._solved_G[: self.groups]

    def add(self, outcomes: Outcomes) -> None:
        """Append a batch.

        Raises:
            RowError: a value out of range; its row counts from the first row of the ledger.
        """
        try:
            check_outcomes(outcomes)
        except RowError as error:
            raise RowError(self.rows + error.row, error.says) from None
        code_N = self.numbers.number(outcomes.key_columns)
        self._count(code_N, outcomes)
        solved = 0 if outcomes.solved_N is None else outcomes.solved_N.astype(np.int64) << 3 * _FIELD
        packed = solved | outcomes.length_N << 2 * _FIELD | outcomes.unique_N << _FIELD | outcomes.counted_N
        written = {"code_N": code_N, "packed_N": packed}
        for name in ("penalty_N", "return_N", "weight_N", "tokens_N"):
            if getattr(outcomes, name) is not None:
                written[name] = getattr(outcomes, name)
        for values in written.values():
            self._file.write(np.ascontiguousarray(values).tobytes())
        self._layout.append((len(outcomes), tuple(written)))
        sample = outcomes.sample
        whole = sample is not None and sample.type == pa.int64() and not sample.null_count
        self.numbered = self.numbered and whole
        if outcomes.sample is not None:
            self.repeats.add(code_N, outcomes.sample, self.rows, self.groups)
        self.rows += len(outcomes)

    def _count(self, code_N: NDArray[np.int32], outcomes: Outcomes) -> None:
        self._size_G = _add(self._size_G, code_N, 1, self.groups)
        if outcomes.solved_N is None:
            self.knows_solved = False
        else:
            self._solved_G = _add(self._solved_G, code_N[outcomes.solved_N], 1, self.groups)
        self.has_return = self.has_return or outcomes.return_N is not None
        self.has_weight = self.has_weight or outcomes.weight_N is not None
        self.has_tokens = outcomes.tokens_N is not None and (self.has_tokens or not self.rows)
        if outcomes.unscored_N is not None:
            self._unscored.update(code_N[outcomes.unscored_N].tolist())

    def omitted_G(self, *, all_wrong: bool = False) -> NDArray[np.bool_]:
        """Groups that are left out: those with an unscored row and, if asked, those without a success."""
        omitted = np.zeros(self.groups, bool)
        omitted[list(self._unscored)] = True
        return omitted | (self.solved_G == 0) if all_wrong else omitted

    @property
    def unscored(self) -> int:
        """Groups that hold an unscored row."""
        return len(self._unscored)

    def entries(self) -> Iterator[Entry]:
        """The batches again, in order."""
        self._file.seek(0)
        first = 0
        for rows, names in self._layout:
            found: dict[str, Any] = dict.fromkeys(("penalty_N", "return_N", "weight_N", "tokens_N"))
            for name in names:
                kind = _TYPES[name]
                found[name] = np.frombuffer(self._file.read(rows * kind.itemsize), kind)
            yield Entry(first_row=first, **found)
            first += rows

    def tilt_sums(self, *, beta: float, gamma: float, lam: float) -> TiltSums:
        """The normalisers of all groups (eq. 13), in two passes over the rows."""
        sums = TiltSums(beta)
        for entry in self.entries():
            sums.see(entry.code_N, entry.returns(gamma=gamma, lam=lam), self.groups)
        for entry in self.entries():
            sums.add(entry.code_N, entry.returns(gamma=gamma, lam=lam))
        return sums


_TYPES: dict[str, np.dtype[Any]] = {
    "code_N": np.dtype(np.int32),
    "packed_N": np.dtype(np.int64),
    "penalty_N": np.dtype(np.float64),
    "return_N": np.dtype(np.float64),
    "weight_N": np.dtype(np.float64),
    "tokens_N": np.dtype(np.int64),
}


def _add(
    values: NDArray[np.int32], code_N: NDArray[np.int32], amount: int, groups: int
) -> NDArray[np.int32]:
    if groups > len(values):
        values = np.concatenate([values, np.zeros(groups - len(values) + groups // 8, np.int32)])
    np.add.at(values, code_N, np.int32(amount))
    return values
