"""Weights for a log of many files, on a Ray cluster: one side file of (row, weight) for each of them.

    uv run recipes/weights_on_ray.py logs/*.parquet runs/weights
    RAY_ADDRESS=auto python recipes/weights_on_ray.py /shared/logs /shared/weights --group question

Without RAY_ADDRESS it starts a cluster of its own on this machine, on loopback, and ends it. On a cluster
every node sees the files and the output's folder under the same path, and has drift-weights installed.

A task reads one file and sends on, for each row, where it stands, a 128-bit hash of its group, its return
and its sample: text stays where it is. The rows of a group meet in one task, which weighs them as
`drift-weights reweight` does, to the bit; the weights then go back to their files.

Suffix legend: N rows.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift_weights import Columns, WeightConfig, trajectory_return
from drift_weights.cli import refuse
from drift_weights.files import JSONL_SUFFIXES, PARQUET_SUFFIXES, open_parquet
from drift_weights.folder import (
    MANIFEST,
    file_sha256,
    is_folder,
    read_manifest,
    refuse_existing,
    write_json,
)
from drift_weights.group_numbers import GroupNumbers
from drift_weights.logs import OpenLog
from drift_weights.outcomes import Outcomes, RowError, check_outcomes
from drift_weights.reweighting import ledger_of
from drift_weights.sources import TrajectorySource, WeightedSource, open_source, with_declared_size
from drift_weights.weighing import Weighing
from drift_weights.writers import Kept, sync, whole_file, write_side

# Ray reads these when it is imported: nothing is reported, and a cluster of our own stays on loopback.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
if "RAY_ADDRESS" not in os.environ:
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import ray
from ray.data import DataContext, Dataset, from_items
from ray.exceptions import RayTaskError

FORTH = pa.schema(
    [
        ("part", pa.int32()),
        ("file", pa.int32()),
        ("row", pa.int64()),
        ("group_high", pa.int64()),
        ("group_low", pa.int64()),
        ("return", pa.float64()),
        ("solved", pa.bool_()),
        ("unscored", pa.bool_()),
        ("sample", pa.string()),
    ]
)
"""What goes to the task that weighs a part of the groups; null where the log does not say."""
BACK = pa.schema([("file", pa.int32()), ("row", pa.int64()), ("weight", pa.float64())])
"""What goes to the task that writes a file's weights."""
WRITTEN = pa.schema(
    [("file", pa.int32()), ("rows", pa.int64()), ("sha256", pa.string()), ("side_sha256", pa.string())]
)
"""What comes out."""
_ROW_GROUP = 1 << 16
"""Rows of a side file written at a time, as `drift-weights reweight` does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every task knows."""

    files: tuple[Path, ...]
    vouched: tuple[str | None, ...]
    """The sha256 of each file by its folder's manifest."""
    config: WeightConfig
    columns: Columns
    format: str | None
    reading: dict[str, str]
    """What the first file's columns were taken for; the others' must be taken for the same."""
    hashing: GroupNumbers
    """With its seeds, so that a group has one hash on every machine."""
    parts: int
    target: Path
    """Folder that the side files are written to."""

    def side(self, file: int) -> Path:
        """Where a file's weights go."""
        return self.target / f"{self.files[file].stem}.weights.parquet"


def main() -> None:
    """Weigh the files of a log together, on the cluster that RAY_ADDRESS names or on one of our own."""
    options = _options()
    try:
        config = WeightConfig(**{name: options.pop(name) for name in ("beta", "gamma", "lam", "all_wrong")})
        config = replace(config, malformed=options.pop("malformed"), group_size=options.pop("group_size"))
        inputs, output, format = (options.pop(name) for name in ("inputs", "output", "format"))
        overwrite, group = options.pop("overwrite"), options.pop("group")
        columns = Columns(group=None if group is None else tuple(group), **options)
        refuse_existing(output, overwrite=overwrite)
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "local"),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        try:
            facts = weigh_on_ray(inputs, output, config, columns, format=format, overwrite=overwrite)
        finally:
            ray.shutdown()
    except (ValueError, OSError) as error:
        refuse(error)
    print(f"wrote {output}: {facts['rows']} weights for {len(facts['sources'])} files")


