"""The dry run of a fit: parameters, memory, batches and time, from shapes alone; no weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from drift_train.data import WeightedDataModule
from drift_train.flops import PEAK_FLOPS, multiplying, peak_flops
from drift_train.layout import Bin, deal
from drift_train.memory import SHARDED, WHEN, MemoryPlan, memory_plan, parameters_of
from drift_train.module import WeightedSFT
from drift_train.precision import check_precision
from drift_train.pruning import Pruning
from drift_train.shapes import Micro
from drift_train.strategies import STRATEGIES, count_devices, uses_cuda

SAMPLED_STEPS = 200
"""Steps, from the first, that are laid out; a longer run is extrapolated from them."""
UTILISATION = 0.4
"""Share of a device's peak that a time assumes."""
EXAMPLES = ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3")
"""Devices that a time is given for where that of the machine is not known."""
_PRECISIONS = {None: "32-true", 32: "32-true", "32": "32-true", "bf16": "bf16-mixed"}
"""Lightning's other names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepsPlan:
    """What the optimizer steps hold; shares and counts a step are of the first SAMPLED_STEPS."""

    examples: int
    held_out: int
    prompts: int
    """Distinct prompts to train on."""
    batch_size: int
    steps: int
    sampled: int
    """Steps that were laid out, ≤ steps."""
    micro_batches: tuple[int, float, int]
    """Of a step on each rank: least, median, most."""
    tokens_per_step: float
    """Over all ranks, without padding; shared ones with each example."""
    tokens: int
    """Of the whole run; an extrapolation where sampled < steps."""
    padding: float
    """Share of the positions of all micro-batches that are padding; idle ones are left out."""
    saved: float
    """Share of the tokens that are computed with those of others, because their rows begin alike."""
    supervised: float
    """Share of the tokens that carry loss."""
    epochs: float
    pruning: Pruning


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What a fit would take."""

    model: str
    parameters: int
    """Tied ones counted once."""
    trained: int
    strategy: str
    devices: int
    precision: str
    memory: MemoryPlan
    steps: StepsPlan
    flops: float
    """About: of the whole run, over all devices."""
    utilisation: float
    seconds: float | None
    """About: at that share of peak; None where the peak is unknown."""


def plan_run(
    module: WeightedSFT,
    data: WeightedDataModule,
    *,
    strategy: str,
    devices: int,
    precision: str,
    max_steps: int,
    flops_per_second: float | None = None,
    cpu_offload: bool = False,
    cuda: bool = True,
    utilisation: float = UTILISATION,
) -> RunPlan:
    """What a fit would take: the policy is built without memory, the rows are read, nothing is written.

    FLOPs are those of `drift_train.flops.Multiplied`, with shared tokens once.

    Args:
        module: its settings name the policy: a folder with a config.json is enough.
        data: its rows; set up if it is not yet.
        strategy: `auto`, `fsdp2`, `fsdp`, `ddp` or `single`.
        devices: of all nodes, ≥ 1.
        precision: of the trainer, such as `32-true` or `bf16-mixed`.
        max_steps: optimizer steps, ≥ 1.
        flops_per_second: peak of one device, > 0; None where it is unknown.
        cpu_offload: shards in host memory; under fsdp2 and fsdp.
        cuda: whether the devices are CUDA's, whose attention keeps less.
        utilisation: share of that peak which the time assumes, in (0, 1].

    Raises:
        ValueError: a value out of its range; rows or a model that a fit would refuse.
        FileNotFoundError: no such path.
    """
    _check(devices, max_steps, flops_per_second, utilisation)
    check_precision(precision)
    strategy = _strategy(strategy, devices, cpu_offload)
    policy = _shapes(module)
    data.setup("fit")
    layout = _layout(data, devices, max_steps)
    steps = _steps(data, layout, devices, max_steps)
    checkpointing = bool(module.hparams["gradient_checkpointing"])
    flops = multiplying(policy).flops(
        steps.tokens * (1 - steps.saved), steps.tokens * steps.supervised, checkpointing=checkpointing
    )
    rate = None if flops_per_second is None else devices * flops_per_second * utilisation
    return RunPlan(
        model=module.hparams["model"],
        parameters=parameters_of(policy),
        trained=parameters_of(policy, trained=True),
        strategy=strategy,
        devices=devices,
        precision=precision,
        memory=memory_plan(
            policy,
            layout,
            strategy=strategy,
            devices=devices,
            precision=precision,
            cpu_offload=cpu_offload,
            checkpointing=checkpointing,
            cuda=cuda,
        ),
        steps=steps,
        flops=flops,
        utilisation=utilisation,
        seconds=None if rate is None else flops / rate,
    )


