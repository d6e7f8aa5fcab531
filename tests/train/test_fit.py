"""Fits on one device: each step against a hand-written one; validation against brute force; resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from drift_train import BatchPlan, StepBatch, WeightedDataModule, WeightedSFT, encode, split
from drift_train.attention import Segments
from drift_train.optimizing import Schedule
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import (
    gradient,
    grouped_rows,
    literal_loss,
    random_rows,
    tiny_double,
    weighted_table,
)

TABLE = weighted_table(random_rows(24, vocab=64))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    return str(save_policy(folder, bpe_tokenizer(), tiny_model(vocab=64)))


def trainer(steps: int, *callbacks: Any, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=list(callbacks),
        **{**quiet, "enable_checkpointing": bool(callbacks), **settings},
    )


class Held(Callback):
    """The masks that each step has at its end."""

    def __init__(self) -> None:
        self.masks: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        held = [micro.segments._masks for micro in batch.micro_batches]
        self.masks.append(sum(map(len, held)))


def data_of(policy: str, table: pa.Table = TABLE, **settings: Any) -> WeightedDataModule:
    return WeightedDataModule.from_table(table, policy, **{"batch_size": 5, **settings})


def test_a_step_keeps_no_masks(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its micro-batches stay to its end; a mask is as large as its segment squared."""
    made: list[int] = []
    forget = Segments.forget
    monkeypatch.setattr(Segments, "forget", lambda self: (made.append(len(self._masks)), forget(self)))
    table = weighted_table(grouped_rows(3, 4, vocab=64))
    held = Held()
    data = data_of(policy, table, order="groups", micro_tokens=60)
    trainer(2, held, enable_checkpointing=False).fit(WeightedSFT(policy, 1e-3), datamodule=data)
    assert sum(made) > 0
    assert held.masks == [0, 0]


@pytest.mark.parametrize("weighting", ["loss", "none", "resample"])
def test_steps_equal_hand_written_ones(policy: str, weighting: Any) -> None:
    """AdamW by hand on the literal gradient, clipped, warmed up; micro-batches must not matter."""
    mine, theirs = tiny_double(), tiny_double()
    data = data_of(policy, weighting=weighting, micro_tokens=30, seed=3)
    module = WeightedSFT.from_model(
        mine, 3e-3, gradient_clip=0.5, warmup_share=0.5, weight_decay=0.2, dtype="float64"
    )
    trainer(4).fit(module, datamodule=data)

    examples = encode(TABLE, vocab_size=64).examples
    plan = BatchPlan(examples, batch_size=5, seed=3, weighting=weighting)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}]
    )
    for step, rate in enumerate([0.0, 1.5e-3, 3e-3, 3e-3]):
        rows = plan.step(step)
        weights = [examples[i].weight if weighting == "loss" else 1.0 for i in rows]
        vector = gradient(theirs, literal_loss(theirs, [examples[i] for i in rows], weights, 5))
        vector = vector * min(1.0, 0.5 / (float(vector.norm()) + 1e-6))
        parts = vector.split([p.numel() for p in theirs.parameters()])
        for parameter, part in zip(theirs.parameters(), parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for found, wanted in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("weighting", ["loss", "none", "resample"])
def test_held_out_loss_and_accuracy_equal_brute_force(policy: str, weighting: Any) -> None:
    model = tiny_double()
    data = data_of(policy, weighting=weighting, val_share=0.5, micro_tokens=25)
    module = WeightedSFT.from_model(model, 1e-3, dtype="float64")
    (found,) = trainer(1).validate(module, datamodule=data, verbose=False)

    _, held_out = split(encode(TABLE, vocab_size=64).examples, 0.5)
    weights = [1.0 if weighting == "none" else e.weight for e in held_out]
    hits, tokens = 0, 0
    for example in held_out:
        ids = torch.tensor(example.input_ids.tolist())
        guess = model(ids[None]).logits[0].argmax(-1)
        for start, end in example.spans:
            hits += int((guess[start - 1 : end - 1] == ids[start:end]).sum())
            tokens += end - start
    wanted = literal_loss(model, held_out, weights, len(held_out)).item()
    assert found["val_loss"] == pytest.approx(wanted, rel=1e-6)
    assert found["val_token_accuracy"] == pytest.approx(hits / tokens)


def test_a_fit_learns_what_the_weights_say(policy: str) -> None:
    """Two continuations of one prompt: the one with the weight becomes likely, the other does not."""
    prompt, good, bad = [1, 2, 3], [4, 5, 6], [7, 8, 9]
    rows = [dict(row) for row in random_rows(2, vocab=64)]
    for row, answer, weight in zip(rows, (good, bad), (2.0, 0.0), strict=True):
        row |= {"input_ids": prompt + answer, "weight": weight}
        row["response_spans"] = [{"start": 3, "end": 6}]
    module = WeightedSFT(policy, 1e-2, gradient_clip=1.0)
    trainer(40).fit(module, datamodule=data_of(policy, weighted_table(rows), batch_size=2))
    module.policy.eval()
    logits = module.policy(torch.tensor([prompt + good])).logits[0, 2:5]
    assert logits.argmax(-1).tolist() == good


def test_a_resumed_fit_ends_where_the_uninterrupted_one_does(policy: str, tmp_path: Path) -> None:
    def fit(ckpt: Path | None = None) -> WeightedSFT:
        module = WeightedSFT(policy, 2e-3, gradient_clip=1.0, warmup_share=0.5, schedule="cosine")
        saves = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
        data = data_of(policy, weighting="resample", val_share=0.3)
        trainer(7, saves).fit(module, datamodule=data, ckpt_path=ckpt)
        return module

    whole = fit()
    resumed = fit(tmp_path / "epoch=0-step=3.ckpt")
    assert resumed.trainer.global_step == 7
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_every_schedule_runs(policy: str, schedule: Any) -> None:
    module = WeightedSFT(policy, 1e-3, warmup_share=0.5, schedule=schedule)
    trainer(3).fit(module, datamodule=data_of(policy))
    assert module.trainer.global_step == 3


def test_a_rank_multiplies_its_loss_by_the_world_size(policy: str, monkeypatch: Any) -> None:
    """DDP and FSDP average over ranks: two ranks' gradients, averaged, are the whole step's."""
    model = tiny_double()
    examples = encode(TABLE, vocab_size=64).examples
    rows = BatchPlan(examples, batch_size=5, seed=0).step(0)
    weights = [examples[i].weight for i in rows]
    wanted = gradient(model, literal_loss(model, [examples[i] for i in rows], weights, 5))
    found = torch.zeros_like(wanted)
    for rank in range(2):
        module = WeightedSFT.from_model(model, 1e-3, dtype="float64")
        seen: list[torch.Tensor] = []

        def stop(*_: Any, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.extend(p.grad.flatten().clone() for p in model.parameters())
            model.zero_grad()
            return torch.zeros(())

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
        run = trainer(1)
        monkeypatch.setattr(type(run), "world_size", 2)
        monkeypatch.setattr(type(run), "global_rank", rank)
        monkeypatch.setattr(run.strategy, "reduce", lambda value, **_: value)
        run.fit(module, datamodule=data_of(policy, micro_tokens=30))
        found += torch.cat(seen) / 2
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"learning_rate": 1.0, "weight_decay": -1.0}, "weight_decay ≥ 0"),
        ({"learning_rate": 1.0, "warmup_share": 1.0}, "warmup_share must lie in"),
        ({"learning_rate": 1.0, "gradient_clip": 0.0}, "gradient_clip must be > 0"),
        ({"learning_rate": 1.0, "schedule": "warmup_stable_decay"}, "'warmup_stable_decay' is not one of"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedSFT("unused", **settings)


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}])
def test_a_trainer_that_would_touch_the_step_is_refused(policy: str, settings: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match="manual optimization"):
        trainer(2, **settings).fit(WeightedSFT(policy, 1e-3), datamodule=data_of(policy))


