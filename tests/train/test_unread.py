"""Policies with parameters that a run, or its beginning, gives no gradient: they resume exactly, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from drift_train import LastCheckpoint, LoRA, SingleDevice, WeightedDataModule, WeightedSFT, export
from drift_train.unread import unread_modules
from tiny import bpe_tokenizer, save_policy, tiny_gemma3, tiny_model
from train.weighted_rows import random_rows, weighted_table

VOCAB = 64
TABLE = weighted_table(random_rows(24, vocab=VOCAB))


def fit(
    module: WeightedSFT,
    tokenizer: str,
    folder: Path,
    resume: Path | None = None,
    *callbacks: Callback,
    steps: int = 4,
) -> WeightedSFT:
    data = WeightedDataModule.from_table(TABLE, tokenizer, batch_size=6)
    Trainer(
        max_steps=steps,
        accelerator="cpu",
        strategy=SingleDevice("cpu"),
        callbacks=[LastCheckpoint(1, keep=9, dirpath=str(folder)), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data, ckpt_path=resume)
    return module


def equal(one: WeightedSFT, other: WeightedSFT) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_policy(tmp_path_factory.mktemp("gemma3"), bpe_tokenizer(), tiny_gemma3(VOCAB)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_policy(tmp_path_factory.mktemp("llama"), bpe_tokenizer(), tiny_model(vocab=VOCAB)))


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_a_multimodal_policy_trains_its_language_model_alone_and_resumes(
    multimodal: str, tmp_path: Path, lora: LoRA | None
) -> None:
    def module() -> WeightedSFT:
        torch.manual_seed(0)
        return WeightedSFT(multimodal, 1e-2, weight_decay=0.1, lora=lora)

    straight = fit(module(), multimodal, tmp_path / "straight")
    trained = {name for name, p in straight.policy.named_parameters() if p.requires_grad}
    assert trained
    assert all("language_model" in name or "lm_head" in name for name in trained)
    resumed = fit(module(), multimodal, tmp_path / "resumed", tmp_path / "straight" / "step-000002")
    assert equal(resumed, straight)

    out = AutoModelForCausalLM.from_pretrained(export(tmp_path / "resumed", tmp_path / "out"))
    before = AutoModelForCausalLM.from_pretrained(multimodal).state_dict()
    changed = {name for name, t in out.state_dict().items() if not torch.equal(t, before[name])}
    assert changed
    assert not any("vision" in name or "projector" in name for name in changed)


def test_only_what_no_text_reaches_is_left_out(multimodal: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(multimodal)
    assert unread_modules(model) == ["model.vision_tower", "model.multi_modal_projector"]
    assert all(unread_modules(tiny_model(family)) == [] for family in ("llama", "qwen2", "gemma3_text"))


class Late(Callback):
    """Puts a layer beside the last block's MLP that is used from the fourth step on, as a rare expert."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.layer = nn.Linear(32, 32)
        self.on = False
        mlp = policy.model.layers[-1].mlp
        mlp.register_module("late", self.layer)
        mlp.register_forward_hook(lambda _, args, out: out + self.layer(args[0]) if self.on else out)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.on = trainer.global_step >= 3


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_parameter_whose_first_gradient_comes_late_starts_there(
    tmp_path: Path, step: int, tokenizer: str
) -> None:
    def run(name: str, resume: Path | None = None) -> WeightedSFT:
        policy = tiny_model(vocab=VOCAB)
        late = Late(policy)
        module = WeightedSFT.from_model(policy, 1e-2, weight_decay=0.1)
        return fit(module, tokenizer, tmp_path / name, resume, late, steps=6)

    straight = run("straight")
    assert equal(run("resumed", tmp_path / "straight" / f"step-{step:06d}"), straight)
