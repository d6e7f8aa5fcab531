"""The output head and its weighted loss alone: ours, torch's fused one, and all logits at once.

OMP_NUM_THREADS=1 uv run benchmarks/train_head.py --out results.json     minutes; --shapes 6M: no others
OMP_NUM_THREADS=1 uv run benchmarks/train_head.py --quick                a tiny shape, one round

Σ_r factor_r · −log softmax(W·h_r)[target_r] and its gradient to h and W. Each contender runs in a fresh
process, in an order that rotates from round to round. Both gradients are held against autograd of the
formula in float64 before any figure is printed. With CUDA the last shape follows in
bfloat16 on the GPU, with Liger too if it can be imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions, functional
from train_peers import own_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Positions with loss, and the head that they meet."""

    rows: int
    vocab: int
    hidden: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


SHAPES = {
    "tiny": Shape(rows=100, vocab=2048, hidden=32),
    "6M": Shape(rows=1739, vocab=32_768, hidden=96),
    "6M, bfloat16": Shape(rows=1739, vocab=32_768, hidden=96, dtype=torch.bfloat16),
    "0.5B": Shape(rows=256, vocab=151_936, hidden=896),
    "0.5B, CUDA": Shape(rows=16_384, vocab=151_936, hidden=896, dtype=torch.bfloat16, device="cuda"),
}
"""Of benchmarks/train_data.py's models; rows as in a step there, or fewer."""
LARGEST = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative L2 distance between a gradient and the formula's."""
KEPT = 2_000_000
"""About so many entries of a gradient are compared."""
STEPS = 2
"""That are timed, after one that is not."""

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of hidden states [R, D], the head's weight [V, D], targets [R], and factors [R] in float64."""


def literal(hidden_RD: Tensor, weight_VD: Tensor, target_R: Tensor, factor_R: Tensor) -> Tensor:
    """The formula in float64."""
    log_RV = torch.log_softmax(hidden_RD.double() @ weight_VD.double().T, dim=-1)
    return -(factor_R * log_RV.gather(1, target_R[:, None])[:, 0]).sum()


def ours(hidden_RD: Tensor, weight_VD: Tensor, target_R: Tensor, factor_R: Tensor) -> Tensor:
    """drift-train's, through a plain linear head."""
    from drift_train.head import Head, weighted_head_nll

    head = Head(lambda hidden: functional.linear(hidden, weight_VD), len(weight_VD), [weight_VD])
    return weighted_head_nll(head, hidden_RD, target_R, factor_R)


def torch_fused(
    hidden_RD: Tensor, weight_VD: Tensor, target_R: Tensor, factor_R: Tensor, *, as_ours: bool = False
) -> Tensor:
    """torch's, in pieces of its own choice, or in those of ours."""
    from drift_train.head import positions_at_once

    size = positions_at_once(hidden_RD.device, len(weight_VD)) if as_ours else None
    options = LinearCrossEntropyOptions(batch_chunk_size=size)
    fused = functional.linear_cross_entropy
    nll_R = fused(hidden_RD, weight_VD, target_R, reduction="none", options=options)
    return (factor_R.float() * nll_R).sum()


def liger(hidden_RD: Tensor, weight_VD: Tensor, target_R: Tensor, factor_R: Tensor) -> Tensor:
    """Liger's; its gradients with reduction="none" were wrong up to version 0.8.0."""
    fused = import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
    nll_R = fused(hidden_RD, weight_VD, target_R, reduction="none", accum_dtype=torch.float32)
    return cast(Tensor, (factor_R.float() * nll_R).sum())


def all_logits(hidden_RD: Tensor, weight_VD: Tensor, target_R: Tensor, factor_R: Tensor) -> Tensor:
    """torch's cross_entropy on [R, V] logits, in float32."""
    logits_RV = functional.linear(hidden_RD, weight_VD).float()
    return (factor_R.float() * functional.cross_entropy(logits_RV, target_R, reduction="none")).sum()


CONTENDERS: dict[str, Loss] = {
    "ours": ours,
    "torch, pieces as ours": partial(torch_fused, as_ours=True),
    "torch, its own pieces": torch_fused,
    "all logits": all_logits,
}
ON_CUDA: dict[str, Loss] = {"Liger": liger} if find_spec("liger_kernel") else {}


