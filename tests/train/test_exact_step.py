"""Packed rows, shared beginnings and a loss in pieces give the gradient of the literal formula."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from drift_train import BatchPlan, Example, WeightedSFT, encode, head, step_batch
from drift_train.attention import PACKED, Segment, Segments, attend, why_not_packed
from drift_train.head import Head, weighted_head_nll
from tiny import tiny_gemma3, tiny_model
from train.weighted_rows import (
    FAMILIES,
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

SPLITS = [(1, 1), (60, 1), (10**6, 1), (60, 2), (10**6, 3), (1, 20)]
"""Tokens of a micro-batch, and ranks; the last leaves some with nothing."""


def grouped(groups: int = 3, size: int = 3, *, seed: int = 0, supervise: Any = "terminal") -> list[Example]:
    rows = grouped_rows(groups, size, vocab=64, seed=seed)
    return list(encode(weighted_table(rows), vocab_size=64, supervise=supervise).examples)


def wanted(model: Any, examples: list[Example], reduction: str = "sum") -> Tensor:
    weights = [example.weight for example in examples]
    return gradient(model, literal_loss(model, examples, weights, len(examples), reduction))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("supervise", ["terminal", "all"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_step_is_the_literal_formula(
    family: str, supervise: Any, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, whatever the split; the loss in pieces of three tokens."""
    monkeypatch.setattr(head, "LOGITS", 3 * 64)
    monkeypatch.setattr(head, "POSITIONS", 1)
    model, examples = tiny_double(family), grouped(supervise=supervise)
    literal = wanted(model, examples, reduction)
    for micro_tokens, world_size in SPLITS:
        split = {"micro_tokens": micro_tokens, "world_size": world_size}
        found = step_gradient(model, examples, reduction=reduction, **split)
        assert relative(found, literal) <= 1e-10, split


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    groups=st.integers(1, 4),
    size=st.integers(1, 4),
    micro_tokens=st.integers(1, 200),
    world_size=st.integers(1, 5),
    packed=st.booleans(),
    checkpointing=st.booleans(),
)
def test_any_groups_and_any_split_give_the_literal_gradient(
    seed: int,
    groups: int,
    size: int,
    micro_tokens: int,
    world_size: int,
    packed: bool,
    checkpointing: bool,
) -> None:
    model, examples = tiny_double(tie_word_embeddings=True), grouped(groups, size, seed=seed)
    found = step_gradient(
        model,
        examples,
        micro_tokens=micro_tokens,
        world_size=world_size,
        packed=packed,
        gradient_checkpointing=checkpointing,
    )
    assert relative(found, wanted(model, examples)) <= 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_and_in_bfloat16(family: str) -> None:
    changes = {"initializer_range": 0.1, **WINDOWS.get(family, {})}
    model, examples = tiny_model(family, vocab=64, **changes), grouped()
    literal = wanted(model, examples)
    for micro_tokens, world_size in SPLITS:
        split = {"micro_tokens": micro_tokens, "world_size": world_size}
        assert relative(step_gradient(model, examples, **split), literal) <= 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            half = step_gradient(model, examples, **split)
        assert relative(half, literal) <= 2e-2


@pytest.mark.parametrize("weighting", ["none", "resample"])
def test_weights_of_one_and_rows_that_are_drawn_often(weighting: str) -> None:
    """A step of the plan, in which a row may come twice."""
    model, examples = tiny_double(), grouped(2, 4)
    plan = BatchPlan(examples, batch_size=11, seed=3, weighting=weighting)
    indices = plan.step(0)
    assert len(set(indices.tolist())) < len(indices)
    drawn = [examples[i] for i in indices]
    literal = gradient(model, literal_loss(model, drawn, [1.0] * 11, 11))
    module = WeightedSFT.from_model(model, 1e-3)
    batch = step_batch(examples, plan.loss_weights(), indices, micro_tokens=70)
    found = sum(gradient(model, module.micro_loss(micro, 11)[0]) for micro in batch.micro_batches)
    assert relative(found, literal) <= 1e-10


