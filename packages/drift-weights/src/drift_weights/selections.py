"""Which terminal turns a method trains on, and with which weight: DRIFT and its offline baselines."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Selection = Literal["drift", "sft-5turn", "star-2turn", "rft"]
SELECTIONS: tuple[str, ...] = get_args(Selection)


def select(weighted: pa.Table, selection: Selection) -> pa.Table:
    """The rows and weights of one offline method, from the weighted turns of one rollout set.

    drift: every row, w of eq. 13. sft-5turn: every row, w = 1 (D.1). star-2turn: rows solved at turn
    2, w = 1 (D.1). rft: every solved row, w = 1 (rejection-sampling fine-tuning; not in the paper).

    Args:
        weighted: a WEIGHTED table.

    Returns:
        A WEIGHTED table in the same order.

    Raises:
        ValueError: an unknown selection, or one that keeps no row.
    """
    kept = select_some(weighted, selection)
    if kept.num_rows == 0:
        raise ValueError(f"selection {selection!r} keeps none of {weighted.num_rows} rows")
    return kept


def select_some(weighted: pa.Table, selection: Selection) -> pa.Table:
    """As `select`, for a part of a table, which may keep no row."""
    if selection not in SELECTIONS:
        raise ValueError(f"selection {selection!r} is not one of {', '.join(SELECTIONS)}")
    if selection == "drift":
        return weighted
    kept = weighted
    if selection != "sft-5turn":
        keep = weighted.column("solved")
        if selection == "star-2turn":
            keep = pc.and_(keep, pc.equal(weighted.column("length"), 2))
        kept = weighted.filter(keep)
    index = kept.schema.get_field_index("weight")
    return kept.set_column(index, kept.schema.field("weight"), pa.array(np.ones(kept.num_rows)))
