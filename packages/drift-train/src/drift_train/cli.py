"""drift-train fit | validate | export."""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from drift_train.data import WeightedDataModule
from drift_train.export import export
from drift_train.module import WeightedSFT

MAX_STEPS = 200
"""Optimizer steps of a run (D.2)."""
_LOGGER = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": ".", "name": "runs"},
}


class TrainCLI(LightningCLI):
    """LightningCLI with the two commands that make sense here, and one place for the model."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data follow the model: vocabulary, context length, tokenizer."""
        parser.link_arguments("model.model", "data.model")
        parser.link_arguments("model.revision", "data.model_revision")

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
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)


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
