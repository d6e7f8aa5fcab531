"""What a fit shows: its figures against brute force over the plan, and its line as a user reads it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from drift_train import BatchPlan, LastCheckpoint, SingleDevice, WeightedDataModule, WeightedSFT, encode
from drift_train import progress as progress_module
from drift_train.flops import peak_flops
from drift_train.progress import StepMetrics, StepProgressBar, step_line
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import StopAfter, random_rows, weighted_table

ROWS = 24
TABLE = weighted_table(random_rows(ROWS, vocab=64))
FIGURES = {"tokens_per_s", "batch_ess", "tokens", "weight_mass"}
FULL = {"loss": 0.51234, "tokens_per_s": 123_456.0, "weight_mass": 0.341, "batch_ess": 96.2, "mfu": 0.412}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    return str(save_policy(folder, bpe_tokenizer(), tiny_model(vocab=64)))


@pytest.fixture(autouse=True)
def own_console() -> Iterator[None]:
    """Lightning's bar sets rich's global console up; give it back as it was."""
    yield
    rich.reconfigure()


class Ticks:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def trainer(folder: Path, steps: int, *callbacks: Any, **settings: Any) -> Trainer:
    bar = any(isinstance(callback, StepProgressBar) for callback in callbacks)
    return Trainer(
        **{
            "max_steps": steps,
            "accelerator": "cpu",
            "strategy": SingleDevice("cpu"),
            "callbacks": list(callbacks),
            "enable_checkpointing": any(isinstance(callback, LastCheckpoint) for callback in callbacks),
            "enable_model_summary": False,
            "enable_progress_bar": bar,
            "log_every_n_steps": 1,
            "logger": CSVLogger(folder, name="", version=""),
            **settings,
        }
    )


def fit(folder: Path, policy: str, run: Trainer, ckpt: Path | None = None, **settings: Any) -> Any:
    """Train, and read what the CSV log holds of each step."""
    data = WeightedDataModule.from_table(
        TABLE, policy, **{"batch_size": 5, "micro_tokens": 30, "seed": 3, **settings}
    )
    run.fit(WeightedSFT(policy, 1e-3), datamodule=data, ckpt_path=ckpt)
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["loss"]]


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def planned(steps: int, weighting: Any) -> tuple[list[list[int]], list[list[float]], list[Any]]:
    """Token counts and weights of the examples of each step, and the examples."""
    examples = encode(TABLE, vocab_size=64).examples
    plan = BatchPlan(examples, batch_size=5, seed=3, weighting=weighting)
    rows = [plan.step(step).tolist() for step in range(steps)]
    lengths = [[len(examples[i].input_ids) for i in row] for row in rows]
    weights = [[examples[i].weight if weighting == "loss" else 1.0 for i in row] for row in rows]
    return lengths, weights, examples


def supervised(steps: int) -> list[int]:
    """Tokens with loss in each step."""
    examples = encode(TABLE, vocab_size=64).examples
    plan = BatchPlan(examples, batch_size=5, seed=3)
    return [sum(examples[i].supervised for i in plan.step(step)) for step in range(steps)]


@pytest.mark.parametrize("weighting", ["loss", "none", "resample"])
def test_figures_equal_brute_force_over_the_plan(tmp_path: Path, policy: str, weighting: Any) -> None:
    rows = fit(tmp_path, policy, trainer(tmp_path, 7, StepMetrics()), weighting=weighting)
    lengths, weights, examples = planned(7, weighting)
    whole = ROWS if weighting == "none" else sum(example.weight for example in examples)
    ess = [sum(w) ** 2 / sum(x**2 for x in w) for w in weights]
    assert column(rows, "batch_ess") == pytest.approx(ess, rel=1e-12)
    assert column(rows, "tokens") == np.cumsum([sum(n) for n in lengths]).tolist()
    mass = np.cumsum([sum(w) for w in weights]) / whole
    assert column(rows, "weight_mass") == pytest.approx(mass, rel=1e-12)
    assert "mfu" not in rows[0], "nothing is said of a processor without a known peak"


def test_an_epoch_is_a_mass_of_one_and_a_second_epoch_of_two(tmp_path: Path, policy: str) -> None:
    rows = fit(tmp_path, policy, trainer(tmp_path, 8, StepMetrics()), batch_size=6)
    mass = column(rows, "weight_mass")
    assert (mass[3], mass[7]) == pytest.approx((1.0, 2.0), rel=1e-12)
    assert mass == sorted(mass)


def test_tokens_a_second_are_those_of_the_step_by_the_time_since_the_last(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is read once at the start and once a step; a validation reads it anew."""
    monkeypatch.setattr(progress_module, "monotonic", Ticks())
    rows = fit(tmp_path, policy, trainer(tmp_path, 4, StepMetrics()))
    lengths, _, _ = planned(4, "loss")
    assert column(rows, "tokens_per_s") == pytest.approx([sum(n) for n in lengths])


