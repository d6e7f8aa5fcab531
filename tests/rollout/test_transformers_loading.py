"""The embedded engine's fronts: loading, stops, the policy's name, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonargparse
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drift_rollout.engine import Request, Sampling
from drift_rollout.engines import transformers as transformers_engine
from drift_rollout.engines.transformers import TransformersEngine
from drift_weights.fingerprint import folder_weights
from tiny import bpe_tokenizer, save_policy, tiny_model


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine take longer than these models need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(**options: Any) -> TransformersEngine:
    return TransformersEngine(tiny_model(), tokenizer=bpe_tokenizer(), **options)


def ask(
    name: str, ids: tuple[int, ...] | None = (5, 6, 7), *, seed: int = 0, continues: str | None = None
) -> Request:
    sampling = Sampling(max_new_tokens=100)
    return Request(id=name, messages=(), token_ids=ids, sampling=sampling, seed=seed, continues=continues)


@pytest.mark.parametrize("pad", [True, False])
def test_a_folder_stops_at_its_ends_and_nowhere_else(pad: bool, tmp_path: Path) -> None:
    """The generation config names two ends; a pad token that is sampled is a token like others."""
    tokenizer = bpe_tokenizer(pad=pad)
    engine = TransformersEngine(save_policy(tmp_path / "policy", tokenizer, tiny_model()), device="cpu")
    ends = {tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")}
    engine.submit([ask(f"r{n}", seed=n) for n in range(40)])
    seen, got = set(), 0
    while got < 40:
        for completion in engine.poll():
            got += 1
            *before, last = completion.token_ids or ()
            assert ends.isdisjoint(before)
            assert (last in ends) == (completion.finish_reason == "stop")
            assert len(before) == 99 or last in ends
            seen |= {last, *before}
    assert ends <= seen
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in seen
    assert not pad or tokenizer.pad_token_id in seen


def test_a_command_line_can_name_it(tmp_path: Path) -> None:
    """Engines are chosen by import path in a configuration file."""
    folder = save_policy(tmp_path / "policy", bpe_tokenizer(), tiny_model())
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(TransformersEngine, "engine")
    config = parser.parse_object(
        {"engine": {"model": str(folder), "device": "cpu", "dtype": "bfloat16", "max_slots": 4}}
    )
    engine = parser.instantiate(config).engine
    assert engine.concurrency == 4
    assert engine.seeded


@pytest.mark.parametrize("change", ["copied", "weight", "template"])
def test_policy_names_weights_and_template_wherever_they_lie(change: str, tmp_path: Path) -> None:
    def policy(folder: Path) -> str:
        return TransformersEngine(folder, device="cpu").policy

    first = save_policy(tmp_path / "first", bpe_tokenizer(), tiny_model())
    model, tokenizer = tiny_model(), bpe_tokenizer()
    if change == "copied":
        other = Path(shutil.copytree(first, tmp_path / "other"))
    else:
        if change == "weight":
            with torch.no_grad():
                model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
        else:
            tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant: ")
        other = save_policy(tmp_path / "other", tokenizer, model)
    assert (policy(first) == policy(other)) == (change == "copied")


def test_a_hub_model_has_one_name_from_its_first_use_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's folder holds the configuration alone until loading brings the weights."""
    source = save_policy(tmp_path / "source", bpe_tokenizer(), tiny_model())
    expected = TransformersEngine(source, device="cpu").policy
    cache = tmp_path / "cache"
    cache.mkdir()
    shutil.copy(source / "config.json", cache)

    def config_of(name: str, file: str, revision: str) -> str:
        assert (name, file, revision) == ("some/model", "config.json", "c" * 40)
        return str(cache / file)

    def loading(load: Any) -> Any:
        def load_from_cache(name: str, *, revision: str, **options: Any) -> Any:
            assert (name, revision) == ("some/model", "c" * 40)
            shutil.copytree(source, cache, dirs_exist_ok=True)
            return load(cache, **options)

        return load_from_cache

    def only_tokenizer(name: str, **_: Any) -> Any:
        return AutoTokenizer.from_pretrained(source)

    monkeypatch.setattr(transformers_engine, "commit_of", lambda name, revision: "c" * 40)
    monkeypatch.setattr(transformers_engine, "cached_file", config_of)
    monkeypatch.setattr(
        transformers_engine,
        "AutoModelForCausalLM",
        SimpleNamespace(from_pretrained=loading(AutoModelForCausalLM.from_pretrained)),
    )
    monkeypatch.setattr(
        transformers_engine, "AutoTokenizer", SimpleNamespace(from_pretrained=only_tokenizer)
    )
    for _ in ("cold", "warm"):
        assert TransformersEngine("some/model", device="cpu").policy == expected


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    tiny_model().save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    before = folder_weights(folder)
    (folder / "consolidated.safetensors").write_bytes(b"the same weights, which transformers does not load")
    assert folder_weights(folder) == before
    shards[0].write_bytes(shards[0].read_bytes() + b"x")
    assert folder_weights(folder) != before
    shards[-1].unlink()
    with pytest.raises(ValueError, match=rf"{shards[-1].name} \(1 in all\) not there"):
        folder_weights(folder)


def test_no_weight_file_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"half of a policy")
    assert folder_weights(tmp_path) is None


def test_policy_of_a_loaded_model() -> None:
    def policy(model: Any, tokenizer: Any = None) -> str:
        return TransformersEngine(model, tokenizer=tokenizer or bpe_tokenizer()).policy

    changed = tiny_model()
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template += " "
    assert policy(tiny_model()) == policy(tiny_model())
    assert policy(changed) != policy(tiny_model())
    assert policy(tiny_model(), tokenizer) != policy(tiny_model())


def test_bad_requests_are_refused_whole() -> None:
    engine = build()
    for bad, message in [
        (ask("good"), "'good' exists already"),
        (ask("b", None), "'b' has no token_ids"),
        (ask("b", (1, 512)), "'b' has token 512, outside the vocabulary of 512"),
        (ask("b", (-1, 5)), "'b' has token -1, outside"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.submit([ask("good"), bad])
        assert engine.poll() == []
    engine.submit([ask("good")])
    with pytest.raises(ValueError, match="continues 'good', still running"):
        engine.submit([ask("c", continues="good")])


def test_an_empty_prompt_is_an_error_completion() -> None:
    engine = build()
    engine.submit([ask("a", ())])
    assert [(c.finish_reason, c.error) for c in engine.poll()] == [("error", "the prompt is empty")]


@pytest.mark.parametrize("option", ["max_slots", "max_cached_tokens", "context_length"])
def test_bounds_below_one_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least 1"):
        build(**{option: 0})


def test_a_loaded_model_needs_its_tokenizer() -> None:
    with pytest.raises(ValueError, match="needs its tokenizer"):
        TransformersEngine(tiny_model())


def test_models_it_cannot_batch_are_refused() -> None:
    """Better no answer than one from a mask that is not the model's own."""
    chunked = tiny_model()
    chunked.config.layer_types = ["chunked_attention"] * 2
    with pytest.raises(ValueError, match="layers of type chunked_attention"):
        TransformersEngine(chunked, tokenizer=bpe_tokenizer())
    flexible = tiny_model()
    flexible.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="'flex_attention' takes no explicit mask"):
        TransformersEngine(flexible, tokenizer=bpe_tokenizer())
