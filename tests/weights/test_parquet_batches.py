"""Parquet in bounded memory: the same rows whatever their size, and bombs that do not go off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_weights.files import parquet_batches

BOMB = """
import resource, sys
from pathlib import Path
from drift_weights.files import parquet_batches
honest, bomb = map(Path, sys.argv[1:])
list(parquet_batches(honest, 8192))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000,) * 2)
try:
    print("read", sum(batch.num_rows for batch in parquet_batches(bomb, 8192)))
except ValueError as error:
    print("refused", error)
"""


def table_of(rows: int, text: str) -> pa.Table:
    """Every row holds the same text, which the file has once."""
    words = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    return pa.table({"number": range(rows), "text": words})


def read_limited(tmp_path: Path, bomb: Path) -> str:
    honest = tmp_path / "honest.parquet"
    pq.write_table(table_of(1000, "short"), honest, compression="zstd")
    command = [sys.executable, "-c", BOMB, str(honest), str(bomb)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_text_that_all_rows_share_is_not_decoded_for_all_of_them_at_once(tmp_path: Path) -> None:
    """20 GB of text from a few kilobytes; read in one batch, 8,192 rows would ask for 1.6."""
    bomb = tmp_path / "bomb.parquet"
    rows = 100_000
    content = table_of(rows, "A" * 200_000).drop_columns("number")
    pq.write_table(content, bomb, compression="zstd", store_schema=False, row_group_size=rows)
    assert bomb.stat().st_size < 10_000
    assert read_limited(tmp_path, bomb) == f"read {rows}\n"


def test_one_value_that_asks_for_more_than_there_is_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.parquet"
    pq.write_table(table_of(3, "A" * 900_000_000), bomb, compression="zstd", store_schema=False)
    assert bomb.stat().st_size < 200_000
    assert read_limited(tmp_path, bomb).startswith(f"refused {bomb} ")


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 50, 300_000]), min_size=1, max_size=600),
    rows=st.sampled_from([1, 7, 256, 1000]),
    groups=st.sampled_from([5, 1000]),
)
def test_batches_are_the_rows_in_order_and_never_more_than_asked_for(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows: int, groups: int
) -> None:
    path = tmp_path_factory.mktemp("x") / "x.parquet"
    table = pa.table({"text": ["z" * size for size in sizes], "ids": [[size] * 3 for size in sizes]})
    pq.write_table(table, path, row_group_size=groups)
    batches = list(parquet_batches(path, rows))
    assert all(0 < batch.num_rows <= rows for batch in batches)
    assert pa.Table.from_batches(batches).combine_chunks().equals(table.combine_chunks())
    # Twice the same: two passes over a file are matched batch by batch.
    assert [batch.num_rows for batch in parquet_batches(path, rows)] == [b.num_rows for b in batches]


def test_columns_of_numbers_come_in_the_batches_asked_for(tmp_path: Path) -> None:
    pq.write_table(table_of(5000, "x"), tmp_path / "x.parquet")
    sizes = [batch.num_rows for batch in parquet_batches(tmp_path / "x.parquet", 2000, ["number"])]
    assert sizes == [2000, 2000, 1000]