def test_the_time_of_a_validation_is_left_out(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Ticks()
    monkeypatch.setattr(progress_module, "monotonic", clock)

    class Slow(WeightedSFT):
        def on_validation_epoch_end(self) -> None:
            clock.now += 1000

    class Loading(WeightedDataModule):
        def share(self, *args: Any, **kwargs: Any) -> Any:
            clock.now += 10
            return super().share(*args, **kwargs)

    data = Loading.from_table(TABLE, policy, batch_size=5, val_share=0.3)
    run = trainer(tmp_path, 4, StepMetrics(), val_check_interval=2, num_sanity_val_steps=0)
    run.fit(Slow(policy, 1e-3), datamodule=data)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    tokens = np.diff([0.0, *column(rows, "tokens")])
    seconds = tokens / column(rows, "tokens_per_s")
    # Loading counts, 10 s for each of the four steps; a validation does not.
    assert seconds.sum() >= 40
    assert seconds.max() < 100


class Both:
    """strategy.reduce of two ranks in one process: the other's sums are added, in the same order."""

    def __init__(self, other: list[torch.Tensor] | None = None) -> None:
        self.other = other
        self.sent: list[torch.Tensor] = []

    def __call__(self, value: Any, *, reduce_op: str) -> Any:
        # Lightning counts its batches this way, too.
        if value.shape != (5,):
            return value
        assert reduce_op == "sum"
        self.sent.append(value.clone())
        return value if self.other is None else value + self.other[len(self.sent) - 1]


def of_rank(tmp_path: Path, policy: str, rank: int, reduce: Both, monkeypatch: Any) -> Any:
    run = trainer(tmp_path / str(rank), 5, StepMetrics())
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "world_size", 2)
        patch.setattr(Trainer, "global_rank", rank)
        patch.setattr(run.strategy, "reduce", reduce)
        return fit(tmp_path / str(rank), policy, run, batch_size=3)


