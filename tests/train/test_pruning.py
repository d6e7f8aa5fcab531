"""Rows of little weight: the step loses their terms and nothing else, and says what that is."""

from __future__ import annotations

import logging
import math
from io import StringIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from rich.console import Console

from drift_train import StepBatch, WeightedDataModule, WeightedSFT, encode
from drift_train.planning import plan_run, print_plan
from drift_train.progress import StepMetrics
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import (
    gradient,
    literal_loss,
    random_rows,
    relative,
    tiny_double,
    token_row,
    weighted_table,
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_policy(tmp_path_factory.mktemp("policy"), bpe_tokenizer(), tiny_model(vocab=64)))


def quiet_trainer(steps: int, *callbacks: Any) -> Trainer:
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing"), False)
    return Trainer(max_steps=steps, accelerator="cpu", callbacks=list(callbacks), **off)


def steps_of(data: WeightedDataModule, steps: int) -> list[StepBatch]:
    """The steps as a trainer gets them."""
    data.trainer = quiet_trainer(steps)
    data.setup("fit")
    return list(data.train_dataloader())


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), threshold=st.floats(0.1, 2.5))
def test_the_gradient_is_the_whole_steps_without_the_terms_below(
    policy: str, seed: int, threshold: float
) -> None:
    table = weighted_table(random_rows(7, vocab=64, seed=seed))
    examples = encode(table, vocab_size=64).examples
    if all(example.weight < threshold for example in examples):
        return
    settings_ = {"batch_size": 7, "micro_tokens": 40, "min_weight": threshold}
    (step,) = steps_of(WeightedDataModule.from_table(table, policy, **settings_), 1)
    model = tiny_double()
    module = WeightedSFT.from_model(model, 1e-3)
    found = sum(gradient(model, module.micro_loss(m, step.num_examples)[0]) for m in step.micro_batches)
    weights = [0.0 if example.weight < threshold else example.weight for example in examples]
    assert relative(found, gradient(model, literal_loss(model, examples, weights, 7))) < 1e-10
    kept = [len(e.input_ids) for e in examples if e.weight >= threshold]
    assert sum(micro.tokens for micro in step.micro_batches) == sum(kept), "what is pruned is not computed"


def test_it_is_off_unless_asked_for(policy: str) -> None:
    table = weighted_table(random_rows(6, vocab=64))
    (step,) = steps_of(WeightedDataModule.from_table(table, policy, batch_size=6), 1)
    assert sum(micro.tokens for micro in step.micro_batches) == sum(
        len(e.input_ids) for e in encode(table, vocab_size=64).examples
    )


def light_and_heavy(light: int, heavy: int) -> Any:
    """Rows of weight 0.01 and 12 tokens, and rows of weight 2 and 4 tokens."""
    rows = [token_row(n, range(1, 13), [(10, 12)], weight=0.01) for n in range(light)]
    rows += [token_row(light + n, range(1, 5), [(2, 4)], weight=2.0) for n in range(heavy)]
    return weighted_table(rows)


def test_a_step_of_pruned_rows_alone_is_taken_with_a_gradient_of_zeros(policy: str) -> None:
    data, again = (
        WeightedDataModule.from_table(light_and_heavy(7, 1), policy, batch_size=1, min_weight=0.1)
        for _ in range(2)
    )
    module = WeightedSFT(policy, 1e-2)
    trainer = quiet_trainer(8, StepMetrics())
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 8
    steps = steps_of(again, 8)
    losses = [
        sum(float(module.micro_loss(m, step.num_examples)[0].detach()) for m in step.micro_batches)
        for step in steps
    ]
    assert sorted(loss == 0 for loss in losses) == [False] + [True] * 7


def test_dropped_mass_and_saved_tokens_are_said_before_the_first_step_and_in_the_dry_run(
    policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = (
        f"w < 0.1: 5 of 8 examples stay out of the forward passes, with {0.05 / 6.05:.3%} of Σw and "
        f"{60 / 72:.1%} of the tokens"
    )
    table, chosen = light_and_heavy(5, 3), {"batch_size": 8, "min_weight": 0.1}
    with caplog.at_level(logging.WARNING):
        steps_of(WeightedDataModule.from_table(table, policy, **chosen), 1)
    assert said in caplog.text
    data = WeightedDataModule.from_table(table, policy, **chosen)
    plan = plan_run(
        WeightedSFT(policy, 1e-3), data, strategy="auto", devices=1, precision="32-true", max_steps=2
    )
    out = StringIO()
    print_plan(plan, Console(file=out, width=200))
    assert said in out.getvalue()
    assert plan.steps.tokens == 2 * 12, "the plan counts the tokens that are computed"


def test_the_log_counts_what_was_computed(policy: str) -> None:
    data = WeightedDataModule.from_table(light_and_heavy(5, 3), policy, batch_size=8, min_weight=0.1)
    trainer = quiet_trainer(1, StepMetrics())
    trainer.fit(WeightedSFT(policy, 1e-3), datamodule=data)
    assert trainer.callback_metrics["tokens"] == 12
    assert float(trainer.callback_metrics["weight_mass"]) == pytest.approx(6 / 6.05)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_threshold_that_cannot_be_meant_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="min_weight must be above 0 and finite"):
        WeightedDataModule("x", "y", min_weight=value)


@pytest.mark.parametrize("weighting", ["resample", "none"])
def test_where_w_multiplies_no_loss_it_is_refused(weighting: Any) -> None:
    with pytest.raises(ValueError, match=f"min_weight belongs to weighting loss, not to {weighting}"):
        WeightedDataModule("x", "y", min_weight=0.1, weighting=weighting)


def test_a_threshold_over_every_weight_is_refused(policy: str) -> None:
    data = WeightedDataModule.from_table(light_and_heavy(2, 2), policy, min_weight=5.0)
    with pytest.raises(ValueError, match=r"min_weight 5\.0 leaves none of 4 examples; the largest .* 2"):
        data.setup("fit")


def test_a_resume_under_another_threshold_is_refused(policy: str) -> None:
    table = light_and_heavy(2, 2)
    data, other = (WeightedDataModule.from_table(table, policy, min_weight=m) for m in (None, 0.1))
    for each in (data, other):
        each.setup("fit")
    with pytest.raises(ValueError, match=r"data\.min_weight is 0\.1, the checkpoint was trained with None"):
        other.load_state_dict(data.state_dict())
    earlier = {name: value for name, value in data.state_dict().items() if name != "min_weight"}
    data.load_state_dict(earlier)
    assert np.array_equal(data._pruning.pruned_N, np.zeros(4, bool))
