"""The engines that come with torch alone, against the contract of all engines."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from drift_rollout import Completion, ScriptedEngine
from drift_rollout.engine import Request
from drift_rollout.engines.transformers import TransformersEngine
from embedded import plain_logprobs
from rollout.engine_contract import CONTRACT, Check, Subject, names
from tiny import bpe_tokenizer, tiny_model


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine take longer than these models need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


STOPS = range(300, 340)
"""Enough of the vocabulary that some of the responses stop and some do not."""


def transformers_engine(**options: Any) -> TransformersEngine:
    tokenizer = bpe_tokenizer()
    model = tiny_model(vocab=len(tokenizer)).double()
    model.generation_config.eos_token_id = list(STOPS)
    return TransformersEngine(model, tokenizer=tokenizer, **options)


def model_logprobs(ids: tuple[int, ...], sampled: tuple[int, ...]) -> list[float]:
    return plain_logprobs(transformers_engine()._decoder._model, ids, sampled)


TOKENIZER = bpe_tokenizer()


def babble(request: Request) -> Completion:
    """Letters at random, from prompt and seed alone, that end one time in ten."""
    greedy = request.sampling.temperature == 0
    key = (request.token_ids or request.messages, None if greedy else request.seed)
    chance = random.Random(repr(key))
    letters: list[str] = []
    stopped = False
    while len(letters) < request.sampling.max_new_tokens and not stopped:
        letters.append(chance.choice("abcdefgh"))
        stopped = chance.random() < 0.1
    if request.token_ids is None:
        text = "".join(letters[:-1] if stopped else letters)
        return Completion(id=request.id, text=text, finish_reason="stop" if stopped else "length")
    ids = TOKENIZER.convert_tokens_to_ids(letters)
    return Completion(
        id="",
        text=TOKENIZER.decode(ids[:-1] if stopped else ids),
        token_ids=tuple(ids),
        logprobs=(-1.0,) * len(ids),
        finish_reason="stop" if stopped else "length",
    )


SUBJECTS = {
    "scripted text": Subject(make=lambda: ScriptedEngine(babble)),
    "scripted tokens": Subject(
        make=lambda: ScriptedEngine(babble, tokenizer=TOKENIZER, context_length=400, batch=5)
    ),
    "transformers": Subject(make=transformers_engine, logprobs=model_logprobs, tolerance=1e-8),
    "transformers, few slots": Subject(
        make=lambda: transformers_engine(max_slots=3, context_length=128), logprobs=model_logprobs
    ),
}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
@pytest.mark.parametrize("check", CONTRACT, ids=names)
def test_it_keeps_the_contract(check: Check, subject: Subject) -> None:
    check(subject)
