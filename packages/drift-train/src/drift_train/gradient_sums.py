"""Gradients of half-precision parameters, summed over micro-batches without losing bits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class GradientSums:
    """Sums in float32 of what would be added up in half precision, which loses the small parts of a sum.

    It costs 4 bytes for each of these parameters, and only steps of several micro-batches need it.

    Args:
        parameters: all of a policy's; those that are float32 or wider are left to autograd.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        half = (parameter for parameter in parameters if parameter.dtype.itemsize < 4)
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
        """Make the sums the gradients, rounded once."""
        for parameter, sum_ in self._sums.items():
            if sum_ is not None:
                parameter.grad = sum_.to(parameter.dtype)
        self._sums.clear()
