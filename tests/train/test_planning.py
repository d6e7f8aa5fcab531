"""The dry run against models that are built, steps that are padded, and memory that is taken."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from drift_train import (
    BatchPlan,
    WeightedDataModule,
    WeightedSFT,
    encode,
    head,
    planning,
    step_batch,
)
from drift_train.memory import MemoryPlan
from drift_train.planning import RunPlan, plan_run, print_plan
from tiny import tiny_model
from train.weighted_rows import FAMILIES, random_rows, weighted_table

VOCAB = 300
TABLE = weighted_table(random_rows(40, vocab=VOCAB, longest=20))


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
    usual = {"strategy": "auto", "devices": 1, "precision": "32-true", "max_steps": 6}
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

    def states(strategy: str, devices: int, **changes: Any) -> tuple[int, int, int]:
        memory = plan_of(llama, strategy=strategy, devices=devices, **changes).memory
        return memory.parameters, memory.moments, memory.host

    assert states("single", 1) == states("ddp", 4) == (4 * n, 8 * n, 0)
    assert states("fsdp2", 4) == states("fsdp", 4) == (n, 2 * n, 0)
    assert states("fsdp2", 4, cpu_offload=True) == (0, 0, 4 * n)
    assert states("single", 1, precision="bf16-mixed") == (4 * n, 8 * n, 0)
    assert states("single", 1, module={"dtype": "bfloat16"}) == (2 * n, 4 * n, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_there_from_the_second_micro_batch_on(llama: str, dtype: str) -> None:
    """Those of half-precision parameters are summed in float32."""
    n = numbers(tiny_model(vocab=VOCAB))
    one, several = (
        plan_of(llama, module={"dtype": dtype}, data={"micro_tokens": most}).memory for most in (10**6, 80)
    )
    assert (one.moment, one.gradients) == ("head", 0)
    assert (several.moment, several.gradients) == ("head", 4 * n)


def test_working_copies_by_hand(llama: str) -> None:
    model = tiny_model(vocab=VOCAB)
    n, block = numbers(model), numbers(model.model.layers[0])
    outside = n - 2 * block

    def planned(strategy: str, precision: str) -> MemoryPlan:
        devices = 1 if strategy == "single" else 4
        data = {"micro_tokens": 1}
        return plan_of(llama, strategy=strategy, devices=devices, precision=precision, data=data).memory

    def working(strategy: str, precision: str) -> int:
        memory = planned(strategy, precision)
        assert memory.moment in ("head", "last block")
        return memory.working

    # Weights outside the blocks, of a block and the next one; in the backward the block's gradient.
    for strategy, precision, size in (("fsdp2", "32-true", 4), ("fsdp", "bf16-mixed", 2)):
        memory = planned(strategy, precision)
        held = {"head": outside + 2 * block, "last block": outside + 3 * block}
        assert memory.working == size * held[memory.moment]
    assert working("single", "32-true") == 0
    # The last norm is no matrix, but counts as one.
    assert working("single", "bf16-mixed") == 2 * (2 * block + 32)
    assert working("ddp", "32-true") == 4 * n
    assert working("ddp", "bf16-mixed") == 4 * n + 2 * (2 * block + 32)


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
    # Of each row's own tokens alone.
    assert added == 2 * 4 * (4 + 4) * sum(length**2 for length in lengths)


def test_the_head_by_hand(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states with their gradient; of logits, three times as many numbers; a sum, if in pieces."""
    examples = encode(TABLE, vocab_size=VOCAB).examples
    indices = BatchPlan(examples, batch_size=8, seed=0).step(0)
    supervised = sum(examples[i].supervised for i in indices)
    memory = plan_of(llama, data={"micro_tokens": 10**6}, max_steps=1).memory
    assert memory.moment == "head"
    states, logits = 2 * 4 * supervised * 32, 3 * 4 * VOCAB
    assert memory.head == states + supervised * logits
    monkeypatch.setattr(head, "POSITIONS", 60)
    monkeypatch.setattr(head, "LOGITS_ON_GPU", 0)
    memory = plan_of(llama, data={"micro_tokens": 10**6}, max_steps=1).memory
    assert memory.head == states + 60 * logits + 4 * VOCAB * 32


def test_lengths_need_no_masks(tmp_path: Path) -> None:
    """On CUDA and in half precision; elsewhere all blocks share them, in the products' precision."""
    folder = shape_only(tmp_path, tiny_model("mistral", vocab=VOCAB, sliding_window=2))
    one = {"data": {"micro_tokens": 10**6}, "max_steps": 1, "precision": "bf16-mixed"}
    here, there = (plan_of(folder, **one, cuda=cuda).memory for cuda in (False, True))
    examples = encode(TABLE, vocab_size=VOCAB).examples
    lengths = [len(examples[i].input_ids) for i in BatchPlan(examples, batch_size=8, seed=0).step(0)]
    masks = 2 * sum(length**2 for length in set(lengths) if length > 2)
    joined = 2 * 2 * 32 * sum(lengths)
    assert here.activations - there.activations == masks + joined


def test_checkpointing_costs_a_forward(tmp_path: Path) -> None:
    changes = {"num_hidden_layers": 12}
    folder = shape_only(tmp_path, tiny_model(vocab=VOCAB, **changes))
    one = {"data": {"micro_tokens": 10**6}, "max_steps": 1}
    plain = plan_of(folder, **one)
    saving = plan_of(folder, **one, hparams={"gradient_checkpointing": True})
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
    for name in ("memory a device", "working copies", "activations", "head", "compute", "time"):
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
