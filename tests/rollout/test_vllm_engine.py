"""Rollouts with vLLM itself, against transformers on the same folder (uv run pytest -m vllm tests/rollout).

All questions are put in one process of an environment that has vLLM (run_in_vllm.py); here the answers
are judged. DRIFT_VLLM_PYTHON names an interpreter that has vLLM; without it one is made, of the CPU build.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from drift_rollout.engine import Request, Sampling
from drift_rollout.engines.transformers import TransformersEngine
from drift_rollout.rendering import ChatRenderer
from drift_weights.types import Message
from embedded import answers, plain_logprobs, prompt
from rollout.engine_contract import names
from tiny import bpe_tokenizer, save_policy, tiny_model
from vllm_environment import SHAPE, run_script

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]
SCRIPT = Path(__file__).with_name("run_in_vllm.py")
PROMPTS = {"short": prompt(4), "even": prompt(8), "longer": prompt(90)}
PLAN = {
    "user": "Problem: which item has the traits t1 t2 t3 t4? " * 4 + "{problem}",
    "problems": ["t1", "t2", "t3"],
    "new_tokens": 20,
}
GPUS = torch.cuda.device_count() if "DRIFT_VLLM_PYTHON" in os.environ else 0
"""The vLLM that is made for a test is the one for CPUs."""
NEAR = 1e-3
"""Between log-probabilities of float32 kernels, in nats."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy, an adapter for it, the two merged into one, and a policy that often stops."""
    root = tmp_path_factory.mktemp("policies")
    tokenizer = bpe_tokenizer()
    base = save_policy(root / "base", tokenizer, tiny_model("qwen2", **SHAPE))
    targets = ["q_proj", "v_proj", "up_proj"]
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(root / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), root / "adapter")
    save_policy(root / "merged", tokenizer, loaded.merge_and_unload())
    # Stops at one token in ten: some of the contract's responses of 8 tokens, and not all of them.
    stopping = tiny_model("qwen2", **SHAPE)
    save_policy(root / "stopping", tokenizer, stopping)
    stopping.generation_config.eos_token_id = list(range(300, 350))
    stopping.generation_config.save_pretrained(root / "stopping")
    return {name: root / name for name in ("base", "adapter", "merged", "stopping")}


def run(python: str, folders: dict[str, Path], checks: str, root: Path) -> dict[str, Any]:
    """What came out of some of the script's checks."""
    places = {"policy": "base", "adapter": "adapter", "stopping": "stopping"}
    plan = PLAN | {name: str(folders[folder]) for name, folder in places.items()} | {"prompts": PROMPTS}
    (root / "plan.json").write_text(json.dumps(plan | {"checks": checks}))
    run_script(python, SCRIPT, root / "plan.json", root / "answers.json")
    answered: dict[str, Any] = json.loads((root / "answers.json").read_text())
    return answered