def dry_run(module: WeightedSFT, data: WeightedDataModule, trainer: Mapping[str, Any]) -> RunPlan:
    """The plan of a fit by the trainer's settings; the devices that it asks for need not be here.

    Args:
        trainer: those of Lightning's Trainer.

    Raises:
        ValueError: what a fit would refuse.
        OSError: no such path, or no configuration of the model.
    """
    strategy, on_cuda = trainer["strategy"], uses_cuda(trainer["accelerator"])
    named = {kind: name for name, kind in STRATEGIES.items()}
    _refuse_unknown_shapes(module)
    data.setup("fit")
    steps, epochs = trainer["max_steps"], trainer["max_epochs"]
    check_length(steps, epochs)
    return plan_run(
        module,
        data,
        strategy=strategy if isinstance(strategy, str) else named[type(strategy)],
        devices=(trainer["num_nodes"] or 1) * count_devices(trainer["devices"], on_cuda),
        precision=_PRECISIONS.get(trainer["precision"], trainer["precision"]),
        max_steps=data.steps_of(epochs) if steps == -1 else steps,
        flops_per_second=peak_flops(torch.device("cuda:0")) if on_cuda else None,
        cpu_offload=bool(getattr(strategy, "cpu_offload", False)),
        # Where it is left open, the devices may be elsewhere.
        cuda=trainer["accelerator"] not in ("cpu", "mps"),
    )


def _refuse_unknown_shapes(module: WeightedSFT) -> None:
    try:
        module.blank_config()
    except OSError as error:
        raise OSError(
            f"{error} A dry run needs the model's configuration alone: a folder with its config.json does, "
            "by --model.model FOLDER"
        ) from error


def check_length(max_steps: int, max_epochs: int | None) -> None:
    """A run is counted in steps or in epochs.

    Raises:
        ValueError: both are set, or neither.
    """
    if max_steps == -1 and max_epochs in (None, -1):
        raise ValueError("a run needs a length: set trainer.max_steps or trainer.max_epochs")
    if max_steps != -1 and max_epochs not in (None, -1):
        raise ValueError(
            f"trainer.max_epochs {max_epochs} and trainer.max_steps {max_steps}: a run is counted in one "
            "of them; add --trainer.max_steps=-1 to count epochs"
        )


def _check(devices: int, max_steps: int, flops_per_second: float | None, utilisation: float) -> None:
    if devices < 1 or max_steps < 1:
        raise ValueError(f"devices and trainer.max_steps must be ≥ 1, got {devices} and {max_steps}")
    if flops_per_second is not None and not flops_per_second > 0:
        raise ValueError(f"flops_per_second must be > 0, got {flops_per_second}")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation must lie in (0, 1], got {utilisation}")


def _strategy(name: str, devices: int, cpu_offload: bool) -> str:
    if name == "auto":
        name = "fsdp2" if devices > 1 else "single"
    if name not in STRATEGIES:
        raise ValueError(f"trainer.strategy {name!r} is not one of auto, {', '.join(STRATEGIES)}")
    if name == "single" and devices > 1:
        raise ValueError(f"trainer.strategy single runs on one device, got {devices}")
    if cpu_offload and name not in SHARDED:
        raise ValueError(f"cpu_offload belongs to fsdp2 and fsdp, not to {name}")
    return name


def _shapes(module: WeightedSFT) -> PreTrainedModel:
    """The policy on the meta device: shapes and names without numbers."""
    with torch.device("meta"):
        return module.blank_policy()


def _layout(data: WeightedDataModule, devices: int, max_steps: int) -> list[list[Micro]]:
    """Micro-batches of each step over all ranks: those of `step_batch`, without tensors and idle ones."""
    layout = []
    for step in range(min(max_steps, SAMPLED_STEPS)):
        indices = data._pruning.kept(data._plan.step(step))
        bins = deal(
            data._train, indices, micro_tokens=data.micro_tokens, world_size=devices, packed=data.packed
        )
        times = Counter(indices.tolist())
        layout.append([_micro(data, units, times) for units in bins])
    return layout


def _micro(data: WeightedDataModule, units: Bin, times: Mapping[int, int]) -> Micro:
    rows = [(data._train[i], times[i]) for unit in units for i in unit.rows]
    computed = sum(unit.computed for unit in units)
    longest = max(len(example.input_ids) for example, _ in rows)
    runs = tuple(_runs(data, units)) if data.packed else len(rows) * ((longest, 0),)
    return Micro(
        positions=sum(length for length, _ in runs),
        runs=runs,
        tokens=sum(len(example.input_ids) * often for example, often in rows),
        computed=computed,
        supervised=sum(example.supervised * often for example, often in rows),
    )


