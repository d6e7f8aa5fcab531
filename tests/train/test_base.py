"""What a policy's states and card say of the model of the Hub that it began with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from lightning.pytorch import Trainer

from drift_train import LastCheckpoint, LoRA, SingleDevice, WeightedDataModule, WeightedSFT, export
from drift_train.state import newest, read_state
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import random_rows, weighted_table

BASE = "org/base"
VOCAB = 67
TABLE = weighted_table(random_rows(12, vocab=VOCAB))
FIRST, SECOND = "5ca1ab1e" * 5, "ba5eba11" * 5


class Cache:
    """What was fetched of a model of the Hub, whose branch can move; the Hub is out of reach."""

    def __init__(self, home: Path) -> None:
        self.folder = home / f"models--{BASE.replace('/', '--')}"

    def move(self, commit: str, seed: int) -> None:
        model = tiny_model("qwen2", vocab=VOCAB, seed=seed)
        save_policy(self.folder / "snapshots" / commit, bpe_tokenizer(), model)
        (self.folder / "refs").mkdir(exist_ok=True)
        (self.folder / "refs/main").write_text(commit)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    made = Cache(tmp_path / "hub")
    made.move(FIRST, seed=0)
    return made


def fit(
    model: str, run: Path, steps: int, resume: Path | None = None, lora: LoRA | None = None
) -> WeightedSFT:
    module = WeightedSFT(model, 1e-2, lora=lora)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        strategy=SingleDevice("cpu"),
        callbacks=[LastCheckpoint(2, dirpath=str(run))],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = WeightedDataModule.from_table(TABLE, model, batch_size=6)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module


def trained_from(source: Path | WeightedSFT, out: Path) -> str:
    card = (export(source, out) / "README.md").read_text()
    (found,) = re.findall(r"^\| Trained from \| (.+) \|$", card, re.MULTILINE)
    return str(found)


def say_base(run: Path, **base: dict[str, str | None]) -> None:
    """What an older state said, or did not."""
    state = newest(run) / "state.json"
    manifest = json.loads(state.read_text())
    del manifest["policy_base"]
    state.write_text(json.dumps(manifest | base))


def test_a_branch_is_named_by_the_commit_that_it_was(cache: Cache, tmp_path: Path) -> None:
    module = fit(BASE, tmp_path / "run", 2)
    cache.move(SECOND, seed=1)
    wanted = f"`{BASE}` at `{FIRST}`"
    assert trained_from(tmp_path / "run", tmp_path / "out") == wanted
    assert trained_from(module, tmp_path / "module") == wanted


def test_a_resume_has_the_base_of_its_state(cache: Cache, tmp_path: Path) -> None:
    """Its weights are the state's, so the branch may have moved, and the model may lie elsewhere by now."""
    fit(BASE, tmp_path / "run", 2)
    cache.move(SECOND, seed=1)
    fit(BASE, tmp_path / "on", 4, resume=tmp_path / "run")
    assert trained_from(tmp_path / "on", tmp_path / "out") == f"`{BASE}` at `{FIRST}`"
    folder = shutil.copytree(cache.folder / "snapshots" / SECOND, tmp_path / "moved-base")
    fit(str(folder), tmp_path / "elsewhere", 4, resume=tmp_path / "run")
    assert trained_from(tmp_path / "elsewhere", tmp_path / "other") == "`moved-base` (a folder)"


def test_a_state_that_names_no_base_goes_on_and_claims_none(cache: Cache, tmp_path: Path) -> None:
    fit(BASE, tmp_path / "run", 2)
    say_base(tmp_path / "run")
    fit(BASE, tmp_path / "on", 4, resume=tmp_path / "run")
    assert trained_from(tmp_path / "on", tmp_path / "out") == f"`{BASE}`, revision unknown"


def test_a_folder_stays_a_folder(cache: Cache, tmp_path: Path) -> None:
    fit(str(cache.folder / "snapshots" / FIRST), tmp_path / "run", 2)
    assert "policy_base" not in read_state(newest(tmp_path / "run")).manifest


def test_adapters_are_refused_on_another_commit(cache: Cache, tmp_path: Path) -> None:
    fit(BASE, tmp_path / "run", 2, lora=LoRA(rank=2))
    cache.move(SECOND, seed=1)
    with pytest.raises(ValueError, match=f"holds .*{SECOND}.*, the checkpoint's adapters were trained on"):
        fit(BASE, tmp_path / "on", 4, resume=tmp_path / "run", lora=LoRA(rank=2))
    say_base(tmp_path / "run", policy_base={"commit": None})
    fit(BASE, tmp_path / "on", 4, resume=tmp_path / "run", lora=LoRA(rank=2))
