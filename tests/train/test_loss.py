"""The loss and its gradient against the literal formula (M14, M16; audit lines 2 and 3)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_train import Example, encode, token_nll, weighted_nll, weighted_nll_from_logits
from tiny import tiny_model
from train.weighted_rows import (
    FAMILIES,
    gradient,
    literal_loss,
    random_rows,
    relative,
    step_gradient,
    tiny_double,
    weighted_table,
)


def examples_of(count: int = 6, *, seed: int = 0, supervise: str = "terminal") -> list[Example]:
    table = weighted_table(random_rows(count, vocab=64, seed=seed))
    return list(encode(table, vocab_size=64, supervise=supervise).examples)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_step_gradient_is_autograd_of_the_literal_formula(family: str, reduction: str) -> None:
    model = tiny_double(family)
    examples = examples_of()
    weights = [example.weight for example in examples]
    wanted = gradient(model, literal_loss(model, examples, weights, len(examples), reduction))
    for micro_tokens, world_size in [(1, 1), (40, 1), (10**6, 1), (40, 2), (10**6, 4), (1, 9)]:
        found = step_gradient(
            model, examples, micro_tokens=micro_tokens, world_size=world_size, reduction=reduction
        )
        assert relative(found, wanted) <= 1e-10, (micro_tokens, world_size)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_the_gradient_is_the_same_under_every_split(family: str) -> None:
    model = tiny_model(family, vocab=64)
    examples = examples_of()
    weights = [example.weight for example in examples]
    wanted = gradient(model, literal_loss(model, examples, weights, len(examples)))
    for micro_tokens, world_size in [(1, 1), (40, 2), (10**6, 1)]:
        found = step_gradient(model, examples, micro_tokens=micro_tokens, world_size=world_size)
        assert relative(found, wanted) <= 1e-5


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 7),
    micro_tokens=st.integers(1, 120),
    world_size=st.integers(1, 4),
)
def test_any_split_of_any_rows_gives_the_literal_gradient(
    seed: int, count: int, micro_tokens: int, world_size: int
) -> None:
    model = tiny_double()
    examples = examples_of(count, seed=seed)
    weights = [example.weight for example in examples]
    wanted = gradient(model, literal_loss(model, examples, weights, count))
    found = step_gradient(model, examples, micro_tokens=micro_tokens, world_size=world_size)
    assert relative(found, wanted) <= 1e-10


def test_gradient_is_linear_in_the_weights() -> None:
    model = tiny_double()
    examples = examples_of()

    def at(weights: list[float]) -> torch.Tensor:
        weighted = [replace(e, weight=w) for e, w in zip(examples, weights, strict=True)]
        return step_gradient(model, weighted, micro_tokens=60)

    one, other = [1.0, 0, 2, 0.5, 3, 0.1], [0.3, 4, 0, 1, 1, 2.5]
    both = [2 * a + 3 * b for a, b in zip(one, other, strict=True)]
    assert relative(at(both), 2 * at(one) + 3 * at(other)) <= 1e-10


def test_weight_zero_equals_the_row_absent_at_equal_n() -> None:
    model = tiny_double()
    examples = examples_of()
    zeroed = [replace(e, weight=0.0) if i in (1, 4) else e for i, e in enumerate(examples)]
    absent = [e for i, e in enumerate(examples) if i not in (1, 4)]
    found = step_gradient(model, zeroed, micro_tokens=60)
    wanted = step_gradient(model, absent, micro_tokens=60, num_examples=len(examples))
    assert relative(found, wanted) <= 1e-10


def test_all_turn_minus_terminal_gradient_is_the_earlier_turns() -> None:
    """g_all − g_term = w Σ_{t<L} ∇ℓ_t (eq. 16, 17)."""
    model = tiny_double()
    terminal, every = examples_of(), examples_of(supervise="all")
    assert any(len(example.spans) > 1 for example in every)
    early = [(e, replace(e, spans=e.spans[:-1])) for e in every if len(e.spans) > 1]
    for whole, before in early:
        last = terminal[whole.row]
        g_all = step_gradient(model, [whole], micro_tokens=100)
        g_term = step_gradient(model, [last], micro_tokens=100)
        delta = gradient(model, literal_loss(model, [before], [whole.weight], 1))
        assert relative(g_all - g_term, delta) <= 1e-10


@pytest.mark.parametrize(("reduction", "short", "long"), [("sum", 0.5, 0.5), ("mean", 0.25, 0.5 / 6)])
def test_every_token_of_a_response_has_the_coefficient_of_the_formula(
    reduction: str, short: float, long: float
) -> None:
    """Under sum a token's coefficient is w/N however long its response is (audit 2)."""
    nll_T = torch.rand(8, dtype=torch.float64, requires_grad=True)
    example_T = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    loss = weighted_nll(nll_T, example_T, torch.full((2,), 2.0), reduction=reduction, num_examples=4)
    loss.backward()
    wanted = torch.tensor([short] * 2 + [long] * 6, dtype=torch.float64)
    torch.testing.assert_close(nll_T.grad, wanted)


def test_labels_are_shifted_by_one_and_ignored_where_they_say_so() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[3, -100, 2, 6, -100], [-100, -100, -100, 0, 1]])
    nll_T, example_T = token_nll(logits, labels)
    wanted = [
        -torch.log_softmax(logits[b, t - 1], -1)[labels[b, t]]
        for b in range(2)
        for t in range(1, 5)
        if labels[b, t] != -100
    ]
    torch.testing.assert_close(nll_T, torch.stack(wanted))
    assert example_T.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_promoted_and_float64_stays(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 4, 9).to(dtype), torch.tensor([[0, 1, 2, 3]])
    weight = torch.ones(1)
    found = weighted_nll_from_logits(logits, labels, weight, num_examples=1)
    wanted = weighted_nll_from_logits(logits.float(), labels, weight, num_examples=1)
    assert found.dtype == torch.float32
    assert found == wanted
    assert weighted_nll_from_logits(logits.double(), labels, weight, num_examples=1).dtype == torch.float64


def test_num_examples_and_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="num_examples must be above 0"):
        weighted_nll(torch.ones(2), torch.zeros(2, dtype=torch.long), torch.ones(1), num_examples=0)
    with pytest.raises(ValueError, match="shape"):
        weighted_nll(torch.ones(2), torch.zeros(3, dtype=torch.long), torch.ones(1), num_examples=1)
