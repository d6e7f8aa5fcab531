"""The embedded engine against plain full forward passes: tokens, log-probabilities, caches, limits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from drift_rollout.engine import Completion, Request, Sampling
from drift_rollout.engines.sampling import uniforms
from drift_rollout.engines.transformers import TransformersEngine
from tiny import bpe_tokenizer, save_policy, tiny_model

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 9},
    "phi3": {"sliding_window": 9},
    "gemma2": {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]},
}
"""The windows are shorter than the prompts, so that they matter."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine take longer than these models need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(family: str = "llama", **options: Any) -> TransformersEngine:
    """A float64 engine without stop tokens, so that lengths are known."""
    tokenizer = bpe_tokenizer()
    tokenizer.eos_token = None
    model = tiny_model(family, **FAMILIES[family]).double()
    return TransformersEngine(model, tokenizer=tokenizer, **options)


def model_of(engine: TransformersEngine) -> Any:
    return engine._decoder._model


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(f"{length}/{seed}").choices(range(300), k=length))


def ask(
    name: str, ids: tuple[int, ...], *, seed: int = 0, continues: str | None = None, **how: Any
) -> Request:
    sampling = Sampling(**({"temperature": 0.0, "max_new_tokens": 6} | how))
    return Request(id=name, messages=(), token_ids=ids, sampling=sampling, seed=seed, continues=continues)


def answers(engine: TransformersEngine, requests: list[Request]) -> dict[str, Completion]:
    """Submit and poll until all are answered."""
    engine.submit(requests)
    got: dict[str, Completion] = {}
    while len(got) < len(requests):
        batch = engine.poll()
        assert batch, "the engine went idle with requests unanswered"
        got |= {completion.id: completion for completion in batch}
    return got


