"""From trajectories, or any table of outcomes, to weights. Suffix legend: N rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift_weights.columns import Columns, outcomes_of_columns
from drift_weights.frames import frame_columns, frame_values, frame_with_weight
from drift_weights.outcomes import (
    Outcomes,
    outcomes_of_trajectories,
    refuse_other_sizes,
    whole_trajectories,
)
from drift_weights.returns import GAMMA, LAM
from drift_weights.schema import WEIGHTED
from drift_weights.types import Malformed
from drift_weights.weights import BETA, group_codes, group_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightConfig:
    """How returns and weights are made; the paper's values by default (D.2).

    Raises:
        ValueError: an unknown policy on malformed answers, or a group size below 1.
    """

    beta: float = BETA
    """β > 0, KL strength (eq. 13)."""
    gamma: float = GAMMA
    """γ in (0, 1], discount a turn (eq. 12)."""
    lam: float = LAM
    """λ ≥ 0, repetition penalty (eq. 12)."""
    malformed: Malformed = "count"
    """`count`: a malformed answer is one value of its own; `skip`: the released code's rule."""
    group_size: int | None = None
    """The declared K; groups of another size are refused. None takes groups as they come."""

    def __post_init__(self) -> None:
        if self.malformed not in get_args(Malformed):
            raise ValueError(f"malformed must be count or skip, got {self.malformed!r}")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {self.group_size}")


def weighted_turns(
    trajectories: pa.Table, config: WeightConfig | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """Trajectories to weighted terminal turns (x_L, y_L, w): Alg. 1, lines 5-18.

    Groups, the rows of one (prompt_id, round, policy), that hold an unscored trajectory are left out
    whole and listed.

    Args:
        trajectories: a TRAJECTORIES table, in any order.
        config: β, γ, λ and policies.

    Returns:
        A WEIGHTED table in the same order, and the manifest entries that say how it was made.

    Raises:
        ValueError: a table that does not fit, a duplicate key, a group of another size than declared,
            or nothing left.
    """
    config = config or WeightConfig()
    table, omitted = whole_trajectories(trajectories)
    outcomes = outcomes_of_trajectories(table, config.malformed)
    returns, weights = weigh(outcomes, config)
    made = {"weighting": asdict(config), "omitted_groups": omitted}
    return _weighted_table(table, outcomes, returns, weights), made


def reweight(data: Any, config: WeightConfig | None = None, *, columns: Columns | None = None) -> Any:
    """Add a `weight` column to a table of outcomes, whatever its kind and row order.

    Args:
        data: an Arrow table, a pandas or polars frame, or a Hugging Face Dataset.
        config: β, γ, λ and the declared group size.
        columns: which columns hold group, outcome and, if there, the return itself.

    Returns:
        The same kind of object with `weight` added; row order and other columns stay.

    Raises:
        ValueError: no rows, a missing or null column, a value out of range (row and column are
            named), a `weight` that is there already.
        TypeError: another kind of object.
    """
    config, columns = config or WeightConfig(), columns or Columns()
    present = frame_columns(data)
    if "weight" in present:
        raise ValueError("the data have a column 'weight' already; rename or drop it first")
    values = frame_values(data, columns.needed(present))
    _, weights = weigh(outcomes_of_columns(values, columns), config)
    return frame_with_weight(data, weights)


def weigh(outcomes: Outcomes, config: WeightConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns and weights of outcomes: R (eq. 12) and w (eq. 13), each of shape [N].

    Raises:
        ValueError: a value out of range, or a group of another size than declared.
    """
    refuse_other_sizes(outcomes.group_N, config.group_size)
    returns = outcomes.returns(gamma=config.gamma, lam=config.lam)
    return returns, group_weights(returns, outcomes.group_N, beta=config.beta)


def _weighted_table(
    table: pa.Table, outcomes: Outcomes, returns: NDArray[np.float64], weights: NDArray[np.float64]
) -> pa.Table:
    code_N, _ = group_codes(outcomes.group_N)
    turns = table.column("turns").combine_chunks()
    last_N = pc.subtract(pc.cumulative_sum(pc.list_value_length(turns)), 1)
    terminal = turns.flatten().take(last_N)
    kept = ("prompt_id", "round", "policy", "sample", "response_spans", "logprobs", "tokenizer")
    columns = {name: table.column(name) for name in kept}
    columns |= {
        "prompt": pa.array(_terminal_prompts(table), type=WEIGHTED.field("prompt").type),
        "completion": _completions(terminal.field("response")),
        "weight": pa.array(weights),
        "return": pa.array(returns),
        "length": pa.array(outcomes.length_N).cast(pa.int32()),
        "unique_answers": pa.array(outcomes.unique_N).cast(pa.int32()),
        "counted": pa.array(outcomes.counted_N).cast(pa.int32()),
        "penalty": pa.array(np.zeros(len(weights))),
        "solved": pa.array(outcomes.solved_N),
        "group_size": pa.array(np.bincount(code_N)[code_N], pa.int32()),
        "finish_reason": terminal.field("finish_reason"),
        "input_ids": table.column("token_ids"),
    }
    return pa.table([columns[name] for name in WEIGHTED.names], schema=WEIGHTED)


def _terminal_prompts(table: pa.Table) -> list[list[dict[str, str]]]:
    """x_L of each row: the prompt, then every earlier response with its feedback (eq. 11)."""
    prompts = []
    for prompt, turns in zip(
        table.column("prompt").to_pylist(), table.column("turns").to_pylist(), strict=True
    ):
        for turn in turns[:-1]:
            prompt.append({"role": "assistant", "content": turn["response"]})
            prompt.append({"role": "user", "content": turn["feedback"]})
        prompts.append(prompt)
    return prompts


def _completions(responses: pa.StringArray) -> pa.ListArray:
    roles = pa.array(["assistant"] * len(responses))
    messages = pa.StructArray.from_arrays([roles, responses], names=["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(responses) + 1), pa.int32()), messages)
