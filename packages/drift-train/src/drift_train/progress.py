"""What a user sees while a fit runs: the figures of each step, and one line that shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from time import monotonic
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomBarColumn
from rich import get_console, reconfigure
from rich.progress import ProgressColumn, Task
from rich.text import Text
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from drift_train.flops import Multiplied, multiplying, peak_flops
from drift_train.layout import StepBatch
from drift_train.module import WeightedSFT
from drift_train.steps import TrainSteps

SILENCE = 600.0
"""Seconds after which a line is printed where there is no terminal."""
WIDE = 100
"""Columns from which there is room for a bar beside the line."""


class StepMetrics(Callback):
    """Logs the figures of every optimizer step, over all ranks, for loggers and progress bars.

    - `tokens_per_s`: tokens of the step, padding left out, by its wall time. The time runs from the end of
      the step before, data loading included; validation between two steps is left out, a checkpoint is not.
    - `batch_ess`: (Σw)²/Σw² of the step's examples, in [1, batch_size]; 0 where all weigh nothing. Under
      `none` and `resample` each counts 1.
    - `tokens`: all seen since step 0, padding left out.
    - `weight_mass`: Σw of all examples seen since step 0, by Σw of the training examples. It is 1 after an
      epoch and goes on above it; under `resample`, where each draw counts 1, an epoch makes it about 1.
    - `mfu`: share of the device's peak that the step's arithmetic comes to, where the peak is known
      (`drift_train.flops`). Arithmetic is 6·P·U + 6·V·H·R: P parameters of the body and U tokens computed,
      those that rows share once; V·H parameters of the head and R tokens with loss. A frozen parameter
      has no gradient of its own and counts 4. Attention's products of pairs and what gradient
      checkpointing computes again are left out.

    `tokens` and `weight_mass` are functions of the step, so that a resumed run goes on where it was; they
    are left out of a fit whose steps come from elsewhere than a WeightedDataModule. In the list of
    callbacks it stands before a progress bar.
    """

    def __init__(self) -> None:
        self._seen: _Seen | None = None
        self._since = 0.0
        self._multiplied: Multiplied | None = None
        self._peak: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what is multiplied, and start the clock."""
        steps = trainer.train_dataloader
        self._seen = _Seen(steps) if isinstance(steps, TrainSteps) else None
        self._multiplied = _multiplied(trainer, cast(WeightedSFT, pl_module))
        self._peak = peak_flops(pl_module.device)
        self._since = monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the time of a validation out."""
        self._since = monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step's figures."""
        sums = trainer.strategy.reduce(_sums(batch), reduce_op="sum")
        # Reading them waits for the device, so the clock has to be read after.
        tokens, computed, supervised, weight, squares = cast(Tensor, sums).tolist()
        now = monotonic()
        seconds = max(now - self._since, 1e-9)
        self._since = now
        figures = {"tokens_per_s": tokens / seconds, "batch_ess": weight**2 / squares if squares else 0.0}
        if self._peak is not None and self._multiplied is not None:
            flops = self._multiplied.flops(computed, supervised)
            figures["mfu"] = flops / (seconds * self._peak * trainer.world_size)
        if self._seen is not None:
            figures |= self._seen.until(trainer.global_step)
        # Lightning would round plain numbers to float32, too coarse for a count of tokens.
        exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
        pl_module.log_dict(exact, batch_size=1)


