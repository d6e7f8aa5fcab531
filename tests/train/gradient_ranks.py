"""One rank of some first steps, for tests: cases as JSON in, the whole gradient of each step out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from fit_ranks import STRATEGIES
from lightning.pytorch import Callback, Trainer
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import AutoModelForCausalLM

from drift_train import WeightedDataModule, WeightedSFT
from drift_train.state_tensors import plain_name
from train.weighted_rows import exact_norms, grouped_rows, weighted_table


class Gradient(Callback):
    """Keeps what the optimizer is about to be given, by the parameters' names."""

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        policy = module.policy
        if isinstance(policy, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(policy, with_grads=True):
                self.found = {plain_name(name): p.grad.clone() for name, p in policy.named_parameters()}
        else:
            whole = {name: p.grad for name, p in policy.named_parameters()}
            self.found = {
                plain_name(name): (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).clone()
                for name, grad in whole.items()
            }


def main(case: dict[str, Any]) -> None:
    """One step over all of its rows."""
    table = weighted_table(grouped_rows(case["groups"], case["size"], vocab=67, seed=case["seed"]))
    policy = AutoModelForCausalLM.from_pretrained(case["model"], dtype=getattr(torch, case["dtype"]))
    module = WeightedSFT.from_model(exact_norms(policy), 1e-3, **case["module"])
    data = WeightedDataModule.from_table(
        table, case["model"], batch_size=len(table), micro_tokens=case["micro_tokens"]
    )
    kept = Gradient()
    options = {"device": "cpu"} if case["strategy"] == "single" else {}
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        devices=case["ranks"],
        precision=case["precision"],
        strategy=STRATEGIES[case["strategy"]](**options),
        callbacks=[kept],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    if trainer.is_global_zero:
        torch.save(kept.found, case["out"])


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        main(each)
