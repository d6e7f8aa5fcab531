"""The remote engine by token ids: what was sampled is what is continued, as vLLM allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from drift_rollout import ExactVerifier, RolloutConfig, make_problem, sample
from drift_rollout.engine import Sampling
from drift_rollout.protocol import Protocol
from drift_rollout.rendering import ChatRenderer
from drift_weights import Message
from drift_weights.fingerprint import tokenizer_fingerprint
from loopback_openai import spoken
from remote import answered, ask, gather, opened
from tiny import bpe_tokenizer

TOKENIZER = bpe_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
VLLM = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 640}]}


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Opens engines by token ids on scripted servers of their own."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    TOKENIZER.save_pretrained(tmp_path)
    with ExitStack() as stack:
        yield lambda script, **settings: stack.enter_context(
            opened(script, **{"models": VLLM, "tokenizer": str(tmp_path), **settings})
        )


def letters(text: str) -> list[int]:
    """One id a character: never what encoding the text at once gives."""
    return [i for character in text for i in TOKENIZER(character, add_special_tokens=False)["input_ids"]]


def test_ids_go_out_and_sampled_ids_come_back(serve) -> None:
    ids = letters("so 3")
    server, engine = serve(lambda call: spoken(call, [*ids, END]))
    got = answered(engine, ask(token_ids=(5, 6, 7)))
    (call,) = server.calls
    assert call.path == "/v1/completions"
    assert call.body["prompt"] == [5, 6, 7]
    assert call.body["return_token_ids"] is True
    assert call.body["seed"] == (1 << 63) - 1
    assert call.body["max_tokens"] == 7
    assert "messages" not in call.body
    assert (got.text, got.token_ids, got.finish_reason) == ("so 3", (*ids, END), "stop")
    assert got.logprobs == tuple(-0.5 - n for n in range(len(ids) + 1))


def test_at_the_limit_all_ids_are_text_and_special_tokens_stay(serve) -> None:
    ids = [*letters("so"), TOKENIZER.convert_tokens_to_ids("<|im_start|>")]
    _, engine = serve(lambda call: spoken(call, ids, "length"))
    got = answered(engine, ask(token_ids=(5,)))
    assert (got.text, got.token_ids, got.finish_reason) == ("so<|im_start|>", tuple(ids), "length")


@pytest.mark.parametrize(
    ("software", "option", "kept"),
    [
        ("vllm", None, True),
        ("vllm", False, False),
        ("sglang", None, False),
        ("sglang", True, True),
        (None, None, False),
    ],
)
def test_log_probabilities_are_kept_only_where_they_are_the_models(serve, software, option, kept) -> None:
    models = {"data": [{"id": "m", "owned_by": software}]}
    _, engine = serve(lambda call: spoken(call, [5, END]), models=models, logprobs=option)
    assert answered(engine, ask(token_ids=(5,))).logprobs == ((-0.5, -1.5) if kept else None)


def test_no_log_probabilities_are_no_error(serve) -> None:
    _, engine = serve(lambda call: spoken(call, [5, END], logprobs=None))
    got = answered(engine, ask(token_ids=(5,)))
    assert (got.error, got.logprobs) == (None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_ids": ["a"]}, "no list of integers"),
        ({"token_ids": 5}, "no list of integers"),
        ({"token_ids": [True]}, "no list of integers"),
        ({"prompt_token_ids": [1, 5]}, "changed the prompt"),
        ({"stop_reason": "###"}, "stop string"),
        ({"token_ids": []}, "stop string"),
        ({"logprobs": {"token_logprobs": [-1.0]}}, "log-probability for each"),
        ({"logprobs": {"token_logprobs": [-1.0, None]}}, "log-probability for each"),
        ({"finish_reason": "abort"}, "'abort'"),
        ({"finish_reason": None}, "no finish_reason"),
    ],
)
def test_what_is_no_completion_says_what_is_wrong(serve, changes, said) -> None:
    _, engine = serve(lambda call: spoken(call, [5, END], **changes))
    got = answered(engine, ask(token_ids=(5,)))
    assert (got.text, got.finish_reason, got.token_ids) == ("", "error", None)
    assert said in got.error


def test_a_server_without_ids_ends_the_run(serve) -> None:
    server, engine = serve(lambda call: spoken(call, [5, END], token_ids=None))
    engine.submit([ask(token_ids=(5,))])
    with pytest.raises(ValueError, match=f"{server.base_url}: the server gives no token ids"):
        engine.poll(timeout=5)


def test_requests_without_ids_are_refused_and_nothing_is_queued(serve) -> None:
    server, engine = serve(lambda call: spoken(call, [5, END]))
    with pytest.raises(ValueError, match="'b' has no token_ids"):
        engine.submit([ask("a", token_ids=(5,)), ask("b")])
    assert engine.poll() == []
    assert server.calls == []


def test_an_empty_prompt_fails_alone_and_is_not_asked(serve) -> None:
    server, engine = serve(lambda call: spoken(call, [5, END]))
    engine.submit([ask("a", token_ids=()), ask("b", token_ids=(5,))])
    got = gather(engine, 2)
    assert (got["a"].finish_reason, got["a"].error) == ("error", "the prompt is empty")
    assert got["b"].token_ids == (5, END)
    assert [call.body["prompt"] for call in server.calls] == [[5]]


def test_the_response_gets_what_the_context_leaves(serve) -> None:
    server, engine = serve(lambda call: spoken(call, [5, END]), context_length=10)
    long = Sampling(max_new_tokens=50)
    assert answered(engine, ask("a", token_ids=(5,) * 7, sampling=long)).error is None
    assert server.calls[0].body["max_tokens"] == 3
    got = answered(engine, ask("b", token_ids=(5,) * 10, sampling=long))
    assert "10 prompt tokens leave no room in a context of 10" in got.error
    assert len(server.calls) == 1


def test_a_dialogue_by_ids_appends_what_was_sampled(serve) -> None:
    """Sampled character by character, so that a history rendered again would have other ids."""
    said = ["so <answer> 2 </answer>", "so <answer> 3 </answer>"]
    server, engine = serve(lambda call: spoken(call, [*letters(said[call.number]), END]))
    problem = make_problem((Message(role="user", content="1 + 2"),), "3")
    config = RolloutConfig(samples=1, protocol=Protocol(max_turns=3))
    (trajectory,) = sample([problem], engine, ExactVerifier(), config)
    renderer = ChatRenderer(TOKENIZER)
    first = list(renderer.prompt_ids(problem.messages))
    feedback = list(renderer.feedback_ids(config.protocol.feedback))
    assert feedback[0] == END
    second = first + letters(said[0]) + feedback
    assert [call.body["prompt"] for call in server.calls] == [first, second]
    assert list(trajectory.token_ids) == second + letters(said[1]) + [END]
    assert [turn.response for turn in trajectory.turns] == said
    assert trajectory.ended == "solved"
    assert trajectory.tokenizer == tokenizer_fingerprint(TOKENIZER)
    assert len(trajectory.logprobs) == sum(end - start for start, end in trajectory.response_spans)
    whole = TOKENIZER(TOKENIZER.decode(second), add_special_tokens=False)["input_ids"]
    assert whole != second, "the test needs ids that do not survive decoding"
