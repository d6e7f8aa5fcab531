"""A fit that is stopped in the middle goes on from last.ckpt and ends bit-equal to the straight one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from drift_train import LastCheckpoint, WeightedDataModule, WeightedSFT
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import StopAfter, random_rows, weighted_table

TABLE = weighted_table(random_rows(24, vocab=64))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_policy(tmp_path_factory.mktemp("policy"), bpe_tokenizer(), tiny_model(vocab=64)))


def fit(
    policy: str, folder: Path, *callbacks: Any, steps: int = 7, ckpt: Path | None = None
) -> WeightedSFT:
    module = WeightedSFT(policy, 2e-3, gradient_clip=1.0)
    data = WeightedDataModule.from_table(TABLE, policy, batch_size=5, weighting="resample", val_share=0.3)
    Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[LastCheckpoint(3, dirpath=str(folder)), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data, ckpt_path=ckpt)
    return module


def step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


@pytest.fixture(scope="module")
def straight(policy: str, tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    folder = tmp_path_factory.mktemp("straight")
    module = fit(policy, folder)
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert step_of(folder / "last.ckpt") == 7, "the end is kept, though 7 is no multiple of 3"
    return [p.detach() for p in module.parameters()]


def equal(module: WeightedSFT, wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(module.parameters(), wanted, strict=True))


@pytest.mark.parametrize(("stop", "kept"), [(4, 3), (7, 6)])
def test_a_stopped_fit_goes_on_and_ends_the_same(
    policy: str, straight: list[torch.Tensor], tmp_path: Path, stop: int, kept: int
) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        fit(policy, tmp_path, StopAfter(stop))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert step_of(tmp_path / "last.ckpt") == kept
    resumed = fit(policy, tmp_path, ckpt=tmp_path / "last.ckpt")
    assert resumed.trainer.global_step == 7
    assert equal(resumed, straight)
    assert step_of(tmp_path / "last.ckpt") == 7


def test_a_finished_fit_goes_on_with_more_steps(
    policy: str, straight: list[torch.Tensor], tmp_path: Path
) -> None:
    fit(policy, tmp_path / "short", steps=4)
    longer = fit(policy, tmp_path / "longer", ckpt=tmp_path / "short" / "last.ckpt")
    assert equal(longer, straight)
    assert step_of(tmp_path / "short" / "last.ckpt") == 4


def test_a_save_that_is_killed_leaves_the_state_before_it(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Trainer.save_checkpoint

    def torn(self: Trainer, path: Path, **settings: Any) -> None:
        save(self, path, **settings)
        if self.global_step == 6:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise RuntimeError("killed")

    monkeypatch.setattr(Trainer, "save_checkpoint", torn)
    with pytest.raises(RuntimeError, match="killed"):
        fit(policy, tmp_path)
    assert step_of(tmp_path / "last.ckpt") == 3


def test_another_fits_state_is_left_alone(policy: str, tmp_path: Path) -> None:
    fit(policy, tmp_path, steps=1)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(FileExistsError, match="is of another fit; go on from it with --ckpt_path"):
        fit(policy, tmp_path, steps=1)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_rhythm_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_train_steps must be at least 1, got 0"):
        LastCheckpoint(0)
