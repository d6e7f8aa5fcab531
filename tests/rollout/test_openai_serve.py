"""Rollouts against a real `transformers serve` on loopback, of a tiny model that knows one dialogue."""

from __future__ import annotations

from contextlib import closing

import pytest

from drift_rollout import ExactVerifier, RolloutConfig, Sampling, make_problem, sample
from drift_rollout.engine import EngineError
from drift_rollout.engines.openai import OpenAIEngine
from drift_rollout.engines.options import OpenAIOptions
from drift_rollout.protocol import Protocol
from drift_weights import Message
from rollout.engine_contract import CONTRACT, Check, Subject, names
from transformers_serve import ASKED, TURNS

SAMPLES = {"generation_config": '{"do_sample": true, "top_k": 0}'}


def test_dialogues_have_their_turns(served: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three problems, solved at turn one, at turn two, and never."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url, name = served
    wanted = {"X1": ("solved", 1), "X2": ("solved", 2), "nothing": ("budget", 3)}
    problems = [make_problem((Message(role="user", content=ASKED),), target) for target in wanted]
    greedy = Sampling(temperature=0, max_new_tokens=40)
    config = RolloutConfig(samples=2, protocol=Protocol(max_turns=3), sampling=greedy)
    with closing(OpenAIEngine(name, options=OpenAIOptions(base_url=url))) as engine:
        trajectories = list(sample(problems, engine, ExactVerifier(), config))
    assert len(trajectories) == 3 * 2
    for trajectory in trajectories:
        ended, length = wanted[trajectory.target or ""]
        assert (trajectory.ended, trajectory.length) == (ended, length)
        assert [turn.response for turn in trajectory.turns] == list(TURNS[:length])
        assert {turn.finish_reason for turn in trajectory.turns} == {"stop"}
        assert trajectory.policy == "openai:policy"
        assert trajectory.token_ids is None


def test_it_is_greedy_until_it_is_told_to_sample(served: tuple[str, str]) -> None:
    """As the documentation says, and the model's stop tokens still end a response."""
    url, name = served
    problem = make_problem((Message(role="user", content=ASKED),), "X1")
    typed = {"generation_config": {"do_sample": True, "top_k": 0}}
    for extra, temperature, expected in (({}, 9.0, 1), (typed, 9.0, 4), (SAMPLES, 0.1, 1)):
        sampling = Sampling(temperature=temperature, max_new_tokens=25)
        config = RolloutConfig(samples=4, protocol=Protocol(max_turns=1), sampling=sampling)
        options = OpenAIOptions(base_url=url, extra_body=extra)
        with closing(OpenAIEngine(name, options=options)) as engine:
            turns = [t.turns[0] for t in sample([problem], engine, ExactVerifier(), config)]
        assert len({turn.response for turn in turns}) == expected
        if expected == 1:
            assert {(turn.response, turn.finish_reason) for turn in turns} == {(TURNS[0], "stop")}


def test_what_the_server_does_not_serve_or_know_is_said(served: tuple[str, str]) -> None:
    """It refuses a model by 400, and by 422 the field that asks for token ids."""
    url, name = served
    cases = [
        ("another", OpenAIOptions(base_url=url, max_failures=1), "pinned to"),
        (name, OpenAIOptions(base_url=url, max_failures=1, tokenizer=name), "return_token_ids"),
    ]
    problem = make_problem((Message(role="user", content=ASKED),), "X1")
    for model, options, said in cases:
        with (
            closing(OpenAIEngine(model, options=options)) as engine,
            pytest.raises(EngineError, match=said),
        ):
            list(sample([problem], engine, ExactVerifier(), RolloutConfig(samples=1)))


@pytest.mark.parametrize("check", CONTRACT, ids=names)
def test_by_messages_it_keeps_the_contract(
    check: Check, served: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never asked a prompt that is too long: the server names no limit, and has none."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url, name = served
    # A busy machine loses a connection now and then.
    options = OpenAIOptions(base_url=url, extra_body=SAMPLES, retries=3)
    check(Subject(make=lambda: OpenAIEngine(name, options=options), patience=30))
