"""What benchmarks/train.py trains on: rows shaped like DRIFT's, and random models of three sizes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers

from drift_weights import group_weights, trajectory_return

SAMPLES, TURNS = 16, 5
PROMPT, RESPONSE, FEEDBACK = (100, 250), (30, 150), 14
"""Tokens: ranges of a prompt and a response, and what stands between a response and the next."""
ANSWERS = 6
"""Wrong answers that a prompt provokes."""
SKILL = (1.0, 2.0)
"""Of the Beta distribution of a prompt's chance to be solved in a turn: a third in the mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A random Qwen2 and how much of it is trained on at once."""

    name: str
    groups: int
    """Prompts of an optimizer step, 16 rows each."""
    batch: int
    """Rows of a forward pass of TRL's trainer; on a CPU those of the authors'."""
    micro_tokens: int
    """Most tokens of a forward pass of ours."""
    settings: dict[str, Any]


SHAPES = {
    "tiny": Shape(
        name="tiny",
        groups=1,
        batch=4,
        micro_tokens=2048,
        settings={
            "vocab_size": 2048,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
    ),
    "6M": Shape(
        name="6M",
        groups=1,
        batch=2,
        micro_tokens=2048,
        settings={
            "vocab_size": 32_768,
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 24,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
        },
    ),
    "0.5B": Shape(
        name="0.5B",
        groups=8,
        batch=16,
        micro_tokens=16_384,
        settings={
            "vocab_size": 151_936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
    ),
    "3B": Shape(
        name="3B",
        groups=8,
        batch=8,
        micro_tokens=8192,
        settings={
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 11_008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
        },
    ),
}
"""The first is for a quick look; the last two have the shapes of Qwen2.5's models of that size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What the arithmetic of a step depends on."""

    body: int
    """Parameters without the tied head."""
    head: int
    """V·H."""
    rows: int
    tokens: int
    """Without padding."""
    unique: int
    """Tokens that no earlier row begins with: a shared prompt counts once."""
    responses: int
    """Tokens with loss."""

    def limit(self, rate: float) -> float:
        """(6·P·U + 6·V·H·R)/F: seconds of a step that computes nothing twice, at `rate` FLOP/s."""
        return 6 * (self.body * self.unique + self.head * self.responses) / rate

    def useful(self, seconds: float, rate: float) -> float:
        """The share of `rate` that the model's arithmetic on all tokens comes to (MFU)."""
        return 6 * (self.body * self.tokens + self.head * self.responses) / (seconds * rate)


def config(shape: Shape) -> Any:
    """Of the random model; its head is the input embedding, as in Qwen2.5's small models."""
    longest = PROMPT[1] + TURNS * RESPONSE[1] + (TURNS - 1) * FEEDBACK
    return transformers.Qwen2Config(
        **shape.settings,
        max_position_embeddings=longest,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def model(shape: Shape, device: str) -> Any:
    """Built where it is used; the same random numbers in every process."""
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config(shape), attn_implementation="sdpa")


def rows(shape: Shape, *, seed: int = 0) -> pa.Table:
    """Weighted terminal turns of `groups` prompts: dialogues of token ids, weights of eqs. 12 and 13."""
    rng = np.random.default_rng(seed)
    vocab = shape.settings["vocab_size"]
    found = []
    for group in range(shape.groups):
        prompt = rng.integers(0, vocab, rng.integers(*PROMPT, endpoint=True))
        chance = rng.beta(*SKILL)
        found += [_dialogue(rng, vocab, group, sample, prompt, chance) for sample in range(SAMPLES)]
    table = pa.Table.from_pylist(found)
    names = ("solved", "length", "unique_answers")
    solved, length, unique = (table.column(name).to_numpy() for name in names)
    weight_N = group_weights(trajectory_return(solved, length, unique), table.column("prompt_id"))
    return table.append_column("weight", pa.array(weight_N))


def _dialogue(
    rng: np.random.Generator, vocab: int, group: int, sample: int, prompt: Any, chance: float
) -> dict[str, Any]:
    ids, answers, solved, size = [prompt], set(), False, len(prompt)
    spans: list[dict[str, int]] = []
    while len(spans) < TURNS and not solved:
        if spans:
            ids.append(rng.integers(0, vocab, FEEDBACK))
            size += FEEDBACK
        tokens = int(rng.integers(*RESPONSE, endpoint=True))
        ids.append(rng.integers(0, vocab, tokens))
        spans.append({"start": size, "end": size + tokens})
        size += tokens
        solved = bool(rng.random() < chance)
        answers.add(-1 if solved else int(rng.integers(ANSWERS)))
    return {
        "prompt_id": f"p{group}",
        "round": 0,
        "policy": "ref",
        "sample": sample,
        "input_ids": np.concatenate(ids).tolist(),
        "response_spans": spans,
        "solved": solved,
        "length": len(spans),
        "unique_answers": len(answers),
    }


def size(shape: Shape, table: pa.Table) -> Size:
    """Count parameters and tokens."""
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config(shape))
    head = shape.settings["vocab_size"] * shape.settings["hidden_size"]
    ids = sorted(table.column("input_ids").to_pylist())
    shared = sum(_common(one, other) for one, other in pairwise(ids))
    last = [spans[-1] for spans in table.column("response_spans").to_pylist()]
    tokens = sum(map(len, ids))
    return Size(
        body=sum(parameter.numel() for parameter in built.parameters()) - head,
        head=head,
        rows=table.num_rows,
        tokens=tokens,
        unique=tokens - shared,
        responses=sum(span["end"] - span["start"] for span in last),
    )


def _common(one: list[int], other: list[int]) -> int:
    """Tokens that two rows begin with alike; in sorted order all that a row shares with an earlier one."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
