"""Trajectories from disk: a folder of drift data, or a Parquet file with its schema."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from drift_weights.files import file_format
from drift_weights.folder import read_folder
from drift_weights.schema import TRAJECTORIES, check


def read_trajectories(path: Path) -> pa.Table:
    """A TRAJECTORIES table from a folder (with `drift.json`) or a single Parquet file.

    Raises:
        ValueError: data of another kind or schema, a shard that is not the one vouched for, or a
            file that is not Parquet.
        FileNotFoundError: there is no such file or manifest.
    """
    if path.is_dir():
        return read_folder(path, "trajectories")[0]
    if file_format(path) != "parquet":
        raise ValueError(f"{path}: trajectories are read from a folder or a .parquet file")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error
    return check(table, TRAJECTORIES, source=str(path))
