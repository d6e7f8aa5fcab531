"""The arithmetic that MFU and the dry run count, against what torch counts of a real step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from drift_train import WeightedSFT, encode, step_batch
from drift_train.flops import multiplying
from tiny import tiny_model
from train.weighted_rows import grouped_rows, weighted_table

VOCAB = 300
WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4}


def counted(module: WeightedSFT, micro: Any) -> int:
    """FLOPs of a forward and its backward, those of attention's products of pairs left out."""
    with FlopCounterMode(display=False) as counter:
        module.micro_loss(micro, 8)[0].backward()
    by_operation = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in by_operation.items() if "attention" not in str(operation))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "opt"])
def test_flops_are_those_of_a_step(family: str, tied: bool, checkpointing: bool) -> None:
    """Of phi the head has a bias; of opt it is one with the body, and meets padding, too."""
    if family == "opt":
        config = AutoConfig.for_model("opt", vocab_size=VOCAB, hidden_size=64, ffn_dim=256)
        config.update({"num_hidden_layers": 4, "num_attention_heads": 4, "word_embed_proj_dim": 64})
        config.tie_word_embeddings = tied
        model: Any = AutoModelForCausalLM.from_config(config).train()
    else:
        model = tiny_model(family, vocab=VOCAB, tie_word_embeddings=tied, **WIDE).train()
    examples = encode(weighted_table(grouped_rows(2, 4, vocab=VOCAB)), vocab_size=VOCAB).examples
    module = WeightedSFT.from_model(model, 1e-3, gradient_checkpointing=checkpointing)
    packed = family != "opt"
    (micro,) = step_batch(
        examples, np.ones(8), np.arange(8), micro_tokens=10**6, packed=packed
    ).micro_batches
    computed = micro.computed if packed else micro.input_ids.numel()
    found = multiplying(module.policy).flops(computed, len(micro.target_R), checkpointing=checkpointing)
    # Norms and biases are counted as if they were matrices; what a block ends with is not computed again.
    assert found == pytest.approx(counted(module, micro), rel=0.12 if checkpointing else 0.02)


def test_adapters_cost_no_gradient_of_what_is_frozen() -> None:
    pytest.importorskip("peft")
    model = tiny_model(vocab=VOCAB, **WIDE).train()
    module = WeightedSFT.from_model(model, 1e-3, lora={"rank": 2})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    examples = encode(weighted_table(grouped_rows(2, 4, vocab=VOCAB)), vocab_size=VOCAB).examples
    (micro,) = step_batch(examples, np.ones(8), np.arange(8), micro_tokens=10**6).micro_batches
    found = multiplying(module.policy)
    assert found.trained_head == 0
    # Of the first block no gradient goes on to the embedding: torch leaves those of its inputs out.
    flops = found.flops(micro.computed, len(micro.target_R))
    assert flops == pytest.approx(counted(module, micro), rel=0.1)
