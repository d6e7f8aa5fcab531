"""Every strategy takes the same steps as one device, and any of them goes on from what another saved."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import AutoModelForCausalLM

from drift_train import export, newest, read_state
from tiny import bpe_tokenizer, save_policy, tiny_gemma3, tiny_model
from train.launching import commands, environment

SCRIPT = Path(__file__).with_name("fit_ranks.py")
LIMIT = 240
STEPS = 6
MIXED = {"precision": "bf16-mixed"}
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "every": 3,
    "module": {"gradient_clip": 1.0, "warmup_share": 0.5},
}
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
)
ADAPTER = {"module": {**SETTINGS["module"], "lora": {"rank": 4}, "gradient_checkpointing": True}}


class Runs:
    """Fits in processes of their own, under a folder, by name."""

    def __init__(self, folder: Path, accelerator: str) -> None:
        self.folder = folder
        self.accelerator = accelerator
        # Where there is one CUDA device, every strategy runs on that one.
        self.ranks = 2 if accelerator == "cpu" else min(2, torch.cuda.device_count())
        for name, dropout in {"plain": 0.0, "dropping": 0.1}.items():
            # Tied embeddings and an odd vocabulary: shared and unequal shards.
            shape = {"vocab": 67, "tie_word_embeddings": True, "attention_dropout": dropout}
            save_policy(folder / name, bpe_tokenizer(), tiny_model("qwen2", **shape))
        save_policy(folder / "multimodal", bpe_tokenizer(), tiny_gemma3(vocab=67))

    def settings(self, name: str, **changes: Any) -> dict[str, Any]:
        out = {"out": str(self.folder / f"{name}.pt"), "checkpoints": str(self.folder / name)}
        where = {"name": name, "model": str(self.folder / "plain"), "accelerator": self.accelerator}
        return {**where, **SETTINGS, **out, **changes}

    def start(self, runs: list[dict[str, Any]], *, nodes: int = 1) -> list[subprocess.Popen[str]]:
        """One process a node; torchrun makes the ranks."""
        todo = self.folder / f"{runs[0]['name']}.json"
        todo.write_text(json.dumps(runs))
        ranks = runs[0].get("ranks", 1)
        # cuBLAS repeats its bits with a workspace of fixed size.
        surroundings = environment(CUBLAS_WORKSPACE_CONFIG=":4096:8")
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return [
            subprocess.Popen(command, env=surroundings, **pipes)
            for command in commands(SCRIPT, todo, ranks=ranks, nodes=nodes)
        ]

    def run(self, *runs: dict[str, Any], nodes: int = 1) -> None:
        for process in self.start(list(runs), nodes=nodes):
            _, words = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, words[-3000:]

    def parts(self, strategy: str, ranks: int = 1) -> list[dict[str, Any]]:
        """With dropout: straight, from 3, and from 1, 2, 4, 5 one after the other."""
        settings = {"strategy": strategy, "ranks": ranks, "model": str(self.folder / "dropping")}
        name = f"{strategy}-straight"
        half = str(self.folder / name / "step-000003")
        todo = [self.settings(name, **settings), self.settings(f"{name}-half", resume=half, **settings)]
        before = None
        for stop in (1, 2, 4, 5, STEPS):
            todo.append(self.settings(f"{name}-{stop}", every=1, stop=stop, resume=before, **settings))
            before = str(self.folder / f"{name}-{stop}")
        return todo

    def noted(self, name: str) -> dict[str, Any]:
        return dict(torch.load(self.folder / f"{name}.pt"))

    def end(self, name: str) -> dict[str, torch.Tensor]:
        return whole_tensors(self.folder / name / f"step-{STEPS:06d}")


@pytest.fixture(scope="module", params=["cpu", CUDA])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All fits of this module in three starts, because a start costs more than a fit."""
    made = Runs(tmp_path_factory.mktemp("runs"), request.param)
    alone, backs = {"strategy": "single"}, []
    first = [made.settings("single", **alone), made.settings("single-bf16", **alone, **MIXED)]
    first.append(made.settings("single-lora", **alone, **ADAPTER))
    tower = {"model": str(made.folder / "multimodal")}
    first.append(made.settings("single-tower", **alone, **tower))
    made.run(*first, *made.parts(**alone))
    pair: list[dict[str, Any]] = []
    for strategy in ("ddp", "fsdp2", "fsdp"):
        both = {"strategy": strategy, "ranks": made.ranks}
        half = str(made.folder / strategy / "step-000003")
        other = str(made.folder / "single/step-000003")
        pair.append(made.settings(strategy, **both))
        pair.append(made.settings(f"{strategy}-resumed", resume=half, **both))
        pair.append(made.settings(f"{strategy}-taken", resume=other, **both))
        backs.append(made.settings(f"{strategy}-back", resume=half, **alone))
        half = str(made.folder / f"{strategy}-tower/step-000003")
        pair.append(made.settings(f"{strategy}-tower", **both, **tower))
        pair.append(made.settings(f"{strategy}-tower-resumed", resume=half, **both, **tower))
    shards = {"strategy": "fsdp2", "ranks": made.ranks}
    pair.append(made.settings("fsdp2-bf16", **shards, **MIXED))
    lora = {"resume": str(made.folder / "lora/step-000003"), **shards, **ADAPTER}
    pair += [made.settings("lora", **shards, **ADAPTER), made.settings("lora-resumed", **lora)]
    offload = made.settings("offload", options={"cpu_offload": True}, **shards)
    # A group of CUDA devices does not speak for the host, and a process makes only one.
    starts = [[*pair, offload]] if made.accelerator == "cpu" else [pair, [offload]]
    made.run(*starts[0], *made.parts(**shards))
    for more in starts[1:]:
        made.run(*more)
    made.run(*backs)
    return made


