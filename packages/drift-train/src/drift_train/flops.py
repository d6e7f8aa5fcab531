"""Arithmetic of a training step, and what devices can do in a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from drift_train.head import head_weights

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiplied:
    """Parameters in matrix products, tied ones once."""

    body: float
    """Those that meet every token computed."""
    trained_body: float
    """Of these."""
    head: float
    """Those that meet supervised tokens alone."""
    trained_head: float
    """Of these."""

    def flops(self, computed: float, supervised: float, *, checkpointing: bool = False) -> float:
        """6·P·U + 6·V·H·R for a full fine-tuning, P and V·H the parameters of body and head.

        Forward 2, gradients of activations 2, of weights 2, if they are trained; the body's forward again
        under checkpointing. Attention's products of pairs are left out.

        Args:
            computed: U, tokens that a forward is made for, shared ones once.
            supervised: R, tokens with loss.
            checkpointing: whether the backward computes activations again.
        """
        body = (6 if checkpointing else 4) * self.body + 2 * self.trained_body
        return body * computed + (4 * self.head + 2 * self.trained_head) * supervised


def multiplying(policy: PreTrainedModel) -> Multiplied:
    """What a policy multiplies with; embeddings are looked up, unless one is the output head too.

    A head that cannot be told from its body meets every token, and counts with it.
    """
    output: Any = policy.get_output_embeddings()
    tables = {id(module.weight) for module in policy.modules() if isinstance(module, nn.Embedding)}
    looked_up = tables - ({id(output.weight)} if output is not None else set())
    head = {id(parameter) for parameter in head_weights(policy)}
    counts = {"body": 0, "trained_body": 0, "head": 0, "trained_head": 0}
    for parameter in policy.parameters():
        if id(parameter) in looked_up:
            continue
        part = "head" if id(parameter) in head else "body"
        counts[part] += parameter.numel()
        counts[f"trained_{part}"] += parameter.numel() if parameter.requires_grad else 0
    return Multiplied(**counts)
