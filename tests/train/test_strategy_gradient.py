"""What the optimizer is given is the literal gradient, whatever the strategy and the precision."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from drift_train import encode
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.launching import commands, environment
from train.weighted_rows import (
    exact_norms,
    gradient,
    grouped_rows,
    literal_loss,
    relative,
    weighted_table,
)

SCRIPT = Path(__file__).with_name("gradient_ranks.py")
LIMIT = 300
STRATEGIES = ["single", "ddp", "fsdp2", "fsdp"]
LARGEST = {"float64": 1e-10, "float32": 1e-5, "bf16-mixed": 2e-2, "bfloat16": 2e-2}
"""Of each kind of arithmetic; the last has parameters in half precision, too."""
CASES: dict[str, dict[str, Any]] = {
    "packed": {},
    "one row in a micro-batch": {"micro_tokens": 1},
    "a rank without a row": {"groups": 1, "size": 1},
    "an odd row": {"groups": 1, "size": 3, "micro_tokens": 1},
    "computed again": {"module": {"gradient_checkpointing": True}},
    "means": {"module": {"reduction": "mean"}, "seed": 5},
    "many": {"groups": 40, "micro_tokens": 1},
    "many at once": {"groups": 40, "micro_tokens": 10**6},
}
EVERYWHERE = ["packed", "one row in a micro-batch", "a rank without a row"]
TODO = [
    *(("float64", case) for case in CASES if not case.startswith("many")),
    *((kind, case) for kind in ("float32", "bf16-mixed", "bfloat16") for case in EVERYWHERE),
]
"""Kind of arithmetic, and case."""
MANY = [("bfloat16", "many"), ("bfloat16", "many at once")]


def settings(folder: Path, strategy: str, kind: str, case: str) -> dict[str, Any]:
    base = {"groups": 4, "size": 4, "micro_tokens": 90, "seed": 0, "module": {}}
    return {
        **base,
        **CASES[case],
        "model": str(folder / "policy"),
        "dtype": "float32" if kind == "bf16-mixed" else kind,
        "precision": kind if kind == "bf16-mixed" else "32-true",
        "strategy": strategy,
        "ranks": 1 if strategy == "single" else 2,
        "out": str(folder / f"{strategy}-{kind}-{case}.pt"),
    }


def literal(case: dict[str, Any]) -> Tensor:
    """In float64 or float32, at the parameters that the policy has in its own precision."""
    read = AutoModelForCausalLM.from_pretrained(case["model"], dtype=getattr(torch, case["dtype"]))
    model = exact_norms(read.float() if case["dtype"] == "bfloat16" else read).eval()
    table = weighted_table(grouped_rows(case["groups"], case["size"], vocab=67, seed=case["seed"]))
    examples = encode(table, vocab_size=67).examples
    weights = [example.weight for example in examples]
    how = case["module"].get("reduction", "sum")
    return gradient(model, literal_loss(model, examples, weights, len(examples), how))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gradients of all cases, in two starts, because a start costs more than many steps."""
    made = tmp_path_factory.mktemp("gradients")
    policy = tiny_model("qwen2", vocab=67, tie_word_embeddings=True, initializer_range=0.1)
    save_policy(made / "policy", bpe_tokenizer(), policy)
    start(made, STRATEGIES[:1], ranks=1)
    start(made, STRATEGIES[1:], ranks=2)
    return made


def start(folder: Path, strategies: list[str], *, ranks: int) -> None:
    todo = [settings(folder, strategy, *each) for strategy in strategies for each in [*TODO, *MANY]]
    path = folder / f"{strategies[0]}.json"
    path.write_text(json.dumps(todo))
    (command,) = commands(SCRIPT, path, ranks=ranks)
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr[-9000:]


Off = Callable[[str, str, str], float]


@pytest.fixture(scope="module")
def off(folder: Path) -> Off:
    """How far a strategy's gradient is from the literal one; that is computed once for all of them."""
    literals = cache(lambda dtype, case: literal(settings(folder, "single", dtype, case)))

    def distance(strategy: str, kind: str, case: str) -> float:
        given = settings(folder, strategy, kind, case)
        found, wanted = torch.load(given["out"]), literals(given["dtype"], case)
        policy = AutoModelForCausalLM.from_pretrained(given["model"])
        names = [name for name, _ in policy.named_parameters()]
        assert set(found) == set(names)
        assert {str(grad.dtype) for grad in found.values()} == {f"torch.{given['dtype']}"}
        return relative(torch.cat([found[name].flatten() for name in names]).to(wanted.dtype), wanted)

    return distance


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("kind", "case"), TODO)
def test_the_optimizer_is_given_the_literal_gradient(off: Off, strategy: str, kind: str, case: str) -> None:
    assert off(strategy, kind, case) <= LARGEST[kind]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_micro_batches_lose_no_bits_of_half_precision(off: Off, strategy: str) -> None:
    """Summed in that precision they would be half as far off again."""
    many, once = (off(strategy, *each) for each in MANY)
    assert many <= 1.1 * once <= LARGEST["bfloat16"]