def _runs(data: WeightedDataModule, units: Bin) -> Iterator[tuple[int, int]]:
    """The segments of a packed row: tokens, and those of the beginning that they see."""
    for unit in units:
        if unit.shared:
            yield unit.shared, 0
        for index in unit.rows:
            own = len(data._train[index].input_ids) - unit.shared
            if own:
                yield own, unit.shared


def _steps(data: WeightedDataModule, layout: list[list[Micro]], devices: int, max_steps: int) -> StepsPlan:
    counts = [-(-len(step) // devices) for step in layout]
    micro_batches = [micro for step in layout for micro in step]
    tokens = sum(micro.tokens for micro in micro_batches)
    computed = sum(micro.computed for micro in micro_batches)
    positions = sum(micro.positions for micro in micro_batches)
    return StepsPlan(
        examples=len(data._train),
        held_out=len(data._held_out),
        prompts=len({example.prompt_id for example in data._train}),
        batch_size=data.batch_size,
        steps=max_steps,
        sampled=len(layout),
        micro_batches=(min(counts), median(counts), max(counts)),
        tokens_per_step=tokens / len(layout),
        tokens=round(tokens / len(layout) * max_steps),
        padding=1 - computed / positions,
        saved=1 - computed / tokens,
        supervised=sum(micro.supervised for micro in micro_batches) / tokens,
        epochs=max_steps * data.batch_size / data._plan.examples_of(1),
        pruning=data._pruning,
    )


def print_plan(plan: RunPlan, console: Console) -> None:
    """Print a plan in 80 columns; "about" marks what is estimated."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in [*_step_lines(plan, plan.steps), *_memory_lines(plan.memory), *_time_lines(plan)]:
        table.add_row(name, Text(value))
    console.print(table)


def _step_lines(plan: RunPlan, steps: StepsPlan) -> Iterator[tuple[str, str]]:
    devices = "1 device" if plan.devices == 1 else f"{plan.devices} devices"
    whole = steps.sampled == steps.steps
    yield "policy", plan.model
    yield "parameters", f"{plan.parameters:,}, of these trained {plan.trained:,}"
    yield "strategy", f"{plan.strategy}, {devices}, {plan.precision}"
    yield "examples", f"{steps.examples:,} of {steps.prompts:,} prompts; held out {steps.held_out:,}"
    yield "steps", f"{steps.steps:,} of {steps.batch_size:,} examples, {steps.epochs:.2f} epochs"
    if steps.pruning.min_weight is not None:
        yield "pruned", str(steps.pruning)
    if not whole:
        yield "laid out", f"the first {steps.sampled:,} steps"
    low, middle, high = steps.micro_batches
    several = f"{low} to {high}, median {middle:g}," if low < high else f"{low}"
    yield "micro-batches", f"{several} a step on each device"
    yield "tokens", f"{'' if whole else 'about '}{steps.tokens:,}; {steps.tokens_per_step:,.0f} a step"
    yield "", f"{steps.supervised:.1%} of them with loss; {steps.padding:.1%} of positions are padding"
    if steps.saved:
        yield "", f"{steps.saved:.1%} of them are computed with others that begin alike"


def _memory_lines(memory: MemoryPlan) -> Iterator[tuple[str, str]]:
    yield "memory a device", f"about {decimal(memory.device)} at its peak, {WHEN[memory.moment]};"
    yield "", "driver and fragmentation come on top"
    yield "  parameters", decimal(memory.parameters)
    yield "  gradients", decimal(memory.gradients)
    yield "  AdamW's moments", decimal(memory.moments)
    yield "  working copies", f"about {decimal(memory.working)}"
    yield "  activations", f"about {decimal(memory.activations)}"
    yield "  head", f"about {decimal(memory.head)}, a piece of the logits, gradients included"
    if memory.host:
        yield "memory of the host", f"{decimal(memory.host)} a device"


def _time_lines(plan: RunPlan) -> Iterator[tuple[str, str]]:
    yield "compute", f"about {plan.flops:.2e} FLOPs; attention scores, validation left out"
    at = f"if {plan.utilisation:.0%} of peak is reached"
    if plan.seconds is not None:
        yield "time", f"about {timedelta(seconds=round(plan.seconds))} (h:min:s), {at}"
        return
    yield "time", f"unknown here, since the device's peak is; (h:min:s) {at},"
    for name in EXAMPLES:
        rate = plan.devices * PEAK_FLOPS[name] * plan.utilisation
        yield "", f"about {timedelta(seconds=round(plan.flops / rate))} on {plan.devices} × {name}"
