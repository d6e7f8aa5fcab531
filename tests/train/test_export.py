"""A checkpoint becomes a folder that transformers opens, whole or not at all."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from drift_train import SingleDevice, WeightedDataModule, WeightedSFT, export
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import FAMILIES, random_rows, weighted_table

IDS = torch.tensor([[5, 3, 60, 1, 0, 17]])


def trained(folder: Path, family: str, *, tied: bool = False) -> tuple[WeightedSFT, Path]:
    model = tiny_model(family, vocab=512, tie_word_embeddings=tied)
    base = save_policy(folder / "base", bpe_tokenizer(), model)
    module = WeightedSFT(str(base), 1e-2)
    fit(module, base).save_checkpoint(folder / "step-000002")
    return module, folder / "step-000002"


def fit(module: WeightedSFT, base: Path) -> Trainer:
    table = weighted_table(random_rows(8, vocab=512))
    run = Trainer(
        max_steps=2,
        accelerator="cpu",
        strategy=SingleDevice("cpu"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.fit(module, datamodule=WeightedDataModule.from_table(table, str(base), batch_size=4))
    return run


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_tokenizer_and_stops_survive(family: str, tied: bool, tmp_path: Path) -> None:
    module, checkpoint = trained(tmp_path, family, tied=tied)
    # That of the model as it is opened, which leaves out Gemma 2's cap on scores.
    module.policy.eval().set_attn_implementation("sdpa")
    wanted = module.policy(IDS).logits
    untrained = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert not torch.allclose(untrained(IDS).logits, wanted)
    for name, source in {"from-checkpoint": checkpoint, "from-module": module}.items():
        out = export(source, tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(out).eval()
        assert torch.equal(model(IDS).logits, wanted)
        assert model.generation_config.eos_token_id == untrained.generation_config.eos_token_id
        tokenizer, known = (AutoTokenizer.from_pretrained(f) for f in (out, tmp_path / "base"))
        assert tokenizer.chat_template == known.chat_template
        assert tokenizer.encode("12 + 30 = 42") == known.encode("12 + 30 = 42")
        assert (out / "model.safetensors").is_file()


def test_an_export_needs_no_weights_of_the_base(tmp_path: Path) -> None:
    _, checkpoint = trained(tmp_path, "llama")
    (tmp_path / "base" / "model.safetensors").unlink()
    assert export(checkpoint, tmp_path / "out").is_dir()


def test_a_model_built_in_memory_names_its_tokenizer(tmp_path: Path) -> None:
    module = WeightedSFT.from_model(tiny_model(), 1e-3)
    with pytest.raises(ValueError, match="say which tokenizer"):
        export(module, tmp_path / "out")
    out = export(module, tmp_path / "out", tokenizer=bpe_tokenizer())
    found = AutoModelForCausalLM.from_pretrained(out)(IDS).logits
    assert torch.equal(found, module.policy(IDS).logits)


def test_a_checkpoint_keeps_the_dtype_of_a_model_built_in_memory(tmp_path: Path) -> None:
    base = save_policy(tmp_path / "base", bpe_tokenizer(), tiny_model())
    module = WeightedSFT.from_model(tiny_model(seed=1).double(), 1e-3)
    fit(module, base).save_checkpoint(tmp_path / "step-000002")
    out = export(tmp_path / "step-000002", tmp_path / "out", tokenizer=bpe_tokenizer())
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float64
    assert torch.equal(model(IDS).logits, module.policy.eval()(IDS).logits)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    module = WeightedSFT.from_model(tiny_model(), 1e-3)
    with pytest.raises(FileExistsError, match="choose another output"):
        export(module, tmp_path / "out", tokenizer=bpe_tokenizer())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_overwrite_replaces_a_policy_and_never_anything_else(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    export(WeightedSFT.from_model(tiny_model(), 1e-3), out, tokenizer=bpe_tokenizer())
    (out / "of-the-old-one").touch()
    module = WeightedSFT.from_model(tiny_model(seed=1), 1e-3)
    export(module, out, tokenizer=bpe_tokenizer(), overwrite=True)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(IDS).logits, module.policy(IDS).logits)
    assert not (out / "of-the-old-one").exists()
    mine.mkdir()
    (mine / "thesis.txt").write_text("keep")
    for taken in (mine, mine / "thesis.txt"):
        with pytest.raises(FileExistsError, match="holds no policy"):
            export(module, taken, tokenizer=bpe_tokenizer(), overwrite=True)
    # Other programs have a config.json as well, and a folder of policies holds more than one.
    (mine / "config.json").write_text("{}")
    (tmp_path / "more" / "inner").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "more" / name).write_bytes((out / name).read_bytes())
    for taken in (mine, tmp_path / "more"):
        with pytest.raises(FileExistsError, match="holds no policy, or more than one"):
            export(module, taken, tokenizer=bpe_tokenizer(), overwrite=True)
    shutil.rmtree(tmp_path / "more")
    assert (mine / "thesis.txt").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class FullDisk:
        def save_pretrained(self, folder: Any) -> None:
            raise OSError("no space left")

    module = WeightedSFT.from_model(tiny_model(), 1e-3)
    with pytest.raises(OSError, match="no space left"):
        export(module, tmp_path / "out", tokenizer=FullDisk())
    assert list(tmp_path.iterdir()) == []


def test_an_overwrite_that_fails_leaves_the_old_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(WeightedSFT.from_model(tiny_model(), 1e-3), tmp_path / "out", tokenizer=bpe_tokenizer())
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(*_: Any) -> None:
        raise OSError("no space left")

    # The package's attribute of that name is the function.
    monkeypatch.setattr(sys.modules["drift_train.export"], "_open_to_others", full)
    module = WeightedSFT.from_model(tiny_model(seed=1), 1e-3)
    with pytest.raises(OSError, match="no space left"):
        export(module, out, tokenizer=bpe_tokenizer(), overwrite=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_the_base_is_never_replaced(tmp_path: Path) -> None:
    _, checkpoint = trained(tmp_path, "llama")
    with pytest.raises(FileExistsError, match="is the model that training started from"):
        export(checkpoint, tmp_path / "base", overwrite=True)


def test_a_folder_of_chat_templates_can_be_entered(tmp_path: Path) -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages }}"}
    module = WeightedSFT.from_model(tiny_model(), 1e-3)
    out = export(module, tmp_path / "out", tokenizer=tokenizer)
    (inner,) = [path for path in out.iterdir() if path.is_dir()]
    assert inner.stat().st_mode & 0o111 == 0o777 & ~_umask() & 0o111
    assert export(module, out, tokenizer=tokenizer, overwrite=True) == out


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing holds no checkpoint"):
        export(tmp_path / "nothing", tmp_path / "out")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match=r"other\.ckpt is a file; a checkpoint is a folder"):
        export(tmp_path / "other.ckpt", tmp_path / "out")


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    _, checkpoint = trained(tmp_path, "llama")
    before = os.umask(0o022)
    try:
        export(checkpoint, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o644}, modes
