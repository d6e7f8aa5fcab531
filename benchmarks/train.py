"""A training step: ours, TRL's SFTTrainer with the weights, and the authors' recipe, on the same rows.

OMP_NUM_THREADS=1 uv run benchmarks/train.py --out results.json     minutes; --shapes 6M leaves the GPU out
OMP_NUM_THREADS=1 uv run benchmarks/train.py --options              ours against itself with other options
OMP_NUM_THREADS=1 uv run benchmarks/train.py --quick                a tiny model, one round
OMP_NUM_THREADS=1 uv run benchmarks/train.py --shapes 0.5B --rounds 1 --contenders ours authors

Each contender takes its steps in a fresh process (benchmarks/train_peers.py), in an order that rotates
from round to round. The gradient of its first step is held against autograd of the formula, a row at a
time, before any figure of it is printed. With CUDA, models of 0.5B and 3B parameters follow, and the time
that the arithmetic alone would take at the rate of a bfloat16 matrix product measured in the same run.
A contender that fails, or whose gradient is another one, is named and left out; what is measured is written
after each model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from train_data import SHAPES, rows, size
from train_report import Result, Run, show

HERE = Path(__file__).parent
OURS = ("ours", "ours, shared", "ours, checkpointed", "ours, pruned")
CONTENDERS = {
    "cpu": (*OURS, "TRL, padded", "TRL, by length", "authors"),
    "cuda": (*OURS, "ours, compiled", "TRL, padded", "TRL, by length", "TRL, padding-free", "authors"),
}
OPTIONS = ("ours", "ours, shared", "ours, plain AdamW", "ours, checkpointed", "ours, compiled")
ORACLES = {"ours, pruned": "literal, pruned"}
"""Of those with another objective than the formula."""
ON_CUDA = ("0.5B", "3B")
LARGEST = {"cpu": 1e-5, "cuda": 4e-2}
"""Relative L2 distance between a gradient and the formula's: float32, and bfloat16 arithmetic.

On a CPU the formula itself is 0.6 to 1.2 % off under bfloat16, with 2 to 36 layers of the 6M model's width.
"""
SIDE, PRODUCTS = 8192, 30
"""Of the matrices whose product says what the device can do, and how many of them are timed."""


def main() -> None:
    """Measure in turns, show."""
    options = _options()
    shapes = ["tiny"] if options.quick else options.shapes or shapes_here()
    rounds = options.rounds or (1 if options.quick else 3)
    console = Console()
    results = []
    for shape in shapes:
        device = "cuda" if shape in ON_CUDA else "cpu"
        # Kernels are chosen and compiled in a GPU's first steps.
        steps, warm_up = (5, 2) if device == "cuda" else (2, 1) if options.options else (1, 0)
        names = options.contenders or (OPTIONS if options.options else CONTENDERS[device])
        results.append(compare(shape, device, names, rounds=rounds, steps=steps, warm_up=warm_up))
        if options.out:
            document = {"torch": torch.__version__, "results": [asdict(result) for result in results]}
            options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        show(console, results[-1])
    if any(result.failed for result in results):
        sys.exit("not all contenders are in the tables; those left out are named above")


def shapes_here() -> list[str]:
    """What this machine can run."""
    return ["6M", *(ON_CUDA if torch.cuda.is_available() else ())]


def compare(
    shape: str, device: str, names: Sequence[str], *, rounds: int, steps: int, warm_up: int
) -> Result:
    """Each contender on one model, `rounds` rounds of `steps` steps, those of the warm-up not timed.

    Raises:
        ValueError: our gradient, at the defaults, is not the formula's.
        RuntimeError: ours or an oracle failed.
    """
    begin = time.perf_counter()
    rate = matmul_rate() if device == "cuda" else None
    runs: dict[str, list[Run]] = {name: [] for name in names}
    distances = dict.fromkeys(names, 0.0)
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.pt"
        oracles = {ORACLES.get(name, "literal"): Path(folder) / f"{name}.pt" for name in names}
        for oracle, path in oracles.items():
            measure(oracle, shape, device, 1, 0, path)
        for number in range(rounds):
            turn = number % len(names)
            for name in (*names[turn:], *names[:turn]):
                if name in failed:
                    continue
                formula = torch.load(oracles[ORACLES.get(name, "literal")])
                try:
                    run = measure(name, shape, device, steps, warm_up, found)
                    off = check_gradient(name, torch.load(found), formula, LARGEST[device])
                except (RuntimeError, ValueError) as error:
                    if name == "ours":
                        raise
                    failed[name] = str(error)
                    print(f"{shape}, left out: {error}", file=sys.stderr)
                    continue
                runs[name].append(run)
                distances[name] = max(distances[name], off)
                print(
                    f"{shape}, round {number + 1} of {rounds}: {name}, {run.seconds(device):.2f} s; "
                    f"{time.perf_counter() - begin:.0f} s so far",
                    file=sys.stderr,
                    flush=True,
                )
    return Result(
        shape=shape,
        device=device,
        name=torch.cuda.get_device_name() if device == "cuda" else "one thread of a CPU",
        size=size(SHAPES[shape], rows(SHAPES[shape])),
        rate=rate,
        distances={name: distances[name] for name in names if name not in failed},
        runs={name: runs[name] for name in names if name not in failed},
        failed=failed,
    )


def check_gradient(name: str, found: torch.Tensor, formula: torch.Tensor, largest: float) -> float:
    """How far a gradient is from the formula's, relative, in L2.

    Raises:
        ValueError: further than its arithmetic explains.
    """
    off = float((found - formula).norm() / formula.norm())
    if not off <= largest:
        raise ValueError(f"the gradient of {name} is {off:.1e} off the formula's, more than {largest:.0e}")
    return off


def measure(name: str, shape: str, device: str, steps: int, warm_up: int, gradient: Path) -> Run:
    """Run a contender in a process of its own; the gradient of its first step goes to a file.

    Raises:
        RuntimeError: it failed; its last words are in the message.
    """
    words = [name, shape, device, str(steps), str(warm_up), str(gradient)]
    quiet = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "train_peers.py"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, **quiet},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout))


def matmul_rate() -> float:
    """FLOP/s of bfloat16 matrix products on this GPU."""
    one, other = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        one @ other
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(PRODUCTS):
        one @ other
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    del one, other
    torch.cuda.empty_cache()
    return 2 * SIDE**3 * PRODUCTS / seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    parser.add_argument(
        "--shapes", nargs="*", choices=["6M", *ON_CUDA], help="all that run here by default"
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        help="these alone, `ours` among them; each costs a process, tens of seconds, in each round",
    )
    parser.add_argument("--rounds", type=int, help="3 by default, 1 if quick")
    parser.add_argument("--options", action="store_true", help="ours alone, with each of its options")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round, no GPU")
    options = parser.parse_args()
    known = {*OPTIONS, *CONTENDERS["cuda"]}
    if options.contenders and "ours" not in options.contenders:
        parser.error("--contenders: name `ours`, which the others are divided by")
    if unknown := sorted({*(options.contenders or ())} - known):
        parser.error(f"--contenders: no {', '.join(unknown)} among {'; '.join(sorted(known))}")
    return options


if __name__ == "__main__":
    main()
