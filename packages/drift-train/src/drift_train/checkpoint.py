"""Checkpoints of a fit: folders step-N with the whole state, so that a run that was stopped goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from drift_train.state import free_name, newest
from drift_train.strategies import StateFolders

SAVE_EVERY = 50
"""Optimizer steps from one state to the next."""

_log = logging.getLogger(__name__)


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest states of a fit as `checkpoints/step-000050`.

    Lightning's own counts epochs, and all of a run is one; it also leaves the last steps out where their
    number is no multiple of `every_n_train_steps`. A state gets a path of its own, and older ones go only
    when it is whole: whenever the run is killed, there is a state to go on from.

    Args:
        every_n_train_steps: optimizer steps from one state to the next, ≥ 1; the end is always kept.
        keep: newest states of this fit that stay, ≥ 1.
        dirpath: where they go; None for `checkpoints` in the logger's folder.

    Raises:
        ValueError: a number below 1.
        TypeError: at the start of a fit: the strategy writes no state folders.
        FileExistsError: at the start of a fit: states of another fit are there, and it is not resumed.
    """

    def __init__(
        self, every_n_train_steps: int = SAVE_EVERY, keep: int = 1, dirpath: str | None = None
    ) -> None:
        if every_n_train_steps < 1 or keep < 1:
            raise ValueError(
                f"every_n_train_steps and keep must be at least 1, got {every_n_train_steps} and {keep}"
            )
        super().__init__(dirpath, save_top_k=0, every_n_train_steps=every_n_train_steps)
        self._every = every_n_train_steps
        self._keep = keep
        self._written: list[Path] = []
        self._saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave another run's states alone; a resumed fit has its first state already."""
        super().on_train_start(trainer, pl_module)
        if not isinstance(trainer.strategy, StateFolders):
            raise TypeError(
                f"{type(trainer.strategy).__name__} writes no state folders; give the trainer a strategy "
                "of drift_train (SingleDevice(), DDP(), FSDP2(), FSDP()) or leave LastCheckpoint out"
            )
        folder = self._folder()
        resumed = (
            trainer.ckpt_path is not None and newest(Path(trainer.ckpt_path)).resolve().parent == folder
        )
        if not resumed and not _is_trial(trainer) and any(folder.glob("step-*")):
            raise FileExistsError(
                f"{folder} is of another fit; go on from it with --ckpt_path, move it away, or let a "
                "logger give each fit a folder of its own"
            )
        self._saved = trainer.global_step
        if resumed and _had_stopped(trainer):
            # Lightning forgets it between one process and the next.
            trainer.should_stop = True
            _say_stopped(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Keep every so many steps."""
        if trainer.global_step % self._every == 0 and not _validates_now(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a step that is validated with what the callbacks before this one made of it.

        Else a run that goes on from there has not seen the validation, and stops early at another step.
        """
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and trainer.global_step % self._every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end."""
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: where the states lie is a matter of the run, not of the state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""

    def _save(self, trainer: Trainer) -> None:
        if _is_trial(trainer) or trainer.global_step == self._saved:
            return
        path = Path(trainer.strategy.broadcast(str(self._path(trainer.global_step))))
        trainer.save_checkpoint(path, weights_only=False)
        self._saved, self.last_model_path = trainer.global_step, str(path)
        self._written.append(path)
        while len(self._written) > self._keep:
            trainer.strategy.remove_checkpoint(self._written.pop(0))

    def _path(self, step: int) -> Path:
        return free_name(self._folder() / f"step-{step:06d}")

    def _folder(self) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath).resolve()


def _validates_now(trainer: Trainer) -> bool:
    """Whether a validation follows on this step, by Lightning's own rule."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _had_stopped(trainer: Trainer) -> bool:
    reasons = [c.stopping_reason for c in trainer.early_stopping_callbacks if isinstance(c, EarlyStopping)]
    return any(reason != EarlyStoppingReason.NOT_STOPPED for reason in reasons)


@rank_zero_only
def _say_stopped(step: int) -> None:
    _log.warning("the run had stopped early after step %d; without EarlyStopping it goes on", step)


def _is_trial(trainer: Trainer) -> bool:
    # Lightning sets the attribute from a helper, out of a type checker's sight.
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
