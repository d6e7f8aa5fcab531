"""The weights of a whole ledger, batch by batch. Suffix legend: N rows of a batch, G groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from drift_weights.ledger import Entry, Ledger
from drift_weights.outcomes import RowError
from drift_weights.returns import GAMMA, LAM, check_gamma, check_lam
from drift_weights.types import Malformed
from drift_weights.weights import BETA, check_beta

AllWrong = Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightConfig:
    """How returns and weights are made; the paper's values by default (D.2).

    Raises:
        ValueError: an unknown policy, or a group size below 1.
    """

    beta: float = BETA
    """β > 0, KL strength (eq. 13)."""
    gamma: float = GAMMA
    """γ in (0, 1], discount a turn (eq. 12)."""
    lam: float = LAM
    """λ ≥ 0, repetition penalty (eq. 12)."""
    malformed: Malformed = "count"
    """`count`: a malformed answer is one value of its own; `skip`: the released code's rule."""
    all_wrong: AllWrong = "keep"
    """`keep`: groups without a success stay, weighted by the repetition penalty alone; `drop`: they are
    left out. Other groups' weights are the same either way."""
    group_size: int | None = None
    """The declared K; groups of another size are refused. None takes groups as they come."""

    def __post_init__(self) -> None:
        if self.malformed not in get_args(Malformed):
            raise ValueError(f"malformed must be count or skip, got {self.malformed!r}")
        if self.all_wrong not in get_args(AllWrong):
            raise ValueError(f"all_wrong must be keep or drop, got {self.all_wrong!r}")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {self.group_size}")
        check_beta(self.beta)
        check_gamma(self.gamma)
        check_lam(self.lam)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeighedBatch:
    """Rows of the ledger with their weights."""

    entry: Entry
    keep_N: NDArray[np.bool_] | None
    """False where the row's group is left out; None where every row stays."""
    return_N: NDArray[np.float64]
    weight_N: NDArray[np.float64]
    """Means nothing where the row is left out."""


class Weighing:
    """Weights of every row of a ledger under one configuration.

    Raises:
        ValueError: groups of another size than declared, or nothing left to weigh.
    """

    def __init__(self, ledger: Ledger, config: WeightConfig) -> None:
        self.ledger, self.config = ledger, config
        if config.all_wrong == "drop" and not ledger.knows_solved:
            raise ValueError("the log does not say which rows are right, so all-wrong groups are unknown")
        if ledger.rows == 0:
            raise ValueError("there are no rows")
        self.omitted_G = ledger.omitted_G(all_wrong=config.all_wrong == "drop")
        if self.omitted_G.all():
            raise ValueError(
                f"every one of {ledger.groups} groups is left out ({ledger.unscored} hold an unscored "
                "trajectory); sample them again before weighting"
            )
        refuse_other_sizes(ledger, config.group_size)
        self._sums = ledger.tilt_sums(beta=config.beta, gamma=config.gamma, lam=config.lam)

    def batches(self) -> Iterator[WeighedBatch]:
        """The batches of the ledger in order."""
        some = bool(self.omitted_G.any())
        for entry in self.ledger.entries():
            returns = entry.returns(gamma=self.config.gamma, lam=self.config.lam)
            yield WeighedBatch(
                entry=entry,
                keep_N=~self.omitted_G[entry.code_N] if some else None,
                return_N=returns,
                weight_N=self._sums.weights(entry.code_N, returns),
            )

    @property
    def all_wrong(self) -> int:
        """Groups left out because no row of theirs is right."""
        return int(self.omitted_G.sum()) - self.ledger.unscored


def refuse_other_sizes(ledger: Ledger, size: int | None) -> None:
    """Refuse groups that do not have the declared K rows; groups with an unscored row do not count.

    Raises:
        RowError: the first row of such a group, and the number of such groups.
    """
    if size is None:
        return
    kept_G = ~ledger.omitted_G()
    wrong_G = (ledger.size_G != size) & kept_G
    if not wrong_G.any():
        return
    for entry in ledger.entries():
        found_N = wrong_G[entry.code_N]
        if found_N.any():
            row = int(np.argmax(found_N))
            raise RowError(
                entry.first_row + row,
                f"its group has {ledger.size_G[entry.code_N[row]]} rows, {int(wrong_G.sum())} of "
                f"{int(kept_G.sum())} groups do not have the declared {size} rows; complete them, or leave "
                "the group size undeclared",
            )
