"""FlashAttention with lengths, as far as it goes without a GPU.

What it is told gives literal attention, by an emulation of what torch documents; torch's own operator
takes it, forward and backward, by its shapes; and nothing on its way is read back by the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from drift_train import Example, WeightedSFT, attention, encode, head, step_batch
from drift_train.attention import Segment, Segments, attend
from drift_train.layout import MicroBatch
from tiny import tiny_model
from train.weighted_rows import (
    WINDOWS,
    gradient,
    grouped_rows,
    literal_attention,
    literal_loss,
    relative,
    step_gradient,
    tiny_double,
    weighted_table,
)

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text", "phi", "phi3"]
"""Gemma 2 caps its scores, which FlashAttention of torch does not."""
PARTS = [Segment(0, 6, 0, 0), Segment(6, 11, 0, 6), Segment(11, 12, 0, 6), Segment(12, 20, 12, 12)]
FORWARD, BACKWARD = "torch_attn._varlen_attn.default", "torch_attn._varlen_attn_backward.default"


def examples() -> list[Example]:
    return list(encode(weighted_table(grouped_rows(3, 3, vocab=64)), vocab_size=64).examples)


def micro_batch() -> MicroBatch:
    rows = examples()
    weights = np.array([example.weight for example in rows])
    (micro,) = step_batch(rows, weights, np.arange(9), micro_tokens=10**6).micro_batches
    return micro


class Emulated:
    """varlen_attn by its documentation, a segment at a time, in the precision of its inputs."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start_q: Tensor,
        start_k: Tensor,
        *more: Any,
        **how: Any,
    ) -> Tensor:
        self.calls += 1
        assert start_q.dtype == start_k.dtype == torch.int32
        (longest_q, longest_k), outputs = more, []
        for q_run, k_run in zip(pairwise(start_q.tolist()), pairwise(start_k.tolist()), strict=True):
            assert 0 < q_run[1] - q_run[0] <= longest_q
            assert 0 < k_run[1] - k_run[0] <= longest_k
            q, (k, v) = query[slice(*q_run)], (x[slice(*k_run)] for x in (key, value))
            outputs.append(self.segment(q, k, v, **how))
        return torch.cat(outputs)

    def segment(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None,
        window_size: tuple[int, int],
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        # The last query stands at the last key; it sees so many keys beside its own to either side.
        place = torch.arange(len(q))[:, None] + len(k) - len(q)
        back, (left, right) = place - torch.arange(len(k)), window_size
        seen = ((right < 0) | (back >= -right)) & ((left < 0) | (back <= left))
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """In the place of torch's, for all that it could take on a GPU."""
    emulation = Emulated()
    monkeypatch.setattr(attention, "varlen_attn", emulation)
    monkeypatch.setattr(attention, "_takes_lengths", lambda query, dropout, softcap: softcap is None)
    return emulation


@pytest.mark.parametrize("window", [None, 1, 4, 6, 50])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("grouped", [True, False])
def test_attention_by_lengths_is_attention_of_rows(
    window: int | None,
    heads: int,
    scaling: float | None,
    grouped: bool,
    emulated: Emulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And its gradients; also by a torch whose varlen_attn knows no groups of heads."""
    monkeypatch.setattr(attention, "_GROUPED", grouped)
    torch.manual_seed(0)
    shape = [(1, 4, 20, 8), (1, heads, 20, 8), (1, heads, 20, 8)]
    states = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shape]
    module, more = SimpleNamespace(), {"scaling": scaling, "sliding_window": window}
    found, _ = attend(module, *states, None, segments=Segments(PARTS), **more)
    assert emulated.calls == 1
    rows = []
    for part in PARTS:
        places = [*range(part.prefix_start, part.prefix_end), *range(part.start, part.end)]
        alone, _ = literal_attention(module, *(s[:, :, places] for s in states), **more)
        rows.append(alone[:, part.prefix :])
    literal, direction = torch.cat(rows, dim=1), torch.randn(1, 20, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(found, literal)
    grads = (torch.autograd.grad(x, states, direction) for x in (found, literal))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_by_lengths_is_the_literal_formula(
    family: str, reduction: str, checkpointing: bool, emulated: Emulated
) -> None:
    model, rows = tiny_double(family), examples()
    weights = [example.weight for example in rows]
    literal = gradient(model, literal_loss(model, rows, weights, len(rows), reduction))
    assert emulated.calls == 0
    for micro_tokens, world_size in [(1, 1), (60, 2), (10**6, 1)]:
        found = step_gradient(
            model,
            rows,
            micro_tokens=micro_tokens,
            world_size=world_size,
            reduction=reduction,
            gradient_checkpointing=checkpointing,
        )
        assert relative(found, literal) <= 1e-10
    assert emulated.calls > 0


@pytest.mark.parametrize(
    ("built", "capability", "has"),
    [
        (True, (7, 0), False),
        (True, (7, 5), False),
        (True, (8, 0), True),
        (True, (9, 0), True),
        (False, (9, 0), False),
    ],
)
def test_older_gpus_have_no_flash_attention(
    built: bool, capability: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither have a V100 and a T4, nor a torch that was built without: they go segment by segment."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    attention._has_flash.cache_clear()
    with FakeTensorMode(), Operations() as ran:
        states = [torch.empty(1, n, 20, 64, dtype=torch.bfloat16, device="cuda") for n in (2, 1, 1)]
        segments = Segments(PARTS).to("cuda")
        found, _ = attend(SimpleNamespace(), *states, None, segments=segments, sliding_window=4)
    assert found.shape == (1, 20, 2, 64)
    assert ran.times[FORWARD] == has
    attention._has_flash.cache_clear()


class Operations(TorchDispatchMode):
    """Counts operations, and notes those that bring numbers from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[str] = Counter()
        self.moved: list[str] = []
        self.added: set[torch.dtype] = set()
        """Types in which gradients of tokens that were taken more than once added up."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.times[str(func)] += 1
        if "index_add" in str(func):
            self.added.add(result.dtype)
        before, after = (
            {x.device.type for x in tree_leaves(values) if isinstance(x, Tensor)}
            for values in ((args, kwargs), result)
        )
        if before and after and before != after:
            self.moved.append(f"{func}: {before} to {after}")
        return result


@pytest.fixture
def with_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were a GPU that has it."""
    monkeypatch.setattr(attention, "_has_flash", lambda device: True)


@contextmanager
def autocast(enabled: bool = True) -> Iterator[None]:
    """To bfloat16 on a GPU; torch.autocast refuses where there is none."""
    dtype = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", enabled)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", dtype)
    torch.clear_autocast_cache()


@pytest.mark.usefixtures("with_flash")
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize(
    ("size", "takes"), [(64, 1), (80, 1), (128, 1), (256, 1), (60, 0), (208, 0), (264, 0)]
)
@pytest.mark.parametrize("casts", [False, True])
def test_torch_takes_what_it_is_given(
    window: int | None, heads: int, size: int, takes: int, casts: bool
) -> None:
    """Its operator by its shapes on a GPU that is not there: one call, and no number leaves the device."""
    given = torch.float32 if casts else torch.bfloat16
    with FakeTensorMode(), autocast(casts):
        shape = [(1, 20, 4, size), (1, 20, heads, size), (1, 20, heads, size)]
        states = [torch.empty(s, dtype=given, device="cuda").transpose(1, 2) for s in shape]
        segments = Segments(PARTS).to("cuda")
        with Operations() as ran:
            found, _ = attend(SimpleNamespace(), *states, None, segments=segments, sliding_window=window)
    assert (found.dtype, found.shape, found.device.type) == (torch.bfloat16, (1, 20, 4, size), "cuda")
    assert ran.times[FORWARD] == takes
    assert ran.moved == []


@pytest.mark.usefixtures("with_flash")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_on_a_gpu_takes_one_call_a_layer(family: str) -> None:
    """Under autocast, where rotated queries are float32 and values are not. No number is read."""
    host = micro_batch()
    with FakeTensorMode(allow_non_fake_inputs=True), autocast():
        with torch.device("cuda"):
            model = tiny_model(family, vocab=64, **WINDOWS.get(family, {}))
        module = WeightedSFT.from_model(model, 1e-3)
        micro = host.to("cuda")
        with Operations() as ran, torch.no_grad():
            loss, hits = module.micro_loss(micro, 9)
    assert hits is not None
    assert loss.device.type == hits.device.type == "cuda"
    assert ran.times[FORWARD] == model.config.num_hidden_layers
    assert ran.moved == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_reads_nothing_back(
    family: str, reduction: Any, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's meta device, where reading a number, moving one to the host or counting by one raises.

    The engine goes backward on no GPU that is not there, so that this one stands for it.
    """
    monkeypatch.setattr(attention, "_takes_lengths", lambda query, dropout, softcap: True)
    monkeypatch.setattr(head, "LOGITS", 3 * 64)
    monkeypatch.setattr(head, "POSITIONS", 1)
    with torch.device("meta"):
        model = tiny_model(family, vocab=64, **WINDOWS.get(family, {})).bfloat16()
    module = WeightedSFT.from_model(model, 1e-3, reduction=reduction, gradient_checkpointing=checkpointing)
    module.configure_model()
    micro = micro_batch().to("meta")
    assert micro.segments is not None
    micro.segments.lengths(torch.device("meta"))
    with Operations() as ran:
        loss, _ = module.micro_loss(micro, 9)
        loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())
    layers = model.config.num_hidden_layers
    assert ran.times[FORWARD] == layers * (2 if checkpointing else 1)
    assert ran.times[BACKWARD] == layers
    assert ran.moved == []


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("window", [None, 5])
def test_torch_takes_it_back(size: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of grouped heads and shared prefixes have the shapes and types of what they are of."""
    monkeypatch.setattr(attention, "_takes_lengths", lambda query, dropout, softcap: True)
    shape = [(1, 4, 20, size), (1, 2, 20, size), (1, 2, 20, size)]
    states = [torch.empty(s, dtype=torch.bfloat16, device="meta", requires_grad=True) for s in shape]
    with Operations() as ran:
        found, _ = attend(SimpleNamespace(), *states, None, segments=Segments(PARTS), sliding_window=window)
        grads = torch.autograd.grad(found, states, torch.empty_like(found))
    assert [(g.shape, g.dtype) for g in grads] == [(s.shape, s.dtype) for s in states]
    assert ran.times[FORWARD] == ran.times[BACKWARD] == 1
    # On a GPU, 256 + 1 is 256 in bfloat16; on a CPU the sum is exact in either, and shows nothing.
    assert ran.added == {torch.float32}


def test_lengths_are_on_their_device_before_they_are_needed() -> None:
    host = micro_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        micro = host.to("cuda")
        assert micro.segments is not None
        with Operations() as ran:
            found = micro.segments.lengths(micro.input_ids.device)
        assert found.order is not None
        assert {x.device for x in (found.start_q, found.start_k, found.order)} == {micro.input_ids.device}
    assert not ran.times
    assert (found.longest_q, found.longest_k) == max_lengths(micro)


def max_lengths(micro: MicroBatch) -> tuple[int, int]:
    assert micro.segments is not None
    parts = micro.segments.parts
    return max(p.length for p in parts), max(p.prefix + p.length for p in parts)


@pytest.mark.parametrize(
    ("device", "vocab", "wanted"),
    [("cpu", 10_000, 2**22 // 10_000), ("cpu", 150_000, 128), ("cuda:1", 100_000, 2**27 // 100_000)],
)
def test_pieces_are_short_but_not_too_short_and_longer_on_a_gpu(
    device: str, vocab: int, wanted: int
) -> None:
    with FakeTensorMode():
        hidden = torch.empty(10_000, 4, device=device.split(":")[0])
        pieces = list(head._pieces(head.Head(lambda h: h, vocab), hidden, hidden[:, 0]))
    assert max(len(piece[0]) for piece in pieces) == wanted
    assert sum(len(piece[0]) for piece in pieces) == 10_000
