"""The benchmark of a training step: its rows, its gradient check, its arithmetic, and that it runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quickstart
from drift_train import WeightedDataModule
from quickstart import Scale

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
data = importlib.import_module("train_data")
peers = importlib.import_module("train_peers")
report = importlib.import_module("train_report")
batches = importlib.import_module("train_batches")
policy = importlib.import_module("train_policy")
# By its place: `train` is a package of tests.
spec = importlib.util.spec_from_file_location("benchmark_of_training", BENCHMARKS / "train.py")
assert spec is not None
assert spec.loader is not None
train = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = train
spec.loader.exec_module(train)

TINY = data.SHAPES["tiny"]


def first_gradient(name: str, folder: Path) -> torch.Tensor:
    """What a contender's first step descends, in this process."""
    file = folder / "gradient.pt"
    watch = peers.Watch(device="cpu", gradient=file)
    peers.CONTENDERS[name](peers.Job(shape=TINY, device="cpu", steps=1, folder=folder, watch=watch))
    wall, cpu = watch.seconds(0)
    assert wall > 0
    assert cpu > 0
    return torch.load(file)


@pytest.fixture(scope="module")
def formula(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return first_gradient("literal", tmp_path_factory.mktemp("formula"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "compiled" in name else [])
        for name in peers.CONTENDERS
        if "literal" not in name
    ],
)
def test_every_contender_descends_the_formula(name: str, formula: torch.Tensor, tmp_path: Path) -> None:
    found = first_gradient(name, tmp_path)
    if name in train.ORACLES:
        with pytest.raises(ValueError, match="off the formula's"):
            train.check_gradient(name, found, formula, train.LARGEST["cpu"])
        formula = first_gradient(train.ORACLES[name], tmp_path)
    assert train.check_gradient(name, found, formula, train.LARGEST["cpu"]) < 1e-5


