"""The plan of a device's memory against what a fit takes of a CPU's, by the allocator's own count."""

from __future__ import annotations

import gc
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from lightning.pytorch import Trainer
from torch.profiler import profile

from drift_train import SingleDevice, WeightedDataModule, WeightedSFT, head, shapes
from drift_train.memory import MemoryPlan
from drift_train.planning import plan_run
from tiny import tiny_model
from train.weighted_rows import random_rows, token_row, weighted_table

WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4}
"""So wide that what does not depend on the width hardly counts."""
HEAVY = {"hidden_size": 256, "intermediate_size": 512}
"""Of two layers; with short rows, activations are small beside the weights."""
LARGE = {"vocab": 4000}
PIECES = {"vocab": 4000, "positions": 10}
HALF = {"dtype": "bfloat16"}
MIXED = {"precision": "bf16-mixed"}
AGAIN = {"gradient_checkpointing": True}
SEVERAL = {"micro_tokens": 300}
FEW = {"longest": 5, "shape": HEAVY}
FULL: list[dict[str, Any]] = [
    *[kind | vocab for kind in ({}, HALF, MIXED, AGAIN) for vocab in ({}, LARGE, PIECES)],
    *[LARGE | {"tied": True} | kind for kind in ({}, HALF, MIXED)],
    *[LARGE | SEVERAL | kind for kind in ({}, HALF, MIXED, AGAIN)],
    MIXED | AGAIN,
    *[FEW | kind for kind in (LARGE, LARGE | {"tied": True}, HALF | {"micro_tokens": 30})],
    *[FEW | LARGE | {"micro_tokens": 30, "tied": tied} | HALF for tied in (False, True)],
    *[{"shared": (300, 50, 8)} | kind for kind in ({}, MIXED, AGAIN)],
    {"shared": (40, 300, 4), "family": "mistral", "shape": WIDE | {"sliding_window": 100}},
    {"shared": (40, 200, 4), "family": "gemma2", "shape": WIDE | {"sliding_window": 100, "head_dim": 16}},
    *[{"family": "qwen2", "shape": WIDE | {"num_key_value_heads": heads}} for heads in (1, 4)],
]


def group(begin: int, own: int, size: int, vocab: int) -> pa.Table:
    """Rows of one prompt that begin with the same tokens."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab, (size, begin + own), generator=draw)
    ids[:, :begin] = ids[0, :begin]
    named = {"prompt_id": "g", "weight": 1.0}
    rows = [token_row(k, ids[k].tolist(), [(begin, begin + own)], sample=k, **named) for k in range(size)]
    return weighted_table(rows)


def taken(module: WeightedSFT, data: WeightedDataModule, precision: Any) -> int:
    """Bytes at the peak of two steps, by what the allocator gives and gets back; the second has moments."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_steps=2,
        strategy=SingleDevice("cpu"),
        precision=precision,
        enable_checkpointing=False,
        **quiet,
    )
    begun = sum(parameter.nbytes for parameter in module.parameters())
    # What is freed without having been taken here would count against it.
    gc.collect()
    with profile(profile_memory=True) as watched:
        trainer.fit(module, datamodule=data)
    events = watched.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return begun + max(accumulate(size for _, size in changes))


def planned_and_taken(
    folder: Path, model: Any, table: pa.Table, *, precision: str = "32-true", **settings: Any
) -> tuple[MemoryPlan, int]:
    model.config.save_pretrained(folder)
    micro_tokens = settings.pop("micro_tokens", 10**6)

    def data() -> WeightedDataModule:
        return WeightedDataModule.from_table(
            table, str(folder), batch_size=len(table), micro_tokens=micro_tokens
        )

    blank = WeightedSFT(str(folder), 1e-3, dtype=str(model.dtype).removeprefix("torch."), **settings)
    plan = plan_run(
        blank, data(), strategy="single", devices=1, precision=precision, max_steps=2, cuda=False
    )
    module = WeightedSFT.from_model(model, 1e-3, **settings)
    return plan.memory, taken(module, data(), precision)


def measured(folder: Path, monkeypatch: pytest.MonkeyPatch, **case: Any) -> tuple[MemoryPlan, int]:
    vocab, shape = case.pop("vocab", 300), case.pop("shape", WIDE)
    positions, shared = case.pop("positions", None), case.pop("shared", None)
    rows = random_rows(8, vocab=vocab, longest=case.pop("longest", 60))
    table = group(*shared, vocab) if shared else weighted_table(rows)
    if positions is not None:
        monkeypatch.setattr(head, "POSITIONS", positions)
        monkeypatch.setattr(head, "LOGITS", 0)
    model = tiny_model(
        case.pop("family", "llama"), vocab=vocab, tie_word_embeddings=case.pop("tied", False), **shape
    )
    model = model.to(getattr(torch, case.pop("dtype", "float32"))).train()
    return planned_and_taken(folder, model, table, **case)


@pytest.mark.parametrize("case", FULL, ids=str)
def test_the_plan_is_what_a_fit_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]
) -> None:
    """Left out are token ids, rotary tables, softmax sums, and what an operation needs for itself."""
    plan, peak = measured(tmp_path, monkeypatch, **case)
    assert plan.device == pytest.approx(peak, rel=0.03)


@pytest.mark.parametrize("changes", [{}, MIXED, HALF, AGAIN, MIXED | AGAIN], ids=str)
def test_adapters_take_about_what_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Not counted: frozen weights' products and norms keep less, and adapters' own products more."""
    pytest.importorskip("peft")
    plan, peak = measured(tmp_path, monkeypatch, lora={"rank": 4}, **changes)
    assert plan.device == pytest.approx(peak, rel=0.1)


def test_a_head_that_is_one_with_its_body_makes_all_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (head, shapes):
        monkeypatch.setattr(place, "has_body", lambda policy: False)
    plan, peak = measured(tmp_path, monkeypatch, **LARGE)
    assert plan.moment == "head"
    assert plan.device == pytest.approx(peak, rel=0.03)


@pytest.mark.parametrize(
    ("moment", "case"),
    [
        ("head", LARGE),
        ("last block", AGAIN),
        ("first block", AGAIN | {"longest": 20, "shape": HEAVY}),
        ("embedding", FEW | LARGE | {"tied": True}),
    ],
)
def test_each_moment_can_be_the_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, case: dict[str, Any]
) -> None:
    plan, _ = measured(tmp_path, monkeypatch, **case)
    assert plan.moment == moment
