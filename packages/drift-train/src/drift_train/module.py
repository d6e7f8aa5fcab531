"""WeightedSFT: the Lightning module that multiplies, clips and steps. It decides no weight."""

from __future__ import annotations

import inspect
import json
import random
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, get_scheduler

from drift_train.loss import IGNORED, Reduction, weighted_nll_from_logits
from drift_train.pack import MicroBatch, StepBatch
from drift_train.state import plain_name
from drift_train.strategies import StateFolders

Dtype = Literal["float32", "bfloat16", "float64"]
Schedule = Literal[
    "constant_with_warmup",
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
]
"""Those of transformers.get_scheduler that need nothing beyond warm-up and the number of steps."""
CONFIG = "policy_config"
GENERATION = "policy_generation_config"
"""What the manifest of a checkpoint says of the policy."""


class WeightedSFT(LightningModule):
    """Weighted supervised fine-tuning of a causal language model (eq. 14).

    One Lightning batch is one rank's share of a whole optimizer step, so optimization is manual:
    the module sums the micro-batches, divides by the step's examples, clips and steps.

    Args:
        model: folder or Hub id of the policy to start from.
        learning_rate: peak, > 0; the paper names none.
        revision: of the Hub id; None for its default branch.
        weight_decay: AdamW's, ≥ 0, on matrices only.
        betas: AdamW's.
        warmup_share: of max_steps, linear, in [0, 1).
        schedule: of the rate; a name of transformers.get_scheduler.
        gradient_clip: largest L2 norm of the gradient, > 0; None for no limit.
        reduction: over a response's tokens: `sum` (eq. 15) or `mean`.
        dtype: of the parameters; for half-precision arithmetic set trainer.precision to bf16-mixed.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        model: str,
        learning_rate: float,
        revision: str | None = None,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_share: float = 0.0,
        schedule: Schedule = "constant_with_warmup",
        gradient_clip: float | None = None,
        reduction: Reduction = "sum",
        dtype: Dtype = "float32",
    ) -> None:
        super().__init__()
        if not learning_rate > 0 or not weight_decay >= 0:
            raise ValueError(
                f"learning_rate must be > 0, weight_decay ≥ 0, got {learning_rate} and {weight_decay}"
            )
        if not 0 <= warmup_share < 1:
            raise ValueError(f"warmup_share must lie in [0, 1), got {warmup_share}")
        if gradient_clip is not None and not gradient_clip > 0:
            raise ValueError(f"gradient_clip must be > 0 or null (no limit), got {gradient_clip}")
        if schedule not in get_args(Schedule):
            raise ValueError(f"schedule {schedule!r} is not one of {', '.join(get_args(Schedule))}")
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.model: nn.Module | None = None
        self._keeps_logits = False
        self._placed = False
        self._vectors: set[str] | None = None
        self._held_out = [0.0, 0.0, 0.0]
        self._held_out_examples = 0

    @classmethod
    def from_model(cls, model: PreTrainedModel, learning_rate: float, **settings: Any) -> Self:
        """A module around a model that is built already, in its dtype; `settings` as for the class."""
        settings["dtype"] = str(model.dtype).removeprefix("torch.")
        module = cls(model.config.name_or_path or "", learning_rate, **settings)
        module._adopt(model)
        return module

    def configure_model(self) -> None:
        """Load the policy and place it as the strategy wants it, once, in training mode."""
        strategy = self._trainer.strategy if self._trainer is not None else None
        placing = strategy if isinstance(strategy, StateFolders) else None
        if self.model is None:
            read = self._read_policy
            self._adopt(read() if placing is None else placing.load(self._shape(), read))
        elif placing is not None and not self._placed:
            self.model = placing.place(cast(PreTrainedModel, self.model))
        self._placed = placing is not None
        # from_pretrained hands out models in eval mode, and Lightning leaves modes as they are.
        self.policy.train()

    @property
    def policy(self) -> PreTrainedModel:
        """The model under training; under FSDP1 its wrapper, which answers as the model does.

        Raises:
            RuntimeError: it is not loaded yet.
        """
        if self.model is None:
            raise RuntimeError("the policy is not loaded; call configure_model first")
        return cast(PreTrainedModel, self.model)

    def logits(self, batch: MicroBatch) -> Tensor:
        """Logits of the last `batch.logits_to_keep` positions, shape [B, logits_to_keep, V]."""
        only = {"logits_to_keep": batch.logits_to_keep} if self._keeps_logits else {}
        output = self.policy(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
            **only,
        )
        return cast(Tensor, output.logits)[:, -batch.logits_to_keep :]

    def micro_loss(self, batch: MicroBatch, num_examples: int) -> tuple[Tensor, Tensor]:
        """The share of the step's loss that a micro-batch is (eq. 14), and its logits."""
        logits_BTV = self.logits(batch)
        loss = weighted_nll_from_logits(
            logits_BTV,
            batch.labels[:, -batch.logits_to_keep :],
            batch.weight,
            reduction=self.hparams["reduction"],
            num_examples=num_examples,
        )
        return loss, logits_BTV

    def training_step(self, batch: StepBatch, batch_idx: int) -> Tensor:
        """One whole optimizer step; returns this rank's share of the loss."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        scheduler = cast(LRScheduler, self.lr_schedulers())
        _seed(batch.seed)
        total = torch.zeros((), device=self.device)
        for place, micro in enumerate(batch.micro_batches, start=1):
            last = place == len(batch.micro_batches)
            with nullcontext() if last else self._without_sync():
                loss, _ = self.micro_loss(micro, batch.num_examples)
                # DDP and FSDP average gradients over ranks; the loss is a sum over them.
                self.manual_backward(loss * self.trainer.world_size)
            total += loss.detach()
        norm = self._clip()
        optimizer.step()
        optimizer.zero_grad()
        self._log_step(total, norm, float(scheduler.get_last_lr()[0]))
        scheduler.step()
        return total

    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Add up the held-out loss and the tokens that the policy's best guess hits."""
        for micro in batch.micro_batches:
            loss, logits_BTV = self.micro_loss(micro, batch.num_examples)
            if micro.idle:
                continue
            target_BT = micro.labels[:, -micro.logits_to_keep :][:, 1:]
            counted_BT = target_BT != IGNORED
            hits = (logits_BTV[:, :-1].argmax(-1) == target_BT) & counted_BT
            parts = (loss * batch.num_examples, hits.sum(), counted_BT.sum())
            self._held_out = [sum_ + part.item() for sum_, part in zip(self._held_out, parts, strict=True)]
        self._held_out_examples += batch.num_examples

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._held_out = [0.0, 0.0, 0.0]
        self._held_out_examples = 0

    def on_validation_epoch_end(self) -> None:
        """Log the held-out weighted loss (eq. 14) and token accuracy, over all ranks."""
        sums = torch.tensor(self._held_out, dtype=torch.float64)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")
        loss, hits, tokens = sums.tolist()
        metrics = {"val_loss": loss / self._held_out_examples, "val_token_accuracy": hits / tokens}
        self.log_dict(metrics, prog_bar=True, batch_size=1, sync_dist=True)

    def on_fit_start(self) -> None:
        """Refuse what would give wrong steps without a word."""
        if self.trainer.precision == "16-mixed":
            raise ValueError("trainer.precision 16-mixed clips scaled gradients; use bf16-mixed")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, decaying matrices only, and the named schedule over trainer.max_steps."""
        steps = self.trainer.max_steps
        if steps < 1:
            raise ValueError("trainer.max_steps must be set: a run is counted in optimizer steps")
        optimizer = torch.optim.AdamW(
            self._groups(), lr=self.hparams["learning_rate"], betas=tuple(self.hparams["betas"])
        )
        scheduler = get_scheduler(
            self.hparams["schedule"],
            optimizer,
            num_warmup_steps=round(self.hparams["warmup_share"] * steps),
            num_training_steps=steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration with the weights, so that an export needs no base model."""
        policy = self.policy
        about = {CONFIG: json.loads(policy.config.to_json_string(use_diff=False))}
        if policy.generation_config is not None:
            about[GENERATION] = json.loads(policy.generation_config.to_json_string(use_diff=False))
        checkpoint["manifest"] = about

    def _groups(self) -> list[dict[str, Any]]:
        """Trained parameters that decay, and those that do not."""
        decaying: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        vectors = self._vectors or set()
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad:
                (others if plain_name(name) in vectors else decaying).append(parameter)
        groups = [
            {"params": decaying, "weight_decay": self.hparams["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        # An empty group would not survive a checkpoint.
        return [group for group in groups if group["params"]]

    def _shape(self) -> PreTrainedConfig:
        source, revision = self.hparams["model"], self.hparams["revision"]
        shape = AutoConfig.from_pretrained(source, revision=revision, dtype=self._number_type())
        return cast(PreTrainedConfig, shape)

    def _read_policy(self) -> PreTrainedModel:
        source, revision = self.hparams["model"], self.hparams["revision"]
        read = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=self._number_type())
        self._vectors = _vectors(read)
        return cast(PreTrainedModel, read)

    def _number_type(self) -> torch.dtype:
        return cast(torch.dtype, getattr(torch, self.hparams["dtype"]))

    def _adopt(self, model: nn.Module) -> None:
        self.model = model
        if self._vectors is None:
            self._vectors = _vectors(model)
        inner = getattr(model, "module", model)
        self._keeps_logits = "logits_to_keep" in inspect.signature(inner.forward).parameters

    def _without_sync(self) -> AbstractContextManager[None]:
        strategy = self.trainer.strategy
        return strategy.without_sync() if isinstance(strategy, StateFolders) else nullcontext()

    def _clip(self) -> Tensor:
        """The gradient's L2 norm over all shards; scaled to gradient_clip if that is set."""
        limit = self.hparams["gradient_clip"] or float("inf")
        strategy = self.trainer.strategy
        if isinstance(strategy, StateFolders):
            return strategy.clip(self.policy, limit)
        return torch.nn.utils.clip_grad_norm_(self.policy.parameters(), limit)

    def _log_step(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        if self.trainer.world_size > 1:
            loss = self.trainer.strategy.reduce(loss, reduce_op="sum")
        self.log("loss", loss, prog_bar=True, batch_size=1)
        self.log_dict({"lr": rate, "grad_norm": norm}, batch_size=1)


def _seed(seed: int) -> None:
    """Seed what a step may draw from (dropout, callbacks), so that a resumed run draws the same."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _vectors(model: nn.Module) -> set[str]:
    """Names of the parameters that are no matrices; FSDP1's shards are all flat, and show it no more."""
    return {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}