def shape(model_type: str) -> dict[str, Any]:
    """Settings of a tiny model of any family; those that a family does not know do no harm."""
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    experts["moe_intermediate_size"] = 16
    more = {"num_key_value_heads": 2, "max_position_embeddings": 512}
    if model_type != "falcon":
        more["head_dim"] = 8
    wide = {"ministral", "mistral", "mixtral", "starcoder2", "cohere2", "olmo3", "exaone4", *WINDOWS}
    window: dict[str, Any] = {"sliding_window": 6} if model_type in wide else {}
    if model_type.startswith("qwen"):
        window = {
            "sliding_window": 6,
            "use_sliding_window": model_type != "qwen2_moe",
            "max_window_layers": 1,
        }
    return {"vocab_size": 64, "initializer_range": 0.2, **tiny, **ids, **experts, **more, **window}


@pytest.mark.parametrize("model_type", sorted(PACKED))
def test_every_family_that_is_packed_is_packed_exactly(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **shape(model_type))
    assert why_not_packed(config) is None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    examples = grouped(2, 3)
    literal = wanted(model, examples)
    assert relative(step_gradient(model, examples, micro_tokens=10**6), literal) <= 1e-5
    # transformers' own, which may slide by a mask where the literal one goes by what it is told.
    assert relative(literal, eager(model, examples)) <= 1e-5


def eager(model: Any, examples: list[Example]) -> Tensor:
    weights = [example.weight for example in examples]
    return gradient(model, literal_loss(model, examples, weights, len(examples), attention="eager"))


def test_layers_that_slide_by_their_mask_alone_are_padded() -> None:
    slides = shape("qwen2_moe") | {"use_sliding_window": True}
    config = AutoConfig.for_model("qwen2_moe", **slides)
    assert "slide by a mask" in str(why_not_packed(config))
    torch.manual_seed(0)
    model, examples = AutoModelForCausalLM.from_config(config).eval(), grouped(2, 3)
    literal = eager(model, examples)
    model.set_attn_implementation("sdpa")
    assert relative(step_gradient(model, examples, micro_tokens=80, packed=False), literal) <= 1e-5


def test_a_padded_batch_keeps_the_cap_on_scores() -> None:
    model = tiny_double("gemma2", attn_logit_softcapping=2.0)
    examples = grouped()
    found = step_gradient(model, examples, micro_tokens=80, packed=False)
    # Its softmax is in float32.
    assert relative(found, eager(model, examples)) <= 1e-6


@pytest.mark.parametrize(
    ("family", "changes"), [("gemma3_text", {"use_bidirectional_attention": True}), ("bert", {})]
)
def test_a_policy_that_looks_ahead_is_refused(family: str, changes: dict[str, Any]) -> None:
    config = AutoConfig.for_model(family, **shape(family) | changes)
    with pytest.raises(ValueError, match=f"the attention of this {family} is not causal"):
        WeightedSFT.from_model(AutoModelForCausalLM.from_config(config), 1e-3)


def test_masks_can_be_dropped() -> None:
    model, examples = tiny_double("gemma2"), grouped()
    (micro,) = step_batch(examples, np.ones(9), np.arange(9), micro_tokens=10**6).micro_batches
    WeightedSFT.from_model(model, 1e-3).micro_loss(micro, 9)
    assert micro.segments is not None
    assert micro.segments._masks
    micro.segments.forget()
    assert not micro.segments._masks


@pytest.mark.parametrize("family", ["qwen3_next", "lfm2", "mamba", "bloom", "opt", "falcon"])
def test_a_family_that_cannot_be_packed_is_padded_exactly(family: str) -> None:
    """Recurrent or convolving layers, places by distance, and a forward that steps into its base model."""
    hybrid = {"qwen3_next": ["linear_attention", "full_attention"], "lfm2": ["conv", "full_attention"]}
    more = {"layer_types": hybrid[family]} if family in hybrid else {}
    config = AutoConfig.for_model(family, **shape(family), **more)
    assert why_not_packed(config) is not None
    torch.manual_seed(0)
    model, examples = AutoModelForCausalLM.from_config(config).eval(), grouped(2, 3)
    weights = [example.weight for example in examples]
    loss = literal_loss(model, examples, weights, len(examples), attention=None)
    literal = gradient(model, loss)
    assert relative(step_gradient(model, examples, micro_tokens=80, packed=False), literal) <= 1e-5


