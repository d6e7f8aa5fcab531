"""Which precisions are done right here, and sums that half precision would lose bits of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class GradientSums:
    """Sums in float32 of what would be added up in half precision, which loses the small parts of a sum.

    It costs 4 bytes for each of these parameters, and only steps of several micro-batches need it.

    Args:
        parameters: of a policy; those that are frozen, float32 or wider are left to autograd.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        half = (p for p in parameters if p.requires_grad and p.dtype.itemsize < 4)
        self._sums: dict[nn.Parameter, Tensor | None] = dict.fromkeys(half)

    def __bool__(self) -> bool:
        """Whether there is anything to sum."""
        return bool(self._sums)

    def take(self) -> None:
        """Add the gradients of a micro-batch, and leave none."""
        for parameter, sum_ in self._sums.items():
            if parameter.grad is None:
                continue
            if sum_ is None:
                self._sums[parameter] = parameter.grad.to(torch.float32)
            else:
                sum_ += parameter.grad
            parameter.grad = None

    def give(self) -> None:
        """Make the sums the gradients, rounded once; each is freed as it is given."""
        while self._sums:
            parameter, sum_ = self._sums.popitem()
            if sum_ is not None:
                parameter.grad = sum_.to(parameter.dtype)


def check_precision(precision: str) -> None:
    """Refuse what is not done right here.

    Raises:
        ValueError: not 32-true or bf16-mixed.
    """
    if precision == "16-mixed":
        raise ValueError("trainer.precision 16-mixed clips scaled gradients; use bf16-mixed")
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"trainer.precision {precision}: use bf16-mixed, or 32-true and another model.dtype"
        )
