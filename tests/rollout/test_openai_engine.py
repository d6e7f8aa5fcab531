"""The remote engine against a scripted server: what is sent, what comes back, and what goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest

from drift_rollout import ExactVerifier, RolloutConfig, make_problem, sample
from drift_rollout.engine import Completion, EngineError
from drift_rollout.engines.openai import OpenAIEngine
from drift_rollout.engines.opening import EngineOptions, open_engine
from drift_rollout.engines.options import OpenAIOptions
from drift_rollout.protocol import FEEDBACK, Protocol
from drift_weights import Message
from loopback_openai import Call, LoopbackOpenAI, Reply, chat
from remote import answered, ask, failing, gather, opened

VLLM = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 640}]}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Opens engines on scripted servers of their own."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ExitStack() as stack:
        yield lambda *script, **settings: stack.enter_context(opened(*script, **settings))


def test_messages_go_to_chat_completions_with_their_sampling_and_seed(serve) -> None:
    server, engine = serve()
    got = answered(engine, ask())
    assert got == Completion(id="a", text="<answer> 3 </answer>", finish_reason="stop")
    (call,) = server.calls
    assert call.path == "/v1/chat/completions"
    assert call.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "1 + 2"}],
        "temperature": 0.6,
        "top_p": 0.9,
        "max_tokens": 7,
        "seed": (1 << 63) - 1,
    }
    assert engine.tokenizer is None


@pytest.mark.parametrize(
    ("software", "expected"),
    [
        ("vllm", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
        ("sglang", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
        ("llamacpp", {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}),
        ("somebody", {}),
    ],
)
def test_no_servers_defaults_bend_the_distribution(serve, software, expected) -> None:
    server, engine = serve(models={"data": [{"id": "m", "owned_by": software}]}, extra_body={"mine": [1]})
    answered(engine, ask())
    common = {"model", "messages", "temperature", "top_p", "max_tokens", "seed"}
    assert {k: v for k, v in server.calls[0].body.items() if k not in common} == expected | {"mine": [1]}


@pytest.mark.parametrize(
    ("models", "option", "expected"),
    [
        (404, None, 1 << 20),
        (500, None, 1 << 20),
        (b"<html>", None, 1 << 20),
        ({"data": []}, None, 1 << 20),
        ([1], None, 1 << 20),
        (VLLM, None, 640),
        (VLLM, 100, 100),
        (404, 100, 100),
    ],
)
def test_the_context_is_the_options_or_what_the_server_says(serve, models, option, expected) -> None:
    _, engine = serve(models=models, context_length=option)
    assert engine.context_length == expected


def test_the_policy_is_a_declared_name(serve) -> None:
    server, engine = serve()
    options = OpenAIOptions(base_url=server.base_url)
    assert (engine.policy, engine.seeded, engine.concurrency) == ("openai:m", False, 64)
    with closing(OpenAIEngine("/home/me/model", revision="v2", options=options)) as named:
        assert named.policy == "openai:model@v2"


def test_open_engine_opens_it(serve) -> None:
    server, _ = serve()
    options = OpenAIOptions(base_url=server.base_url, seeded=True, concurrency=3)
    opened = open_engine(EngineOptions(name="openai", openai=options), "org/name", revision="main")
    with closing(opened):
        assert (opened.policy, opened.seeded, opened.concurrency) == ("openai:org/name@main", True, 3)


def test_no_more_than_concurrency_at_once_and_no_fewer(serve) -> None:
    server, engine = serve(lambda call: replace(chat(), after=0.2), concurrency=3)
    engine.submit([ask(f"r{n}") for n in range(9)])
    assert len(gather(engine, 9)) == 9
    assert server.most_at_once == 3


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_passes_is_tried_again(serve, status) -> None:
    server, engine = serve(failing(1, Reply(status=status)), retries=1)
    assert answered(engine, ask()).error is None
    assert len(server.calls) == 2


@pytest.mark.parametrize("fault", ["cut", "hang"])
def test_a_cut_or_hanging_connection_is_tried_again(serve, fault) -> None:
    server, engine = serve(failing(1, Reply(fault=fault)), retries=1, timeout=1.5)
    assert answered(engine, ask()).error is None
    assert len(server.calls) == 2


def test_waits_double_and_attempts_are_bounded(serve) -> None:
    server, engine = serve(lambda call: Reply(status=500, body={"error": {"message": "boom"}}), retries=2)
    got = answered(engine, ask())
    assert (got.finish_reason, got.text, got.token_ids) == ("error", "", None)
    assert "500" in got.error
    assert "boom" in got.error
    first, second, third = (call.at for call in server.calls)
    # Half a second and one, up to a quarter of each taken off; a busy machine only adds to them.
    assert second - first > 0.37
    assert third - second > 0.74


def test_retry_after_is_kept_to(serve) -> None:
    """A second and a half: the client's own first wait would be half a second at most."""
    server, engine = serve(failing(1, Reply(status=429, headers={"Retry-After": "1.5"})), retries=1)
    assert answered(engine, ask()).error is None
    assert server.calls[1].at - server.calls[0].at > 1.45