def test_layers_of_another_kind_are_not_packed() -> None:
    kinds = ["full_attention", "chunked_attention"]
    config = AutoConfig.for_model("llama", num_hidden_layers=2, layer_types=kinds)
    assert "layers" in str(why_not_packed(config))
    assert "gemma3" in str(why_not_packed(tiny_gemma3(vocab=64).config))


def test_a_packed_row_is_refused_by_another_attention() -> None:
    model, examples = tiny_model(vocab=64), grouped()
    module = WeightedSFT.from_model(model, 1e-3)
    model.set_attn_implementation("sdpa")
    (micro,) = step_batch(examples, np.ones(9), np.arange(9), micro_tokens=10**6).micro_batches
    with pytest.raises(ValueError, match="drift_segments, the policy has sdpa"):
        module.micro_loss(micro, 9)


@pytest.mark.parametrize("window", [None, 1, 4, 50])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("heads", [2, 4])
def test_attention_of_segments_is_attention_of_rows(
    window: int | None, cap: float | None, heads: int
) -> None:
    """Every segment after its prefix, alone, by the literal formula; so are its gradients."""
    torch.manual_seed(0)
    shape = [(1, 4, 20, 8), (1, heads, 20, 8), (1, heads, 20, 8)]
    states = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shape]
    parts = [Segment(0, 6, 0, 0), Segment(6, 11, 0, 6), Segment(11, 12, 0, 6), Segment(12, 20, 12, 12)]
    module, more = SimpleNamespace(), {"scaling": 0.3, "sliding_window": window, "softcap": cap}
    found, _ = attend(module, *states, None, segments=Segments(parts), **more)
    rows = []
    for part in parts:
        places = [*range(part.prefix_start, part.prefix_end), *range(part.start, part.end)]
        alone, _ = literal_attention(module, *(s[:, :, places] for s in states), **more)
        rows.append(alone[:, part.prefix :])
    literal = torch.cat(rows, dim=1)
    torch.testing.assert_close(found, literal)
    direction = torch.randn_like(found)
    for one, other in zip(
        *(torch.autograd.grad(x, states, direction) for x in (found, literal)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_autocast_leaves_float64_and_its_masks_alone() -> None:
    states = [torch.randn(1, 2, 9, 8, dtype=torch.float64) for _ in range(3)]
    segments = Segments([Segment(0, 4, 0, 0), Segment(4, 9, 0, 4)])
    wanted_, _ = attend(SimpleNamespace(), *states, None, segments=segments)
    segments.forget()
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(SimpleNamespace(), *states, None, segments=segments)
    torch.testing.assert_close(found, wanted_)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_loss_in_pieces_is_the_loss(
    dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "LOGITS", 7 * size)
    monkeypatch.setattr(head, "POSITIONS", 1)
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 4, dtype=dtype), torch.randn(7, 4, dtype=dtype)
    target, factor = torch.randint(0, 7, (10,)), torch.rand(10, dtype=torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_()

    def logits(hidden_RD: Tensor) -> Tensor:
        return 2 * torch.tanh(hidden_RD @ weight.T / 2)

    found = weighted_head_nll(Head(logits, 7, [weight]), hidden, target, factor)
    exact = torch.promote_types(dtype, torch.float32)
    nll = torch.nn.functional.cross_entropy(logits(hidden).to(exact), target, reduction="none")
    literal = (factor.to(exact) * nll).sum()
    assert found.dtype == exact
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, literal, **close)
    grads = (torch.autograd.grad(3 * x, [hidden, weight]) for x in (found, literal))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **close)


