"""A fused optimizer and compiled blocks take the steps of plain ones, and any state goes on with either."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import AutoModelForCausalLM

from drift_train import LastCheckpoint, SingleDevice, WeightedDataModule, WeightedSFT, encode, export
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import (
    WINDOWS,
    grouped_rows,
    random_rows,
    relative,
    step_gradient,
    tiny_double,
    weighted_table,
)

compiles = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="compiling needs a C++ compiler: no g++, and no other one in CXX",
)
LARGEST = {"float32": 1e-5, "float64": 1e-10}


def fit(
    policy: Path, folder: Path | None = None, *, resume: Path | None = None, **settings: Any
) -> WeightedSFT:
    """Four steps, each of which is kept in `folder`."""
    # Of the adapters.
    torch.manual_seed(1)
    module = WeightedSFT(str(policy), 5e-3, weight_decay=0.1, **settings)
    data = WeightedDataModule.from_table(
        weighted_table(random_rows(12, vocab=64)), str(policy), batch_size=4, micro_tokens=40
    )
    Trainer(
        max_steps=4,
        accelerator="cpu",
        strategy=SingleDevice("cpu"),
        callbacks=[LastCheckpoint(1, keep=9, dirpath=str(folder))] if folder else [],
        enable_checkpointing=folder is not None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data, ckpt_path=resume)
    return module


def vector(module: WeightedSFT) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def is_fused(module: WeightedSFT) -> bool:
    (optimizer,) = module.trainer.optimizers
    return all(group["fused"] is True for group in optimizer.param_groups)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"), bpe_tokenizer(), tiny_model(vocab=64))


@pytest.mark.parametrize("dtype", LARGEST)
def test_the_fused_optimizer_takes_the_plain_ones_steps(policy: Path, dtype: Any) -> None:
    fused, plain = fit(policy, dtype=dtype), fit(policy, dtype=dtype, fused_optimizer=False)
    assert is_fused(fused), "by default"
    assert not is_fused(plain)
    start = torch.cat([p.flatten() for p in AutoModelForCausalLM.from_pretrained(policy).parameters()])
    moved = vector(plain) - start
    assert relative(vector(fused) - start, moved) <= LARGEST[dtype]


@pytest.mark.parametrize("first", [True, False])
def test_a_state_goes_on_with_the_other_optimizer(policy: Path, tmp_path: Path, first: bool) -> None:
    straight = fit(policy, tmp_path / "first", fused_optimizer=first)
    half = tmp_path / "first" / "step-000002"
    same = fit(policy, resume=half, fused_optimizer=first)
    assert torch.equal(vector(same), vector(straight))
    other = fit(policy, tmp_path / "other", resume=half, fused_optimizer=not first)
    assert is_fused(other) is not first
    assert relative(vector(other), vector(straight)) <= 1e-5
    back = fit(policy, resume=tmp_path / "other" / "step-000003", fused_optimizer=first)
    assert is_fused(back) is first
    assert relative(vector(back), vector(straight)) <= 1e-5


def test_without_a_compiler_nothing_starts(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"model\.compile needs a C\+\+ compiler, .* no no-such-compiler"):
        fit(policy, compile=True)
    assert vector(fit(policy)).isfinite().all(), "which needs none"


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
@pytest.mark.parametrize("dtype", LARGEST)
def test_compiled_blocks_give_the_gradient_of_plain_ones(family: str, dtype: str) -> None:
    """Packed and padded, computed again or not; lengths seen for the first time compile nothing anew."""
    changes = {"initializer_range": 0.1, **WINDOWS.get(family, {})}
    plain = tiny_double(family) if dtype == "float64" else tiny_model(family, vocab=64, **changes)
    compiled = copy.deepcopy(plain)
    examples = encode(weighted_table(grouped_rows(3, 3, vocab=64)), vocab_size=64).examples
    alike = True
    for again in (False, True):
        for packed in (True, False):
            way = {"packed": packed, "gradient_checkpointing": again}
            for micro_tokens in (60, 150, 90, 10**6, 1):
                # Two lengths are enough to know that it varies.
                stance = "default" if micro_tokens in (60, 150) else "fail_on_recompile"
                wanted = step_gradient(plain, examples, micro_tokens=micro_tokens, **way)
                with torch.compiler.set_stance(stance):
                    found = step_gradient(
                        compiled, examples, micro_tokens=micro_tokens, compile=True, **way
                    )
                assert relative(found, wanted) <= LARGEST[dtype], (way, micro_tokens)
                alike = alike and torch.equal(found, wanted)
    assert not alike, "what is compiled rounds otherwise"


@compiles
@pytest.mark.slow
def test_a_compiled_run_is_kept_resumed_and_exported_as_a_plain_one(policy: Path, tmp_path: Path) -> None:
    """Adapters with dropout, which draws the same."""
    for name, more in {"all": {}, "lora": {"lora": {"rank": 4, "dropout": 0.3}}}.items():
        plain, compiled = tmp_path / f"{name}-plain", tmp_path / f"{name}-compiled"
        wanted = fit(policy, plain, **more)
        found = fit(policy, compiled, compile=True, **more)
        assert [n for n, _ in found.named_parameters()] == [n for n, _ in wanted.named_parameters()]
        assert relative(vector(found), vector(wanted)) <= 1e-5
        for start, compile_ in ((plain, True), (compiled, False)):
            other = fit(policy, resume=start / "step-000002", compile=compile_, **more)
            assert relative(vector(other), vector(wanted)) <= 1e-5
        ids = torch.tensor([[3, 4, 5, 6]])
        one, two, three = (
            AutoModelForCausalLM.from_pretrained(export(source, tmp_path / f"{name}-{n}"))(ids).logits
            for n, source in enumerate((plain / "step-000004", compiled / "step-000004", found))
        )
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
        assert torch.equal(three, two)
