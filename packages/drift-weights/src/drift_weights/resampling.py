"""Weighted rows drawn by their weight, for trainers that know no weights.

Suffix legend: N rows, M draws.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drift_weights.arrays import to_arrow
from drift_weights.columns import Columns
from drift_weights.draws import Draw
from drift_weights.files import (
    JSONL_SUFFIXES,
    PARQUET_SUFFIXES,
    file_format,
    file_lines,
    open_parquet,
    parquet_batches,
)
from drift_weights.folder import (
    FolderWriter,
    file_sha256,
    folder_shards,
    is_folder,
    refuse_existing,
    write_json,
)
from drift_weights.json_bytes import put_value
from drift_weights.logs import OpenLog, open_log
from drift_weights.logs.opened import BATCH
from drift_weights.outcomes import GROUP_KEY, RowError
from drift_weights.outputs import side_file
from drift_weights.schema import WEIGHTED, check
from drift_weights.sources import Advance, WeightedSource
from drift_weights.writers import batch_rows, codecs_of, whole_file

RESAMPLED = "resampled"
"""What manifests call rows that were drawn."""
_NARROW = pa.schema([WEIGHTED.field(name) for name in (*GROUP_KEY, "sample", "weight")])
_SAID = {"weighting", "columns", "format_of_log"}
"""What must be known of a log to read it as it was weighed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resampled:
    """What was drawn."""

    rows: int
    groups: int
    drawn: int
    """Rows of the output."""


def resample_file(
    source: Path,
    output: Path,
    *,
    seed: int,
    epoch: int = 0,
    overwrite: bool = False,
    advance: Advance | None = None,
) -> Resampled:
    """Write each row as often as `weights.resample` draws it; nothing is written on an error.

    Rows are read twice: first the group, sample and weight of each, then whole ones, a few at a time.
    What is drawn follows the key, not the order of the rows or shards.

    Args:
        source: a WEIGHTED folder, or a JSONL or Parquet log that `reweight` wrote. A folder's draws have
            weight 1, `sample` counts them within their group, and `drawn_sample` is the row's own number.
            A log's draws are the same bytes but for the weight, which is 1; where the log says no whole
            `sample` for a row, its place within its group stands for it.
        seed: of the draw; the same seed draws the same rows.
        epoch: a new epoch is a new draw.
        advance: called with the number of rows of each batch that was read or written.

    Raises:
        ValueError: a folder or log without weights of ours, or resampled already; a bad weight, or a
            sample that a group holds twice (the row is named).
        FileExistsError: the output is there and `overwrite` is off.

    Source: ours; see `weights.resample`.
    """
    refuse_existing(output, overwrite=overwrite)
    write = _resample_folder if is_folder(source) else _resample_log
    return write(source, output, Draw(seed, epoch), overwrite=overwrite, advance=advance)


def _resample_folder(
    path: Path, output: Path, draw: Draw, *, overwrite: bool, advance: Advance | None
) -> Resampled:
    files, manifest = folder_shards(path, "weighted")
    source = WeightedSource(path=path, files=files, manifest=manifest)
    if output.suffix in (*JSONL_SUFFIXES, *PARQUET_SUFFIXES):
        raise ValueError(f"{output}: a folder becomes a folder; name one without a file's ending")
    if source.selection != "drift":
        raise ValueError(
            f"{path} holds the selection {source.selection}, of which each row counts once; there is "
            "nothing to resample"
        )
    try:
        for table in _narrow_tables(files):
            key_columns = [table.column(name).combine_chunks() for name in GROUP_KEY]
            draw.add(
                key_columns, table.column("sample").combine_chunks(), table.column("weight").to_numpy()
            )
            _tell(advance, table.num_rows)
        drawn = draw.counts()
    except RowError as error:
        raise ValueError(f"{source.place(error.row)}: {error.says}") from error
    facts = {
        "selection": RESAMPLED,
        "resampling": {"seed": draw.seed, "epoch": draw.epoch},
        "source": {"path": path.name, "manifest": manifest},
    }
    carried = {name: manifest[name] for name in ("weighting", "omitted_groups") if name in manifest}
    with FolderWriter(output, "weighted", overwrite=overwrite) as folder:
        first = 0
        for table in source.tables():
            copies = _copies(table, drawn[first : first + table.num_rows])
            if copies.num_rows:
                folder.write(copies)
            first += table.num_rows
            _tell(advance, table.num_rows)
        folder.finish(carried | facts)
        return Resampled(rows=draw.rows, groups=draw.groups, drawn=folder.rows)


def _narrow_tables(files: Iterable[Path]) -> Iterator[pa.Table]:
    for file in files:
        for batch in parquet_batches(file, BATCH, _NARROW.names):
            yield check(pa.Table.from_batches([batch]), _NARROW, source=str(file))


