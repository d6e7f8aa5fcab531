"""The terminal turns of a foreign log as WEIGHTED rows. Suffix legend: N rows of a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift_weights.folder import file_sha256
from drift_weights.logs import OpenLog, Row
from drift_weights.outcomes import Outcomes
from drift_weights.schema import WEIGHTED
from drift_weights.weighing import WeighedBatch, Weighing

_AT_ONCE = 2048
"""Rows with text held at a time."""
_SHORT = 128
"""Characters up to which a group key is a `prompt_id` as it stands."""


def log_turns(
    log: OpenLog,
    weighing: Weighing,
    batches: Iterable[WeighedBatch],
    omitted: dict[int, dict[str, Any]],
) -> Iterator[pa.Table]:
    """WEIGHTED rows of a log, in its order, without those that are left out.

    `prompt_id` is the log's own group key where it is one short string, else its sha256; `round` and
    `policy` are the log's where it names them, else 0 and a name made of the file's hash; `sample` is
    the log's where it is a whole number in every row, else the row's place within its group.

    Args:
        omitted: gets the key of each group that is left out for an unscored row, by its number.

    Raises:
        ValueError: a log that does not say which rows are right, or a row without a terminal turn.
    """
    if not weighing.ledger.knows_solved:
        raise ValueError(
            f"{log.path}: weighted turns say which rows are right; name the column (--correct) or give the "
            "return from which a row counts as right (--threshold)"
        )
    rows = iter(log.rows())
    policy = f"log-{file_sha256(log.path)[:16]}"
    count_G = np.zeros(weighing.ledger.groups, np.int64)
    for batch, outcomes in zip(batches, log.outcomes(), strict=True):
        facts = _facts(log, weighing, batch, outcomes, count_G, policy, omitted)
        while chunk := list(islice(zip(facts, rows, strict=False), _AT_ONCE)):
            found = [fact | _text(log, number, row) for (number, fact), row in chunk if fact is not None]
            if found:
                yield pa.Table.from_pylist(found, schema=WEIGHTED)


def _facts(
    log: OpenLog,
    weighing: Weighing,
    batch: WeighedBatch,
    outcomes: Outcomes,
    count_G: NDArray[np.int64],
    policy: str,
    omitted: dict[int, dict[str, Any]],
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Each row's number with all but its text; None for a row that is left out."""
    columns = [column.to_pylist() for column in outcomes.key_columns]
    own = outcomes.sample.to_pylist() if weighing.ledger.numbered and outcomes.sample is not None else None
    unscored_G = weighing.ledger.omitted_G()
    penalty_N = np.zeros(len(outcomes)) if outcomes.penalty_N is None else outcomes.penalty_N
    solved_N = batch.entry.solved_N
    for row, key in enumerate(zip(*columns, strict=True)):
        code = int(batch.entry.code_N[row])
        sample = int(count_G[code]) if own is None else own[row]
        count_G[code] += 1
        number = batch.entry.first_row + row
        if batch.keep_N is not None and not batch.keep_N[row]:
            if unscored_G[code] and code not in omitted:
                omitted[code] = _named_key(log, key, policy)
            yield number, None
            continue
        yield (
            number,
            _named_key(log, key, policy)
            | {
                "sample": sample,
                "weight": float(batch.weight_N[row]),
                "return": float(batch.return_N[row]),
                "length": int(outcomes.length_N[row]),
                "unique_answers": int(outcomes.unique_N[row]),
                "counted": int(outcomes.counted_N[row]),
                "penalty": float(penalty_N[row]),
                "solved": bool(solved_N[row]),
                "group_size": int(weighing.ledger.size_G[code]),
            },
        )


def _named_key(log: OpenLog, key: tuple[Any, ...], policy: str) -> dict[str, Any]:
    """A group key as the contract's three columns."""
    found: dict[str, Any] = {"round": 0, "policy": policy}
    named = {} if log.key_names is None else dict(zip(log.key_names, key, strict=True))
    if isinstance(named.get("round"), int):
        found["round"] = named.pop("round")
    if isinstance(named.get("policy"), str):
        found["policy"] = named.pop("policy")
    rest = key if log.key_names is None else tuple(named.values())
    if len(rest) == 1 and isinstance(rest[0], str) and len(rest[0]) <= _SHORT:
        return found | {"prompt_id": rest[0]}
    text = json.dumps(rest, ensure_ascii=False, separators=(",", ":"))
    return found | {"prompt_id": hashlib.sha256(text.encode()).hexdigest()}


def _text(log: OpenLog, number: int, row: Row) -> dict[str, Any]:
    try:
        dialogue = log.reader.dialogue(row)
    except KeyError as error:
        raise ValueError(f"{log.place(number)}: no field {error}") from error
    except ValueError as error:
        raise ValueError(f"{log.place(number)}: {error}") from error
    return {
        "prompt": [{"role": message["role"], "content": message["content"]} for message in dialogue.prompt],
        "completion": [{"role": "assistant", "content": dialogue.completion}],
        "finish_reason": dialogue.finish_reason,
    }
