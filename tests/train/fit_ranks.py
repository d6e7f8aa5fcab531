"""One rank of some fits, one after the other, for tests: settings as JSON in, losses out."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from drift_train import DDP, FSDP, FSDP2, LastCheckpoint, SingleDevice, WeightedDataModule, WeightedSFT
from train.weighted_rows import grouped_rows, weighted_table

STRATEGIES = {"single": SingleDevice, "ddp": DDP, "fsdp": FSDP, "fsdp2": FSDP2}


class Watch(Callback):
    """Notes every loss and norm."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["loss"]))
        self.norms.append(float(trainer.callback_metrics["grad_norm"]))


class StoppedError(Exception):
    """A run that does not reach its last step."""


class Stop(Callback):
    """Ends a fit in the step after `last`; what was saved by then is what a killed run leaves."""

    def __init__(self, last: int | None) -> None:
        self.last = last

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.last:
            raise StoppedError


def main(settings: dict[str, Any]) -> None:
    """One fit."""
    seed_everything(settings.get("seed_everything", 1), verbose=False)
    watch = Watch()
    callbacks = [
        watch,
        Stop(settings.get("stop")),
        LastCheckpoint(settings["every"], keep=99, dirpath=settings["checkpoints"]),
    ]
    ranks, accelerator = settings.get("ranks", 1), settings.get("accelerator", "cpu")
    options = settings.get("options", {})
    if settings["strategy"] == "single":
        options = {"device": "cuda:0" if accelerator == "cuda" else "cpu", **options}
    module = WeightedSFT(settings["model"], 5e-3, weight_decay=0.1, **settings.get("module", {}))
    table = weighted_table(grouped_rows(6, 4, vocab=67))
    data = WeightedDataModule.from_table(
        table, settings["model"], batch_size=6, micro_tokens=90, **settings.get("data", {})
    )
    trainer = Trainer(
        max_steps=settings["steps"],
        accelerator=accelerator,
        devices=ranks // settings.get("nodes", 1),
        num_nodes=settings.get("nodes", 1),
        precision=settings.get("precision", "32-true"),
        strategy=STRATEGIES[settings["strategy"]](**options),
        deterministic=accelerator == "cuda",
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with suppress(StoppedError):
        trainer.fit(module, datamodule=data, ckpt_path=settings.get("resume"))
    out = Path(settings["out"])
    rng = torch.get_rng_state()
    if accelerator == "cuda":
        rng = torch.cat([rng, torch.cuda.get_rng_state()])
    if trainer.is_global_zero:
        torch.save({"losses": watch.losses, "norms": watch.norms, "rng": rng}, out)


if __name__ == "__main__":
    for run in json.loads(Path(sys.argv[1]).read_text()):
        main(run)