def _copies(table: pa.Table, drawn_N: NDArray[Any]) -> pa.Table:
    """Each row as often as it is drawn, with weight 1 and the number of the draw as its sample."""
    count_N = drawn_N["count"]
    copies = table.take(to_arrow(np.repeat(np.arange(table.num_rows), count_N)))
    first_M = np.repeat(drawn_N["first"], count_N)
    copy_M = np.arange(len(first_M)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
    own = copies.column("sample")
    new = {"sample": first_M.astype(np.int64) + copy_M, "weight": np.ones(len(first_M))}
    for name, values in new.items():
        place = copies.schema.get_field_index(name)
        copies = copies.set_column(place, copies.schema.field(name), to_arrow(values))
    return copies.append_column(pa.field("drawn_sample", pa.int64(), nullable=False), own)


def _resample_log(
    path: Path, output: Path, draw: Draw, *, overwrite: bool, advance: Advance | None
) -> Resampled:
    kind = file_format(path)
    if output.suffix not in (JSONL_SUFFIXES if kind == "jsonl" else PARQUET_SUFFIXES):
        raise ValueError(f"{output}: the output keeps the input's format ({path.suffix[1:]}); name it so")
    facts = _facts_beside(path)
    log = _reopened(path, facts)
    rows = log.records(("weight",))
    try:
        for outcomes in log.outcomes(advance):
            weights = [next(rows)["weight"] for _ in range(len(outcomes))]
            draw.add(outcomes.key_columns, outcomes.sample, np.asarray(weights, np.float64))
        drawn = draw.counts()
    except RowError as error:
        raise ValueError(f"{log.place(error.row)}: {error.says}") from error
    count_N = drawn["count"]
    with whole_file(output) as scratch:
        write = _copy_lines if kind == "jsonl" else _copy_rows
        write(path, scratch, count_N, advance)
        # Not as reweight does it, by a `sha256` of its own: the weight 1 of a draw is not to be renewed.
        said = {
            "form": RESAMPLED,
            "resampling": {"seed": draw.seed, "epoch": draw.epoch},
            "source": {"path": path.name, "manifest": facts},
            "output": {"rows": int(count_N.sum()), "sha256": file_sha256(scratch)},
        }
        write_json(side_file(output), said)
    return Resampled(rows=draw.rows, groups=draw.groups, drawn=int(count_N.sum()))


def _facts_beside(path: Path) -> dict[str, Any]:
    """What `reweight` said of a log when it wrote it.

    Raises:
        ValueError: nothing, or of another file, or that its rows do not carry weights of their own.
    """
    beside = side_file(path)
    if not beside.is_file():
        raise ValueError(
            f"{path}: there is no {beside.name} beside it, so its weights are not known to be ours; run "
            "drift-weights reweight on the log"
        )
    facts: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    if facts.get("form") == RESAMPLED:
        raise ValueError(f"{path} is resampled already; draw again from the log that it came from")
    if facts.get("sha256") != file_sha256(path) or not facts.keys() >= _SAID:
        raise ValueError(
            f"{path} is not the file that {beside.name} vouches for; run drift-weights reweight on it again"
        )
    if facts.get("form", "log") != "log":
        raise ValueError(
            f"{path} holds weights alone; resample the log that drift-weights reweight writes "
            "with --form log"
        )
    return facts


def _reopened(path: Path, facts: dict[str, Any]) -> OpenLog:
    """The log, read as it was when it was weighed."""
    said = dict(facts["columns"])
    if isinstance(said.get("group"), list):
        said["group"] = tuple(said["group"])
    weighting = facts["weighting"]
    return open_log(
        path,
        Columns(**said),
        format=facts["format_of_log"],
        malformed=weighting["malformed"],
        answers_matter=weighting["lam"] != 0,
    )


def _copy_lines(source: Path, target: Path, count_N: NDArray[np.int32], advance: Advance | None) -> None:
    with target.open("wb", buffering=1 << 20) as out:
        for number, (line, count) in enumerate(zip(file_lines(source), count_N, strict=True)):
            text = line
            if number == 0 and line.startswith(codecs.BOM_UTF8):
                # It belongs to the file, not to its first row.
                out.write(codecs.BOM_UTF8)
                text = line.removeprefix(codecs.BOM_UTF8)
            if count:
                copy = put_value(text, b"1.0")
                out.write((copy if copy.endswith(b"\n") else copy + b"\n") * int(count))
            _tell(advance, 1)


def _copy_rows(source: Path, target: Path, count_N: NDArray[np.int32], advance: Advance | None) -> None:
    parquet = open_parquet(source)
    schema = parquet.schema_arrow
    with pq.ParquetWriter(target, schema, compression=codecs_of(parquet)) as writer:
        first = 0
        for batch in parquet_batches(source, batch_rows(parquet)):
            count = count_N[first : first + batch.num_rows]
            copies = batch.take(to_arrow(np.repeat(np.arange(batch.num_rows), count)))
            place = schema.get_field_index("weight")
            ones = to_arrow(np.ones(copies.num_rows))
            writer.write_batch(copies.set_column(place, schema.field("weight"), ones))
            first += batch.num_rows
            _tell(advance, batch.num_rows)


def _tell(advance: Advance | None, rows: int) -> None:
    if advance is not None:
        advance(rows)
