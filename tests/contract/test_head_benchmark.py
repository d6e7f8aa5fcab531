"""The benchmark of the head alone: its contenders' gradients, its check, and that it runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
bench = importlib.import_module("train_head")


def gradients_of(loss: object, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    bench.run(loss, bench.SHAPES["tiny"], folder)
    found: tuple[torch.Tensor, torch.Tensor] = bench.gradients(folder)
    return found


@pytest.fixture(scope="module")
def formula(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, torch.Tensor]:
    return gradients_of(bench.literal, tmp_path_factory.mktemp("formula"))


@pytest.mark.parametrize("name", bench.CONTENDERS)
def test_every_contender_has_the_gradients_of_the_formula(
    name: str, formula: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    found = gradients_of(bench.CONTENDERS[name], tmp_path)
    assert 0 <= bench.check(name, found, formula, 1e-5) <= 1e-5


def test_one_factor_for_all_is_found(formula: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    found = gradients_of(
        lambda h, w, t, factor: bench.all_logits(h, w, t, factor[:1].expand_as(factor)), tmp_path
    )
    with pytest.raises(ValueError, match=r"the gradients of one factor are .* off the formula's"):
        bench.check("one factor", found, formula, 1e-5)


def test_one_wrong_gradient_is_enough(formula: tuple[torch.Tensor, torch.Tensor]) -> None:
    hidden, weight = formula
    with pytest.raises(ValueError, match="more than 1e-05"):
        bench.check("x", (hidden, weight * 1.001), formula, 1e-5)
    with pytest.raises(ValueError, match="nan"):
        bench.check("x", (hidden * float("nan"), weight), formula, 1e-5)


def test_the_script_runs(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "train_head.py"), "--quick", "--out", str(out)],
        check=True,
        timeout=600,
        capture_output=True,
        text=True,
    )
    found = json.loads(out.read_text())["results"]["tiny"]
    assert list(found) == list(bench.CONTENDERS)
    assert all(taken["seconds"][0] > 0 and 0 < taken["off"] < 1e-5 for taken in found.values())
    assert "÷ ours" in done.stdout
