"""The embedded engine on tiny models, and what it must agree with: plain whole forward passes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from drift_rollout.engine import Completion, Request, Sampling
from drift_rollout.engines.sampling import uniforms
from drift_rollout.engines.transformers import TransformersEngine
from tiny import bpe_tokenizer, tiny_model

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