def weigh_on_ray(
    inputs: Sequence[Path],
    output: Path,
    config: WeightConfig | None = None,
    columns: Columns | None = None,
    *,
    format: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `<file>.weights.parquet` for each file, and `drift.json`, which says what they were made of.

    Groups may lie across files. Nothing is written on an error. Ray must be initialised.

    Args:
        inputs: files of one log in any format that `drift-weights reweight` reads, folders of them, or a
            folder of trajectories.
        output: a folder; it must not exist, or be empty, unless `overwrite`.

    Returns:
        The content of `drift.json`.

    Raises:
        ValueError: bad input; file, row and field are named.
        FileExistsError: the output is there and `overwrite` is off, or it is no folder of ours.
    """
    refuse_existing(output, overwrite=overwrite)
    if output.exists() and not is_folder(output) and (output.is_file() or any(output.iterdir())):
        raise FileExistsError(f"{output} is no folder of drift data; remove it yourself or choose another")
    job = _job(inputs, output.absolute(), config or WeightConfig(), columns or Columns(), format)
    shutil.rmtree(job.target, ignore_errors=True)
    job.target.mkdir(parents=True)
    try:
        facts = _facts(job, _executed(_pipeline(job)))
        write_json(job.target / MANIFEST, facts)
        sync(job.target / MANIFEST)
        _put(job.target, output)
    finally:
        shutil.rmtree(job.target, ignore_errors=True)
    return facts


def _job(
    inputs: Sequence[Path], output: Path, config: WeightConfig, columns: Columns, format: str | None
) -> Job:
    vouched: dict[Path, str | None] = {}
    for path in inputs:
        if is_folder(path):
            manifest = read_manifest(path)
            if manifest["kind"] != "trajectories":
                raise ValueError(f"{path} holds {manifest['kind']}, expected trajectories")
            config = with_declared_size(config, manifest)
            vouched |= {path.absolute() / shard["file"]: shard["sha256"] for shard in manifest["shards"]}
        else:
            vouched |= dict.fromkeys(_files(path.absolute()))
    files = tuple(vouched)
    repeated = [stem for stem, count in Counter(file.stem for file in files).items() if count > 1]
    if repeated:
        raise ValueError(f"several files are called {repeated[0]}; rename them, or weigh them apart")
    full = next((file for file in files if not _is_empty(file)), None)
    if full is None:
        raise ValueError(f"there are no rows in {', '.join(map(str, inputs))}")
    source = open_source(full, config, columns, format=format)
    return Job(
        files=files,
        vouched=tuple(vouched.values()),
        config=config,
        columns=columns,
        format=format,
        reading=_reading(source, next(iter(source.outcomes()))),
        hashing=GroupNumbers(),
        parts=min(len(files), DataContext.get_current().default_hash_shuffle_parallelism),
        target=output.with_name(f".{output.name}.writing-{os.getpid()}"),
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in (*JSONL_SUFFIXES, *PARQUET_SUFFIXES))
    if not found:
        raise ValueError(f"{path} holds no .parquet or .jsonl file")
    return found


def _is_empty(path: Path) -> bool:
    """Whether it is one of the files without rows that a distributed writer leaves."""
    if path.suffix in PARQUET_SUFFIXES and path.is_file():
        return bool(open_parquet(path).metadata.num_rows == 0)
    return path.is_file() and path.stat().st_size == 0


def _reading(source: TrajectorySource | WeightedSource | OpenLog, outcomes: Outcomes) -> dict[str, str]:
    """What a file's columns are taken for, and the types of its group's key."""
    kinds = ["string" if _is_text(column) else str(column.type) for column in outcomes.key_columns]
    if isinstance(source, OpenLog):
        return {"format": source.format.name, **source.took, "group keys": " and ".join(kinds)}
    return {"format": "trajectories", "group keys": " and ".join(kinds)}


def _is_text(column: pa.Array) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _pipeline(job: Job) -> Dataset:
    """Read each file, bring groups together, weigh them, bring each file's weights together, write them."""
    items = from_items(
        [{"file": file} for file in range(len(job.files))], override_num_blocks=len(job.files)
    )
    rows = items.map_batches(partial(read, job=job), batch_size=1, batch_format="pyarrow")
    parts = rows.groupby("part", num_partitions=job.parts)
    weights = parts.map_groups(partial(weigh, job=job), batch_format="pyarrow")
    files = weights.groupby("file", num_partitions=job.parts)
    return files.map_groups(partial(write, job=job), batch_format="pyarrow")


def read(items: pa.Table, *, job: Job) -> Iterator[pa.Table]:
    """What the weights of one file's rows are made of, as `FORTH`.

    Raises:
        ValueError: a row that is broken or unclear, or a file unlike the first; it is named.
    """
    (file,) = items.column("file").to_pylist()
    path = job.files[file]
    if _is_empty(path):
        yield FORTH.empty_table()
        return
    source = open_source(path, job.config, job.columns, format=job.format)
    first = 0
    for outcomes in source.outcomes():
        reading = _reading(source, outcomes)
        if reading != job.reading:
            other = next(name for name in reading if reading[name] != job.reading.get(name))
            raise ValueError(
                f"{path}: {other} is {reading[other]}, in {job.files[0]} it is {job.reading.get(other)}; "
                "the files must be alike"
            )
        try:
            check_outcomes(outcomes)
        except RowError as error:
            raise ValueError(f"{source.place(first + error.row)}: {error.says}") from error
        yield _forth(outcomes, file, first, job)
        first += len(outcomes)


def _forth(outcomes: Outcomes, file: int, first: int, job: Job) -> pa.Table:
    rows = len(outcomes)
    hash_N2 = job.hashing.hash(outcomes.key_columns)
    values = {
        "part": (hash_N2[:, 0] % np.uint64(job.parts)).astype(np.int32),
        "file": np.full(rows, file, np.int32),
        "row": np.arange(first, first + rows),
        "group_high": hash_N2.view(np.int64)[:, 0],
        "group_low": hash_N2.view(np.int64)[:, 1],
        "return": _returns(outcomes, job.config),
        "solved": pa.nulls(rows, pa.bool_()) if outcomes.solved_N is None else outcomes.solved_N,
        "unscored": np.zeros(rows, bool) if outcomes.unscored_N is None else outcomes.unscored_N,
        "sample": pa.nulls(rows, pa.string()) if outcomes.sample is None else _text(outcomes.sample),
    }
    return pa.table(values, schema=FORTH)


def _returns(outcomes: Outcomes, config: WeightConfig) -> NDArray[np.float64]:
    if outcomes.return_N is not None:
        return outcomes.return_N
    assert outcomes.solved_N is not None, "without a return a log says which rows are right"
    return trajectory_return(
        outcomes.solved_N,
        outcomes.length_N,
        outcomes.unique_N,
        counted_N=outcomes.counted_N,
        penalty_N=0.0 if outcomes.penalty_N is None else outcomes.penalty_N,
        gamma=config.gamma,
        lam=config.lam,
    )


def _text(sample: pa.Array) -> pa.Array:
    """Samples as text, since one file may number them and another name them."""
    plain = sample.dictionary_decode() if pa.types.is_dictionary(sample.type) else sample
    return plain.cast(pa.string())


def weigh(rows: pa.Table, *, job: Job) -> pa.Table:
    """The weights of whole groups, as `BACK`.

    Raises:
        ValueError: a sample that a group holds twice, or a group of another size than declared; file and
            row are named.
    """
    rows = rows.combine_chunks()
    file_N, row_N = rows.column("file").to_numpy(), rows.column("row").to_numpy()

    def place(row: int) -> str:
        source = open_source(job.files[file_N[row]], job.config, job.columns, format=job.format)
        return source.place(int(row_N[row]))

    ledger = ledger_of(lambda: [_outcomes(rows)], place)
    if ledger.omitted_G(all_wrong=job.config.all_wrong == "drop" and ledger.knows_solved).all():
        return BACK.empty_table()
    try:
        (batch,) = Weighing(ledger, job.config).batches()
    except RowError as error:
        raise ValueError(f"{place(error.row)}: {error.says} (part {job.parts})") from error
    found = pa.table({"file": file_N, "row": row_N, "weight": batch.weight_N}, schema=BACK)
    return found if batch.keep_N is None else found.filter(pa.array(batch.keep_N))


def _outcomes(rows: pa.Table) -> Outcomes:
    ones_N = np.ones(rows.num_rows, np.int64)
    column = {name: rows.column(name).combine_chunks() for name in rows.column_names}
    return Outcomes(
        key_columns=(column["group_high"], column["group_low"]),
        solved_N=None if column["solved"].null_count else column["solved"].to_numpy(zero_copy_only=False),
        length_N=ones_N,
        unique_N=ones_N,
        counted_N=ones_N,
        return_N=column["return"].to_numpy(),
        sample=column["sample"],
        unscored_N=column["unscored"].to_numpy(zero_copy_only=False),
    )


def write(rows: pa.Table, *, job: Job) -> pa.Table:
    """Write the side file of one file, and say so, as `WRITTEN`."""
    return _write(rows.column("file")[0].as_py(), rows, job)


def _write(file: int, rows: pa.Table, job: Job) -> pa.Table:
    """Write a side file.

    Raises:
        ValueError: the file is not the one that its folder's manifest vouches for.
    """
    row_N = rows.column("row").to_numpy()
    weight_N = np.zeros(int(row_N.max(initial=-1)) + 1)
    keep_N = np.zeros(len(weight_N), bool)
    weight_N[row_N], keep_N[row_N] = rows.column("weight").to_numpy(), True
    assert keep_N.sum() == rows.num_rows, f"{job.files[file]}: a row has two weights"
    sha256 = file_sha256(job.files[file])
    if job.vouched[file] not in (None, sha256):
        raise ValueError(f"{job.files[file]} is not the file that {MANIFEST} vouches for (sha256 differs)")
    side = job.side(file)
    with whole_file(side) as scratch:
        write_side(scratch, _batches(keep_N, weight_N))
    made = {"file": [file], "rows": [rows.num_rows], "sha256": [sha256], "side_sha256": [file_sha256(side)]}
    return pa.table(made, schema=WRITTEN)


def _batches(keep_N: NDArray[np.bool_], weight_N: NDArray[np.float64]) -> Iterator[Kept]:
    for start in range(0, len(weight_N), _ROW_GROUP):
        rows = slice(start, start + _ROW_GROUP)
        yield (None if keep_N[rows].all() else keep_N[rows]), weight_N[rows]


def _executed(dataset: Dataset) -> list[dict[str, Any]]:
    """Run it; what a task refuses is raised here as what it is, without Ray's frames around it."""
    context = dataset.context
    context.enable_progress_bars = sys.stderr.isatty()
    context.raise_original_map_exception = True
    context.print_on_execution_start = False
    try:
        return dataset.take_all()
    except RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError):
            raise error.cause from None
        raise


