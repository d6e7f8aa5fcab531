"""Arithmetic of a training step, and what devices can do in a second."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA A10": 125e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-SXM2-32GB": 125e12,
}
"""Dense bfloat16 FLOP/s (float16 on V100) by the name that CUDA gives; a MIG slice has another name."""


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of a device at its best, > 0; None where that is not known."""
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def multiplying(policy: PreTrainedModel) -> tuple[int, int]:
    """Parameters in matrix products, all of them and those trained; tied ones once.

    An input embedding is looked up, not multiplied, unless it is the output head too.
    """
    untyped: Any = policy
    table, head = untyped.get_input_embeddings().weight, untyped.get_output_embeddings()
    tied = head is not None and head.weight is table
    counted = [p for p in policy.parameters() if tied or p is not table]
    return sum(p.numel() for p in counted), sum(p.numel() for p in counted if p.requires_grad)


def flops_per_token(every: float, trained: float, *, checkpointing: bool = False) -> float:
    """4·every + 2·trained: 6·N for a full fine-tuning; 2·every more where the forward is done twice.

    Forward 2, gradients of activations 2, of weights 2; attention's products of pairs are left out.

    Args:
        every: parameters in matrix products.
        trained: those of them that are trained.
        checkpointing: whether the backward computes activations again.
    """
    return (6 if checkpointing else 4) * every + 2 * trained
