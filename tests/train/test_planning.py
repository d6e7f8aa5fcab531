"""The dry run against models that are built, steps that are padded, and memory that is taken."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.profiler import profile

from drift_train import (
    BatchPlan,
    MicroBatch,
    WeightedDataModule,
    WeightedSFT,
    encode,
    head,
    planning,
    step_batch,
)
from drift_train.planning import RunPlan, plan_run, print_plan
from drift_train.precision import GradientSums
from tiny import tiny_model
from train.weighted_rows import FAMILIES, random_rows, weighted_table

VOCAB = 300
TABLE = weighted_table(random_rows(40, vocab=VOCAB, longest=20))
WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4}
"""So wide that what does not depend on the width hardly counts."""


def shape_only(folder: Path, model: Any) -> str:
    """A folder with a configuration and nothing else."""
    model.config.save_pretrained(folder)
    return str(folder)


def plan_of(folder: str, **changes: Any) -> RunPlan:
    """A plan of a few steps; settings by name, those of `data` and `module` in their own dictionaries."""
    module = WeightedSFT(folder, 1e-3, **changes.pop("module", {}))
    module.hparams.update(changes.pop("hparams", {}))
    chosen = {"batch_size": 8, "micro_tokens": 300, **changes.pop("data", {})}
    data = WeightedDataModule.from_table(changes.pop("table", TABLE), folder, **chosen)
    usual = {"strategy": "auto", "devices": 1, "precision": "32-true", "max_steps": 6, "device": "cpu"}
    return plan_run(module, data, **{**usual, **changes})


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shape_only(tmp_path_factory.mktemp("llama"), tiny_model(vocab=VOCAB))


def numbers(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_built_model(tmp_path: Path, family: str, tied: bool) -> None:
    model = tiny_model(family, vocab=VOCAB, tie_word_embeddings=tied)
    plan = plan_of(shape_only(tmp_path, model))
    assert plan.parameters == plan.trained == numbers(model)


def test_weights_are_not_read_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shape_only(tmp_path / "policy", tiny_model(vocab=VOCAB))
    (tmp_path / "policy" / "model.safetensors").write_bytes(b"no weights at all")
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    plan_of(folder)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_states_lie_whole_or_in_equal_shards_or_on_the_host(llama: str) -> None:
    n = numbers(tiny_model(vocab=VOCAB))

    def states(strategy: str, devices: int, **changes: Any) -> tuple[int, int, int, int]:
        memory = plan_of(llama, strategy=strategy, devices=devices, **changes).memory
        return memory.parameters, memory.gradients, memory.moments, memory.host

    assert states("single", 1) == states("ddp", 4) == (4 * n, 4 * n, 8 * n, 0)
    assert states("fsdp2", 4) == states("fsdp", 4) == (n, n, 2 * n, 0)
    assert states("fsdp2", 4, cpu_offload=True) == (0, 0, 0, 4 * n)
    assert states("single", 1, precision="bf16-mixed") == (4 * n, 4 * n, 8 * n, 0)
    assert states("single", 1, module={"dtype": "bfloat16"}) == (2 * n, 4 * n, 4 * n, 0)
    one = {"micro_tokens": 10**6}
    assert states("single", 1, module={"dtype": "bfloat16"}, data=one) == (2 * n, 2 * n, 4 * n, 0)


def test_working_copies_by_hand(llama: str) -> None:
    model = tiny_model(vocab=VOCAB)
    n, block = numbers(model), numbers(model.model.layers[0])
    outside = n - 2 * block

    def working(strategy: str, precision: str) -> int:
        devices = 1 if strategy == "single" else 4
        return plan_of(llama, strategy=strategy, devices=devices, precision=precision).memory.working

    # Weights and gradients of what is outside the blocks; a block with its gradient, and the next one.
    assert working("fsdp2", "32-true") == 4 * (2 * outside + 3 * block)
    assert working("fsdp", "bf16-mixed") == 2 * (2 * outside + 3 * block)
    assert working("single", "32-true") == 0
    assert working("single", "bf16-mixed") == 2 * n
    assert working("ddp", "32-true") == 4 * n
    assert working("ddp", "bf16-mixed") == 4 * n + 2 * n


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("weighting", ["loss", "resample"])
def test_steps_are_those_that_the_ranks_get(llama: str, devices: int, weighting: Any) -> None:
    plan = plan_of(llama, devices=devices, data={"weighting": weighting, "seed": 5})
    examples = encode(TABLE, vocab_size=VOCAB).examples
    batches = BatchPlan(examples, batch_size=8, seed=5, weighting=weighting)
    counts, micro_batches = [], []
    for step in range(6):
        shares = [
            step_batch(
                examples,
                batches.loss_weights(),
                batches.step(step),
                micro_tokens=300,
                rank=rank,
                world_size=devices,
            )
            for rank in range(devices)
        ]
        (count,) = {len(share.micro_batches) for share in shares}
        counts.append(count)
        micro_batches += [micro for share in shares for micro in share.micro_batches if not micro.idle]
    tokens = sum(len(examples[i].input_ids) for step in range(6) for i in batches.step(step))
    with_loss = sum(len(micro.target_R) for micro in micro_batches)
    positions = sum(micro.input_ids.numel() for micro in micro_batches)
    steps = plan.steps
    assert steps.micro_batches == (min(counts), float(np.median(counts)), max(counts))
    assert steps.tokens == tokens
    assert steps.tokens_per_step == pytest.approx(tokens / 6)
    assert steps.supervised == pytest.approx(with_loss / tokens)
    assert sum(micro.tokens for micro in micro_batches) == tokens
    assert steps.padding == pytest.approx(1 - sum(micro.computed for micro in micro_batches) / positions)
    assert steps.saved == pytest.approx(1 - sum(micro.computed for micro in micro_batches) / tokens)


def test_examples_prompts_and_epochs(llama: str) -> None:
    steps = plan_of(llama, data={"val_share": 0.5}, max_steps=15).steps
    assert steps.examples + steps.held_out == 40
    # Four examples a prompt.
    assert steps.prompts * 4 == steps.examples
    assert steps.epochs == pytest.approx(15 * 8 / steps.examples)
    weight = sum(row["weight"] for row in TABLE.to_pylist())
    drawn = plan_of(llama, data={"weighting": "resample"}, max_steps=15).steps
    assert drawn.epochs == pytest.approx(15 * 8 / weight, rel=0.05)


def test_a_long_run_is_extrapolated_from_its_first_steps(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan_of(llama, max_steps=4).steps
    monkeypatch.setattr(planning, "SAMPLED_STEPS", 4)
    longer = plan_of(llama, max_steps=4000).steps
    assert (longer.sampled, longer.micro_batches) == (4, whole.micro_batches)
    assert longer.tokens == 1000 * whole.tokens


def taken(module: WeightedSFT, micro: MicroBatch, context: AbstractContextManager[Any]) -> tuple[int, int]:
    """Bytes that a forward keeps for its backward, weights and their copies aside; and the peak of both."""
    # What an earlier pass left would be freed in this one, and hide what it takes.
    gc.collect()
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tuple(tensor.shape) not in shapes:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    begun = sum(p.nbytes + (0 if p.grad is None else p.grad.nbytes) for p in module.parameters())
    with profile(profile_memory=True) as watched, context:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = module.micro_loss(micro, 8)
        total = sum(size for size, _ in kept.values())
        kept.clear()
        loss.backward()
    events = watched.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return total, begun + max(accumulate(size for _, size in changes))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_activations_are_about_what_a_forward_keeps(tmp_path: Path, family: str, mixed: bool) -> None:
    model = tiny_model(family, vocab=VOCAB, **WIDE).train()
    table = weighted_table(random_rows(8, vocab=VOCAB, longest=60))
    precision = "bf16-mixed" if mixed else "32-true"
    folder = shape_only(tmp_path, model)
    memory = plan_of(
        folder, table=table, precision=precision, data={"micro_tokens": 10**6}, max_steps=1
    ).memory
    examples = encode(table, vocab_size=VOCAB).examples
    (micro,) = step_batch(examples, np.ones(8), np.arange(8), micro_tokens=10**6).micro_batches
    context = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
    module = WeightedSFT.from_model(model, 1e-3)
    with context:
        # So that there are gradients, as in all but the first micro-batch of a step.
        module.micro_loss(micro, 8)[0].backward()
    kept, peak = taken(module, micro, context)
    assert memory.activations == pytest.approx(kept, rel=0.1)
    # No optimizer yet.
    assert memory.device - memory.moments == pytest.approx(peak, rel=0.15)


KINDS = {"float32": "32-true", "bf16-mixed": "bf16-mixed", "bfloat16": "32-true"}


@pytest.mark.parametrize(("vocab", "layers", "tokens"), [(4000, 4, 900), (20_000, 2, 400)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_peak_of_a_second_micro_batch(
    tmp_path: Path,
    kind: str,
    tied: bool,
    checkpointing: bool,
    vocab: int,
    layers: int,
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When there are gradients already; the blocks hold most, or the head. The loss comes in pieces."""
    monkeypatch.setattr(head, "POSITIONS", 40)
    monkeypatch.setattr(head, "LOGITS", 0)
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    shape = {**WIDE, "num_hidden_layers": layers, "tie_word_embeddings": tied}
    model = tiny_model("qwen2", vocab=vocab, **shape).train()
    table = weighted_table(random_rows(16, vocab=vocab, longest=60))
    examples = encode(table, vocab_size=vocab).examples
    batches = step_batch(examples, np.ones(16), np.arange(16), micro_tokens=tokens).micro_batches
    assert len(batches) > 1
    plan = plan_of(
        shape_only(tmp_path, model),
        table=table,
        precision=KINDS[kind],
        data={"micro_tokens": tokens, "batch_size": 16},
        module={"dtype": dtype, "gradient_checkpointing": checkpointing},
        max_steps=1,
    )
    module = WeightedSFT.from_model(
        model.to(getattr(torch, dtype)), 1e-3, gradient_checkpointing=checkpointing
    )
    sums = GradientSums(module.parameters())
    context = torch.autocast("cpu", torch.bfloat16) if kind == "bf16-mixed" else nullcontext()
    with context:
        module.micro_loss(batches[1], 16)[0].backward()
    sums.take()
    summed = sum(sum_.nbytes for sum_ in sums._sums.values() if sum_ is not None)
    _, peak = taken(module, batches[0], context)
    assert plan.memory.device - plan.memory.moments == pytest.approx(summed + peak, rel=0.15)


