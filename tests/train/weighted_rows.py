"""Rows of weighted turns for tests, and the literal formula of eq. 14 and 15 as an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from lightning.pytorch import Callback, Trainer
from transformers import AttentionInterface

from drift_train import BatchPlan, Example, WeightedSFT, step_batch
from drift_weights.schema import WEIGHTED
from tiny import tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi", "phi3"]
"""Two with soft caps or windows, one with a bias on its head."""
WINDOWS = {"gemma2": {"sliding_window": 6}, "gemma3_text": {"sliding_window": 6}}
"""Shorter than most rows."""
USER = [{"role": "user", "content": "Problem: 12 + 30"}]


class StopAfter(Callback):
    """Ends a fit with an error when it has made so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # Checkpoint callbacks run last; what is saved at this step is not saved any more.
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


class InterruptAt(Callback):
    """Ctrl-C in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step + 1 == self.step:
            raise KeyboardInterrupt


def weighted_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """One WEIGHTED row; the key says `number`."""
    row = {
        "prompt_id": f"p{number // 4}",
        "round": 0,
        "policy": "ref",
        "sample": number % 4,
        "prompt": USER,
        "completion": [{"role": "assistant", "content": "<answer> 42 </answer>"}],
        "weight": 1.0,
        "return": 1.0,
        "length": 1,
        "unique_answers": 1,
        "counted": 1,
        "penalty": 0.0,
        "solved": True,
        "group_size": 4,
        "finish_reason": "stop",
        "input_ids": None,
        "response_spans": None,
        "logprobs": None,
        "tokenizer": None,
    }
    return row | changes


def token_row(number: int, ids: Sequence[int], spans: Sequence[tuple[int, int]], **changes: Any) -> Any:
    """One WEIGHTED row that holds tokens."""
    named = [{"start": start, "end": end} for start, end in spans]
    return weighted_row(number, input_ids=list(ids), response_spans=named, **changes)


def weighted_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows under the WEIGHTED schema."""
    return pa.Table.from_pylist(list(rows), schema=WEIGHTED)


def random_rows(count: int, *, vocab: int, seed: int = 0, longest: int = 5) -> list[dict[str, Any]]:
    """Dialogues of 1 to 3 turns with uneven lengths and weights; ids run over the whole vocabulary."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    rows = []
    for index in range(count):
        spans, position = [], 0
        for _ in range(number(1, 3)):
            start = position + number(1, longest)
            position = start + number(1, longest)
            spans.append((start, position))
        ids = torch.randint(0, vocab, (position,), generator=draw).tolist()
        weight = float(torch.rand((), generator=draw, dtype=torch.float64)) * 3
        rows.append(token_row(index, ids, spans, weight=weight))
    return rows


def grouped_rows(groups: int, size: int, *, vocab: int, seed: int = 0) -> list[dict[str, Any]]:
    """As `random_rows`, but those of a group begin with the same 8 to 20 ids, its prompt."""
    draw = torch.Generator().manual_seed(seed + 1)
    rows = random_rows(groups * size, vocab=vocab, seed=seed)
    for group in range(groups):
        length = int(torch.randint(8, 21, (), generator=draw))
        prompt = torch.randint(0, vocab, (length,), generator=draw).tolist()
        for number in range(group * size, (group + 1) * size):
            ids, spans = rows[number]["input_ids"], rows[number]["response_spans"]
            moved = [(span["start"] + length, span["end"] + length) for span in spans]
            named = {"prompt_id": f"g{group}", "sample": number % size, "weight": rows[number]["weight"]}
            rows[number] = token_row(number, [*prompt, *ids], moved, **named)
    return rows


def literal_loss(
    model: Any,
    examples: Sequence[Example],
    weights: Sequence[float],
    num_examples: int,
    reduction: str = "sum",
    attention: str | None = "literal",
) -> torch.Tensor:
    """1/N Σ_i w_i Σ_j −log π(y_ij | x_i, y_i,<j), one unpadded example and one token at a time."""
    total = torch.zeros((), dtype=model.dtype)
    if attention is not None:
        model.set_attn_implementation(attention)
    for example, weight in zip(examples, weights, strict=True):
        ids = torch.tensor(example.input_ids.tolist())
        log_prob = torch.log_softmax(model(ids[None]).logits[0], dim=-1)
        positions = [j for start, end in example.spans for j in range(start, end)]
        scale = weight / (len(positions) if reduction == "mean" else 1)
        for j in positions:
            total = total - scale * log_prob[j - 1, ids[j]]
    return total / num_examples


def literal_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **settings: Any
) -> tuple[torch.Tensor, None]:
    """softmax(cap·tanh(q·k·scale/cap)) · v over the tokens before each one, in the inputs' precision."""
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    scores = query @ key.mT * scale
    if cap := settings.get("softcap"):
        scores = cap * torch.tanh(scores / cap)
    place = torch.arange(query.shape[2])
    back = place[:, None] - place
    seen = (back >= 0) & (back < (settings.get("sliding_window") or len(place)))
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("literal", literal_attention)


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """The gradient of a loss as one vector."""
    parts = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(parts, model.parameters(), strict=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs])


def step_gradient(
    model: Any,
    examples: Sequence[Example],
    *,
    micro_tokens: int,
    world_size: int = 1,
    num_examples: int | None = None,
    reduction: str = "sum",
    weighting: str = "loss",
    packed: bool = True,
    gradient_checkpointing: bool = False,
    compile: bool = False,
) -> torch.Tensor:
    """What the ranks and micro-batches of one step over all examples add up to."""
    module = WeightedSFT.from_model(
        model,
        1e-3,
        reduction=reduction,
        gradient_checkpointing=gradient_checkpointing,
        compile=compile,
    )
    if gradient_checkpointing:
        # It is only done in training mode, in which some families drop activations.
        module.configure_model()
    plan = BatchPlan(examples, batch_size=len(examples), seed=3, weighting=weighting)
    total = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=model.dtype)
    for rank in range(world_size):
        share = step_batch(
            examples,
            plan.loss_weights(),
            plan.step(0),
            micro_tokens=micro_tokens,
            rank=rank,
            world_size=world_size,
            packed=packed,
        )
        for micro in share.micro_batches:
            loss, _ = module.micro_loss(micro, num_examples or share.num_examples)
            total += gradient(model, loss)
    return total


class ExactNorm(torch.nn.Module):
    """A model's RMSNorm in the precision of its input; transformers computes it in float32 always."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        self.offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.offset + self.weight) * hidden * scale


def tiny_double(family: str = "llama", **changes: Any) -> Any:
    """A tiny model that computes in float64 throughout, so that laws can be held to 1e-10."""
    return exact_norms(tiny_model(family, vocab=64, **WINDOWS.get(family, {}), **changes).double())


def exact_norms(model: Any) -> Any:
    """The same model, if it is of float64, with norms in that precision."""
    for name, module in list(model.named_modules()):
        if model.dtype == torch.float64 and type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, ExactNorm(module))
    return model


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((found - wanted).norm() / wanted.norm())