def test_two_ranks_together_log_what_one_alone_does(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 3 examples on 2 ranks: one is idle at times. Two devices have twice the peak."""
    monkeypatch.setattr(progress_module, "monotonic", Ticks())
    monkeypatch.setattr(progress_module, "peak_flops", lambda device: 1e9)
    alone = fit(tmp_path, policy, trainer(tmp_path, 5, StepMetrics()), batch_size=3)
    second = Both()
    of_rank(tmp_path, policy, 1, second, monkeypatch)
    first = Both(second.sent)
    rows = of_rank(tmp_path, policy, 0, first, monkeypatch)
    assert len(first.sent) == len(second.sent) == 5, "one tensor a step"
    for name in ("batch_ess", "tokens", "weight_mass", "tokens_per_s"):
        assert column(rows, name) == pytest.approx(column(alone, name), rel=1e-12)
    assert column(rows, "mfu") == pytest.approx([mfu / 2 for mfu in column(alone, "mfu")], rel=1e-12)
    assert sum(float(sent[0]) for sent in first.sent + second.sent) == column(alone, "tokens")[-1]


def test_a_step_that_weighs_nothing_has_no_effective_example(tmp_path: Path, policy: str) -> None:
    rows = [row | {"weight": 0.0} for row in random_rows(4, vocab=64)]
    data = WeightedDataModule.from_table(weighted_table(rows), policy, batch_size=2)
    run = trainer(tmp_path, 2, StepMetrics())
    run.fit(WeightedSFT(policy, 1e-3), datamodule=data)
    assert run.callback_metrics["batch_ess"] == 0
    assert "weight_mass" not in run.callback_metrics


def test_a_resumed_run_goes_on_with_tokens_and_mass(tmp_path: Path, policy: str) -> None:
    whole = fit(tmp_path / "whole", policy, trainer(tmp_path / "whole", 7, StepMetrics()))
    keep = LastCheckpoint(3, dirpath=str(tmp_path / "states"))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path / "a", policy, trainer(tmp_path / "a", 7, StepMetrics(), keep, StopAfter(4)))
    (state,) = (tmp_path / "states").iterdir()
    rows = fit(tmp_path / "b", policy, trainer(tmp_path / "b", 7, StepMetrics()), ckpt=state)
    assert [row["step"] for row in rows] == ["3", "4", "5", "6"]
    for name in ("tokens", "weight_mass", "batch_ess"):
        assert column(rows, name) == column(whole[3:], name)


@pytest.mark.parametrize("tied", [True, False])
def test_mfu_of_a_known_device_is_the_hand_computed_one(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    """A step a second on a device with a peak of 1e9; the head meets tokens with loss alone."""
    monkeypatch.setattr(progress_module, "monotonic", Ticks())
    monkeypatch.setattr(progress_module, "peak_flops", lambda device: 1e9)
    model = tiny_model(vocab=64, tie_word_embeddings=tied)
    data = WeightedDataModule.from_table(TABLE, policy, batch_size=5, seed=3)
    trainer(tmp_path, 3, StepMetrics()).fit(WeightedSFT.from_model(model, 1e-3), datamodule=data)
    # Two layers of q and o (32×32), k and v (32×16), three of 32×64 and two norms; a norm.
    body, head = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32, 64 * 32
    lengths, _, _ = planned(3, "loss")
    with (tmp_path / "metrics.csv").open() as file:
        found = column(list(csv.DictReader(file)), "mfu")
    wanted = [6 * (body * sum(n) + head * r) / 1e9 for n, r in zip(lengths, supervised(3), strict=True)]
    assert found == pytest.approx(wanted, rel=1e-12)


def test_a_frozen_parameter_costs_no_gradient_of_its_own(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "monotonic", Ticks())
    monkeypatch.setattr(progress_module, "peak_flops", lambda device: 1e9)
    model = tiny_model(vocab=64, tie_word_embeddings=False)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    data = WeightedDataModule.from_table(TABLE, policy, batch_size=5, seed=3)
    run = trainer(tmp_path, 1, StepMetrics())
    run.fit(WeightedSFT.from_model(model, 1e-3), datamodule=data)
    frozen = sum(p.numel() for p in model.model.layers.parameters()) + 32
    lengths, _, _ = planned(1, "loss")
    wanted = (4 * frozen * sum(lengths[0]) + 6 * 64 * 32 * supervised(1)[0]) / 1e9
    assert float(run.callback_metrics["mfu"]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("A GPU of tomorrow", None),
    ],
)
def test_a_peak_is_known_by_the_whole_name_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda:0")) == peak
    assert peak_flops(torch.device("cpu")) is None


def test_the_log_holds_a_column_for_each_figure(tmp_path: Path, policy: str) -> None:
    rows = fit(tmp_path, policy, trainer(tmp_path, 2, StepMetrics()))
    assert set(rows[0]) >= FIGURES | {"loss", "lr", "grad_norm", "step"}
    assert all(row[name] for row in rows for name in FIGURES)


def test_the_line_reads_as_documented() -> None:
    assert step_line(120, 200, 754.4, FULL) == (
        "step 120/200  ETA 0:12:34  loss 0.5123  123k tok/s  mass 34%  ESS 96  MFU 41%"
    )
    assert step_line(1, 9, 90_061, {"loss": 312.07}) == "step 1/9  ETA 25:01:01  loss 312.1"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.04, "0.0"),
        (3.21, "3.2"),
        (9.96, "10"),
        (950, "950"),
        (999.7, "1.0k"),
        (1234, "1.2k"),
        (12_345, "12k"),
        (999_700, "1.0M"),
        (4.5e7, "45M"),
        (1e18, "1000000T"),
    ],
)
def test_figures_are_short(value: float, shown: str) -> None:
    assert step_line(1, 1, 0, {"tokens_per_s": value}).split("  ")[2] == f"{shown} tok/s"


def console(width: int, *, terminal: bool) -> tuple[io.StringIO, dict[str, Any]]:
    out = io.StringIO()
    forced = {"force_terminal": terminal, "force_interactive": terminal, "force_jupyter": False}
    return out, {"file": out, "width": width, "color_system": None, **forced}


@pytest.mark.parametrize(("width", "has_bar"), [(80, False), (100, True)])
def test_a_terminal_shows_the_whole_line(tmp_path: Path, policy: str, width: int, has_bar: bool) -> None:
    out, settings = console(width, terminal=True)
    bar = StepProgressBar(console_kwargs=settings)
    run = trainer(tmp_path, 3, bar)
    fit(tmp_path, policy, run, val_share=0.3)
    assert bar.progress is not None
    (task,) = [task for task in bar.progress.tasks if task.id == bar.train_progress_bar_id]
    bar.progress.update(task.id, line=step_line(120, 200, 754.4, FULL), completed=120, visible=True)
    plain, _ = console(width, terminal=False)
    rich.console.Console(file=plain, width=width).print(bar.progress.get_renderable())
    (line,) = [row for row in plain.getvalue().splitlines() if row.strip()]
    assert step_line(120, 200, 754.4, FULL) in line
    assert ("━" in line) == has_bar
    assert "step 3/3  ETA 0:00:00  loss " in out.getvalue(), "the last line stays on the screen"


def test_where_there_is_no_terminal_a_line_is_printed_each_tenth(tmp_path: Path, policy: str) -> None:
    out, settings = console(20, terminal=False)
    fit(tmp_path, policy, trainer(tmp_path, 40, StepMetrics(), StepProgressBar(console_kwargs=settings)))
    lines = out.getvalue().splitlines()
    steps = [int(line.split("/")[0].removeprefix("step ")) for line in lines]
    assert steps == [1, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40]
    for line in lines:
        assert all(word in line for word in ("ETA ", "loss ", "tok/s", "mass ", "ESS ")), line


def test_a_slow_run_breaks_a_long_silence(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Ticks):
        def __call__(self) -> float:
            self.now += 250
            return self.now

    monkeypatch.setattr(progress_module, "monotonic", Slow())
    out, settings = console(80, terminal=False)
    fit(tmp_path, policy, trainer(tmp_path, 100, StepProgressBar(console_kwargs=settings), StopAt(10)))
    lines = out.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == ["step 1", "step 4", "step 7", "step 10"]
    # Steps of 250 s: 99 to go, then 96, …
    assert [line.split("  ")[1] for line in lines[:2]] == ["ETA 6:52:30", "ETA 6:40:00"]


class StopAt(StopAfter):
    """Ends a fit early and in peace."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def test_the_eta_of_a_resumed_run_counts_its_own_steps(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = LastCheckpoint(4, dirpath=str(tmp_path / "states"))
    fit(tmp_path / "a", policy, trainer(tmp_path / "a", 4, keep))
    (state,) = (tmp_path / "states").iterdir()
    monkeypatch.setattr(progress_module, "monotonic", Ticks())
    out, settings = console(80, terminal=False)
    bar = StepProgressBar(console_kwargs=settings)
    fit(tmp_path / "b", policy, trainer(tmp_path / "b", 10, bar), ckpt=state)
    lines = [line.split("  ")[:2] for line in out.getvalue().splitlines()]
    assert lines == [[f"step {step}/10", f"ETA 0:00:{10 - step:02}"] for step in range(5, 11)]


def test_other_ranks_print_nothing(tmp_path: Path, policy: str) -> None:
    out, settings = console(80, terminal=False)
    bar = StepProgressBar(console_kwargs=settings)

    class Second(StopAfter):
        def setup(self, *args: Any, **kwargs: Any) -> None:
            bar.disable()

    fit(tmp_path, policy, trainer(tmp_path, 3, Second(99), bar))
    assert out.getvalue() == ""
