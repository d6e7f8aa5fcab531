"""The output head, on the positions that predict a supervised token and nowhere else."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel

LOGITS = 2**22
"""Most logits that are there at a time: so few that they stay near the processor."""
LOGITS_ON_GPU = 2**27
"""The same on a GPU: 0.5 GB in float32."""
POSITIONS = 128
"""Fewest positions of a piece, whatever its logits: each piece passes over the head's whole gradient, and
with fewer that takes longer than its arithmetic."""


class Head(NamedTuple):
    """What makes logits of hidden states."""

    logits: Callable[[Tensor], Tensor]
    """[R, D] → [R, V]; half precision is scored in float32."""
    vocab: int
    """V, about."""
    weights: Sequence[Tensor] = ()
    """Tensors that it computes with, for their gradient."""


Score = Callable[[Head, Tensor], Any]
"""What is made of a head and hidden states [B, T, D]."""


def score_inside(policy: PreTrainedModel) -> None:
    """Let the policy's forward take `score`, and hand it the hidden states in the place of logits.

    It has to be in there: sharded strategies have the head's weights together only within a forward.
    A model whose body and head cannot be told apart gives its logits, and a head that does nothing.
    """
    plain = type(policy).forward
    if has_body(policy):
        names = _names_of_head(policy)
        policy.forward = types.MethodType(_as_named(_forward_by_parts, plain), policy)
        policy._drift_head = names  # type: ignore[assignment]
    else:
        policy.forward = types.MethodType(_as_named(_forward_whole, plain), policy)


def has_body(policy: PreTrainedModel) -> bool:
    """Whether a policy's forward is its `base_model`, then the head."""
    body = policy.base_model
    if not from_transformers(policy) or body is policy or policy.get_output_embeddings() is None:
        return False
    # OPT calls a part of its base model. Of one that reads more than text, the decoder is a part, too.
    return policy.get_decoder() is body or policy.config.get_text_config() is not policy.config


def from_transformers(policy: PreTrainedModel) -> bool:
    """Whether its code is transformers' own."""
    return type(policy).__module__.startswith("transformers.")


def head_weights(policy: nn.Module) -> list[nn.Parameter]:
    """What the head of a policy that scores inside computes with; none where it is one with its body."""
    names: list[tuple[str, str]] = getattr(policy, "_drift_head", [])
    return [getattr(policy.get_submodule(path), name) for path, name in names]


def positions_at_once(device: torch.device | str, vocab: int) -> int:
    """Positions of a piece of the loss."""
    logits = LOGITS_ON_GPU if torch.device(device).type == "cuda" else LOGITS
    return max(POSITIONS, logits // vocab)


def weighted_head_nll(head: Head, hidden_RD: Tensor, target_R: Tensor, factor_R: Tensor) -> Tensor:
    """Σ_r factor_r · −log softmax(head(hidden_r))[target_r], a piece at a time (see `positions_at_once`).

    The gradient of each piece is computed with the piece, so that no logits stay and none is
    computed twice; backward multiplies by what comes in, once.

    Args:
        head: of the policy.
        hidden_RD: where a supervised token is predicted.
        target_R: that token.
        factor_R: what multiplies its loss.

    Returns:
        A scalar, in float32, or float64 for float64 hidden states.
    """
    trained = [weight for weight in head.weights if weight.requires_grad]
    return cast(Tensor, cast(Any, _HeadLoss).apply(head, target_R, factor_R, hidden_RD, *trained))


def head_nll(head: Head, hidden_RD: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    """−log π of each target, and whether it is the head's best guess; both of shape [R]."""
    nll, hits = [hidden_RD.new_zeros(0, dtype=_precise(hidden_RD.dtype))], [target_R.new_zeros(0) > 0]
    for hidden, target in _pieces(head, hidden_RD, target_R):
        logits = _scored(head.logits(hidden))
        nll.append(functional.cross_entropy(logits, target, reduction="none"))
        hits.append(logits.argmax(-1) == target)
    return torch.cat(nll), torch.cat(hits)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Head, target_R: Tensor, factor_R: Tensor, hidden_RD: Tensor, *weights: Tensor
    ) -> Tensor:
        precise = _precise(hidden_RD.dtype)
        total = hidden_RD.new_zeros((), dtype=precise)
        sums: list[Tensor] | None = None
        grad_RD = torch.zeros_like(hidden_RD)
        at = 0
        for hidden, target, factor in _pieces(head, hidden_RD, target_R, factor_R.to(precise)):
            with torch.enable_grad():
                leaf = hidden.detach().requires_grad_()
                nll = functional.cross_entropy(_scored(head.logits(leaf)), target, reduction="none")
                loss = (factor * nll).sum()
            grad, *grads = torch.autograd.grad(loss, [leaf, *weights], materialize_grads=True)
            grad_RD[at : at + len(target)] = grad
            at += len(target)
            if sums is None:
                sums = list(_begun(grads))
            else:
                for sum_ in sums:
                    # Taken away, or it would be there while the next piece is computed.
                    sum_ += grads.pop(0)
            del grads
            total += loss.detach()
        ended = [torch.zeros_like(w) for w in weights] if sums is None else sums
        ctx.gradients = [grad_RD, *(s.to(w.dtype) for s, w in zip(ended, weights, strict=True))]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("the loss of a head goes backward once")
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, None, *(gradient.mul_(incoming[0]) for gradient in gradients))


