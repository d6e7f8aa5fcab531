"""What Lightning iterates over: each batch is one rank's share of a whole optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from drift_train.encode import Example
from drift_train.layout import StepBatch
from drift_train.pack import BatchPlan
from drift_train.pruning import Pruning

Share = Callable[[Sequence[Example], NDArray[np.float64], NDArray[np.int64], int], StepBatch]
"""A rank's share of a step, by all examples, what multiplies their losses, its indices and its number."""


class TrainSteps:
    """The steps of a run, from the one that the trainer has reached to its last."""

    def __init__(
        self,
        share: Share,
        trainer: Trainer,
        plan: BatchPlan,
        examples: Sequence[Example],
        pruning: Pruning,
    ) -> None:
        self._share = share
        self._trainer = trainer
        self._plan = plan
        self._examples = examples
        self._pruning = pruning

    def __len__(self) -> int:
        """All steps of the run, those done included: Lightning counts them as fetched."""
        return self._trainer.max_steps

    def __iter__(self) -> Iterator[StepBatch]:
        """The rank's shares; the place in the data is the trainer's step and nothing else."""
        weight_N = self._pruning.weights(self._plan.loss_weights())
        for step in range(self._trainer.global_step, len(self)):
            planned = self._plan.step(step)
            share = self._share(self._examples, weight_N, self._pruning.kept(planned), step)
            # What is pruned stays in N, or the others would count for more.
            yield replace(share, num_examples=len(planned))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the trainer's step says it all. It tells Lightning that resuming is exact."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class HeldOutSteps:
    """The held-out examples once, in table order, with what multiplies the loss of each."""

    def __init__(
        self, share: Share, examples: Sequence[Example], weight_N: NDArray[np.float64], size: int
    ) -> None:
        self._share = share
        self._examples = examples
        self._weight_N = weight_N
        self._size = size

    def __len__(self) -> int:
        """Batches of at most `size` examples."""
        return -(-len(self._examples) // self._size)

    def __iter__(self) -> Iterator[StepBatch]:
        """The rank's shares."""
        rows = np.arange(len(self._examples))
        for start in range(0, len(rows), self._size):
            yield self._share(self._examples, self._weight_N, rows[start : start + self._size], 0)