def test_scaled_half_precision_is_refused(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "precision", "16-mixed")
    with pytest.raises(ValueError, match="use bf16-mixed"):
        trainer(2).fit(WeightedSFT(policy, 1e-3), datamodule=data_of(policy))


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(policy: str) -> None:
    module = WeightedSFT(policy, 1e-3)
    module.configure_model()
    with torch.no_grad():
        module.policy.model.norm.weight[0] = float("nan")
    before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    with pytest.raises(ValueError, match=r"step 1: the gradient's norm is nan .* the step was not taken"):
        trainer(3).fit(module, datamodule=data_of(policy))
    for name, parameter in module.policy.named_parameters():
        assert torch.equal(parameter, before[name]) or name == "model.norm.weight"


def test_epochs_are_as_many_steps_as_they_hold(policy: str) -> None:
    """24 rows twice in batches of 7: 48/7, rounded up."""
    fit = trainer(-1, max_epochs=2)
    fit.fit(WeightedSFT(policy, 1e-3, schedule="linear"), datamodule=data_of(policy, batch_size=7))
    assert fit.global_step == fit.max_steps == 7
    assert fit.optimizers[0].param_groups[0]["lr"] == 0, "the schedule ends with the run"


def test_a_run_without_a_length_is_refused(policy: str) -> None:
    with pytest.raises(ValueError, match=r"set trainer\.max_steps, or trainer\.max_epochs"):
        trainer(-1, max_epochs=0).fit(WeightedSFT(policy, 1e-3), datamodule=data_of(policy))


def test_validate_without_a_held_out_share_is_refused(policy: str) -> None:
    with pytest.raises(ValueError, match=r"set data\.val_share"):
        trainer(1).validate(WeightedSFT(policy, 1e-3), datamodule=data_of(policy), verbose=False)


def test_computing_again_saves_memory_and_changes_no_bit(policy: str) -> None:
    """What the backward needs is counted through autograd's own hooks."""
    ends, kept = [], []
    for checkpointing in (False, True):
        module = WeightedSFT(policy, 1e-2, gradient_checkpointing=checkpointing)
        module.configure_model()
        numbers = 0

        def note(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        batch = next(iter(data_steps(policy)))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module.micro_loss(batch.micro_batches[0], batch.num_examples)
        kept.append(numbers)
        trainer(4).fit(module, datamodule=data_of(policy))
        ends.append(module.policy.state_dict())
    assert kept[1] < kept[0] / 2
    for name in ends[0]:
        assert torch.equal(ends[0][name], ends[1][name]), name


def data_steps(policy: str) -> list[StepBatch]:
    data = data_of(policy)
    data.setup("fit")
    return [data.share(data._train, data._plan.loss_weights(), data._plan.step(0))]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_precision_that_is_not_done_right_is_refused(policy: str, precision: Any) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.precision {precision}"):
        trainer(1, precision=precision).fit(WeightedSFT(policy, 1e-3), datamodule=data_of(policy))