def _begun(grads: Sequence[Tensor]) -> Iterator[Tensor]:
    """Sums that begin with the gradients of the first piece, each a tensor of its own."""
    seen: set[int] = set()
    for part in grads:
        # Half precision would lose what many pieces add up to.
        sum_ = part.to(_precise(part.dtype))
        # Of two weights that are only added up autograd gives one gradient twice.
        if sum_.data_ptr() in seen or 0 in sum_.stride():
            sum_ = sum_.clone()
        seen.add(sum_.data_ptr())
        # No view, or autograd would add to a copy.
        yield sum_.data


def _pieces(head: Head, hidden_RD: Tensor, *others_R: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Runs of positions, as long as the size of the vocabulary allows."""
    size = positions_at_once(hidden_RD.device, head.vocab)
    for at in range(0, len(hidden_RD), size):
        yield tuple(x[at : at + size] for x in (hidden_RD, *others_R))


def _scored(logits: Tensor) -> Tensor:
    return logits.to(_precise(logits.dtype))


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _as_named(forward: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own that shows the arguments of the policy's forward: engines ask for them."""

    @wraps(plain)
    def shown(self: Any, *args: Any, **inputs: Any) -> Any:
        return forward(self, *args, **inputs)

    return shown


def _forward_by_parts(self: Any, *args: Any, score: Score | None = None, **inputs: Any) -> Any:
    """The forward of a policy whose body can be stepped over."""
    plain = type(self).forward
    if score is None:
        return plain(self, *args, **inputs)
    output = self.base_model(*args, **inputs, return_dict=True)

    def logits(hidden_RD: Tensor) -> Tensor:
        # Its own forward knows of biases, scales and soft caps.
        with _stepped_over(self.base_model, replace(output, last_hidden_state=hidden_RD[None])):
            return cast(Tensor, plain(self, use_cache=False, return_dict=True).logits[0])

    return score(Head(logits, _vocab(self), head_weights(self)), output.last_hidden_state)


def _forward_whole(self: Any, *args: Any, score: Score | None = None, **inputs: Any) -> Any:
    """The forward of a policy that has to be taken as it is."""
    if score is not None:
        inputs["return_dict"] = True
    output = type(self).forward(self, *args, **inputs)
    return output if score is None else score(Head(lambda logits: logits, _vocab(self)), output.logits)


def _vocab(policy: PreTrainedModel) -> int:
    return int(policy.config.get_text_config().vocab_size)


def _names_of_head(policy: PreTrainedModel) -> list[tuple[str, str]]:
    """Module and attribute of each tensor outside the body, or in the output layer.

    By name, because sharded strategies exchange the tensors.
    """
    inside = {id(parameter) for parameter in policy.base_model.parameters()}
    outside = {id(parameter) for parameter in policy.parameters()} - inside
    wanted = outside | {id(parameter) for parameter in policy.get_output_embeddings().parameters()}
    names = []
    for name, parameter in policy.named_parameters(remove_duplicate=True):
        if id(parameter) in wanted:
            path, _, attribute = name.rpartition(".")
            names.append((path, attribute))
    return names


@contextmanager
def _stepped_over(body: nn.Module, output: Any) -> Iterator[None]:
    """The body returns `output`, whatever it is given."""
    body.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del body.forward
