"""A real `transformers serve` on loopback, of a tiny model that knows one dialogue by heart."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from drift_rollout.protocol import FEEDBACK
from tiny import bpe_tokenizer, save_policy, tiny_model
from vllm_environment import SHAPE

TURNS = ("<answer> X1 </answer>", "<answer> X2 </answer>", "<answer> X3 </answer>")
ASKED = "which item"
STARTING_S = 120
"""Bound on the server's start; it takes about ten seconds on a quiet machine."""


def learn(folder: Path) -> Path:
    """A model that answers X1, after the feedback X2, then X3, by heart; anything else makes it babble."""
    tokenizer, model = bpe_tokenizer(), tiny_model(**SHAPE, initializer_range=0.05)
    messages: list[dict[str, str]] = []
    for turn in TURNS:
        messages += [{"role": "user", "content": FEEDBACK}, {"role": "assistant", "content": turn}]
    messages[0]["content"] = ASKED
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    chance = random.Random(0)
    model.train()
    for _ in range(120):
        batch = tokenizer.apply_chat_template(
            [messages, *(babble(chance) for _ in range(4))], tokenize=False
        )
        encoded = tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False)
        labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
        model(**encoded, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return save_policy(folder, tokenizer, model.eval())


def babble(chance: random.Random) -> list[dict[str, str]]:
    """Two turns of letters at random, of which the first goes with the end of the question."""
    messages = []
    for _ in range(2):
        ands = chance.randrange(4)
        question = f"what is {chance.randrange(300)} + {chance.randrange(5)}" + " and" * ands
        letters = "".join(chance.choices("abcdefgh", k=chance.randrange(12)))
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "abcd"[ands] + letters},
        ]
    return messages


@contextmanager
def serving(home: Path) -> Iterator[tuple[str, str]]:
    """The base URL and the name of a model served on a free port; the name is its folder."""
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