def _facts(job: Job, written: list[dict[str, Any]]) -> dict[str, Any]:
    if not written:
        raise ValueError(
            "every group is left out; sample the unscored ones again, or keep all-wrong groups"
        )
    missing = set(range(len(job.files))) - {entry["file"] for entry in written}
    for file in missing:
        written += _write(file, BACK.empty_table(), job).to_pylist()
    sources = [
        {
            "path": job.files[entry["file"]].name,
            "sha256": entry["sha256"],
            "side": job.side(entry["file"]).name,
            "side_sha256": entry["side_sha256"],
            "rows": entry["rows"],
        }
        for entry in sorted(written, key=lambda entry: entry["file"])
    ]
    return {
        "form": "side",
        "weighting": asdict(job.config),
        "columns": asdict(job.columns),
        "format_of_log": job.reading["format"],
        "rows": sum(entry["rows"] for entry in written),
        "sources": sources,
    }


def _put(made: Path, output: Path) -> None:
    """Put the new folder in the old one's place, which is deleted only once the new one is there."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    made.rename(output)
    sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def _options() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", type=Path, nargs="+", help="files of one log, or a folder of them")
    parser.add_argument("output", type=Path, help="folder for the side files and drift.json")
    default = WeightConfig()
    for name in ("beta", "gamma", "lam"):
        parser.add_argument(f"--{name}", type=float, default=getattr(default, name))
    parser.add_argument("--malformed", choices=("count", "skip"), default=default.malformed)
    parser.add_argument("--all-wrong", choices=("keep", "drop"), default=default.all_wrong)
    parser.add_argument("--group-size", type=int, help="the declared K; groups of another size are refused")
    parser.add_argument("--group", action="append", help="column of a row's group; repeat it for several")
    for name in ("correct", "length", "unique", "return-column"):
        parser.add_argument(f"--{name}", metavar="COLUMN")
    parser.add_argument("--threshold", type=float, help="from here on a value of `correct` is a success")
    parser.add_argument("--answers", choices=("responses",))
    parser.add_argument("--format", help="of the log, where it is not to be recognised")
    parser.add_argument("--overwrite", action="store_true")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main()
