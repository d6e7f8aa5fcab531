"""What a forward keeps for its backward, and what the loss holds while it is computed, from shapes alone.

Legend: h hidden size, f width of the MLP, q and k numbers of a token's queries and of its keys, V
vocabulary, R supervised positions; r and c bytes a number between the blocks and in products.
"""

from __future__ import annotations

from dataclasses import dataclass

from drift_train.head import positions_at_once
from drift_train.shapes import Micro, Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """Bytes at the three moments that can be the peak of a micro-batch."""

    head: int
    """Behind the forward."""
    last_block: int
    """Where the backward begins."""
    first_block: int
    """Where it ends."""


def activations(shape: Shape, micro: Micro, *, checkpointing: bool) -> Activations:
    """What is kept of a forward, masks included, and the gradients of activations in one block.

    Behind the blocks the last norm keeps its input, in float32, and what it has normed, and hands on as
    much: (4 + 2·r)·h a token. While the product in a gated MLP goes backward, three gradients of width f
    are there and the product itself no more, beside the gradient of the residual: 2·c·f + r·h. Under
    checkpointing each block keeps its input, r·h, and one at a time all of that.
    """
    blocks, block = len(shape.windows), _block(shape, micro)
    masks, state = _masks(shape, micro), micro.positions * shape.residual * shape.hidden
    gradients = state + 2 * micro.positions * shape.computed * shape.inner
    behind = 2 * state + 4 * micro.positions * shape.hidden
    inputs = blocks * (state if checkpointing else block)
    again = block if checkpointing else 0
    return Activations(
        head=masks + inputs + behind,
        last_block=masks + inputs + again + gradients,
        first_block=masks + block + gradients,
    )


def head_forward(shape: Shape, micro: Micro) -> int:
    """What `weighted_head_nll` holds at its peak.

    A float32 sum for each trained weight, which begins with the gradient of the first piece, and hidden
    states of R positions with their gradient. Of a piece of n positions either log-probabilities, their
    gradient and that of logits, 3·n·V in float32 at least; or the gradient of logits, and that of the
    weights made of it. A policy whose head cannot be told from its body has logits for hidden states.
    """
    piece = min(micro.supervised, positions_at_once("cuda" if shape.cuda else "cpu", shape.vocab))
    precise = max(4, shape.computed)
    rounded = shape.computed if shape.computed < precise else 0
    sums, gradient = max(4, shape.weights) * shape.head, shape.weights * shape.head
    before = sums if piece < micro.supervised else 0
    # Autocast's copy of the weights, and their gradient before it is cast.
    half = shape.computed * shape.head if shape.computed < shape.weights else 0
    scored = 3 * precise * piece * shape.vocab + half
    weighed = (precise + rounded) * piece * shape.vocab + gradient + half
    # Of weights in half precision a sum is rounded; a CPU casts what is added to it, too.
    added = sums + gradient + (sums if before and not shape.cuda else 0) if shape.weights < 4 else 0
    held = max(before + scored, before + weighed, added)
    states = 2 * micro.supervised * shape.hidden * shape.residual
    return held + (states if shape.body else _logits(shape, micro))


def head_backward(shape: Shape, micro: Micro) -> int:
    """What the loss has handed to the backward: gradients of the head's weights; see `head_forward`."""
    given = shape.weights * shape.head
    return given if shape.body else given + _logits(shape, micro)


def _logits(shape: Shape, micro: Micro) -> int:
    """Logits of all positions, those of supervised ones, and their gradient."""
    return (micro.positions + 2 * micro.supervised) * shape.vocab * shape.computed


def _block(shape: Shape, micro: Micro) -> int:
    """What one block keeps, counted by operation as in Korthikanti et al. 2022, sec. 4.1.

    Theirs is 34·h bytes a token, for a 4·h MLP with GELU and dropout. Ours has norms in float32 that keep
    their input and what they have normed, 4 + r a number; a gated MLP without dropout, of which the gate
    before and after its function and what it multiplies stay, 3·f; and attention that stores no scores:

        (4 + r)·(norms' widths) + 3·c·f + (inputs of matrices) + (attention)
    """
    normed = (4 + shape.residual) * shape.normed
    token = normed + 3 * shape.computed * shape.inner + _inputs(shape)
    return micro.positions * token + _attention(shape, micro)


def _inputs(shape: Shape) -> int:
    """What the matrices of a block keep of a token, attention's output aside: c·(2·h + f).

    Autocast makes a copy for each matrix, c·(5·h + f). Adapters cast their inputs to their own float32,
    where the policy is in half precision; its matrices are frozen and keep none.
    """
    if shape.adapted:
        return 4 * shape.adapted
    copies = 2 if shape.residual == shape.computed else 5
    return shape.computed * (copies * shape.hidden + shape.inner)


def _attention(shape: Shape, micro: Micro) -> int:
    """Queries, keys, values and outputs, c·(2·q + 2·k) a token, and what is made for each run of tokens.

    A run that sees a beginning has keys and values of both, end to end. One call for each run joins the
    outputs once more, c·q a token. Scores, where they are kept, are there for each head and pair of tokens.
    """
    numbers = 2 * (shape.queries + shape.keys) * micro.positions
    numbers += 2 * shape.keys * sum(length + begin for length, begin in micro.runs if begin)
    if shape.by_lengths:
        return shape.computed * numbers
    numbers += shape.queries * micro.positions
    if shape.scores:
        pairs = sum(length * (length + begin) for length, begin in micro.runs)
        # The scores' tanh, probabilities in float32 at least, and in half precision.
        rounded = shape.computed if shape.computed < 4 else 0
        pair = shape.computed + max(4, shape.computed) + rounded
        return shape.computed * numbers + pairs * shape.heads * pair
    return shape.computed * numbers


def _masks(shape: Shape, micro: Micro) -> int:
    """A number for each pair of a mask; runs of one shape and blocks of one window share it."""
    if shape.by_lengths:
        return 0
    kinds = {
        (run, window if window is not None and sum(run) > window else None)
        for run in micro.runs
        for window in set(shape.windows)
        if _masked(run, window)
    }
    return shape.computed * sum(length * (length + begin) for (length, begin), _ in kinds)


def _masked(run: tuple[int, int], window: int | None) -> bool:
    """Whether tokens that attend together see less, or more, than all before them."""
    return run[1] > 0 or (window is not None and sum(run) > window)
