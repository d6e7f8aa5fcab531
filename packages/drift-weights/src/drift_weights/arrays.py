"""NumPy and Arrow arrays into each other, without the detour that imports pandas where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow.lib import StringBuilder

_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}
"""Arrow's names where they are not NumPy's."""


def to_arrow(values_N: NDArray[Any]) -> pa.Array:
    """Numbers or booleans as an Arrow array without nulls; numbers are not copied."""
    if values_N.dtype == np.bool_:
        bits = np.packbits(values_N, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values_N), [None, pa.py_buffer(bits)])
    values_N = np.ascontiguousarray(values_N)
    kind = pa.from_numpy_dtype(values_N.dtype)
    return pa.Array.from_buffers(kind, len(values_N), [None, pa.py_buffer(values_N)])


def strings_or_numbers(values: Sequence[Any]) -> pa.Array | None:
    """Values of one plain Python type as an Arrow array; None where they are anything else."""
    kinds = set(map(type, values))
    if kinds == {str}:
        builder = StringBuilder()
        builder.append_values(values)
        return builder.finish()
    if kinds == {bool}:
        return to_arrow(np.asarray(values, np.bool_))
    if kinds == {float}:
        return to_arrow(np.asarray(values, np.float64))
    if kinds == {int} and min(values) >= -(2**63) and max(values) < 2**63:
        return to_arrow(np.asarray(values, np.int64))
    return None


def to_numpy(array: pa.Array) -> NDArray[Any]:
    """Numbers or booleans without nulls as a NumPy array; numbers are not copied."""
    assert not array.null_count
    data = array.buffers()[1]
    if pa.types.is_boolean(array.type):
        bits = np.frombuffer(data, np.uint8)
        whole = np.unpackbits(bits, count=array.offset + len(array), bitorder="little")
        return whole[array.offset :].view(np.bool_)
    kind = np.dtype(_FLOATS.get(str(array.type), str(array.type)))
    if not len(array):
        return np.zeros(0, kind)
    return np.frombuffer(data, kind, len(array), array.offset * kind.itemsize)