def test_a_hanging_request_times_out_and_others_pass(serve) -> None:
    def script(call: Call) -> Reply:
        return Reply(fault="hang") if call.body["messages"][0]["content"] == "hang" else chat()

    _, engine = serve(script, timeout=1.5)
    engine.submit([ask("a", "hang"), ask("b")])
    got = gather(engine, 2)
    assert "no answer within 1.5 s" in got["a"].error
    assert got["b"].error is None


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(body=b"{'no json"), "not JSON"),
        (Reply(body=b"\xff\xfe\x00"), "not JSON"),
        (Reply(body=[1]), "list, not an object"),
        (Reply(body={}), "no choices"),
        (Reply(body={"choices": []}), "no choices"),
        (Reply(body={"choices": [None]}), "no choices"),
        (Reply(body={"choices": [{"finish_reason": "stop"}]}), "no message"),
        (Reply(body={"choices": [{"message": {}, "finish_reason": "stop"}]}), "no content"),
        (Reply(body={"choices": [{"message": {"content": "x"}}]}), "no finish_reason"),
        (chat(reason="content_filter"), "'content_filter'"),
        (chat(reason="tool_calls"), "'tool_calls'"),
        (Reply(status=400, body={"error": {"message": "too long", "code": 1}}), "HTTP 400: too long"),
        (Reply(status=422, body={"detail": "odd field"}), "HTTP 422: odd field"),
        (Reply(status=400, body={"message": "old"}), "HTTP 400: old"),
        (Reply(status=400, body={"error": "short"}), "HTTP 400: short"),
        (Reply(status=400, body=[1, 2]), "HTTP 400: [1, 2]"),
        (Reply(status=422, body=b"plain words"), "HTTP 422: plain words"),
    ],
)
def test_what_is_no_completion_says_what_it_lacks(serve, reply, said) -> None:
    _, engine = serve(failing(1, reply))
    got = answered(engine, ask())
    assert (got.text, got.finish_reason) == ("", "error")
    assert said in got.error
    assert answered(engine, ask("b")).error is None


@pytest.mark.parametrize(("reason", "text"), [("stop", ""), ("length", "so "), ("stop", " x \n")])
def test_text_and_reason_pass_verbatim(serve, reason, text) -> None:
    _, engine = serve(lambda call: chat(text, reason))
    got = answered(engine, ask())
    assert (got.text, got.finish_reason, got.error) == (text, reason, None)


def test_thinking_that_the_server_cuts_out_ends_the_run(serve) -> None:
    _, engine = serve(lambda call: chat(reasoning_content="let me see"))
    engine.submit([ask()])
    with pytest.raises(ValueError, match="reasoning parser"):
        engine.poll(timeout=5)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, PermissionError, "set OPENAI_API_KEY"),
        (403, PermissionError, "set OPENAI_API_KEY"),
        (404, ValueError, "has no model 'm' .* it serves other"),
    ],
)
def test_a_refused_key_or_model_ends_the_run_at_once(serve, status, kind, said) -> None:
    models = {"data": [{"id": "other", "owned_by": "vllm"}]}
    server, engine = serve(lambda call: Reply(status=status), models=models, retries=3)
    engine.submit([ask()])
    with pytest.raises(kind, match=said):
        engine.poll(timeout=5)
    with pytest.raises(kind, match=said):
        engine.poll(timeout=5)
    assert len(server.calls) == 1


