"""last.ckpt: the whole state of a fit, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

SAVE_EVERY = 50
"""Optimizer steps from one state to the next."""


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest state of a fit, and no other, as `checkpoints/last.ckpt`.

    Lightning's own counts epochs, and all of a run is one; it also leaves the last steps out where their
    number is no multiple of `every_n_train_steps`. The file is replaced whole: whenever the run is
    killed, there is a state to go on from.

    Args:
        every_n_train_steps: optimizer steps from one state to the next, ≥ 1; the end is always kept.
        dirpath: where last.ckpt goes; None for the logger's folder.

    Raises:
        ValueError: `every_n_train_steps` below 1.
        FileExistsError: at the start of a fit: a last.ckpt is there, and not the one that is resumed.
    """

    def __init__(self, every_n_train_steps: int = SAVE_EVERY, dirpath: str | None = None) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be at least 1, got {every_n_train_steps}")
        super().__init__(dirpath, save_last=True, save_top_k=0, every_n_train_steps=every_n_train_steps)
        self._every = every_n_train_steps
        self._saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave another run's state alone."""
        super().on_train_start(trainer, pl_module)
        last = self._last()
        resumed = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == last.resolve()
        if not resumed and not _is_trial(trainer) and self.file_exists(str(last), trainer):
            raise FileExistsError(
                f"{last} is of another fit; go on from it with --ckpt_path, move it away, or let a logger "
                "give each fit a folder of its own"
            )

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Keep every so many steps."""
        if trainer.global_step % self._every == 0:
            self._keep(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end."""
        self._keep(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: where the file lies is a matter of the run, not of the state."""
        return {}

    def _last(self) -> Path:
        return Path(self.format_checkpoint_name({}, self.CHECKPOINT_NAME_LAST))

    def _keep(self, trainer: Trainer) -> None:
        if _is_trial(trainer) or trainer.global_step == self._saved:
            return
        last = self._last()
        scratch = last.with_name(f".{last.name}.writing")
        trainer.save_checkpoint(scratch, weights_only=False)
        if trainer.is_global_zero:
            os.replace(scratch, last)
        trainer.strategy.barrier()
        self._saved, self.last_model_path = trainer.global_step, str(last)


def _is_trial(trainer: Trainer) -> bool:
    # Lightning sets the attribute from a helper, out of a type checker's sight.
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