def test_capped_scores_are_all_there(tmp_path: Path) -> None:
    """For each of two layers and four heads the scores of every token in a row, and their softmax."""
    one = {"data": {"micro_tokens": 10**6}, "max_steps": 1}
    plain, capped = (
        plan_of(
            shape_only(tmp_path / str(cap), tiny_model("gemma2", vocab=VOCAB, attn_logit_softcapping=cap)),
            **one,
        )
        for cap in (None, 50.0)
    )
    examples = encode(TABLE, vocab_size=VOCAB).examples
    lengths = [len(examples[i].input_ids) for i in BatchPlan(examples, batch_size=8, seed=0).step(0)]
    added = capped.memory.activations - plain.memory.activations
    assert added == 2 * 4 * (4 + 4) * sum(lengths) * max(lengths)


def test_logits_by_hand(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and log-probabilities of a piece of the supervised tokens, and the gradients of both."""
    examples = encode(TABLE, vocab_size=VOCAB).examples
    indices = BatchPlan(examples, batch_size=8, seed=0).step(0)
    supervised = sum(examples[i].supervised for i in indices)
    one = {"data": {"micro_tokens": 10**6}, "max_steps": 1}
    assert plan_of(llama, **one).memory.logits == 4 * 4 * supervised * VOCAB
    assert (
        plan_of(llama, **one, precision="bf16-mixed").memory.logits == (4 * 4 + 2 * 2) * supervised * VOCAB
    )
    monkeypatch.setattr(head, "POSITIONS", 5)
    monkeypatch.setattr(head, "LOGITS", 0)
    assert plan_of(llama, **one).memory.logits == 4 * 4 * 5 * VOCAB
    monkeypatch.setattr(head, "LOGITS_ON_GPU", 9 * VOCAB)
    assert plan_of(llama, **one, device="cuda").memory.logits == 4 * 4 * 9 * VOCAB


def test_checkpointing_keeps_one_state_a_block_and_costs_a_forward(tmp_path: Path) -> None:
    changes = {"num_hidden_layers": 12}
    folder = shape_only(tmp_path, tiny_model(vocab=VOCAB, **changes))
    one = {"data": {"micro_tokens": 10**6}, "max_steps": 1}
    plain = plan_of(folder, **one)
    saving = plan_of(folder, **one, hparams={"gradient_checkpointing": True})
    examples = encode(TABLE, vocab_size=VOCAB).examples
    rows = BatchPlan(examples, batch_size=8, seed=0).step(0)
    states = sum(len(examples[i].input_ids) for i in rows) * 12 * 4 * 32
    assert saving.memory.activations == states
    tokens = states / (12 * 4 * 32)
    assert saving.memory.again == plain.memory.activations / 12 + tokens * 2 * 4 * 64
    of_head = 6 * VOCAB * 32 * plain.steps.supervised * plain.steps.tokens
    assert (saving.flops - of_head) / (plain.flops - of_head) == pytest.approx(8 / 6), "not of the head"


@pytest.mark.parametrize("tied", [False, True])
def test_flops_and_time_by_hand(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(vocab=VOCAB, tie_word_embeddings=tied)
    folder = shape_only(tmp_path, model)
    plan = plan_of(folder, devices=3, flops_per_second=1e9, utilisation=0.25)
    of_head = VOCAB * 32
    body = numbers(model) - of_head * (1 if tied else 2)
    supervised = plan.steps.supervised * plan.steps.tokens
    assert plan.flops == pytest.approx(6 * (body * plan.steps.tokens + of_head * supervised))
    assert plan.seconds == pytest.approx(plan.flops / (3 * 1e9 * 0.25))
    assert plan_of(folder).seconds is None


def shown(plan: RunPlan) -> str:
    console = Console(width=80, file=StringIO())
    print_plan(plan, console)
    return console.file.getvalue()


def test_the_print_fits_80_columns_and_names_what_it_assumes(llama: str) -> None:
    plan = plan_of(llama, devices=2, precision="bf16-mixed", flops_per_second=1e6)
    text = shown(plan)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert f"{plan.parameters:,}" in text
    assert "fsdp2, 2 devices, bf16-mixed" in text
    assert f"{plan.steps.tokens:,}" in text
    assert "if 40% of peak is reached" in text
    for name in ("memory a device", "working copies", "activations", "logits", "compute", "time"):
        (line,) = [row for row in text.splitlines() if row.strip().startswith(name)]
        assert "about" in line
    assert "unknown" in shown(plan_of(llama))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 0}, "devices"),
        ({"max_steps": 0}, "max_steps"),
        ({"strategy": "deepspeed"}, "deepspeed"),
        ({"strategy": "single", "devices": 2}, "single"),
        ({"strategy": "ddp", "cpu_offload": True}, "cpu_offload"),
        ({"flops_per_second": 0.0}, "flops_per_second"),
        ({"utilisation": 40.0}, "utilisation"),
    ],
)
def test_a_mistake_is_named(llama: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(llama, **changes)