def whole_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Parameters and moments of a state, put together from its shards."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {}
    for name, meta in found.items():
        assert isinstance(meta, TensorStorageMetadata)
        tensors[name] = torch.full(meta.size, float("nan"), dtype=meta.properties.dtype)
    load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert not any(tensor.isnan().any() for tensor in tensors.values())
    return tensors


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def close(found: list[float], wanted: list[float]) -> bool:
    return len(found) == len(wanted) and found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("strategy", ["single", "fsdp2"])
def test_any_list_of_resume_points_ends_in_the_same_bits(runs: Runs, strategy: str) -> None:
    name = f"{strategy}-straight"
    straight = runs.noted(name)
    for other in (f"{name}-half", f"{name}-{STEPS}"):
        assert distance(runs.end(other), runs.end(name)) == 0
        assert torch.equal(runs.noted(other)["rng"], straight["rng"])
    assert runs.noted(f"{name}-half")["losses"] == straight["losses"][3:]
    assert straight["losses"] != runs.noted("single")["losses"], "dropout was on"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp"])
def test_two_ranks_take_the_steps_of_one_and_resume(runs: Runs, strategy: str) -> None:
    """The same losses and norms (1e-5); then 3 + 3 steps, and from what one device saved, and back."""
    alone, found = runs.noted("single"), runs.noted(strategy)
    assert close(found["losses"], alone["losses"])
    assert close(found["norms"], alone["norms"])
    assert distance(runs.end(strategy), runs.end("single")) < 1e-5
    again = distance(runs.end(f"{strategy}-resumed"), runs.end(strategy))
    assert again <= (1e-6 if strategy == "fsdp" else 0)
    for moved in ("taken", "back"):
        assert distance(runs.end(f"{strategy}-{moved}"), runs.end("single")) < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp"])
def test_a_vision_tower_that_no_text_reaches_is_in_nobodys_way(runs: Runs, strategy: str) -> None:
    found = runs.noted(f"{strategy}-tower")
    assert close(found["losses"], runs.noted("single-tower")["losses"])
    again = distance(runs.end(f"{strategy}-tower-resumed"), runs.end(f"{strategy}-tower"))
    assert again <= (1e-6 if strategy == "fsdp" else 0)


@pytest.mark.parametrize("runs", [CUDA], indirect=True)
def test_a_cuda_device_takes_the_steps_of_a_cpu(runs: Runs) -> None:
    runs.run(runs.settings("host", strategy="single", accelerator="cpu"))
    wanted, found = runs.noted("host"), runs.noted("single")
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-4)
    assert found["norms"] == pytest.approx(wanted["norms"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++, which is not there")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp"])
