"""What benchmarks/weights.py compares: each contender weighs one log in a fresh process, and nothing else.

python weights_peers.py CONTENDER FORM SOURCE OUTPUT KEY...     FORM is parquet, side or jsonl

    R = correct·0.9^(length−1) − 0.5·(1 − unique/length),  w = exp((R − max R)/0.1) / mean of the same

over the rows that share the keys. `parquet` and `jsonl` write the whole log again with `weight`, `side`
writes row numbers and weights alone; the order of rows is free, and the codec is the source's, Snappy. Each
peer is written in the way that took the least CPU among those tried; a comment names what it beat. Imports
stand in the functions, so that a process pays for its own contender only.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

NARROW = ("correct", "length", "unique")
BETA, GAMMA, LAM = 0.1, 0.9, 0.5
DECIMALS = 15
"""The most that pandas writes to JSON, and just enough for the smallest weights here."""
SQL_RETURN = f'correct * pow({GAMMA}, length - 1) - {LAM} * (1 - "unique" / length)'
WIDE_TYPES = {"prompt_id": str, "round": int, "policy": str, "sample": int, **dict.fromkeys(NARROW, int)}

Keys = Sequence[str]
Contender = Callable[[Path, Path, Keys], None]


def copy(source: Path, output: Path, keys: Keys) -> None:
    """The floor: the bytes, unread."""
    shutil.copyfile(source, output)


def pyarrow_reencode(source: Path, output: Path, keys: Keys) -> None:
    """The floor of any Arrow program that writes Parquet: the same rows, decoded and encoded."""
    import pyarrow.parquet as pq

    # Beats the defaults (pre_buffer, batches of 65,536 rows), which hold most of the file in memory.
    file = pq.ParquetFile(source, pre_buffer=False)
    with pq.ParquetWriter(output, file.schema_arrow) as writer:
        for batch in file.iter_batches(batch_size=file.metadata.row_group(0).num_rows):
            writer.write_batch(batch)


def ours(source: Path, output: Path, keys: Keys) -> None:
    """The same log with a weight in each row."""
    from drift_weights.outputs import reweight_file

    reweight_file(source, output)


def ours_side(source: Path, output: Path, keys: Keys) -> None:
    """Row numbers and weights alone."""
    from drift_weights.outputs import reweight_file

    reweight_file(source, output, form="side")


def duckdb_parquet(source: Path, output: Path, keys: Keys) -> None:
    """Groups as lists, joined back to a second scan."""
    # Beats window functions over all columns, over row numbers joined back, and two aggregates with a join.
    _duckdb_table(f"read_parquet('{source}')", output, keys, "parquet")


def duckdb_jsonl(source: Path, output: Path, keys: Keys) -> None:
    """The same; rows are parsed by a declared schema."""
    # Level with an inferred schema, messages kept as JSON, and a weight spliced into the raw line.
    names = {str: "VARCHAR", int: "BIGINT"}
    columns = {name: names[kind] for name, kind in WIDE_TYPES.items()}
    columns["messages"] = "STRUCT(role VARCHAR, content VARCHAR)[]"
    _duckdb_table(f"read_ndjson('{source}', columns = {columns})", output, keys, "json")


def duckdb_side(source: Path, output: Path, keys: Keys) -> None:
    """Groups as lists, unnested."""
    # Beats window functions, and a join of the groups back to their rows.
    import duckdb

    duckdb.sql(f"""
        COPY (
            WITH returns AS (
                SELECT {", ".join(keys)}, file_row_number AS row, {SQL_RETURN} AS r
                FROM read_parquet('{source}', file_row_number = true)
            ), groups AS (
                SELECT list(r) AS rs, list(row) AS rows, max(r) AS top
                FROM returns GROUP BY {", ".join(keys)}
            ), tilts AS (
                SELECT rows, list_transform(rs, lambda r: exp((r - top) / {BETA})) AS tilts FROM groups
            ), flat AS (
                SELECT unnest(rows) AS row, unnest(tilts) AS tilt, list_avg(tilts) AS mean FROM tilts
            )
            SELECT row, tilt / mean AS weight FROM flat
        ) TO '{output}' (FORMAT parquet)""")


def polars_parquet(source: Path, output: Path, keys: Keys) -> None:
    """Streaming: groups as lists, joined back to a second scan."""
    # Beats `.over`, aggregates without lists, and two aggregates with a join.
    import polars as pl

    rows = pl.scan_parquet(source).with_columns(r=_polars_return())
    weight = _polars_tilt(pl.col("r"), pl.col("top")) / pl.col("mean")
    joined = rows.join(_polars_groups(rows, keys), on=keys, how="left", maintain_order="left")
    weighed = joined.with_columns(weight=weight).drop("r", "top", "mean")
    weighed.sink_parquet(output, compression="snappy", engine="streaming")


def polars_jsonl(source: Path, output: Path, keys: Keys) -> None:
    """Streaming: the narrow columns parsed, the weight spliced into the raw lines."""
    # Takes well under half the CPU of scan_ndjson to sink_ndjson; beats json_decode of the lines.
    import polars as pl

    types = {str: pl.String, int: pl.Int64}
    schema = {name: types[WIDE_TYPES[name]] for name in (*keys, *NARROW)}
    rows = pl.scan_ndjson(source, schema=schema).with_columns(r=_polars_return())
    joined = rows.join(_polars_groups(rows, keys), on=keys, how="left", maintain_order="left")
    weights = joined.select(weight=_polars_tilt(pl.col("r"), pl.col("top")) / pl.col("mean"))
    lines = pl.scan_lines(source, name="line").select(pl.col("line").str.head(-1))
    spliced = pl.concat_str("line", pl.lit(', "weight": '), pl.col("weight").cast(pl.String), pl.lit("}"))
    pl.concat([lines, weights], how="horizontal_extend").select(spliced).sink_csv(
        output, include_header=False, quote_style="never", engine="streaming"
    )


def polars_side(source: Path, output: Path, keys: Keys) -> None:
    """Streaming: groups as lists, exploded."""
    # Beats `.over`, and a join of the groups back to their rows.
    import polars as pl

    rows = pl.scan_parquet(source, row_index_name="row").select("row", *keys, r=_polars_return())
    groups = rows.group_by(keys).agg("row", tilt=_polars_tilt(pl.col("r"), pl.col("r").max()))
    weighed = groups.select("row", weight=pl.col("tilt") / pl.col("tilt").list.mean())
    weighed.explode("row", "weight").sink_parquet(output, compression="snappy", engine="streaming")


def pandas_parquet(source: Path, output: Path, keys: Keys) -> None:
    """Arrow-backed columns, group numbers once."""
    import pandas as pd

    frame = pd.read_parquet(source, dtype_backend="pyarrow")
    frame["weight"] = _pandas_weights(frame, keys)
    frame.to_parquet(output, index=False)


def pandas_jsonl(source: Path, output: Path, keys: Keys) -> None:
    """Arrow-backed columns, group numbers once."""
    # Beats the default engine.
    import pandas as pd

    frame = pd.read_json(source, lines=True, engine="pyarrow", dtype_backend="pyarrow")
    frame["weight"] = _pandas_weights(frame, keys)
    frame.to_json(output, orient="records", lines=True, force_ascii=False, double_precision=DECIMALS)


def pandas_side(source: Path, output: Path, keys: Keys) -> None:
    """The narrow columns alone."""
    import pandas as pd

    frame = pd.read_parquet(source, columns=[*keys, *NARROW], dtype_backend="pyarrow")
    weights = pd.DataFrame({"row": range(len(frame)), "weight": _pandas_weights(frame, keys)})
    weights.to_parquet(output, index=False)


def datasets_map(source: Path, output: Path, keys: Keys) -> None:
    """Weights by pandas on the narrow columns, then a batched `map` of Arrow tables."""
    rows = _load(source, output)
    weights = _pandas_weights(rows.select_columns([*keys, *NARROW]).to_pandas(), keys).to_numpy()

    def with_weight(table: Any, index: list[int]) -> Any:
        return table.append_column("weight", [weights[index]])

    _store(rows.with_format("arrow").map(with_weight, batched=True, with_indices=True), output)


def datasets_map_side(source: Path, output: Path, keys: Keys) -> None:
    """The same, on the narrow columns alone."""
    import pyarrow as pa

    rows = _load(source, output, [*keys, *NARROW])
    weights = _pandas_weights(rows.to_pandas(), keys).to_numpy()

    def row_and_weight(table: Any, index: list[int]) -> Any:
        return pa.table({"row": index, "weight": weights[index]})

    mapped = rows.with_format("arrow").map(
        row_and_weight, batched=True, with_indices=True, remove_columns=rows.column_names
    )
    _store(mapped, output)


def datasets_loop(source: Path, output: Path, keys: Keys) -> None:
    """A plain loop over the rows."""
    rows = _load(source, output)
    _store(rows.add_column("weight", _loop_weights(rows, keys)), output)


def datasets_loop_side(source: Path, output: Path, keys: Keys) -> None:
    """A plain loop over the narrow columns of the rows."""
    from datasets import Dataset

    weights = _loop_weights(_load(source, output, [*keys, *NARROW]), keys)
    _store(Dataset.from_dict({"row": range(len(weights)), "weight": weights}), output)


CONTENDERS: dict[str, dict[str, Contender]] = {
    "parquet": {
        "ours": ours,
        "duckdb": duckdb_parquet,
        "polars": polars_parquet,
        "pandas": pandas_parquet,
        "datasets map": datasets_map,
        "datasets loop": datasets_loop,
        "pyarrow": pyarrow_reencode,
        "copy": copy,
    },
    "side": {
        "ours": ours_side,
        "duckdb": duckdb_side,
        "polars": polars_side,
        "pandas": pandas_side,
        "datasets map": datasets_map_side,
        "datasets loop": datasets_loop_side,
    },
    "jsonl": {
        "ours": ours,
        "duckdb": duckdb_jsonl,
        "polars": polars_jsonl,
        "pandas": pandas_jsonl,
        "datasets map": datasets_map,
        "datasets loop": datasets_loop,
        "copy": copy,
    },
}


def _duckdb_table(scan: str, output: Path, keys: Keys, form: str) -> None:
    import duckdb

    named = ", ".join(keys)
    duckdb.sql(f"""
        COPY (
            WITH returns AS (
                SELECT {named}, {SQL_RETURN} AS r FROM {scan}
            ), groups AS (
                SELECT {named}, list(r) AS rs, max(r) AS top FROM returns GROUP BY {named}
            ), means AS (
                SELECT {named}, top,
                    list_avg(list_transform(rs, lambda r: exp((r - top) / {BETA}))) AS mean
                FROM groups
            )
            SELECT log.*, exp(({SQL_RETURN} - top) / {BETA}) / mean AS weight
            FROM {scan} AS log JOIN means USING ({named})
        ) TO '{output}' (FORMAT {form})""")


def _polars_return() -> pl.Expr:
    import polars as pl

    discounted = pl.col("correct") * pl.lit(GAMMA).pow(pl.col("length") - 1)
    return discounted - LAM * (1 - pl.col("unique") / pl.col("length"))


def _polars_tilt(returned: pl.Expr, top: pl.Expr) -> pl.Expr:
    return ((returned - top) / BETA).exp()


def _polars_groups(rows: pl.LazyFrame, keys: Keys) -> pl.LazyFrame:
    import polars as pl

    tilts = pl.col("r").list.eval(_polars_tilt(pl.element(), pl.element().max()))
    groups = rows.select(*keys, "r").group_by(keys).agg("r")
    return groups.select(*keys, top=pl.col("r").list.max(), mean=tilts.list.mean())


def _pandas_weights(frame: pd.DataFrame, keys: Keys) -> pd.Series[float]:
    import numpy as np

    group = frame.groupby(list(keys), sort=False).ngroup().to_numpy()
    correct, length, unique = (frame[name].astype("float64") for name in NARROW)
    returned = correct * GAMMA ** (length - 1) - LAM * (1 - unique / length)
    tilt = np.exp((returned - returned.groupby(group).transform("max")) / BETA)
    return tilt / tilt.groupby(group).transform("mean")


def _load(source: Path, output: Path, columns: list[str] | None = None) -> Any:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    kind = "json" if source.suffix == ".jsonl" else "parquet"
    chosen = {} if columns is None else {"columns": columns}
    cache = str(output.parent / "cache")
    return load_dataset(kind, data_files=str(source), split="train", cache_dir=cache, **chosen)


def _store(rows: Any, output: Path) -> None:
    if output.suffix == ".jsonl":
        rows.to_json(output, force_ascii=False, double_precision=DECIMALS)
    else:
        rows.to_parquet(output)


def _loop_weights(rows: Iterable[dict[str, Any]], keys: Keys) -> list[float]:
    found = []
    groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows:
        group = tuple(row[key] for key in keys)
        discounted = row["correct"] * GAMMA ** (row["length"] - 1)
        returned = discounted - LAM * (1 - row["unique"] / row["length"])
        groups[group].append(returned)
        found.append((group, returned))
    tops = {group: max(returns) for group, returns in groups.items()}
    means = {
        group: sum(exp((returned - tops[group]) / BETA) for returned in returns) / len(returns)
        for group, returns in groups.items()
    }
    return [exp((returned - tops[group]) / BETA) / means[group] for group, returned in found]


def _to_disk(output: Path) -> None:
    with output.open("rb+") as file:
        os.fsync(file.fileno())


if __name__ == "__main__":
    name, form, *paths = sys.argv[1:5]
    CONTENDERS[form][name](Path(paths[0]), Path(paths[1]), sys.argv[5:])
    _to_disk(Path(paths[1]))