def test_weights_that_are_left_out_are_found(
    formula: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = WeightedDataModule.from_table

    def unweighted(*args: Any, **settings: Any) -> Any:
        return whole(*args, **settings, weighting="none")

    monkeypatch.setattr(WeightedDataModule, "from_table", unweighted)
    found = first_gradient("ours", tmp_path)
    with pytest.raises(ValueError, match=r"the gradient of ours is .* off the formula's, more than 1e-05"):
        train.check_gradient("ours", found, formula, train.LARGEST["cpu"])


def test_a_token_that_is_left_out_is_found(
    formula: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = peers.padded

    def without_the_last(examples: Any) -> Any:
        batch = whole(examples)
        batch["labels"][0, len(examples[0]["input_ids"]) - 1] = -100
        return batch

    monkeypatch.setattr(peers, "padded", without_the_last)
    found = first_gradient("authors", tmp_path)
    with pytest.raises(ValueError, match="the gradient of authors is"):
        train.check_gradient("authors", found, formula, train.LARGEST["cpu"])


def test_a_gradient_that_is_not_a_number_is_refused(formula: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="the gradient of ours is nan off"):
        train.check_gradient("ours", formula * float("nan"), formula, 1e-5)


def test_rows_are_dialogues_of_whole_groups() -> None:
    table = data.rows(data.SHAPES["0.5B"])
    rows = table.to_pylist()
    assert len(rows) == 8 * 16
    weights = table.column("weight").to_numpy().reshape(8, 16)
    np.testing.assert_allclose(weights.sum(1), 16)
    for row in rows:
        spans, ids = row["response_spans"], row["input_ids"]
        assert 100 <= spans[0]["start"] <= 250
        assert all(30 <= span["end"] - span["start"] <= 150 for span in spans)
        assert spans[-1]["end"] == len(ids)
        assert len(spans) == row["length"] <= 5
        assert row["solved"] or row["length"] == 5
    assert len({row["length"] for row in rows}) == 5, "ragged"
    same = {tuple(row["input_ids"][: row["response_spans"][0]["start"]]) for row in rows[:16]}
    assert len(same) == 1, "samples share their prompt"


def test_unique_tokens_are_those_of_a_trie() -> None:
    table = data.rows(TINY)
    nodes = {tuple(row[: n + 1]) for row in table.column("input_ids").to_pylist() for n in range(len(row))}
    found = data.size(TINY, table)
    assert found.unique == len(nodes) < found.tokens
    model = data.model(TINY, "cpu")
    assert found.body + found.head == sum(p.numel() for p in model.parameters())
    assert found.head == model.lm_head.weight.numel()


def test_the_limit_is_the_arithmetic_by_the_rate() -> None:
    size = data.Size(body=100, head=50, rows=2, tokens=30, unique=20, responses=8)
    assert size.limit(6.0) == pytest.approx(100 * 20 + 50 * 8)
    assert size.useful(2.0, 6.0) == pytest.approx((100 * 30 + 50 * 8) / 2)


def result(**seconds: list[float]) -> Any:
    runs = {
        name.replace("__", ", ").replace("_", " "): [
            report.Run(wall=s, cpu=s, peak=round(1e6 * s), first=s) for s in values
        ]
        for name, values in seconds.items()
    }
    size = data.Size(body=100, head=50, rows=2, tokens=30, unique=20, responses=8)
    return report.Result(
        shape="x",
        device="cpu",
        name="y",
        size=size,
        rate=None,
        distances=dict.fromkeys(runs, 0.0),
        runs=runs,
        failed={},
    )


def test_what_was_wanted_is_held_against_the_best_peer() -> None:
    found = result(
        ours=[1.0, 2.0, 1.0],
        ours__shared=[0.5, 0.5, 0.5],
        TRL_a=[2.0, 2.0, 2.0],
        TRL_b=[1.2, 1.2, 9.0],
        authors=[3.0, 3.1, 2.0],
    )
    assert found.ratios("authors") == [3.0, 1.55, 2.0]
    said = {row[0]: (row[2], row[3]) for row in report.wanted_rows(found)}
    assert said["ours: speed ÷ authors"] == ("3.00", True)
    assert said["ours: speed ÷ best TRL"] == ("1.20", False)
    assert said["ours: peak ÷ leanest peer"] == ("1.00", True)
    assert said["ours, shared: speed ÷ best TRL"] == ("2.40", True)


def test_what_fails_is_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(name: str, shape: str, device: str, steps: int, warm_up: int, gradient: Path) -> Any:
        if name == "authors":
            raise RuntimeError("authors ended with 1: no room")
        torch.save(torch.full((3,), 2.0 if name == "TRL, padded" else 1.0), gradient)
        return report.Run(wall=1.0, cpu=1.0, peak=10, first=1.0)

    monkeypatch.setattr(train, "measure", measure)
    names = ("ours", "TRL, padded", "authors", "TRL, by length")
    found = train.compare("tiny", "cpu", names, rounds=2, steps=1, warm_up=0)
    assert {name: len(runs) for name, runs in found.runs.items()} == {"ours": 2, "TRL, by length": 2}
    assert found.failed["authors"] == "authors ended with 1: no room"
    assert "the gradient of TRL, padded is 1.0e+00 off" in found.failed["TRL, padded"]
    assert "left out: authors ended with 1: no room" in capsys.readouterr().err
    report.show(report.Console(quiet=True), found)
    monkeypatch.setattr(train, "LARGEST", {"cpu": -1.0})
    with pytest.raises(ValueError, match="the gradient of ours is"):
        train.compare("tiny", "cpu", names, rounds=1, steps=1, warm_up=0)


@pytest.mark.parametrize("collate", [batches.padded, batches.end_to_end])
def test_the_loss_that_trl_has_on_a_gpu_is_the_one_of_all_logits(collate: Any) -> None:
    """Its fused head, padded and padding-free, where sdpa keeps rows apart by their positions."""
    from trl.trainer.utils import add_fused_lm_head

    policy = data.model(TINY, "cpu")
    add_fused_lm_head(policy)
    rows = []
    for row in data.rows(TINY).to_pylist()[:4]:
        start, ids = row["response_spans"][-1]["start"], row["input_ids"]
        labels = [-100] * start + ids[start:]
        rows.append({"input_ids": ids, "labels": labels, "weight": row["weight"]})
    found, batch = {}, collate(rows)
    for name, loss in (
        ("fused", batches.fused_head_loss(policy, batch)),
        ("all", batches.full_logits_loss(policy, batch)),
        ("apart", sum(batches.full_logits_loss(policy, batches.padded([row])) for row in rows)),
    ):
        policy.zero_grad()
        loss.backward()
        found[name] = peers.sampled_gradient(policy)
    for name in ("all", "apart"):
        assert train.check_gradient("TRL", found["fused"], found[name], 1e-5) < 1e-5


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    script = BENCHMARKS / "train.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--out", str(out)],
        check=True,
        timeout=900,
        capture_output=True,
        text=True,
    )
    (found,) = json.loads(out.read_text())["results"]
    assert list(found["runs"]) == list(train.CONTENDERS["cpu"])
    assert all(run["cpu"] > 0 and run["peak"] > 0 for runs in found["runs"].values() for run in runs)
    assert "speed ÷ authors" in done.stdout


def test_a_climb_ends_at_the_target_or_says_that_it_did_not_get_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart.hush()
    monkeypatch.setattr(policy, "EVERY", 1)
    tiny = Scale(
        reference_problems=60, reference_steps=12, prompts=12, samples=8, steps=3, validation=5, heldout=5
    )
    console = report.Console(quiet=True)
    with quickstart.world_stage(0, tiny, tmp_path, console) as stage:
        reference = quickstart.reference_policy(stage)
        turns = quickstart.rollouts(stage, reference)
        there = policy.climb(stage, "resample", turns, reference, 0.0)
        never = policy.climb(stage, "loss", turns, reference, 1.1)
    assert there.steps == (1,)
    assert there.reached(0.0) == (1, there.seconds[0])
    assert never.steps == (1, 2, 3)
    assert never.reached(1.1) is None
    assert 0 < never.seconds[0] < never.seconds[2]
