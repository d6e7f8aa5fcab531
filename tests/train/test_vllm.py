"""What is exported opens in vLLM and answers as it does in transformers (uv run pytest -m vllm).

DRIFT_VLLM_PYTHON names an interpreter that has vLLM; without it one is made, of the CPU build.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM

from drift_train import LoRA, SingleDevice, WeightedDataModule, WeightedSFT, export
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import random_rows, weighted_table
from vllm_environment import SHAPE, run_script

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]
SCRIPT = Path(__file__).with_name("open_in_vllm.py")
PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14]]


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_greedy_answers_are_those_of_transformers(
    vllm_python: str, tmp_path: Path, lora: LoRA | None
) -> None:
    base = tiny_model("qwen2", tie_word_embeddings=True, **SHAPE)
    policy = str(save_policy(tmp_path / "policy", bpe_tokenizer(), base))
    module = WeightedSFT(policy, 1e-3, lora=lora)
    trainer = Trainer(
        max_steps=5,
        accelerator="cpu",
        strategy=SingleDevice("cpu"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    rows = weighted_table(random_rows(24, vocab=512))
    trainer.fit(module, datamodule=WeightedDataModule.from_table(rows, policy, batch_size=6))
    folder = export(module, tmp_path / "out")

    out = tmp_path / "answers.json"
    run_script(vllm_python, SCRIPT, folder, json.dumps(PROMPTS), out)
    found = json.loads(out.read_text())
    assert found["chat"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt, answer in zip(PROMPTS, found["answers"], strict=True):
        ids = torch.tensor([prompt + answer["ids"]])
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        assert logprobs.argmax(-1).tolist() == answer["ids"]
        best = logprobs.max(-1).values.tolist()
        assert best == pytest.approx(answer["logprobs"], abs=1e-3)
