"""Arrow tables, data frames and Hugging Face Datasets, read and extended without importing any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift_weights.columns import arrow_values

_KINDS = {
    ("pyarrow", "Table"): "arrow",
    ("pandas", "DataFrame"): "pandas",
    ("polars", "DataFrame"): "polars",
    ("datasets", "Dataset"): "datasets",
}


def frame_kind(data: Any) -> str:
    """`arrow`, `pandas`, `polars` or `datasets`, by the name of its class.

    Raises:
        TypeError: anything else, lazy frames and streamed datasets included.
    """
    for kind in type(data).__mro__:
        found = _KINDS.get((kind.__module__.split(".")[0], kind.__name__))
        if found is not None:
            return found
    raise TypeError(
        f"cannot reweight a {type(data).__name__}; pass an Arrow table, a pandas or polars DataFrame, or "
        "one split of a Hugging Face Dataset, in memory"
    )


def frame_columns(data: Any) -> list[str]:
    """Names of the columns."""
    kind = frame_kind(data)
    return [str(name) for name in (data.columns if kind in ("pandas", "polars") else data.column_names)]


def frame_arrays(data: Any, names: Sequence[str]) -> dict[str, pa.Array]:
    """Some columns as Arrow arrays; no other column is touched.

    Raises:
        RowError: a column of several kinds of values.
    """
    kind = frame_kind(data)
    if kind == "arrow":
        return {name: _one(data.column(name)) for name in names}
    if kind == "datasets":
        table = data.select_columns(list(names)).with_format("arrow")[:]
        return {name: _one(table.column(name)) for name in names}
    if kind == "polars":
        return {name: _one(data[name].to_arrow()) for name in names}
    return {name: _of_pandas(data[name], name) for name in names}


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _of_pandas(column: Any, name: str) -> pa.Array:
    # NaN stays NaN: it is refused with another message than a null.
    values = column.to_numpy()
    return pa.array(values) if values.dtype.kind in "biuf" else arrow_values(column.tolist(), name)


def frame_with_weight(data: Any, weight_N: NDArray[np.float64]) -> Any:
    """The same kind of object with a column `weight` behind the others."""
    kind = frame_kind(data)
    if kind == "arrow":
        field = pa.field("weight", pa.float64(), nullable=False)
        return data.append_column(field, pa.array(weight_N))
    if kind == "datasets":
        return data.add_column("weight", weight_N)
    if kind == "polars":
        return data.hstack([type(data)({"weight": weight_N})["weight"]])
    return data.assign(weight=weight_N)
