"""drift-train fit | validate | export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from drift_train.data import WeightedDataModule
from drift_train.export import export
from drift_train.module import WeightedSFT
from drift_weights.cli import refuse

MAX_STEPS = 200
"""Optimizer steps of a run (D.2)."""
_LOGGER = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": ".", "name": "runs"},
}


class StepProgressBar(RichProgressBar):
    """Lightning's bar without its epoch count: a run is counted in steps, and it would read 0/-2."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"


class TrainCLI(LightningCLI):
    """LightningCLI with the two commands that make sense here, and one place for the model."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data follow the model: vocabulary, context length, tokenizer."""
        parser.link_arguments("model.model", "data.model")
        parser.link_arguments("model.revision", "data.model_revision")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with our bar in the place of Lightning's own if there is one."""
        trainer = super().instantiate_trainer(**kwargs)
        # Lightning sets the attribute from a helper, out of a type checker's sight.
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for place, callback in enumerate(callbacks):
            if type(callback) is RichProgressBar:
                callbacks[place] = StepProgressBar()
        return trainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """fit and validate."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
        }


def main(args: list[str] | None = None) -> None:
    """Entry point of drift-train; a user's mistake is one line and exit code 2."""
    words = sys.argv[1:] if args is None else args
    try:
        if words[:1] == ["export"]:
            auto_cli(export_command, args=words[1:], as_positional=True, prog="drift-train export")
        else:
            run_lightning(args)
    except (ValueError, OSError, MisconfigurationException) as error:
        refuse(error)


def run_lightning(args: list[str] | None) -> TrainCLI:
    """fit or validate, with the paper's number of steps by default."""
    return TrainCLI(
        WeightedSFT,
        WeightedDataModule,
        args=args,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        trainer_defaults={"max_steps": MAX_STEPS, "logger": _LOGGER, "log_every_n_steps": 1},
        parser_kwargs={
            "prog": "drift-train",
            "description": "Weighted supervised fine-tuning on terminal turns.",
            "epilog": "drift-train export CHECKPOINT OUT writes a Hugging Face folder.",
        },
    )


def export_command(checkpoint: Path, out: Path) -> None:
    """Write a checkpoint as a Hugging Face folder.

    Args:
        checkpoint: a Lightning checkpoint file of a fit.
        out: the folder to make; it must not exist, or be empty.
    """
    sys.stdout.write(f"wrote {export(checkpoint, out)}\n")
