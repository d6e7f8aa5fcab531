"""WeightedSFT: the Lightning module that multiplies, clips and steps. It decides no weight."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, Literal, Protocol, Self, cast, get_args, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, get_scheduler

from drift_train.attention import check_packed
from drift_train.base import base_of, check_base, resumed_base
from drift_train.compiled import check_compiler
from drift_train.dressing import dress
from drift_train.head import Head, head_nll, weighted_head_nll
from drift_train.held_out import HeldOutSums
from drift_train.layout import MicroBatch, StepBatch
from drift_train.lora import LoRA
from drift_train.loss import Reduction, token_factors
from drift_train.optimizing import Schedule, parameter_groups, vectors_of
from drift_train.precision import GradientSums, check_precision
from drift_train.state import together
from drift_train.strategies import StateFolders
from drift_weights.models import commit_of
from drift_weights.names import check_model

Dtype = Literal["float32", "bfloat16", "float64"]
CONFIG = "policy_config"
GENERATION = "policy_generation_config"
BASE = "policy_base"
DATA = "data"
"""What the manifest of a checkpoint says of the policy, and of what it was trained on."""

_log = logging.getLogger(__name__)


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
        lora: train adapters alone; None for all parameters.
        gradient_checkpointing: keep one hidden state a block, and compute the rest again in the backward.
        fused_optimizer: AdamW by torch's fused kernel, the same to rounding.
        compile: torch.compile each block, the same to rounding; needs a C++ compiler.
        trust_remote_code: run code that comes with the model; never taken from a checkpoint.

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
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
        fused_optimizer: bool = True,
        compile: bool = False,
        trust_remote_code: bool = False,
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
        self._lora = LoRA(**lora) if isinstance(lora, Mapping) else lora
        # As data, for checkpoints and loggers.
        self.hparams["betas"] = list(betas)
        self.hparams["lora"] = None if self._lora is None else asdict(self._lora)
        self.automatic_optimization = False
        self.model: nn.Module | None = None
        self._placed = False
        self._vectors: set[str] | None = None
        self.base: dict[str, Any] | None = None
        self._held_out = HeldOutSums()

    @classmethod
    def from_model(cls, model: PreTrainedModel, learning_rate: float, **settings: Any) -> Self:
        """A module around a model that is built already, in its dtype; `settings` as for the class."""
        settings["dtype"] = str(model.dtype).removeprefix("torch.")
        module = cls(model.config.name_or_path or "", learning_rate, **settings)
        module.adopt(module._dressed(model))
        return module

    def setup(self, stage: str) -> None:
        """Refuse what this machine cannot do, before any weights are read."""
        if self.hparams["compile"]:
            check_compiler()

    def configure_model(self) -> None:
        """Load the policy and place it as the strategy wants it, once, in training mode."""
        strategy = self._trainer.strategy if self._trainer is not None else None
        placing = strategy if isinstance(strategy, StateFolders) else None
        if self.model is None:
            read = self._read_policy
            self.adopt(read() if placing is None else placing.load(self.blank_policy, read))
        elif placing is not None and not self._placed:
            self.model = placing.place(cast(PreTrainedModel, self.model))
        self._placed = placing is not None
        # from_pretrained hands out models in eval mode, and Lightning leaves modes as they are.
        self.policy.train()

    def blank_policy(self) -> PreTrainedModel:
        """The policy from its configuration alone: names and shapes, on torch's default device."""
        shape = self.blank_config()
        blank = AutoModelForCausalLM.from_config(
            shape, dtype=shape.dtype, trust_remote_code=self.hparams["trust_remote_code"]
        )
        return self._dressed(cast(PreTrainedModel, blank))

    def blank_config(self) -> PretrainedConfig:
        """The policy's configuration, in the dtype that was asked for."""
        config = AutoConfig.from_pretrained(**self._source(), dtype=self._number_type())
        return cast(PretrainedConfig, config)

    @property
    def policy(self) -> PreTrainedModel:
        """The model under training; under FSDP1 its wrapper, which answers as the model does.

        Raises:
            RuntimeError: it is not loaded yet.
        """
        if self.model is None:
            raise RuntimeError("the policy is not loaded; call configure_model first")
        return cast(PreTrainedModel, self.model)

    def micro_loss(self, batch: MicroBatch, num_examples: int) -> tuple[Tensor, Tensor | None]:
        """The share of the step's loss that a micro-batch is (eq. 14).

        Returns:
            The share, and without gradients, where it is asked for, how many supervised tokens are the
            policy's best guess.
        """
        factor_R = token_factors(
            batch.example_R, batch.weight, reduction=self.hparams["reduction"], num_examples=num_examples
        )

        def score(head: Head, hidden_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
            hidden_RD = hidden_BTD.flatten(0, 1)[batch.source_R]
            if torch.is_grad_enabled():
                return weighted_head_nll(head, hidden_RD, batch.target_R, factor_R), None
            nll_R, hit_R = head_nll(head, hidden_RD, batch.target_R)
            return (factor_R.to(nll_R.dtype) * nll_R).sum(), hit_R.sum()

        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.segments is not None:
            check_packed(self.policy.config)
            inputs |= {"position_ids": batch.position_ids, "segments": batch.segments}
            # Of four dimensions, so that no mask is made; the segments take its place.
            inputs["attention_mask"] = batch.input_ids.new_zeros(1, 1, 1, 1)
        return cast(tuple[Tensor, Tensor | None], self.policy(**inputs, score=score))

    def training_step(self, batch: StepBatch, batch_idx: int) -> Tensor:
        """One whole optimizer step; returns this rank's share of the loss.

        Raises:
            ValueError: the gradient is not finite; the step is not taken.
        """
        optimizer = cast(LightningOptimizer, self.optimizers())
        scheduler = cast(LRScheduler, self.lr_schedulers())
        _seed(batch.seed)
        total = torch.zeros((), device=self.device)
        # The optimizer's: after a validation fsdp2's policy shows whole ones, which get no gradient.
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        sums = GradientSums(trained if len(batch.micro_batches) > 1 else ())
        for place, micro in enumerate(batch.micro_batches, start=1):
            # What is taken away after each micro-batch has met by then.
            meet = sums or place == len(batch.micro_batches)
            with nullcontext() if meet else self._without_sync():
                loss, _ = self.micro_loss(micro, batch.num_examples)
                # DDP and FSDP average gradients over ranks; the loss is a sum over them.
                self.manual_backward(loss * self.trainer.world_size)
            sums.take()
            if micro.segments is not None:
                # The step holds its micro-batches to the end, and need not hold their masks.
                micro.segments.forget()
            total += loss.detach()
        sums.give()
        norm = self._clip()
        self._refuse_nan(norm, total)
        optimizer.step()
        optimizer.zero_grad()
        self._log_step(total, norm, float(scheduler.get_last_lr()[0]))
        scheduler.step()
        return total

    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Add up the held-out loss and the tokens that the policy's best guess hits."""
        for micro in batch.micro_batches:
            loss, hits = self.micro_loss(micro, batch.num_examples)
            assert hits is not None
            if not micro.idle:
                self._held_out.add(loss.item() * batch.num_examples, hits.item(), len(micro.target_R))
        self._held_out.examples += batch.num_examples

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._held_out = HeldOutSums()

    def on_validation_epoch_end(self) -> None:
        """Log the held-out weighted loss (eq. 14) and token accuracy, over all ranks."""
        sums = self._held_out.of_this_rank()
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")
        self.log_dict(self._held_out.metrics(sums), prog_bar=True, batch_size=1, sync_dist=True)

    def on_fit_start(self) -> None:
        """Refuse what would give wrong steps without a word."""
        check_precision(self.trainer.precision)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, decaying matrices only, and the named schedule over trainer.max_steps."""
        steps = self.trainer.max_steps
        if steps < 1:
            raise ValueError("trainer.max_steps must be set: a run is counted in optimizer steps")
        settings = self.hparams
        optimizer = torch.optim.AdamW(
            parameter_groups(self.policy, self._vectors or set(), settings["weight_decay"]),
            lr=settings["learning_rate"],
            betas=tuple(settings["betas"]),
            # None leaves the choice between its other two ways to torch.
            fused=settings["fused_optimizer"] or None,
        )
        scheduler = get_scheduler(
            settings["schedule"],
            optimizer,
            num_warmup_steps=round(settings["warmup_share"] * steps),
            num_training_steps=steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration with the weights, so that an export needs no base model."""
        policy = self.policy
        about = {CONFIG: json.loads(policy.config.to_json_string(use_diff=False))}
        if policy.generation_config is not None:
            generation = policy.generation_config.to_json_string(use_diff=False)
            about[GENERATION] = json.loads(generation)
        if self.base is not None:
            about[BASE] = self.base
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, Described):
            about[DATA] = data.about()
        checkpoint["manifest"] = about

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse adapters of another base; a whole policy has the weights of the state, and its base.

        Raises:
            ValueError: the weights are not those that the adapters were trained on.
        """
        if self._lora is None:
            self.base = resumed_base(checkpoint, BASE, self.hparams["model"])
            return
        wanted = checkpoint["manifest"].get(BASE)
        together(lambda: check_base(self.base, wanted, self.hparams["model"]), only_first=True)

    def _source(self) -> dict[str, Any]:
        """What the Auto classes are asked for."""
        return {
            "pretrained_model_name_or_path": check_model(self.hparams["model"]),
            "revision": self.hparams["revision"],
            "trust_remote_code": self.hparams["trust_remote_code"],
        }

    def _read_policy(self) -> PreTrainedModel:
        if self.hparams["trust_remote_code"]:
            _say_trusted(self.hparams["model"])
        # Lightning's default device here is the strategy's, whose generator would draw other adapters.
        with torch.device("cpu"):
            source = self._source()
            commit = commit_of(self.hparams["model"], source["revision"])
            source["revision"] = commit or source["revision"]
            self.base = base_of(self.hparams["model"], commit, hashed=self._lora is not None)
            read = AutoModelForCausalLM.from_pretrained(**source, dtype=self._number_type())
            return self._dressed(read)

    def _dressed(self, policy: PreTrainedModel) -> PreTrainedModel:
        settings = self.hparams
        dress(
            policy,
            lora=self._lora,
            gradient_checkpointing=settings["gradient_checkpointing"],
            compile=settings["compile"],
        )
        self._vectors = vectors_of(policy)
        return policy

    def _number_type(self) -> torch.dtype:
        return cast(torch.dtype, getattr(torch, self.hparams["dtype"]))

    def adopt(self, model: nn.Module) -> None:
        """Take a model that is built and placed already."""
        self.model = model
        if self._vectors is None:
            self._vectors = vectors_of(model)

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

    def _refuse_nan(self, norm: Tensor, loss: Tensor) -> None:
        """Every rank has the same norm, so that all stop at the same step."""
        if not bool(torch.isfinite(norm)):
            if self.trainer.world_size > 1:
                loss = cast(Tensor, self.trainer.strategy.reduce(loss, reduce_op="sum"))
            raise ValueError(
                f"step {self.trainer.global_step + 1}: the gradient's norm is {float(norm):g} (loss "
                f"{float(loss):g}), and the step was not taken; lower model.learning_rate or "
                "look at the rows of this step; the states before it stay"
            )

    def _log_step(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        if self.trainer.world_size > 1:
            loss = self.trainer.strategy.reduce(loss, reduce_op="sum")
        self.log("loss", loss, prog_bar=True, batch_size=1)
        self.log_dict({"lr": rate, "grad_norm": norm}, batch_size=1)


@runtime_checkable
class Described(Protocol):
    """Data that say what they are, for the manifest of a checkpoint."""

    def about(self) -> dict[str, Any]:
        """As JSON."""
        ...


@rank_zero_only
def _say_trusted(source: str) -> None:
    _log.warning("trust_remote_code is on: code that comes with %s runs in this process", source)


def _seed(seed: int) -> None:
    """Seed what a step may draw from (dropout, callbacks), so that a resumed run draws the same."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