OTHERS = {"data": [{"id": "other", "owned_by": "somebody"}, {"id": "third"}]}


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_name_that_is_not_served_costs_one_request(serve, status) -> None:
    refusal = Reply(status=status, body={"detail": "pinned to other"}, after=0.1)
    server, engine = serve(lambda call: refusal, models=OTHERS, concurrency=8)
    engine.submit([ask(f"r{n}") for n in range(20)])
    said = rf"has no model 'm' \(HTTP {status}\); it serves other, third\. .* It said: pinned to other"
    with pytest.raises(ValueError, match=said):
        engine.poll(timeout=5)
    time.sleep(0.3)
    assert len(server.calls) == 1


def test_a_name_that_is_not_listed_may_be_an_alias(serve) -> None:
    """Once it was answered, as many go at once as ever, and a refusal is that request's alone."""
    bad = Reply(status=400, body={"detail": "odd field"})
    server, engine = serve(
        lambda call: bad if call.number == 1 else replace(chat(), after=0.2), models=OTHERS, concurrency=3
    )
    engine.submit([ask(f"r{n}") for n in range(7)])
    got = gather(engine, 7)
    assert sum(completion.error is not None for completion in got.values()) == 1
    assert server.most_at_once == 3


def test_a_first_prompt_that_is_too_long_is_no_wrong_name(serve) -> None:
    too_long = Reply(status=400, body={"detail": "exceeds the context length"})
    _, engine = serve(failing(1, too_long), models=OTHERS)
    assert answered(engine, ask()).no_room
    assert answered(engine, ask("b")).error is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_at_the_opening_raises_there(status) -> None:
    with LoopbackOpenAI(models=status) as server, pytest.raises(PermissionError, match="OPENAI_API_KEY"):
        OpenAIEngine("m", options=OpenAIOptions(base_url=server.base_url))


def test_nobody_there_raises_at_the_opening() -> None:
    with LoopbackOpenAI() as server:
        url = server.base_url
    with pytest.raises(EngineError, match=f"{url}; start it"):
        OpenAIEngine("m", options=OpenAIOptions(base_url=url, retries=0))


def test_a_server_that_dies_ends_the_run_after_its_retries(serve) -> None:
    server, engine = serve(retries=1)
    assert answered(engine, ask()).error is None
    server.stop()
    engine.submit([ask("b"), ask("c")])
    with pytest.raises(EngineError, match=f"{server.base_url}; start it"):
        engine.poll(timeout=10)


@pytest.mark.parametrize("reply", [Reply(status=502), Reply(fault="cut")])
def test_many_failures_in_a_row_end_the_run(serve, reply) -> None:
    """A proxy that outlives its server takes connections, and would turn a whole run into errors."""
    server, engine = serve(failing(99, reply), max_failures=3, concurrency=1)
    engine.submit([ask(f"r{n}") for n in range(5)])
    with pytest.raises(EngineError, match=f"3 requests to {server.base_url} failed"):
        gather(engine, 5)
    assert len(server.calls) >= 3


def test_one_good_answer_starts_the_count_anew(serve) -> None:
    script = lambda call: chat() if call.number % 2 else Reply(status=500)  # noqa: E731
    _, engine = serve(script, max_failures=2, concurrency=1)
    engine.submit([ask(f"r{n}") for n in range(8)])
    errors = [completion.error is None for completion in gather(engine, 8).values()]
    assert errors.count(True) == 4


@pytest.mark.parametrize(
    ("body", "no_room"),
    [
        ({"error": {"message": "This model's maximum context length is 64 tokens.", "code": 400}}, True),
        ({"error": {"code": 400, "message": "the request exceeds the available context size"}}, True),
        ({"error": {"message": "temperature must be non-negative"}}, False),
    ],
)
def test_a_history_that_is_too_long_is_told_from_other_refusals(serve, body, no_room) -> None:
    _, engine = serve(failing(1, Reply(status=400, body=body)))
    assert answered(engine, ask()).no_room == no_room


def test_refusals_count_only_until_something_was_answered(serve) -> None:
    """A prompt that is too long is no dead server; a server that refuses everything is none to run on."""
    bad = Reply(status=400)
    _, engine = serve(lambda call: bad if call.number else chat(), max_failures=2, concurrency=1)
    engine.submit([ask(f"r{n}") for n in range(5)])
    assert [c.error is None for c in gather(engine, 5).values()] == [True, False, False, False, False]
    _, engine = serve(lambda call: bad, max_failures=2, concurrency=1)
    engine.submit([ask(f"r{n}") for n in range(5)])
    with pytest.raises(EngineError, match="HTTP 400"):
        gather(engine, 5)


