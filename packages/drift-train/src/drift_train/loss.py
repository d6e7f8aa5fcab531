"""The weighted loss. Suffix legend: N examples, T supervised tokens, B batch, V vocabulary."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduction = Literal["sum", "mean"]
IGNORED = -100
"""The label of a position without loss."""


def weighted_nll(
    nll_T: Tensor,
    example_T: Tensor,
    weight_N: Tensor,
    *,
    reduction: Reduction = "sum",
    num_examples: float,
) -> Tensor:
    """The weighted negative log-likelihood of a step, or the share of it that these tokens are.

    L = 1/N Σ_i w_i Σ_j −log π(y_ij | x_i, y_i,<j) (eq. 14, 15), N = `num_examples`.

    Args:
        nll_T: −log π of each supervised token, any order, shape [T].
        example_T: the example each belongs to, an index into `weight_N`, shape [T].
        weight_N: w ≥ 0, shape [N].
        reduction: `sum` over a response's tokens (the paper), or their `mean`, which needs all
            tokens of an example in one call.
        num_examples: planned examples of the whole optimizer step, over micro-batches and
            ranks, > 0.

    Returns:
        A scalar; the scalars of a step's parts add up to the step's loss.

    Raises:
        ValueError: `num_examples` ≤ 0, or nll and example of different shapes.
    """
    if nll_T.shape != example_T.shape:
        raise ValueError(f"nll has shape {tuple(nll_T.shape)}, example {tuple(example_T.shape)}")
    factor_T = token_factors(example_T, weight_N, reduction=reduction, num_examples=num_examples)
    return (factor_T.to(nll_T.dtype) * nll_T).sum()


def token_factors(
    example_T: Tensor, weight_N: Tensor, *, reduction: Reduction = "sum", num_examples: float
) -> Tensor:
    """What multiplies −log π of each supervised token: w_i/N, under `mean` also by its response's tokens.

    Arguments as for `weighted_nll`.

    Returns:
        Shape [T], in the dtype of the weights.

    Raises:
        ValueError: `num_examples` ≤ 0.
    """
    if not num_examples > 0:
        raise ValueError(f"num_examples must be above 0, got {num_examples}")
    factor_N = weight_N / num_examples
    if reduction == "mean":
        # bincount would have the host wait for a GPU, to learn how long its result is.
        ones_T = torch.ones_like(example_T, dtype=factor_N.dtype)
        factor_N = factor_N / torch.zeros_like(factor_N).index_add_(0, example_T, ones_T).clamp(min=1)
    return factor_N[example_T]


def token_nll(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """−log π of each supervised token: labels shifted by one, −100 ignored, at least float32.

    Returns:
        nll_T in batch order, and the row of the batch that each token belongs to, example_T.
    """
    target_BT = labels_BT[:, 1:]
    kept_BT = target_BT != IGNORED
    logits_TV = logits_BTV[:, :-1][kept_BT]
    if logits_TV.dtype in (torch.float16, torch.bfloat16):
        logits_TV = logits_TV.float()
    nll_T = functional.cross_entropy(logits_TV, target_BT[kept_BT], reduction="none")
    return nll_T, kept_BT.nonzero()[:, 0]


def weighted_nll_from_logits(
    logits_BTV: Tensor,
    labels_BT: Tensor,
    weight_B: Tensor,
    *,
    reduction: Reduction = "sum",
    num_examples: float,
) -> Tensor:
    """`weighted_nll` of a batch of logits and labels, one example a row (eq. 14, 15).

    Args:
        logits_BTV: the model's logits.
        labels_BT: token ids where there is loss, else −100; position t is predicted from t − 1.
        weight_B: w ≥ 0 of each row.
        reduction: see `weighted_nll`.
        num_examples: see `weighted_nll`.

    Returns:
        A scalar, in float32, or float64 for float64 logits.
    """
    nll_T, example_T = token_nll(logits_BTV, labels_BT)
    return weighted_nll(nll_T, example_T, weight_B, reduction=reduction, num_examples=num_examples)
