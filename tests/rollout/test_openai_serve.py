"""Rollouts against a real `transformers serve` on loopback, of a tiny model that knows one dialogue."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from drift_rollout import ExactVerifier, RolloutConfig, Sampling, make_problem, sample
from drift_rollout.engine import EngineError
from drift_rollout.engines.openai import OpenAIEngine
from drift_rollout.engines.options import OpenAIOptions
from drift_rollout.protocol import FEEDBACK, Protocol
from drift_weights import Message
from tiny import bpe_tokenizer, save_policy, tiny_model

TURNS = ("<answer> X1 </answer>", "<answer> X2 </answer>", "<answer> X3 </answer>")
ASKED = "which item"
STARTING_S = 120
"""Bound on the server's start; it takes about ten seconds on a quiet machine."""


def learn(folder: Path) -> Path:
    """A model that answers X1, after the feedback X2, and then X3, by heart."""
    tokenizer, model = bpe_tokenizer(), tiny_model(initializer_range=0.05)
    messages, pieces = [{"role": "user", "content": ASKED}], []
    for turn in TURNS:
        messages.append({"role": "assistant", "content": turn})
        pieces.append(turn + "<|im_end|>")
        messages.append({"role": "user", "content": FEEDBACK})
    text = tokenizer.apply_chat_template(messages[:-1], tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(90):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.01, "the model has not learned its dialogue"
    return save_policy(folder, tokenizer, model.eval())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The base URL and the name of a model served on a free port."""
    home = tmp_path_factory.mktemp("served")
    name = str(learn(home / "policy"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [Path(sys.executable).parent / "transformers", "serve", name, "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", port],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        wait(process, f"http://127.0.0.1:{port}/health", home / "log")
        yield f"http://127.0.0.1:{port}/v1", name
    finally:
        process.kill()
        process.wait(10)


def wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    limit = time.monotonic() + STARTING_S
    while time.monotonic() < limit and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"transformers serve did not start:\n{log.read_text(errors='replace')[-3000:]}")


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
    told = {"generation_config": '{"do_sample": true, "top_k": 0}'}
    for extra, temperature, expected in (({}, 9.0, 1), (told, 9.0, 4), (told, 0.1, 1)):
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
