"""The embedded engine's cache: carried over turns, shared by samples, bounded, and never wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from drift_rollout.engines.transformers import TransformersEngine
from embedded import Meter, answers, ask, build, model_of, plain_greedy, prompt
from tiny import bpe_tokenizer, tiny_model


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine take longer than these models need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def test_a_queued_cache_that_gave_way_comes_back_from_its_siblings_prompt() -> None:
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
    # b and c add 1 + 6 tokens, a all behind the 10 of the prompt; then 3 more each are fed to a and c.
    assert meter.tokens == 7 + (7 + 3) + (10 + 3)
    for name in names:
        sampled = done[f"{name}2"].token_ids or ()
        assert sampled == plain_greedy(model_of(engine), second[name], len(sampled))


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
