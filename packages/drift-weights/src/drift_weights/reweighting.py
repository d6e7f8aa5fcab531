"""Weights for what is in memory: trajectories, or any table of outcomes. Suffix legend: N rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift_weights.checking import check_trajectories
from drift_weights.columns import Columns, outcomes_of_columns
from drift_weights.frames import frame_arrays, frame_columns, frame_with_weight
from drift_weights.ledger import Ledger
from drift_weights.outcomes import GROUP_KEY, Outcomes, RowError, outcomes_of_trajectories
from drift_weights.schema import WEIGHTED
from drift_weights.weighing import Weighing, WeightConfig


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
    table = check_trajectories(trajectories)
    outcomes = outcomes_of_trajectories(table, config.malformed)
    weighing = Weighing(ledger_of(lambda: [outcomes]), config)
    (batch,) = weighing.batches()
    keep_N = np.ones(len(outcomes), bool) if batch.keep_N is None else batch.keep_N
    size_N = weighing.ledger.size_G[batch.entry.code_N]
    turns = weighted_batch(table, outcomes, batch.return_N, batch.weight_N, size_N)
    unscored = table.filter(pa.array(weighing.ledger.omitted_G()[batch.entry.code_N]))
    made = {"weighting": asdict(config), "omitted_groups": omitted_groups(unscored)}
    return turns.filter(pa.array(keep_N)), made


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
            named), a `weight` that is there already, groups to be dropped.
        TypeError: another kind of object.
    """
    config, columns = config or WeightConfig(), columns or Columns()
    present = frame_columns(data)
    if "weight" in present:
        raise ValueError("the data have a column 'weight' already; rename or drop it first")
    if config.all_wrong == "drop":
        raise ValueError("a frame keeps its rows; drop all-wrong groups yourself, or reweight a file")
    plain = columns.plain(present)
    arrays = frame_arrays(data, plain.names)
    outcomes = outcomes_of_columns(arrays, plain, columns.threshold)
    weighing = Weighing(ledger_of(lambda: [outcomes]), config)
    (batch,) = weighing.batches()
    return frame_with_weight(data, batch.weight_N)


def ledger_of(
    batches: Callable[[], Iterable[Outcomes]], place: Callable[[int], str] = "row {}".format
) -> Ledger:
    """A ledger of all batches.

    Args:
        batches: makes the batches; called again to say which rows hold a sample twice.
        place: how a user finds a row.

    Raises:
        ValueError: a value out of range, or a sample that a group holds twice.
    """
    ledger = Ledger()
    for outcomes in batches():
        try:
            ledger.add(outcomes)
        except RowError as error:
            raise ValueError(f"{place(error.row)}: {error.says}") from error
    repeated = ledger.repeats.first_group()
    if repeated is not None:
        first, second, sample = _repetition(ledger, batches(), repeated)
        raise ValueError(
            f"{place(second)}: sample {sample!r} of its group is in {place(first)} already; keep one of "
            "them"
        )
    return ledger


def _repetition(ledger: Ledger, batches: Iterable[Outcomes], group: int) -> tuple[int, int, Any]:
    """Two rows of a group with one sample, and the sample."""
    seen: dict[Any, int] = {}
    for entry, outcomes in zip(ledger.entries(), batches, strict=True):
        if outcomes.sample is None:
            continue
        for row in np.flatnonzero(entry.code_N == group).tolist():
            sample = outcomes.sample[row].as_py()
            if sample is None:
                continue
            before = seen.setdefault(sample, entry.first_row + row)
            if before != entry.first_row + row:
                return before, entry.first_row + row, sample
    raise AssertionError(f"group {group} holds no sample twice")


def omitted_groups(unscored: pa.Table) -> list[dict[str, Any]]:
    """The distinct groups of some rows, in order, as the manifest lists them."""
    if unscored.num_rows == 0:
        return []
    found = unscored.select(GROUP_KEY).group_by(list(GROUP_KEY)).aggregate([])
    order = [(name, "ascending") for name in GROUP_KEY]
    return [{name: row[name] for name in GROUP_KEY} for row in found.sort_by(order).to_pylist()]


def weighted_batch(
    table: pa.Table,
    outcomes: Outcomes,
    return_N: NDArray[np.float64],
    weight_N: NDArray[np.float64],
    size_N: NDArray[np.integer],
) -> pa.Table:
    """The WEIGHTED rows of some TRAJECTORIES rows."""
    turns = table.column("turns").combine_chunks()
    last_N = pc.subtract(pc.cumulative_sum(pc.list_value_length(turns)), 1)
    terminal = turns.flatten().take(last_N)
    kept = ("prompt_id", "round", "policy", "sample", "response_spans", "logprobs", "tokenizer")
    columns = {name: table.column(name) for name in kept}
    columns |= {
        "prompt": pa.array(_terminal_prompts(table), type=WEIGHTED.field("prompt").type),
        "completion": completions(terminal.field("response")),
        "weight": pa.array(weight_N),
        "return": pa.array(return_N),
        "length": pa.array(outcomes.length_N).cast(pa.int32()),
        "unique_answers": pa.array(outcomes.unique_N).cast(pa.int32()),
        "counted": pa.array(outcomes.counted_N).cast(pa.int32()),
        "penalty": pa.array(np.zeros(len(weight_N))),
        "solved": pa.array(outcomes.solved_N),
        "group_size": pa.array(size_N).cast(pa.int32()),
        "finish_reason": terminal.field("finish_reason"),
        "input_ids": table.column("token_ids"),
    }
    return pa.table([columns[name] for name in WEIGHTED.names], schema=WEIGHTED)


def completions(responses: pa.StringArray) -> pa.ListArray:
    """Each response as a list of one assistant message."""
    roles = pa.array(["assistant"] * len(responses))
    messages = pa.StructArray.from_arrays([roles, responses], names=["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(responses) + 1), pa.int32()), messages)


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
