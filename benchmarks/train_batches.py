"""Batches and losses of the HF trainers in benchmarks/train_peers.py: the short way to give them weights.

Suffix legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def padded(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows side by side; ids, labels and weights of tokens are padded on the right."""
    ids = [torch.tensor(example["input_ids"]) for example in examples]
    columns = {
        "input_ids": (ids, 0),
        "labels": ([torch.tensor(example["labels"]) for example in examples], -100),
        "attention_mask": ([torch.ones_like(row) for row in ids], 0),
        "weight": (
            [torch.full((len(row),), e["weight"]) for row, e in zip(ids, examples, strict=True)],
            0.0,
        ),
    }
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(rows_, batch_first=True, padding_value=fill)
        for name, (rows_, fill) in columns.items()
    }
    return {**batch, "examples": torch.tensor(len(examples))}


def end_to_end(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """TRL's own padding-free batch, and the weight of each token."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(examples)
    weight_T = torch.cat([torch.full((len(e["input_ids"]),), e["weight"]) for e in examples])
    return {**batch, "weight": weight_T[None], "examples": torch.tensor(len(examples))}


def full_logits_loss(policy: Any, inputs: Any) -> Any:
    """Σ_i w_i Σ_j nll_ij of a batch, from the logits of every position."""
    names = ("input_ids", "attention_mask", "position_ids")
    logits = policy(**{k: inputs[k] for k in names if k in inputs}, use_cache=False).logits
    logits_BVT = logits[:, :-1].float().transpose(1, 2)
    nll_BT = functional.cross_entropy(logits_BVT, inputs["labels"][:, 1:], reduction="none")
    return (inputs["weight"][:, 1:] * nll_BT).sum()


def fused_head_loss(policy: Any, inputs: Any) -> Any:
    """The same by TRL's fused head, which builds no logits."""
    model_inputs = {k: v for k, v in inputs.items() if k not in ("weight", "examples")}
    log_BT = policy(**model_inputs, fused_lm_head=True).log_probs
    return -(inputs["weight"][:, 1:] * log_BT).sum()
