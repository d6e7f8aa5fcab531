"""The embedded engine against plain full forward passes: tokens, log-probabilities, limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from drift_rollout.engines.transformers import TransformersEngine
from embedded import (
    FAMILIES,
    answers,
    ask,
    build,
    model_of,
    plain_greedy,
    plain_logprobs,
    plain_sample,
    prompt,
)
from tiny import bpe_tokenizer, save_policy, tiny_model


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine take longer than these models need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
