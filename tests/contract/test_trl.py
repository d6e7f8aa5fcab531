"""docs/trl.md: its trainer minimises the weighted loss, and stock TRL does not.

The oracle renders each row itself, runs it alone and unpadded, and differentiates the formula.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from tiny import bpe_tokenizer, tiny_model

Rows = list[tuple[str, str, float]]
DOCUMENT = Path(__file__).parents[2] / "docs" / "trl.md"
ROWS = [
    ("12 + 30?", "42", 2.75),
    ("Incorrect. Please think again. You are a helpful assistant.", "<answer> X1 </answer>", 0.0),
    ("x", "<think> one plus two is three </think> <answer> 3 </answer> again and again", 0.375),
    ("Problem: which item has the traits t1 t2 t3 t4?", "X1, X2", 1.5),
]
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 1,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}
"""One optimizer step, whose gradient nothing changes."""


def defined() -> dict[str, Any]:
    """What the first code block of the document defines."""
    names: dict[str, Any] = {"__name__": "document"}
    block = re.search(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    assert block is not None
    exec(compile(block[1], str(DOCUMENT), "exec"), names)
    return names


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return defined()


class Gradients(TrainerCallback):
    """Keeps the gradient of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.steps.append(flat([p.grad for p in model.parameters()]))


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


def dataset(rows: Rows) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": completion}],
                "weight": weight,
            }
            for prompt, completion, weight in rows
        ]
    )


def trained(trainer: Any) -> tuple[list[torch.Tensor], list[float]]:
    """Gradient and logged loss of each optimizer step."""
    seen = Gradients()
    trainer.add_callback(seen)
    trainer.train()
    return seen.steps, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def stock(folder: Path, rows: Rows, **settings: Any) -> Any:
    arguments = SFTConfig(output_dir=str(folder), max_length=None, **SETTINGS | settings)
    tokenizer = bpe_tokenizer()
    return SFTTrainer(
        model=tiny_model(vocab=len(tokenizer)),
        args=arguments,
        train_dataset=dataset(rows),
        processing_class=tokenizer,
    )


def ours(document: dict[str, Any], folder: Path, rows: Rows, **settings: Any) -> Any:
    tokenizer = bpe_tokenizer()
    return document["weighted_trainer"](
        tiny_model(vocab=len(tokenizer)),
        tokenizer,
        dataset(rows),
        output_dir=str(folder),
        **SETTINGS | settings,
    )


def likelihoods(model: Any, rows: Rows) -> list[torch.Tensor]:
    """−log π of each target token, a tensor a row."""
    tokenizer, found = bpe_tokenizer(), []
    for prompt, completion, _ in rows:
        head = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        start = len(tokenizer(head, add_special_tokens=False)["input_ids"])
        ids = tokenizer(f"{head}{completion}<|im_end|>\n", add_special_tokens=False)["input_ids"]
        log_TV = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append(-torch.stack([log_TV[t - 1, ids[t]] for t in range(start, len(ids))]))
    return found


def formula(rows: Rows) -> tuple[torch.Tensor, float, int]:
    """Gradient and value of (1/N) Σ w_i Σ_j nll_ij, and the number of target tokens."""
    model = tiny_model(vocab=len(bpe_tokenizer()))
    nll = likelihoods(model, rows)
    loss = sum(weight * nll_T.sum() for (*_, weight), nll_T in zip(rows, nll, strict=True)) / len(rows)
    loss.backward()
    return flat([p.grad for p in model.parameters()]), float(loss.detach()), sum(map(len, nll))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def unweighted(rows: Rows) -> Rows:
    return [(prompt, completion, 1.0) for prompt, completion, _ in rows]


def test_the_rows_are_ragged() -> None:
    lengths = [len(nll_T) for nll_T in likelihoods(tiny_model(vocab=len(bpe_tokenizer())), ROWS)]
    assert len(set(lengths)) == len(ROWS)


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        pytest.param(ROWS, {}, id="two batches of two"),
        pytest.param(ROWS[:3], {}, id="the last batch is short"),
        pytest.param(
            ROWS,
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
            id="one batch",
        ),
    ],
)
def test_one_step_descends_the_formula(
    document: dict[str, Any], tmp_path: Path, rows: Rows, settings: dict[str, Any]
) -> None:
    expected, value, _ = formula(rows)
    steps, losses = trained(ours(document, tmp_path, rows, **settings))
    assert len(steps) == 1
    assert distance(steps[0], expected) < 1e-5
    assert losses == pytest.approx([value], rel=1e-4)