class StepProgressBar(RichProgressBar):
    """One line: step, ETA, loss, tokens/s, share of the weight mass seen, effective batch, MFU.

    Steps take the place of Lightning's epochs, of which a run has one. Where the output is no terminal, a
    line is printed after the first step, after each tenth of the steps, and after ten silent minutes.

    Args:
        settings: those of Lightning's RichProgressBar, such as `refresh_rate` (a second).
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"refresh_rate": 10, **settings})
        self._draws = True
        self._pace = _Pace(0)
        self._printed = 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether a bar is drawn; lines are printed without."""
        return super().is_enabled and self._draws

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look where the output goes."""
        super().setup(trainer, pl_module, stage)
        reconfigure(**self._console_kwargs)
        console = get_console()
        self._draws = console.is_interactive or console.is_jupyter

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """The line, after a bar where there is room."""
        bar = CustomBarColumn(
            bar_width=10,
            complete_style=self.theme.progress_bar,
            finished_style=self.theme.progress_bar_finished,
            pulse_style=self.theme.progress_bar_pulse,
        )
        return [bar, _Line()] if get_console().width >= WIDE else [_Line()]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Nothing beside the line."""
        return {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock at the step that the run goes on from."""
        super().on_train_start(trainer, pl_module)
        self._pace = _Pace(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step."""
        step, steps = trainer.global_step, trainer.max_steps
        self._pace.reach(step)
        line = step_line(step, steps, self._pace.left(steps), trainer.callback_metrics)
        if self.is_enabled and self.progress is not None:
            if self.train_progress_bar_id is None:
                self._initialize_train_progress_bar_id()
            assert self.train_progress_bar_id is not None
            self.progress.update(self.train_progress_bar_id, line=line)
            self._update(self.train_progress_bar_id, step)
        # What is disabled by Lightning (other ranks) or by the user prints nothing either.
        elif super().is_enabled and self._due(step, steps):
            get_console().print(line, soft_wrap=True, markup=False, highlight=False)
            self._printed = self._pace.now

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def _due(self, step: int, steps: int) -> bool:
        tenth = 10 * step // steps > 10 * (step - 1) // steps
        return tenth or self._pace.first or self._pace.now - self._printed >= SILENCE


def step_line(step: int, steps: int, left: float, figures: Mapping[str, Any]) -> str:
    """A step in one line, under 80 columns unless figures are huge; what is not among them is left out.

    Args:
        step: done, from 1.
        steps: of the whole run.
        left: seconds to go, ≥ 0.
        figures: `loss` and those of StepMetrics, by name.
    """
    minutes, seconds = divmod(round(left), 60)
    parts = [f"step {step}/{steps}", f"ETA {minutes // 60}:{minutes % 60:02}:{seconds:02}"]
    parts += [show(float(figures[name])) for name, show in _SHOWN.items() if name in figures]
    return "  ".join(parts)


class _Line(ProgressColumn):
    """The line of a fit; of a validation its batches. Folds where the terminal is narrow."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("line") or f"{task.description} {task.completed:.0f}/{task.total:.0f}")


class _Seen:
    """Tokens and weight of the steps done, from the plan: a function of the step alone."""

    def __init__(self, steps: TrainSteps) -> None:
        self._plan = steps._plan
        pruned_N = steps._pruning.pruned_N
        weight_N = self._plan.loss_weights()
        self._weight_N = steps._pruning.weights(weight_N)
        self._tokens_N = np.array([len(example.input_ids) for example in steps._examples]) * ~pruned_N
        resampled = self._plan.weighting == "resample"
        own = [example.weight for example in steps._examples] if resampled else weight_N
        self._whole = float(np.sum(own))
        self._step, self._tokens, self._weight = 0, 0, 0.0

    def until(self, step: int) -> dict[str, float]:
        """The sums over the steps before this one; steps only go up."""
        while self._step < step:
            indices = self._plan.step(self._step)
            self._tokens += int(self._tokens_N[indices].sum())
            self._weight += float(self._weight_N[indices].sum())
            self._step += 1
        mass = {"weight_mass": self._weight / self._whole} if self._whole else {}
        return {"tokens": self._tokens, **mass}


class _Pace:
    """How long the steps of this run took, the first apart: it warms up."""

    def __init__(self, step: int) -> None:
        self._start = step
        self._step = step
        self._begun = self.now = monotonic()
        self._warm: float | None = None

    @property
    def first(self) -> bool:
        return self._step == self._start + 1

    def reach(self, step: int) -> None:
        self._step, self.now = step, monotonic()
        if self._warm is None:
            self._warm = self.now

    def left(self, steps: int) -> float:
        """Seconds to the last step at the mean pace of this run, validation and checkpoints included."""
        if self.first or self._warm is None:
            mean = self.now - self._begun
        else:
            mean = (self.now - self._warm) / (self._step - self._start - 1)
        return mean * (steps - self._step)


def _sums(batch: StepBatch) -> Tensor:
    """Tokens, those computed, those with loss, Σw and Σw² of this rank's share, shape [5]."""
    device = batch.micro_batches[0].weight.device
    # Apple's devices know no float64.
    kind = torch.float32 if device.type == "mps" else torch.float64
    total = torch.zeros(5, dtype=kind, device=device)
    for micro in batch.micro_batches:
        if not micro.idle:
            weight_B = micro.weight.to(kind)
            counts = [micro.tokens, micro.computed, len(micro.target_R)]
            tokens = torch.tensor(counts, dtype=kind, device=device)
            total += torch.cat([tokens, torch.stack([weight_B.sum(), (weight_B**2).sum()])])
    return total


def _multiplied(trainer: Trainer, module: WeightedSFT) -> Multiplied:
    """What all ranks multiply with together."""
    policy: Any = module.policy
    counts = multiplying(policy)
    if not isinstance(policy, FullyShardedDataParallel):
        return counts
    # Its parameters are this rank's shards; every rank has to ask.
    own = torch.tensor(list(asdict(counts).values()), dtype=torch.float64, device=module.device)
    whole = cast(Tensor, trainer.strategy.reduce(own, reduce_op="sum"))
    return Multiplied(**dict(zip(asdict(counts), whole.tolist(), strict=True)))


def _short(number: float) -> str:
    """Two or three digits: 3.2, 96, 1.2k, 45M."""
    units = ["", "k", "M", "G", "T"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.{int(number < 9.95)}f}{units[0]}"


_SHOWN: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.4g}",
    "tokens_per_s": lambda value: f"{_short(value)} tok/s",
    "weight_mass": lambda value: f"mass {_short(100 * value)}%",
    "batch_ess": lambda value: f"ESS {_short(value)}",
    "mfu": lambda value: f"MFU {_short(100 * value)}%",
}