def main() -> None:
    """Measure in turns, show."""
    options = _options()
    if options.one:
        name, shape, folder = options.one
        loss = {**CONTENDERS, **ON_CUDA, "literal": literal}[name]
        print(json.dumps(run(loss, SHAPES[shape], Path(folder))))
        return
    here = [name for name in SHAPES if SHAPES[name].device == "cpu" or torch.cuda.is_available()]
    shapes = ["tiny"] if options.quick else options.shapes or here[1:]
    results = {}
    for shape in shapes:
        results[shape] = compare(shape, options.rounds or (1 if options.quick else 3))
        show(Console(), shape, results[shape])
    if options.out:
        document = {"torch": torch.__version__, "results": results}
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def run(loss: Loss, shape: Shape, folder: Path) -> dict[str, float]:
    """Seconds of a step and bytes at the most, in this process; its gradients go to the folder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind: Any = {"dtype": shape.dtype, "device": shape.device}
    hidden_RD = torch.randn(shape.rows, shape.hidden, **kind).requires_grad_()
    weight_VD = torch.randn(shape.vocab, shape.hidden, **kind).mul_(shape.hidden**-0.5).requires_grad_()
    target_R = torch.randint(shape.vocab, (shape.rows,), device=shape.device)
    factor_R = torch.empty(shape.rows, dtype=torch.float64).exponential_().to(shape.device)
    # What is imported when it is first called is no memory of the head's.
    torch.autograd.backward(loss(hidden_RD[:1], weight_VD[:1], target_R[:1] * 0, factor_R[:1]))
    _forget(hidden_RD, weight_VD)
    before = own_bytes("VmRSS")
    taken = []
    for _ in range(1 + STEPS):
        _forget(hidden_RD, weight_VD)
        start = _clock(shape.device)
        torch.autograd.backward(loss(hidden_RD, weight_VD, target_R, factor_R))
        taken.append(_clock(shape.device) - start)
    cuda = shape.device == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else own_bytes("VmHWM") - before
    for name, gradient in (("hidden", hidden_RD.grad), ("weight", weight_VD.grad)):
        assert gradient is not None
        flat = gradient.flatten()
        torch.save(flat[:: max(1, len(flat) // KEPT)].double().cpu(), folder / f"{name}.pt")
    return {"seconds": sum(taken[1:]) / STEPS, "peak": peak}


def compare(shape: str, rounds: int) -> dict[str, Any]:
    """What each contender took, round by round, and how far its gradients were from the formula's.

    Raises:
        ValueError: further than its arithmetic explains.
    """
    names = [*CONTENDERS, *(ON_CUDA if SHAPES[shape].device == "cuda" else ())]
    found: dict[str, Any] = {name: {"seconds": [], "peak": [], "off": 0.0} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        measure("literal", shape, Path(folder))
        formula = gradients(Path(folder))
        for number in range(rounds):
            turn = number % len(names)
            for name in (*names[turn:], *names[:turn]):
                took = measure(name, shape, Path(folder))
                off = check(name, gradients(Path(folder)), formula, LARGEST[SHAPES[shape].dtype])
                found[name]["off"] = max(found[name]["off"], off)
                for what, amount in took.items():
                    found[name][what].append(amount)
    return found


def measure(name: str, shape: str, folder: Path) -> dict[str, float]:
    """Run a contender in a process of its own."""
    words = [sys.executable, __file__, "--one", name, shape, str(folder)]
    found: dict[str, float] = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    return found


def gradients(folder: Path) -> tuple[Tensor, Tensor]:
    """To the hidden states and to the weight, as `run` left them."""
    return torch.load(folder / "hidden.pt"), torch.load(folder / "weight.pt")


def check(name: str, found: tuple[Tensor, Tensor], formula: tuple[Tensor, Tensor], largest: float) -> float:
    """The larger of two relative L2 distances."""
    parts = [float((one - other).norm() / other.norm()) for one, other in zip(found, formula, strict=True)]
    if not all(off <= largest for off in parts):
        raise ValueError(f"the gradients of {name} are {parts} off the formula's, more than {largest:.0e}")
    return max(parts)


def show(console: Console, name: str, found: dict[str, Any]) -> None:
    """Print medians, and ratios round by round."""
    shape, own = SHAPES[name], found["ours"]
    sizes = f"R = {shape.rows:,}, V = {shape.vocab:,}, D = {shape.hidden:,}"
    table = Table(title=f"{name}: {sizes}, {shape.dtype} on {shape.device}")
    for column in ("", "s", "÷ ours", "rounds", "peak MB", "÷ ours", "gradient off by"):
        table.add_column(column, justify="right" if column else "left")
    for contender, taken in found.items():
        ratios = [one / other for one, other in zip(taken["seconds"], own["seconds"], strict=True)]
        seconds, peak = median(taken["seconds"]), max(taken["peak"])
        least_to_most = f"{min(ratios):.2f}–{max(ratios):.2f}"
        of_ours = (f"{seconds / median(own['seconds']):.2f}", least_to_most)
        memory = (f"{peak / 1e6:,.0f}", f"{peak / max(own['peak']):.2f}")
        table.add_row(contender, f"{seconds:.2f}", *of_ours, *memory, f"{taken['off']:.1e}")
    console.print(table)


def _forget(*tensors: Tensor) -> None:
    for tensor in tensors:
        tensor.grad = None


def _clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, help="all that run here by default")
    parser.add_argument("--rounds", type=int, help="3 by default, 1 if quick")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one round")
    parser.add_argument("--one", nargs=3, help="a contender, a shape and a folder, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