def test_poll_waits_no_longer_than_it_is_told(serve) -> None:
    _, engine = serve(lambda call: replace(chat(), after=1.5))
    assert engine.poll() == []
    engine.submit([ask()])
    start = time.monotonic()
    assert engine.poll(timeout=0.1) == []
    assert 0.08 < time.monotonic() - start < 1.2
    assert [completion.id for completion in engine.poll()] == ["a"]
    assert engine.poll() == []


def test_release_hangs_up_and_frees_the_id(serve) -> None:
    """The old request's completion never comes, though its id is used again."""
    server, engine = serve(failing(1, Reply(fault="hang")), concurrency=1)
    engine.submit([ask()])
    while not server.calls:
        time.sleep(0.01)
    with pytest.raises(ValueError, match="exists already"):
        engine.submit([ask()])
    engine.release("a")
    engine.release("nobody")
    assert server.hung_up.wait(5)
    assert engine.poll() == []
    assert answered(engine, ask()).text == "<answer> 3 </answer>"
    with pytest.raises(ValueError, match="exists already"):
        engine.submit([ask()])


def test_a_completion_that_nobody_fetched_is_gone_with_its_release(serve) -> None:
    _, engine = serve(lambda call: chat(str(call.number)))
    engine.submit([ask()])
    while engine._arrived.empty():
        time.sleep(0.01)
    engine.release("a")
    assert answered(engine, ask()).text == "1"
    assert engine.poll(timeout=0.1) == []


def test_a_queued_request_that_is_released_is_never_sent(serve) -> None:
    server, engine = serve(lambda call: replace(chat(), after=0.3), concurrency=1)
    engine.submit([ask("a"), ask("b", "never"), ask("c")])
    engine.release("b")
    assert set(gather(engine, 2)) == {"a", "c"}
    assert engine.poll() == []
    assert all(call.body["messages"][0]["content"] != "never" for call in server.calls)


def test_a_continued_id_is_free_and_one_that_runs_cannot_be_continued(serve) -> None:
    _, engine = serve()
    answered(engine, ask())
    answered(engine, ask("b", continues="a"))
    engine.submit([ask("a")])
    with pytest.raises(ValueError, match="still running"):
        engine.submit([ask("c", continues="a")])


def test_close_cancels_ends_the_thread_and_can_be_repeated(serve) -> None:
    server, engine = serve(lambda call: Reply(fault="hang"))
    engine.submit([ask("a"), ask("b")])
    while not server.calls:
        time.sleep(0.01)
    engine.close()
    engine.close()
    assert not engine._thread.is_alive()
    assert server.hung_up.wait(5)
    with pytest.raises(ValueError, match="closed"):
        engine.submit([ask("c")])


def test_what_nobody_expected_does_not_leave_poll_waiting(serve, monkeypatch) -> None:
    _, engine = serve()
    monkeypatch.setattr("drift_rollout.engines.openai_server.chat_completion", lambda *_: 1 / 0)
    engine.submit([ask()])
    with pytest.raises(ZeroDivisionError):
        engine.poll(timeout=5)


def test_a_text_dialogue_keeps_its_turns_and_no_ids(serve) -> None:
    def script(call: Call) -> Reply:
        turn = len(call.body["messages"]) // 2
        return chat(f"<answer> {turn + 2} </answer>")

    server, engine = serve(script)
    problem = make_problem((Message(role="user", content="1 + 2"),), "3")
    (trajectory,) = sample([problem], engine, ExactVerifier(), RolloutConfig(samples=1))
    assert [(turn.answer, turn.verdict) for turn in trajectory.turns] == [("2", "wrong"), ("3", "correct")]
    assert server.calls[1].body["messages"] == [
        {"role": "user", "content": "1 + 2"},
        {"role": "assistant", "content": "<answer> 2 </answer>"},
        {"role": "user", "content": FEEDBACK},
    ]
    for field in ("token_ids", "response_spans", "logprobs", "tokenizer"):
        assert getattr(trajectory, field) is None
    assert trajectory.policy == "openai:m"


def test_a_failed_turn_ends_its_dialogue_unscored(serve) -> None:
    _, engine = serve(failing(1, Reply(status=400)), concurrency=1)
    problem = make_problem((Message(role="user", content="1 + 2"),), "3")
    config = RolloutConfig(samples=2, protocol=Protocol(max_turns=2))
    ended = sorted(t.ended for t in sample([problem], engine, ExactVerifier(), config))
    assert ended == ["error", "solved"]