@pytest.fixture(scope="module")
def found(
    vllm_python: str, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return run(vllm_python, folders, "everything", tmp_path_factory.mktemp("answers"))


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> TransformersEngine:
    return TransformersEngine(folders["base"], device="cpu")


def check_greedy(answered: dict[str, Any], engine: TransformersEngine) -> None:
    """Tokens, log-probabilities, text and reason are those of the embedded engine."""
    sampling = Sampling(temperature=0.0, max_new_tokens=12)
    expected = answers(
        engine,
        [
            Request(id=name, messages=(), token_ids=ids, sampling=sampling, seed=0)
            for name, ids in PROMPTS.items()
        ],
    )
    assert answered.keys() == expected.keys()
    for name, completion in expected.items():
        got = answered[name]
        assert tuple(got["token_ids"]) == completion.token_ids
        assert got["logprobs"] == pytest.approx(completion.logprobs, abs=NEAR)
        assert (got["text"], got["finish_reason"]) == (completion.text, completion.finish_reason)
        engine.release(name)


def test_greedy_answers_are_those_of_the_transformers_engine(
    found: dict[str, Any], reference: TransformersEngine
) -> None:
    check_greedy(found["greedy"], reference)


def test_the_policy_has_the_same_name_in_both_engines(
    found: dict[str, Any], reference: TransformersEngine
) -> None:
    assert found["facts"] == {
        "policy": reference.policy,
        "seeded": GPUS > 0,
        "concurrency": 16,
        "capacity": 4 * 16,
        "context_length": 256,
    }


def test_logprobs_are_the_unmodified_models(found: dict[str, Any], reference: TransformersEngine) -> None:
    """Temperature and top_p shape what is drawn, not what is reported."""
    model = reference._decoder._model
    for name, ids in PROMPTS.items():
        got = found["hot"][name]
        expected = plain_logprobs(model, ids, tuple(got["token_ids"]))
        assert got["logprobs"] == pytest.approx(expected, abs=NEAR)


def test_responses_stop_at_the_ends_and_nowhere_else(
    found: dict[str, Any], reference: TransformersEngine
) -> None:
    """Both ends of the generation config; a stop token is among the ids and not in the text."""
    tokenizer, seen = reference.tokenizer, set()
    ends = {tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")}
    for got in found["free"].values():
        *before, last = got["token_ids"]
        stopped = got["finish_reason"] == "stop"
        assert ends.isdisjoint(before)
        assert (last in ends) == stopped
        assert stopped or (got["finish_reason"], len(before)) == ("length", 99)
        assert len(got["logprobs"]) == len(before) + 1
        shown = before if stopped else [*before, last]
        assert got["text"] == tokenizer.decode(shown, skip_special_tokens=False)
        seen |= {last, *before}
    assert ends <= seen
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in seen, "a special token that stays in the text"


def test_samples_of_one_prompt_differ(found: dict[str, Any]) -> None:
    """Without seeds too: no two of the draws that reached 100 tokens are alike."""
    drawn = [got["token_ids"] for got in found["free"].values() if got["finish_reason"] == "length"]
    assert len(drawn) > 40
    assert len(set(map(tuple, drawn))) == len(drawn)


def test_a_prompt_that_vllm_refuses_is_an_error_completion(found: dict[str, Any]) -> None:
    refused = found["refused"]
    for name, says in [("long", "length 256"), ("none", "cannot be empty")]:
        assert (refused[name]["finish_reason"], refused[name]["token_ids"]) == ("error", [])
        assert says in refused[name]["error"]
    assert (refused["wide"]["finish_reason"], len(refused["wide"]["token_ids"])) == ("length", 6)


def test_dialogues_grow_by_appending(found: dict[str, Any], reference: TransformersEngine) -> None:
    """Each history is the last one, what was sampled, and the feedback turn; its cache is found again."""
    renderer, model = ChatRenderer(reference.tokenizer), reference._decoder._model
    trajectories = found["dialogues"]["trajectories"]
    assert len(trajectories) == 9
    assert {len(t["turns"]) for t in trajectories} == {3}
    shared = 0
    for trajectory in trajectories:
        assert trajectory["policy"] == reference.policy
        history = renderer.prompt_ids([Message(**message) for message in trajectory["prompt"]])
        shared += len(history) // 32 * 32
        ids, at = tuple(trajectory["token_ids"]), 0
        for (start, end), turn in zip(trajectory["response_spans"], trajectory["turns"], strict=True):
            assert ids[:start] == history
            sampled = ids[start:end]
            logprobs = trajectory["logprobs"][at : (at := at + len(sampled))]
            assert logprobs == pytest.approx(plain_logprobs(model, history, sampled), abs=NEAR)
            stopped = turn["finish_reason"] == "stop"
            feedback = "Incorrect. Please think again."
            history = renderer.next_ids(history, sampled, feedback, stopped=stopped)
        assert ids[end:] == ()
    # Every later turn, and all samples of a prompt but the first, find at least the prompt's blocks.
    assert found["dialogues"]["cached"] >= shared * (3 - 1) + shared * (3 - 1) // 3


def test_a_released_request_never_completes_and_its_id_is_free(found: dict[str, Any]) -> None:
    released = found["released"]
    assert released.pop("waited") < 5
    assert released == {"early": 0, "idle": 0, "lengths": [3], "late": 0, "unfinished": 0}


def test_an_id_outside_the_vocabulary_is_refused(found: dict[str, Any]) -> None:
    assert found["outside"][0] == "ValueError"
    assert "token 512, outside the vocabulary of 512" in found["outside"][1]


def test_a_closed_engine_leaves_no_process(found: dict[str, Any]) -> None:
    assert found["children"] == []
    assert found["closed"][0] == "RuntimeError"


def test_an_adapter_answers_as_its_merged_model_under_a_name_of_its_own(
    found: dict[str, Any], folders: dict[str, Path], reference: TransformersEngine
) -> None:
    merged = TransformersEngine(folders["merged"], device="cpu")
    check_greedy(found["adapted"], merged)
    assert found["adapted"] != found["greedy"]
    assert found["adapter"]["policy"] not in (reference.policy, merged.policy)


@pytest.mark.parametrize("check", names)
def test_it_keeps_the_contract(found: dict[str, Any], check: str) -> None:
    wrong = found["contract"][check]
    assert not wrong, wrong


def test_a_dead_engine_raises(found: dict[str, Any]) -> None:
    death = found["death"]
    for kind, message in (death["polled"], death["submitted"]):
        assert kind == "EngineError"
        assert "engine died" in message
    assert death["seconds"] < 60


@pytest.mark.skipif(GPUS < 1, reason="needs a GPU and a vLLM for it")
def test_equal_seeds_give_equal_answers(vllm_python: str, folders: dict[str, Path], tmp_path: Path) -> None:
    seeded = run(vllm_python, folders, "seeds", tmp_path)
    first, again = ({k: c["token_ids"] for k, c in seeded[name].items()} for name in ("first", "again"))
    assert first == again
    assert len({tuple(ids) for ids in first.values()}) == 8


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs and a vLLM for them")
def test_two_devices_answer_as_one(
    vllm_python: str, folders: dict[str, Path], reference: TransformersEngine, tmp_path: Path
) -> None:
    found = run(vllm_python, folders, "parallel", tmp_path)
    assert [found[name]["concurrency"] for name in ("tensor_parallel_size", "data_parallel_size")] == [
        16,
        32,
    ]
    for answered in found.values():
        check_greedy(answered["greedy"], reference)