def test_compiled_blocks_take_the_same_steps_in_shards(runs: Runs, strategy: str) -> None:
    """And adapters with blocks that are computed again; each state has the names of the uncompiled one."""
    settings = {"strategy": strategy, "ranks": runs.ranks}
    cases = {"single": SETTINGS["module"], "single-lora": ADAPTER["module"]}
    if strategy == "fsdp":
        del cases["single-lora"]
    todo = [
        runs.settings(f"{strategy}-{name}-compiled", **settings, module={**module, "compile": True})
        for name, module in cases.items()
    ]
    runs.run(*todo)
    for name in cases:
        found = f"{strategy}-{name}-compiled"
        assert close(runs.noted(found)["losses"], runs.noted(name)["losses"])
        assert distance(runs.end(found), runs.end(name)) < 1e-4


@pytest.mark.slow
def test_two_nodes_of_one_process_are_two_ranks(runs: Runs) -> None:
    if runs.ranks < 2:
        pytest.skip("there is one CUDA device")
    runs.run(runs.settings("nodes", strategy="fsdp2", ranks=2, nodes=2), nodes=2)
    assert close(runs.noted("nodes")["losses"], runs.noted("single")["losses"])


def test_bf16_follows_float32(runs: Runs) -> None:
    """Half-precision arithmetic, float32 parameters: within a few per cent, and not the same."""
    wanted = runs.noted("single")["losses"]
    for name in ("single-bf16", "fsdp2-bf16"):
        found = runs.noted(name)["losses"]
        assert found == pytest.approx(wanted, rel=0.05)
        assert found != pytest.approx(wanted, rel=1e-6)
        assert {tensor.dtype for tensor in runs.end(name).values()} == {torch.float32}


def test_shards_kept_on_the_host_take_the_same_steps(runs: Runs) -> None:
    assert close(runs.noted("offload")["losses"], runs.noted("single")["losses"])
    assert distance(runs.end("offload"), runs.end("single")) < 1e-5


def test_sharded_adapters_take_the_steps_of_one_device_and_resume(runs: Runs) -> None:
    """With blocks that are computed again in the backward."""
    assert close(runs.noted("lora")["losses"], runs.noted("single-lora")["losses"])
    # AdamW divides by the root of tiny gradients here: B starts at zero.
    assert distance(runs.end("lora"), runs.end("single-lora")) < 1e-4
    assert distance(runs.end("lora-resumed"), runs.end("lora")) == 0
    assert all("lora_" in name for name in runs.end("lora"))
    out = export(runs.folder / "lora", runs.folder / "lora-exported")
    other = export(runs.folder / "single-lora", runs.folder / "single-lora-exported")
    ids = torch.tensor([[3, 4, 5]])
    one, two = (AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (out, other))
    assert torch.allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp"])
def test_an_export_of_every_strategy_is_the_policy_that_was_saved(runs: Runs, strategy: str) -> None:
    out = export(runs.folder / strategy, runs.folder / f"{strategy}-exported")
    model = AutoModelForCausalLM.from_pretrained(out)
    saved = runs.end(strategy)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[f"model.model.{name}"]), name
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.slow
def test_kill_9_during_saves_leaves_a_state_that_loads(runs: Runs) -> None:
    """Killed at some moment of a run that saves at every step; then the newest goes on to the same end."""
    settings = {"strategy": "fsdp2", "ranks": runs.ranks}
    for number, delay in enumerate((0.0, 0.05, 0.15)):
        name = f"killed{number}"
        (process,) = runs.start([runs.settings(name, every=1, **settings)])
        folder = runs.folder / name
        limit = time.monotonic() + LIMIT
        while not any(folder.glob("step-00000[2-9]")) and time.monotonic() < limit:
            time.sleep(0.005)
        time.sleep(delay)
        end_tree(process)
        state = read_state(newest(folder))
        assert 2 <= state.step <= STEPS
        runs.run(runs.settings(f"{name}-on", resume=str(state.folder), **settings))
        assert distance(runs.end(f"{name}-on"), runs.end("fsdp2")) == 0


def end_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL for torchrun and the ranks that it made."""
    for child in psutil.Process(process.pid).children(recursive=True):
        child.send_signal(signal.SIGKILL)
    process.kill()
    process.wait(timeout=LIMIT)
