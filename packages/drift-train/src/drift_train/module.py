"""WeightedSFT: the Lightning module that multiplies, clips and steps. It decides no weight."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, Self, cast, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import AutoModelForCausalLM, PreTrainedModel, get_scheduler

from drift_train.loss import IGNORED, Reduction, weighted_nll_from_logits
from drift_train.pack import MicroBatch, StepBatch

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
CONFIG_KEY = "policy_config"
GENERATION_KEY = "policy_generation_config"


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
        self.model: PreTrainedModel | None = None
        self._keeps_logits = False
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
        """Load the policy, once, in training mode."""
        if self.model is None:
            loaded = AutoModelForCausalLM.from_pretrained(
                self.hparams["model"],
                revision=self.hparams["revision"],
                dtype=getattr(torch, self.hparams["dtype"]),
            )
            self._adopt(loaded)
        # from_pretrained hands out models in eval mode, and Lightning leaves modes as they are.
        self.policy.train()

    @property
    def policy(self) -> PreTrainedModel:
        """The model under training.

        Raises:
            RuntimeError: it is not loaded yet.
        """
        if self.model is None:
            raise RuntimeError("the policy is not loaded; call configure_model first")
        return self.model

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
        total = torch.zeros((), device=self.device)
        for micro in batch.micro_batches:
            loss, _ = self.micro_loss(micro, batch.num_examples)
            # DDP and FSDP average gradients over ranks; the loss is a sum over them.
            self.manual_backward(loss * self.trainer.world_size)
            total += loss.detach()
        limit = self.hparams["gradient_clip"]
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), limit or float("inf"))
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
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        decay = self.hparams["weight_decay"]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=self.hparams["learning_rate"], betas=tuple(self.hparams["betas"])
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
        checkpoint[CONFIG_KEY] = policy.config.to_json_string(use_diff=False)
        if policy.generation_config is not None:
            generation = policy.generation_config
            checkpoint[GENERATION_KEY] = generation.to_json_string(use_diff=False)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Have a model to load into."""
        self.configure_model()

    def _adopt(self, model: PreTrainedModel) -> None:
        self.model = model
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def _log_step(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        if self.trainer.world_size > 1:
            loss = self.trainer.strategy.reduce(loss, reduce_op="sum")
        self.log("loss", loss, prog_bar=True, batch_size=1)
        self.log_dict({"lr": rate, "grad_norm": norm}, batch_size=1)