@torch.inference_mode()
def plain_greedy(model: Any, ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Argmax of a whole forward pass for every token: no cache, no batch, no mask of ours."""
    tokens = list(ids)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tuple(tokens[len(ids) :])


@torch.inference_mode()
def plain_sample(model: Any, ids: tuple[int, ...], count: int, seed: int) -> tuple[int, ...]:
    """Inverse CDF in the order of the vocabulary, with the uniform of each (seed, token index)."""
    tokens = list(ids)
    for index in range(count):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        mass = np.cumsum(logits.softmax(-1).numpy())
        tokens.append(int(np.argmax(mass > uniforms([seed], [index])[0] * mass[-1])))
    return tuple(tokens[len(ids) :])


@torch.inference_mode()
def plain_logprobs(model: Any, ids: tuple[int, ...], sampled: tuple[int, ...]) -> list[float]:
    logits = model(input_ids=torch.tensor([[*ids, *sampled]]), use_cache=False).logits[0]
    table = logits.double().log_softmax(-1)
    return [float(table[len(ids) - 1 + i, token]) for i, token in enumerate(sampled)]


class Meter:
    """Counts the tokens that pass through a model's embedding."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.tokens = 0
        model_of(engine).get_input_embeddings().register_forward_pre_hook(self._add)

    def _add(self, module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        self.tokens += arguments[0].numel()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_whole_forward_passes(family: str) -> None:
    """Ragged prompts in one batch, longer and shorter than the sliding windows."""
    engine = build(family)
    prompts = {f"r{n}": prompt(n) for n in (1, 2, 7, 19, 33)}
    got = answers(engine, [ask(name, ids, max_new_tokens=15) for name, ids in prompts.items()])
    for name, ids in prompts.items():
        assert got[name].token_ids == plain_greedy(model_of(engine), ids, 15)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_carried_cache_samples_what_a_fresh_prefill_does(family: str) -> None:
    """Three turns, three trajectories of different lengths; logprobs too are those of one whole pass."""
    carried, fresh = build(family), build(family)
    histories = {f"t{n}": prompt(n) for n in (3, 11, 26)}
    before: dict[str, str | None] = dict.fromkeys(histories)
    for turn in range(3):
        asked = [
            ask(
                f"{name}/{turn}",
                ids,
                seed=n + 9 * turn,
                temperature=1.0,
                max_new_tokens=4 + n,
                continues=before[name],
            )
            for n, (name, ids) in enumerate(histories.items())
        ]
        got = answers(carried, asked)
        anew = answers(
            fresh,
            [
                ask(
                    r.id,
                    r.token_ids or (),
                    seed=r.seed,
                    temperature=1.0,
                    max_new_tokens=r.sampling.max_new_tokens,
                )
                for r in asked
            ],
        )
        for name, ids in histories.items():
            completion = got[f"{name}/{turn}"]
            sampled = completion.token_ids or ()
            assert sampled == anew[completion.id].token_ids
            expected = plain_logprobs(model_of(carried), ids, sampled)
            assert completion.logprobs == pytest.approx(expected, abs=1e-8)
            histories[name] = (*ids, *sampled, *prompt(5, seed=turn))
            before[name] = completion.id


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_float32_logprobs_of_the_unmodified_model(attention: str, tmp_path: Path) -> None:
    """Temperature and top_p shape what is drawn, not what is reported."""
    folder = save_policy(tmp_path / "policy", bpe_tokenizer(), tiny_model(seed=3))
    engine = TransformersEngine(folder, device="cpu", attention=attention)
    ids = prompt(12)
    got = answers(engine, [ask("a", ids, seed=5, temperature=0.6, top_p=0.8, max_new_tokens=9)])["a"]
    expected = plain_logprobs(model_of(engine), ids, got.token_ids or ())
    assert got.logprobs == pytest.approx(expected, abs=1e-4)


def test_each_token_takes_its_own_number_from_its_requests_stream() -> None:
    engine = build()
    requests = [ask(f"r{n}", prompt(4 + n), seed=n, temperature=1.0, max_new_tokens=9) for n in range(5)]
    got = answers(engine, requests)
    for request in requests:
        expected = plain_sample(model_of(engine), request.token_ids or (), 9, request.seed)
        assert got[request.id].token_ids == expected


def test_what_is_sampled_does_not_depend_on_company_or_slots() -> None:
    ids, how = prompt(10), {"temperature": 1.0, "max_new_tokens": 12}
    alone = answers(build(), [ask("x", ids, seed=77, **how)])["x"].token_ids
    others = [ask(f"o{n}", prompt(3 + n), seed=n, temperature=1.0, max_new_tokens=2 + n) for n in range(9)]
    for place in (0, 4, 9):
        crowd = [*others[:place], ask("x", ids, seed=77, **how), *others[place:]]
        assert answers(build(), crowd)["x"].token_ids == alone
        assert answers(build(max_slots=2), crowd)["x"].token_ids == alone


def test_equal_seeds_agree_and_different_seeds_do_not() -> None:
    engine = build()
    how = {"temperature": 1.0, "max_new_tokens": 10}
    requests = [ask(f"s{n}", prompt(8), seed=n // 2, **how) for n in range(16)]
    got = answers(engine, requests)
    sampled = [got[f"s{n}"].token_ids for n in range(16)]
    assert sampled[0::2] == sampled[1::2]
    assert len(set(sampled)) == 8


def test_equal_prompts_pass_through_the_model_once() -> None:
    """K samples: the prompt but its last token once, that token and the sampled ones for each."""
    engine = build()
    meter = Meter(engine)
    answers(engine, [ask(f"k{n}", prompt(20), seed=n, temperature=1.0, max_new_tokens=3) for n in range(8)])
    assert meter.tokens == 19 + 8 * 3
    answers(engine, [ask("later", prompt(20), seed=9, temperature=1.0, max_new_tokens=3)])
    assert meter.tokens == 19 + 9 * 3, "a later sample copies the prompt from those still cached"


def test_a_continuation_pays_for_its_new_tokens_only() -> None:
    engine = build()
    ids = prompt(20)
    first = answers(engine, [ask("a", ids, max_new_tokens=5)])["a"].token_ids or ()
    meter = Meter(engine)
    history = (*ids, *first, *prompt(7))
    answers(engine, [ask("b", history, max_new_tokens=4, continues="a")])
    # The last sampled token is not cached yet: 1 + 7 new ones, and 3 of the 4 sampled are fed back.
    assert meter.tokens == 1 + 7 + 3


def test_a_history_that_does_not_begin_with_the_cache_is_computed_anew() -> None:
    """Another token inside the old history must not be answered from the old cache."""
    engine = build()
    ids = prompt(15)
    answers(engine, [ask("a", ids)])
    changed = (*ids[:6], (ids[6] + 1) % 300, *ids[7:], *prompt(5))
    got = answers(engine, [ask("b", changed, continues="a")])["b"]
    assert got.token_ids == plain_greedy(model_of(engine), changed, 6)
    shorter = changed[:9]
    got = answers(engine, [ask("c", shorter, continues="b")])["c"]
    assert got.token_ids == plain_greedy(model_of(engine), shorter, 6)


@pytest.mark.parametrize("bound", [{"max_slots": 3}, {"max_cached_tokens": 90}, {"max_slots": 1}])
def test_parked_caches_never_block_and_evicted_ones_are_rebuilt(bound: dict[str, int]) -> None:
    """Eight trajectories of three turns wait on one another between turns, with room for one to three."""
    engine = build(**bound)
    histories = {f"t{n}": prompt(4 + 2 * n) for n in range(8)}
    for turn in range(3):
        before = {name: f"{name}/{turn - 1}" if turn else None for name in histories}
        got = answers(
            engine,
            [ask(f"{name}/{turn}", ids, continues=before[name]) for name, ids in histories.items()],
        )
        for name, ids in histories.items():
            sampled = got[f"{name}/{turn}"].token_ids or ()
            assert sampled == plain_greedy(model_of(engine), ids, 6)
            histories[name] = (*ids, *sampled, *prompt(3, seed=turn))
        cache = engine._cache
        assert cache.slots * cache.length <= bound.get("max_cached_tokens", 10**9)
        assert cache.slots <= bound.get("max_slots", 10**9)


def test_continuations_go_before_new_requests() -> None:
    """Otherwise the new one would take the only slot, and the cache of the other with it."""
    engine = build(max_slots=1)
    first = answers(engine, [ask("a", prompt(20), max_new_tokens=2)])["a"].token_ids or ()
    meter = Meter(engine)
    history = (*prompt(20), *first, *prompt(3))
    answers(
        engine,
        [ask("new", prompt(8), max_new_tokens=1), ask("b", history, max_new_tokens=1, continues="a")],
    )
    assert meter.tokens == (1 + 3) + 8


def test_a_queued_cache_that_gave_way_comes_back_from_its_sample_siblings_prompt() -> None:
    """Room for three short rows or two long ones: a is dropped, then shares c's first prompt."""
    engine, ids = build(max_cached_tokens=50), prompt(10)
    names = ("a", "b", "c")
    got = answers(
        engine, [ask(name, ids, seed=n, temperature=1.0, max_new_tokens=4) for n, name in enumerate(names)]
    )
    second = {name: (*ids, *(got[name].token_ids or ()), *prompt(6)) for name in names}
    engine.submit(
        [ask(f"{n}2", second[n], continues=n, max_new_tokens=1 if n == "b" else 4) for n in names]
    )
    meter, done = Meter(engine), {}
    while len(done) < 3:
        for completion in engine.poll():
            done[completion.id] = completion
            if completion.id == "b2":
                engine.release("b2")
    for name in names:
        sampled = done[f"{name}2"].token_ids or ()
        assert sampled == plain_greedy(model_of(engine), second[name], len(sampled))
    # b and c add 1 + 6 tokens, a all behind the 10 of the prompt; then 3 more each are fed to a and c.
    assert meter.tokens == 7 + (7 + 3) + (10 + 3)


def test_release_gives_room_back_and_ignores_what_it_does_not_know() -> None:
    engine = build(max_slots=2)
    for n in range(5):
        answers(engine, [ask(f"a{n}", prompt(6 + n))])
        engine.release(f"a{n}")
    engine.release("never seen")
    assert engine._slots.demand == (0, 0)
    engine.submit([ask("dropped", prompt(6))])
    engine.close()
    assert engine.poll() == []
    assert answers(engine, [ask("dropped", prompt(6))])["dropped"].finish_reason == "length"


def test_stop_token_is_kept_as_sampled_and_left_out_of_the_text() -> None:
    """Every source of stops: the generation config's id, its list of ids, and the tokenizer's eos."""
    ids, tokenizer = prompt(9), bpe_tokenizer()
    greedy = answers(build(), [ask("a", ids, max_new_tokens=12)])["a"].token_ids or ()
    stop = greedy[5]
    cut = greedy[: greedy.index(stop) + 1]
    for named in (stop, [399, stop], None):
        model = tiny_model().double()
        model.generation_config.eos_token_id = named
        if named is None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop)
        engine = TransformersEngine(model, tokenizer=tokenizer)
        got = answers(engine, [ask("a", ids, max_new_tokens=12)])["a"]
        assert (got.token_ids, got.finish_reason) == (cut, "stop")
        assert got.text == tokenizer.decode(cut[:-1], skip_special_tokens=False)
        assert len(got.logprobs or ()) == len(cut)


def test_length_ends_a_response_at_the_budget_or_the_context() -> None:
    engine = build(context_length=20)
    got = answers(engine, [ask("short", prompt(5)), ask("wide", prompt(17)), ask("full", prompt(20))])
    assert [len(got[name].token_ids or ()) for name in ("short", "wide", "full")] == [6, 3, 0]
    assert [got[name].finish_reason for name in ("short", "wide", "full")] == ["length", "length", "error"]
    assert "20 prompt tokens leave no room in a context of 20" in (got["full"].error or "")
    assert got["short"].text == engine.tokenizer.decode(got["short"].token_ids)


def test_context_is_the_smallest_of_the_bounds() -> None:
    assert build().context_length == 512
    assert build(max_cached_tokens=100).context_length == 100
    assert build(context_length=64, max_cached_tokens=100).context_length == 64
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4}
    longrope |= {"long_factor": [2.0] * 4}
    stretched = tiny_model("phi3", rope_parameters=longrope, original_max_position_embeddings=128)
    engine = TransformersEngine(stretched, tokenizer=bpe_tokenizer())
    assert engine.context_length == 128, "frequencies that hang on the company are out of bounds"


def test_nan_fails_the_request_that_met_it_and_no_other() -> None:
    """Neither beside it in the batch nor behind it in the same row of the cache."""
    engine = build(max_slots=2)
    with torch.no_grad():
        model_of(engine).get_input_embeddings().weight[7] = float("nan")
    bad = ask("bad", (1, 7, *prompt(20)[7:]))
    others = {f"good{n}": tuple(t for t in prompt(6, seed=n) if t != 7) for n in range(4)}
    got = answers(engine, [bad, *(ask(name, ids) for name, ids in others.items())])
    assert got["bad"].finish_reason == "error"
    assert "not a number" in (got["bad"].error or "")
    for name, ids in others.items():
        assert got[name].token_ids == plain_greedy(model_of(engine), ids, 6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_are_distributed_as_the_model_says(temperature: float) -> None:
    """3,000 samples of one prompt against softmax(logits / temperature), by chi-square."""
    engine, ids, draws = build(), prompt(6), 3000
    how = {"temperature": temperature, "max_new_tokens": 1}
    got = answers(engine, [ask(f"d{n}", ids, seed=n, **how) for n in range(draws)])
    with torch.inference_mode():
        logits = model_of(engine)(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    expected = (logits / temperature).softmax(-1).numpy() * draws
    seen = np.bincount([c.token_ids[0] for c in got.values() if c.token_ids], minlength=512)
    common = expected >= 5
    table = [(*seen[common], seen[~common].sum()), (*expected[common], expected[~common].sum())]
    assert common.sum() > 10
    assert stats.chisquare(*table).pvalue > 1e-3


def test_padding_asks_for_no_position_that_the_model_lacks() -> None:
    """A table of positions, as GPT-2 has: a long history with little to add beside one with much."""
    tokenizer = bpe_tokenizer()
    tokenizer.eos_token = None
    model = tiny_model("gpt2", max_position_embeddings=20).double()
    engine = TransformersEngine(model, tokenizer=tokenizer)
    first = {"long": prompt(14), "short": prompt(2)}
    got = answers(engine, [ask(name, ids, max_new_tokens=2) for name, ids in first.items()])
    second = {
        name: (*ids, *(got[name].token_ids or ()), *prompt(more))
        for (name, ids), more in zip(first.items(), (2, 10), strict=True)
    }
    requests = [ask(f"{name}/2", ids, max_new_tokens=2, continues=name) for name, ids in second.items()]
    got = answers(engine, requests)
    for name, ids in second.items():
        assert got[f"{name}/2"].token_ids == plain_greedy(model, ids, 2)
