"""Adapters: what they train and store, how they go on, and the policies that they end as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from drift_train import (
    LastCheckpoint,
    LoRA,
    SingleDevice,
    WeightedDataModule,
    WeightedSFT,
    export,
    load_policy,
)
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import random_rows, weighted_table

VOCAB = 67
TABLE = weighted_table(random_rows(24, vocab=VOCAB))
IDS = torch.arange(2, 14).reshape(2, 6)
DROPPING = LoRA(rank=4, alpha=8, dropout=0.2)


@pytest.fixture
def policy(tmp_path: Path) -> str:
    model = tiny_model("qwen2", vocab=VOCAB, tie_word_embeddings=True)
    return str(save_policy(tmp_path / "policy", bpe_tokenizer(), model))


def fit(policy: str, folder: Path, steps: int, resume: Path | None = None, **settings: Any) -> WeightedSFT:
    module = WeightedSFT(policy, 1e-2, **{"lora": DROPPING, **settings})
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        strategy=SingleDevice("cpu"),
        callbacks=[LastCheckpoint(3, keep=9, dirpath=str(folder))],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = WeightedDataModule.from_table(TABLE, policy, batch_size=6)
    torch.manual_seed(0)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    module.policy.eval()
    return module


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def test_only_adapters_are_trained_and_kept(policy: str, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(policy)
    module = fit(policy, tmp_path / "run", 3)
    left = dict(base.named_parameters())
    for name, parameter in module.policy.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, left[name.replace(".base_layer", "")]), name
    assert not torch.allclose(logits(module.policy), logits(base))
    names = stored(tmp_path / "run/step-000003")
    assert names
    assert all("lora_" in name for name in names)


def test_an_untrained_adapter_changes_nothing(policy: str) -> None:
    module = WeightedSFT(policy, 1e-2, lora=LoRA())
    module.configure_model()
    module.policy.eval()
    assert torch.equal(logits(module.policy), logits(AutoModelForCausalLM.from_pretrained(policy)))


def test_adapters_begin_alike_whatever_the_default_device(policy: str) -> None:
    """Lightning makes it the strategy's own, and every device has a generator of its own."""
    found = []
    for device in ("cpu", "meta"):
        module = WeightedSFT(policy, 1e-2, lora=LoRA())
        torch.manual_seed(0)
        with torch.device(device):
            module.configure_model()
        found.append(dict(module.policy.named_parameters()))
    assert {p.device.type for p in found[1].values()} == {"cpu"}
    assert all(torch.equal(p, found[0][name]) for name, p in found[1].items())


def test_it_is_the_sum_that_it_says(policy: str, tmp_path: Path) -> None:
    """W + (alpha/rank)·B·A, by hand."""
    module = fit(policy, tmp_path / "run", 3)
    by_hand = AutoModelForCausalLM.from_pretrained(policy)
    for name, parameter in module.policy.named_parameters():
        if "lora_A" in name:
            b = module.policy.get_parameter(name.replace("lora_A", "lora_B"))
            weight = by_hand.get_parameter(name.partition(".lora_A")[0] + ".weight")
            weight.data += (8 / 4) * b.detach() @ parameter.detach()
    assert torch.allclose(logits(by_hand), logits(module.policy), atol=1e-5)


def test_merged_or_apart_an_export_is_the_policy_that_was_trained(policy: str, tmp_path: Path) -> None:
    module = fit(policy, tmp_path / "run", 3)
    wanted = logits(module.policy)
    for source in (tmp_path / "run", module):
        whole = export(source, tmp_path / "whole", overwrite=True)
        assert not (whole / "adapter_config.json").exists()
        assert not any("lora" in name for name in stored(whole))
        assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(whole)), wanted, atol=1e-5)
        apart = export(source, tmp_path / "apart", keep_adapter=True, overwrite=True)
        base = AutoModelForCausalLM.from_pretrained(policy)
        assert torch.allclose(logits(PeftModel.from_pretrained(base, apart)), wanted, atol=1e-5)
        assert AutoTokenizer.from_pretrained(apart).chat_template
        assert (apart / "README.md").is_file()
        assert torch.equal(logits(module.policy), wanted), "what goes on training keeps its adapters"
    named = AutoModelForCausalLM.from_pretrained(apart)
    assert torch.allclose(logits(named), wanted, atol=1e-5), "the adapter names its base"


def test_stopped_and_resumed_it_ends_in_the_same_bits(policy: str, tmp_path: Path) -> None:
    fit(policy, tmp_path / "straight", 6)
    fit(policy, tmp_path / "half", 3)
    fit(policy, tmp_path / "on", 6, resume=tmp_path / "half/step-000003")
    straight, resumed = (stored(tmp_path / name / "step-000006") for name in ("straight", "on"))
    assert straight.keys() == resumed.keys()
    for name in straight:
        assert torch.equal(straight[name], resumed[name]), name


def test_adapters_of_another_base_are_refused(policy: str, tmp_path: Path) -> None:
    fit(policy, tmp_path / "run", 3)
    changed = AutoModelForCausalLM.from_pretrained(policy)
    changed.model.norm.weight.data += 1
    changed.save_pretrained(policy)
    with pytest.raises(ValueError, match="the checkpoint's adapters were trained on"):
        fit(policy, tmp_path / "on", 6, resume=tmp_path / "run")
    with pytest.raises(ValueError, match="the checkpoint's adapters were trained on"):
        load_policy(tmp_path / "run")


def test_adapters_of_a_half_precision_base_are_float32(policy: str, tmp_path: Path) -> None:
    module = fit(policy, tmp_path / "run", 3, dtype="bfloat16")
    kinds = {("lora_" in name, p.dtype) for name, p in module.policy.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    whole = export(tmp_path / "run", tmp_path / "whole")
    opened: PreTrainedModel = AutoModelForCausalLM.from_pretrained(whole)
    assert opened.dtype == torch.bfloat16


def test_there_is_no_adapter_to_keep_of_a_whole_policy(policy: str, tmp_path: Path) -> None:
    fit(policy, tmp_path / "run", 3, lora=None)
    with pytest.raises(ValueError, match="no adapter to keep"):
        export(tmp_path / "run", tmp_path / "out", keep_adapter=True)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model\.lora"):
        LoRA(**wrong)


def test_layers_that_are_not_there_are_refused(policy: str) -> None:
    with pytest.raises(ValueError, match="no_such_layer"):
        WeightedSFT(policy, 1e-2, lora=LoRA(targets=["no_such_layer"])).configure_model()


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_fused_experts_merge(family: str, tmp_path: Path) -> None:
    """peft wraps them twice, once for each of their two weights."""
    shape = {
        "num_local_experts": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }
    model = tiny_model(family, vocab=VOCAB, **shape)
    policy = str(save_policy(tmp_path / "policy", bpe_tokenizer(), model))
    module = fit(policy, tmp_path / "run", 3, lora=LoRA(rank=4))
    wanted = logits(module.policy)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(policy)), wanted, atol=1e-3)
    for source in (tmp_path / "run", module):
        out = export(source, tmp_path / "out", overwrite=True)
        assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(out)), wanted, atol=1e-4)


def test_an_adapter_on_a_tied_head_is_refused(policy: str) -> None:
    """Merged, it would change the embedding, too."""
    module = WeightedSFT(policy, 1e-2, lora=LoRA(targets=["lm_head"]))
    with pytest.raises(ValueError, match="the head is the input embedding as well"):
        module.configure_model()