def test_trainer_does_not_divide_by_the_accumulated_batches_again(
    document: dict[str, Any], tmp_path: Path
) -> None:
    """As it does for models whose forward takes no loss arguments, unless told that the loss is scaled."""
    trainer = ours(document, tmp_path, ROWS)
    trainer.model_accepts_loss_kwargs = False
    (step,), _ = trained(trainer)
    assert distance(step, formula(ROWS)[0]) < 1e-5


def test_an_epochs_last_step_divides_by_its_own_examples(document: dict[str, Any], tmp_path: Path) -> None:
    """Without learning, the two steps of five equal rows have the same gradient, that of one row."""
    rows = [ROWS[0]] * 5
    steps, _ = trained(ours(document, tmp_path, rows, learning_rate=0.0))
    assert len(steps) == 2
    expected, *_ = formula(rows[:1])
    for step in steps:
        assert distance(step, expected) < 1e-5


@pytest.mark.slow
def test_two_processes_descend_the_formula_together(tmp_path: Path) -> None:
    """Each has every second row, in batches of one; N is counted over both."""
    code = (
        "import sys, pathlib, torch, test_trl\n"
        "settings = {'per_device_train_batch_size': 1, 'ddp_backend': 'gloo'}\n"
        "trainer = test_trl.ours(test_trl.defined(), pathlib.Path('out'), test_trl.ROWS, **settings)\n"
        "assert trainer.accelerator.num_processes == 2\n"
        "steps, _ = test_trl.trained(trainer)\n"
        "torch.save(steps, f'steps-{trainer.accelerator.process_index}')\n"
    )
    (tmp_path / "run.py").write_text(code, encoding="utf-8")
    here = Path(__file__).parent
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "run.py"]
    done = subprocess.run(
        [sys.executable, *launch],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    expected, *_ = formula(ROWS)
    for rank in range(2):
        (step,) = torch.load(tmp_path / f"steps-{rank}")
        assert distance(step, expected) < 1e-5


def test_stock_trl_drops_the_weight_and_descends_another_loss(tmp_path: Path) -> None:
    trainer = stock(tmp_path, ROWS)
    assert "weight" in trainer.train_dataset.column_names
    assert all("weight" not in batch for batch in trainer.get_train_dataloader())
    (step,), _ = trained(trainer)
    (same,), _ = trained(stock(tmp_path, unweighted(ROWS)))
    assert torch.equal(step, same)
    weighted, *_ = formula(ROWS)
    plain, _, tokens = formula(unweighted(ROWS))
    assert distance(step, plain * len(ROWS) / tokens) < 1e-5
    # Not the weighted gradient either, under any learning rate.
    cosine = float(step @ weighted / step.norm() / weighted.norm())
    assert cosine < 0.99


def test_stock_trl_drops_the_weight_even_if_told_to_keep_columns(tmp_path: Path) -> None:
    trainer = stock(tmp_path, ROWS, remove_unused_columns=False)
    assert all("weight" not in batch for batch in trainer.get_train_dataloader())


def test_weights_of_one_differ_from_stock_trl_by_tokens_an_example(
    document: dict[str, Any], tmp_path: Path
) -> None:
    rows = unweighted(ROWS)
    (step,), _ = trained(ours(document, tmp_path, rows))
    (plain,), _ = trained(stock(tmp_path, rows))
    *_, tokens = formula(rows)
    assert distance(step, plain * tokens / len(rows)) < 1e-5


def test_evaluation_is_weighted_too(document: dict[str, Any], tmp_path: Path) -> None:
    trainer = ours(document, tmp_path, ROWS, per_device_eval_batch_size=4, prediction_loss_only=True)
    found = trainer.evaluate(dataset(ROWS))["eval_loss"]
    assert found == pytest.approx(formula(ROWS)[1], rel=1e-5)


def test_packing_is_refused_not_ignored(document: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="collator"):
        ours(document, tmp_path, ROWS, padding_free=True)