def test_a_loss_goes_backward_once() -> None:
    hidden = torch.ones(2, 3, requires_grad=True)
    loss = weighted_head_nll(Head(lambda h: h, 3), hidden, torch.tensor([0, 1]), torch.ones(2))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="goes backward once"):
        loss.backward()


def test_no_more_logits_than_asked_for_are_ever_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LOGITS", 5 * 64)
    monkeypatch.setattr(head, "POSITIONS", 1)
    model, examples = tiny_double(), grouped()
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda *call: seen.append(call[2].numel()))
    step_gradient(model, examples, micro_tokens=10**6)
    supervised = sum(example.supervised for example in examples)
    assert max(seen) <= 5 * 64
    assert sum(seen) == supervised * 64


def test_a_policy_under_training_answers_as_it_did() -> None:
    """Engines look for arguments of forward by name, and take a copy to generate with."""
    model = tiny_double("llama")
    ids = torch.arange(12)[None]
    arguments, before = inspect.signature(model.forward), model(ids).logits
    policy = WeightedSFT.from_model(model, 1e-3).policy
    copied = copy.deepcopy(policy)
    for parameter in policy.parameters():
        parameter.data.zero_()
    assert inspect.signature(copied.forward) == arguments
    torch.testing.assert_close(copied(ids).logits, before)


def test_an_adapter_on_the_head_is_trained() -> None:
    pytest.importorskip("peft")
    targets = {"lora": {"rank": 2, "targets": ["q_proj", "lm_head"]}}
    examples, model = grouped(), tiny_double()
    module = WeightedSFT.from_model(model, 1e-3, **targets)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [example.weight for example in examples]
    literal = torch.autograd.grad(literal_loss(model, examples, weights, 9), trained)
    model.set_attn_implementation("drift_segments")
    batch = step_batch(examples, np.array(weights), np.arange(9), micro_tokens=10**6)
    found = torch.autograd.grad(module.micro_loss(batch.micro_batches[0], 9)[0], trained)
    for one, other in zip(found, literal, strict=True):
        torch.testing.assert_close(one, other)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@CUDA
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_of_segments_on_cuda(window: int | None, dtype: torch.dtype) -> None:
    """Half precision takes lengths, float32 a call a segment; both against float64 on the host."""
    torch.manual_seed(0)
    parts = [
        Segment(0, 60, 0, 0),
        Segment(60, 110, 0, 60),
        Segment(110, 111, 0, 60),
        Segment(111, 200, 111, 111),
    ]
    shape = [(1, 4, 200, 64), (1, 2, 200, 64), (1, 2, 200, 64)]
    host = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shape]
    device = [s.detach().to("cuda", dtype).requires_grad_() for s in host]
    direction = torch.randn(1, 200, 4, 64, dtype=torch.float64)
    results = []
    for states in (host, device):
        found, _ = attend(SimpleNamespace(), *states, None, segments=Segments(parts), sliding_window=window)
        grads = torch.autograd.grad(found, states, direction.to(found))
        results.append([x.detach().double().cpu() for x in (found, *grads)])
    for one, other in zip(*results, strict=True):
        assert relative(other, one) <= (2e-2 if dtype == torch.bfloat16 else 1e-5)


@CUDA
@pytest.mark.parametrize("family", FAMILIES)
def test_the_step_on_cuda_in_bfloat16(family: str) -> None:
    changes = {"initializer_range": 0.1, **WINDOWS.get(family, {})}
    model, examples = tiny_model(family, vocab=64, **changes), grouped()
    literal = wanted(model, examples)
    module = WeightedSFT.from_model(model, 1e-3)
    model.cuda()
    weights = np.array([example.weight for example in examples])
    (micro,) = step_batch(examples, weights, np.arange(9), micro_tokens=10**6).micro_batches
    with torch.autocast("cuda", torch.bfloat16):
        found = gradient(model, module.micro_loss(micro.to("cuda"), 9)[0])
    assert relative(found.cpu(), literal) <= 2e-2
