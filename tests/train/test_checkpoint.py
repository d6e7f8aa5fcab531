"""A fit that is stopped goes on from its newest state and ends bit-equal to the straight one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from drift_train import (
    LastCheckpoint,
    SingleDevice,
    WeightedDataModule,
    WeightedSFT,
    newest,
    read_state,
)
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import StopAfter, random_rows, weighted_table

TABLE = weighted_table(random_rows(24, vocab=64))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_policy(tmp_path_factory.mktemp("policy"), bpe_tokenizer(), tiny_model(vocab=64)))


def fit(
    policy: str,
    folder: Path,
    *callbacks: Any,
    steps: int = 7,
    ckpt: Path | None = None,
    keep: int = 1,
    strategy: Any = None,
    table: pa.Table = TABLE,
    every: int = 3,
    validate: int | None = None,
    **data_settings: Any,
) -> WeightedSFT:
    module = WeightedSFT(policy, 2e-3, gradient_clip=1.0)
    settings = {"batch_size": 5, "weighting": "resample", "val_share": 0.3, **data_settings}
    data = WeightedDataModule.from_table(table, policy, **settings)
    Trainer(
        max_steps=steps,
        accelerator="cpu",
        strategy=strategy or SingleDevice("cpu"),
        callbacks=[LastCheckpoint(every, keep, dirpath=str(folder)), *callbacks],
        val_check_interval=validate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data, ckpt_path=ckpt)
    return module


def step_of(checkpoint: Path) -> int:
    return read_state(newest(checkpoint)).step


@pytest.fixture(scope="module")
def straight(policy: str, tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    folder = tmp_path_factory.mktemp("straight")
    module = fit(policy, folder)
    assert [path.name for path in folder.iterdir()] == ["step-000007"]
    assert step_of(folder) == 7, "the end is kept, though 7 is no multiple of 3"
    return [p.detach() for p in module.parameters()]


def equal(module: WeightedSFT, wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(module.parameters(), wanted, strict=True))


@pytest.mark.parametrize(("stop", "kept"), [(4, 3), (7, 6)])
def test_a_stopped_fit_goes_on_and_ends_the_same(
    policy: str, straight: list[torch.Tensor], tmp_path: Path, stop: int, kept: int
) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        fit(policy, tmp_path, StopAfter(stop))
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{kept:06d}"]
    assert step_of(tmp_path) == kept
    resumed = fit(policy, tmp_path, ckpt=tmp_path)
    assert resumed.trainer.global_step == 7
    assert equal(resumed, straight)
    assert step_of(tmp_path) == 7


def test_a_finished_fit_goes_on_with_more_steps(
    policy: str, straight: list[torch.Tensor], tmp_path: Path
) -> None:
    fit(policy, tmp_path / "short", steps=4)
    longer = fit(policy, tmp_path / "longer", ckpt=tmp_path / "short")
    assert equal(longer, straight)
    assert step_of(tmp_path / "short") == 4


def test_a_save_that_breaks_leaves_the_state_before_it(
    policy: str, straight: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def torn(content: Any, path: Path) -> None:
        if content["global_step"] == 6:
            raise OSError("disk full")
        save(content, path)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", torn)
        with pytest.raises(OSError, match="disk full"):
            fit(policy, tmp_path)
    assert step_of(tmp_path) == 3
    assert equal(fit(policy, tmp_path, ckpt=tmp_path), straight)


def test_another_fits_state_is_left_alone(policy: str, tmp_path: Path) -> None:
    fit(policy, tmp_path, steps=1)
    with pytest.raises(FileExistsError, match="is of another fit; go on from it with --ckpt_path"):
        fit(policy, tmp_path, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_path_is_never_used_twice(policy: str, straight: list[torch.Tensor], tmp_path: Path) -> None:
    """Going on from a step that is not the newest: the steps after it are made anew, beside the old."""
    fit(policy, tmp_path, keep=9)
    first = (tmp_path / "step-000006" / "state.json").read_bytes()
    assert equal(fit(policy, tmp_path, ckpt=tmp_path / "step-000003", keep=9), straight)
    assert (tmp_path / "step-000006" / "state.json").read_bytes() == first
    assert {p.name for p in tmp_path.iterdir()} == {
        *("step-000003", "step-000006", "step-000007"),
        *("step-000006-v1", "step-000007-v1"),
    }
    assert newest(tmp_path).name == "step-000007-v1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6}, "data.batch_size is 6, the checkpoint was trained with 5"),
        ({"seed": 9}, "data.seed is 9, the checkpoint was trained with 0"),
        ({"weighting": "none"}, "data.weighting is none"),
        ({"table": weighted_table(random_rows(24, vocab=64, seed=1))}, "not the rows that the checkpoint"),
    ],
)
def test_other_data_are_refused(policy: str, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    fit(policy, tmp_path, steps=3)
    with pytest.raises(ValueError, match=message):
        fit(policy, tmp_path, ckpt=tmp_path, **changes)


def test_a_strategy_that_writes_files_is_refused(policy: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="give the trainer a strategy of drift_train"):
        fit(policy, tmp_path, strategy="auto")


def early() -> EarlyStopping:
    """Stops at the third validation: none after the first is better by so much."""
    return EarlyStopping("val_loss", patience=2, min_delta=100.0, check_on_train_epoch_end=False)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("stop", [4, 5])
def test_a_fit_that_stops_early_stops_there_when_it_was_resumed(
    policy: str, tmp_path: Path, every: int, stop: int
) -> None:
    settings: dict[str, Any] = {"steps": 20, "every": every, "validate": 2}
    straight = fit(policy, tmp_path / "straight", early(), **settings)
    assert straight.trainer.global_step == 6

    folder = tmp_path / "stopped"
    with pytest.raises(RuntimeError, match="stopped"):
        fit(policy, folder, early(), StopAfter(stop), **settings)
    resumed = fit(policy, folder, early(), ckpt=folder, **settings)
    assert resumed.trainer.global_step == 6
    assert equal(resumed, list(straight.parameters()))


def test_a_fit_that_stopped_early_stays_so_and_goes_on_without_the_callback(
    policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"steps": 9, "every": 2, "validate": 2}
    fit(policy, tmp_path, early(), **settings)
    assert fit(policy, tmp_path, early(), ckpt=tmp_path, **settings).trainer.global_step == 6
    assert "the run had stopped early after step 6" in caplog.text
    longer = fit(policy, tmp_path, ckpt=tmp_path, **settings)
    assert longer.trainer.global_step == 9
    assert equal(longer, list(fit(policy, tmp_path / "straight", **settings).parameters()))


def test_a_state_with_a_validation_is_kept_after_it(policy: str, tmp_path: Path) -> None:
    """A validation that is killed leaves the state before its step."""
    with pytest.raises(RuntimeError, match="validation broke"):
        fit(policy, tmp_path, Broken(), every=2, validate=4)
    assert step_of(tmp_path) == 2


class Broken(Callback):
    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            raise RuntimeError("validation broke")


def test_a_rhythm_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 1"):
        LastCheckpoint(0)
