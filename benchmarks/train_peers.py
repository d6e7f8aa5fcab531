"""What benchmarks/train.py compares: each contender takes a few steps on the same rows, in a fresh process.

python train_peers.py CONTENDER SHAPE DEVICE STEPS WARM_UP GRADIENT     prints what it took, as JSON

`literal` is the oracle: autograd of −(1/N) Σ_i w_i Σ_j log π(y_ij | x_i, y_i<j), a row at a time, and
`literal, pruned` the same without rows of little weight. All others take whole optimizer steps, the first
WARM_UP of which are not timed. The gradient of the first is written to the file GRADIENT. Everyone has
AdamW, the norm of the gradient, and the same 16·groups rows in each step. Imports stand in the functions,
so that a process pays for its own contender only.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from train_batches import end_to_end, full_logits_loss, fused_head_loss, padded
from train_data import SHAPES, Shape, config, model, rows

RATE = 1e-4
NO_LIMIT = 1e9
"""For the gradient's norm, which everyone computes."""
AUTHORS_BATCH = 2
"""Rows of the authors' forward pass: 128 on 4 devices, in 16 accumulated passes."""
LEAST = 1e-3
"""Weights below it are pruned, where they are."""
KEPT = 2_000_000
"""About so many entries of a gradient are compared."""


@dataclass(kw_only=True, slots=True)
class Watch:
    """Times optimizer steps, and keeps the gradient of the first."""

    device: str
    gradient: Path
    ends: list[tuple[float, float]] = field(default_factory=list)
    """Wall and CPU clock when the first step began, and after each step."""
    before: int = 0
    """Bytes of this process before the model was built, libraries included."""

    def start(self) -> None:
        """Everything is built, and the first batch is about to be made."""
        self._tick()

    def before_update(self, policy: Any) -> None:
        """The gradient is whole."""
        if len(self.ends) == 1:
            torch.save(sampled_gradient(policy), self.gradient)

    def after_update(self) -> None:
        """The step is done."""
        self._tick()

    def _tick(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))

    def seconds(self, warm_up: int) -> tuple[float, float]:
        """Wall and CPU seconds of a step, the first `warm_up` left out."""
        (wall, cpu), (last_wall, last_cpu) = self.ends[warm_up], self.ends[-1]
        steps = len(self.ends) - 1 - warm_up
        return (last_wall - wall) / steps, (last_cpu - cpu) / steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every contender is given."""

    shape: Shape
    device: str
    steps: int
    """All of them, those that warm up included."""
    folder: Path
    watch: Watch

    @property
    def on_cuda(self) -> bool:
        """Whether it runs on a GPU, in bfloat16 with float32 parameters."""
        return self.device == "cuda"

    def policy(self) -> Any:
        """The model, and note how large the process was before."""
        self.watch.before = own_bytes("VmRSS")
        return model(self.shape, self.device)


def own_bytes(name: str) -> int:
    """A size of this process as Linux counts it; unlike getrusage's it knows nothing of the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def sampled_gradient(policy: Any) -> torch.Tensor:
    """Evenly spaced entries of the gradient, of every parameter some."""
    parts = [parameter.grad.flatten() for parameter in policy.parameters()]
    every = max(1, sum(map(len, parts)) // KEPT)
    return torch.cat([part[::every].double().cpu() for part in parts])


def literal(job: Job, least: float = 0.0) -> None:
    """The formula itself, one unpadded row at a time, in float32; rows with w below `least` add nothing."""
    policy, table = job.policy(), rows(job.shape).to_pylist()
    job.watch.start()
    for row in (row for row in table if row["weight"] >= least):
        ids, last = torch.tensor(row["input_ids"], device=job.device), row["response_spans"][-1]
        where = torch.arange(last["start"], last["end"], device=job.device)
        log_TV = torch.log_softmax(policy(ids[None], use_cache=False).logits[0, where - 1], dim=-1)
        log_T = log_TV.gather(1, ids[where, None])
        (-row["weight"] * log_T.sum() / len(table)).backward()
    job.watch.before_update(policy)
    job.watch.after_update()


def ours(job: Job) -> None:
    """drift-train at its defaults; rows have no prompt in common, as in a step of many prompts."""
    table = rows(job.shape)
    apart = pa.array([f"p{number}" for number in range(table.num_rows)])
    _ours(job, table.set_column(table.schema.get_field_index("prompt_id"), "prompt_id", apart))


def ours_shared(job: Job) -> None:
    """drift-train, the samples of a prompt in one step."""
    _ours(job, rows(job.shape), order="groups")


def ours_with(job: Job, **module: Any) -> None:
    """The same with other settings of the module, such as checkpointing, as in the authors' way."""
    _ours(job, rows(job.shape), order="groups", module=module)


def ours_pruned(job: Job) -> None:
    """The same without rows of little weight: another objective, with an oracle of its own."""
    _ours(job, rows(job.shape), order="groups", min_weight=LEAST)


def _ours(job: Job, table: pa.Table, *, module: dict[str, Any] | None = None, **settings: Any) -> None:
    import lightning

    from drift_train import WeightedDataModule, WeightedSFT

    class Observer(lightning.Callback):
        def on_train_start(self, *_: Any) -> None:
            job.watch.start()

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            job.watch.before_update(pl_module.policy)

        def on_train_batch_end(self, *_: Any) -> None:
            job.watch.after_update()

    # Vocabulary and context length are read from a folder.
    config(job.shape).save_pretrained(job.folder)
    data = WeightedDataModule.from_table(
        table,
        str(job.folder),
        batch_size=table.num_rows,
        micro_tokens=job.shape.micro_tokens,
        **settings,
    )
    trainer = lightning.Trainer(
        max_steps=job.steps,
        accelerator=job.device,
        devices=1,
        precision="bf16-mixed" if job.on_cuda else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Observer()],
    )
    trainer.fit(WeightedSFT.from_model(job.policy(), RATE, **(module or {})), datamodule=data)


def authors(job: Job) -> None:
    """The authors' way, as we wrote it again: padded pairs, all logits, checkpointing, HF's Trainer."""
    from transformers import Trainer, TrainingArguments

    class Padded(_weighted(Trainer)):  # type: ignore[misc]
        def compute_loss(
            self, policy: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            return full_logits_loss(policy, inputs) / num_items_in_batch

    arguments = TrainingArguments(**_arguments(job, AUTHORS_BATCH), gradient_checkpointing=True)
    _train(job, Padded(**_given(job, arguments, padded)))


def trl_padded(job: Job) -> None:
    """TRL's SFTTrainer, rows in random order."""
    _trl(job, "random")


def trl_grouped(job: Job) -> None:
    """TRL's SFTTrainer, rows of like lengths together."""
    _trl(job, "group_by_length")


def trl_free(job: Job) -> None:
    """TRL's SFTTrainer, rows end to end in one sequence; positions keep them apart."""
    _trl(job, "random", end_to_end)


def _trl(job: Job, order: str, collator: Any = None) -> None:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class Weighted(_weighted(SFTTrainer)):  # type: ignore[misc]
        def compute_loss(
            self, policy: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            # On a GPU TRL's own head computes the positions with loss alone, in tiles; elsewhere all of
            # them, and once more in the backward.
            loss = fused_head_loss if job.on_cuda else full_logits_loss
            return loss(policy, inputs) / num_items_in_batch

    arguments = SFTConfig(
        **_arguments(job, job.shape.batch),
        max_length=None,
        gradient_checkpointing=False,
        train_sampling_strategy=order,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    given = _given(job, arguments, collator or padded)
    _train(job, Weighted(**given, processing_class=_tokenizer()))


def _weighted(base: Any) -> Any:
    """A trainer that divides by the examples of the optimizer step, not by its target tokens."""

    class Weighted(base):  # type: ignore[misc]
        loss_is_scaled_for_ga = True

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            return batches, sum(int(batch["examples"]) for batch in batches)

    return Weighted


def _arguments(job: Job, batch: int) -> dict[str, Any]:
    rows_ = 16 * job.shape.groups
    return {
        "output_dir": str(job.folder),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": rows_ // batch,
        "max_steps": job.steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": NO_LIMIT,
        "remove_unused_columns": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not job.on_cuda,
        "bf16": job.on_cuda,
    }


def _given(job: Job, arguments: Any, collator: Any) -> dict[str, Any]:
    from datasets import Dataset

    found = []
    for row in rows(job.shape).to_pylist():
        start, end = (row["response_spans"][-1][name] for name in ("start", "end"))
        labels = [-100] * start + row["input_ids"][start:end]
        found.append({"input_ids": row["input_ids"], "labels": labels, "weight": row["weight"]})
    data = Dataset.from_list(found)
    return {"model": job.policy(), "args": arguments, "train_dataset": data, "data_collator": collator}


def _train(job: Job, trainer: Any) -> None:
    from transformers import TrainerCallback

    class Observer(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            job.watch.start()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            job.watch.before_update(given["model"])

        def on_step_end(self, *_: Any, **__: Any) -> None:
            job.watch.after_update()

    trainer.add_callback(Observer())
    trainer.train()


def _tokenizer() -> Any:
    """SFTTrainer asks for one; the rows are token ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<pad>")


CONTENDERS: dict[str, Callable[[Job], None]] = {
    "literal": literal,
    "literal, pruned": partial(literal, least=LEAST),
    "ours": ours,
    "ours, shared": ours_shared,
    "ours, checkpointed": partial(ours_with, gradient_checkpointing=True),
    "ours, pruned": ours_pruned,
    "ours, plain AdamW": partial(ours_with, fused_optimizer=False),
    "ours, compiled": partial(ours_with, compile=True),
    "TRL, padded": trl_padded,
    "TRL, by length": trl_grouped,
    "TRL, padding-free": trl_free,
    "authors": authors,
}


def main(name: str, shape: str, device: str, steps: str, warm_up: str, gradient: str) -> None:
    """Run one contender and print what it took."""
    # What libraries print is not the result.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    watch = Watch(device=device, gradient=Path(gradient))
    with tempfile.TemporaryDirectory() as folder:
        # What an earlier process compiled would be found again.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        job = Job(shape=SHAPES[shape], device=device, steps=int(steps), folder=Path(folder), watch=watch)
        CONTENDERS[name](job)
    wall, cpu = watch.seconds(int(warm_up))
    peak = own_bytes("VmHWM") - watch.before
    if job.on_cuda:
        peak = torch.cuda.max_memory_allocated()
    first = watch.ends[1][0] - watch.ends[0][0]
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak, "first": first}), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
