"""Weights for a log of many files, on a Ray cluster: one side file of (row, weight) for each of them.

    uv run recipes/weights_on_ray.py logs runs/weights
    RAY_ADDRESS=auto python recipes/weights_on_ray.py "/shared/logs/*.parquet" /shared/weights --beta 0.05

Without RAY_ADDRESS it starts a cluster of its own on this machine, on loopback, and ends it. On a cluster
every node sees the files and the output's folder under the same path, and has drift-weights installed.

A task reads one file and sends on, for each row, where it stands, a 128-bit hash of its group, its return
and its sample: text stays where it is. The rows of a group meet in one task, which weighs them as
`drift-weights reweight` does, to the bit; the weights then go back to their files.

Suffix legend: N rows.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from argparse import ArgumentError
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from glob import glob
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from jsonargparse import ArgumentParser
from numpy.typing import NDArray

from drift_weights import Columns, WeightConfig, trajectory_return
from drift_weights.command_line import option_words, refuse, settings
from drift_weights.files import JSONL_SUFFIXES, PARQUET_SUFFIXES, open_parquet
from drift_weights.folder import file_sha256, is_folder, refuse_replacing, swap_folder, write_json
from drift_weights.group_numbers import GroupNumbers
from drift_weights.logs import OpenLog
from drift_weights.manifest import MANIFEST, read_manifest
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
from ray import cloudpickle
from ray.data import DataContext, Dataset, from_items
from ray.exceptions import RayTaskError

_GROUP = {"group_high": pa.int64(), "group_low": pa.int64()}
_PLACE = {"file": pa.int32(), "row": pa.int64()}
_OUTCOME = {"return": pa.float64(), "solved": pa.bool_(), "unscored": pa.bool_(), "sample": pa.string()}
FORTH = pa.schema({"part": pa.int32(), **_PLACE, **_GROUP, **_OUTCOME})
"""What goes to the task that weighs a part of the groups; null where the log does not say."""
BACK = pa.schema({**_PLACE, "weight": pa.float64()})
"""What goes to the task that writes a file's weights."""
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


def main() -> None:
    """Weigh the files of a log together, on the cluster that RAY_ADDRESS names or on one of our own."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], exit_on_error=False)
    parser.add_argument("input", type=Path, help="a folder, a file, or a pattern in quotes")
    parser.add_argument("output", type=Path, help="a folder for the side files and drift.json")
    parser.add_class_arguments(WeightConfig)
    parser.add_class_arguments(Columns)
    parser.add_argument("--format", type=str | None, help="of the log, where it is not to be recognised")
    parser.add_argument("--overwrite", type=bool, default=False)
    try:
        given = vars(parser.parse_args(option_words(sys.argv[1:], flags={"overwrite"})))
        config, columns = settings(WeightConfig, given), settings(Columns, given)
        refuse_replacing(given["output"], overwrite=given["overwrite"])
        address = os.environ.get("RAY_ADDRESS", "local")
        with ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False):
            facts = weigh_on_ray(config=config, columns=columns, **given)
    except (ValueError, OSError, ArgumentError) as error:
        refuse(error)
    print(f"wrote {given['output']}: {facts['rows']} weights for {len(facts['sources'])} files")


def weigh_on_ray(
    input: Path,
    output: Path,
    config: WeightConfig | None = None,
    columns: Columns | None = None,
    *,
    format: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `<file>.weights.parquet` for each file, and `drift.json`, which says what they were made of.

    Groups may lie across files. Nothing is written on an error. Ray must be initialised.

    Returns:
        The content of `drift.json`.

    Raises:
        ValueError: bad input; file, row and field are named.
        FileExistsError: the output is there and `overwrite` is off, or it is no folder of ours.
    """
    refuse_replacing(output, overwrite=overwrite)
    job = _job(input.absolute(), output.absolute(), config or WeightConfig(), columns or Columns(), format)
    # The workers need not have this file.
    take_along: Callable[[ModuleType], None] = cloudpickle.register_pickle_by_value
    take_along(sys.modules[__name__])
    shutil.rmtree(job.target, ignore_errors=True)
    job.target.mkdir(parents=True)
    try:
        facts = _facts(job, _executed(_pipeline(job)))
        write_json(job.target / MANIFEST, facts)
        sync(job.target / MANIFEST)
        swap_folder(job.target, output)
    finally:
        shutil.rmtree(job.target, ignore_errors=True)
    return facts


def _job(input: Path, output: Path, config: WeightConfig, columns: Columns, format: str | None) -> Job:
    vouched: dict[Path, str | None] = {}
    if is_folder(input):
        manifest = read_manifest(input)
        if manifest["kind"] != "trajectories":
            raise ValueError(f"{input} holds {manifest['kind']}; name the trajectories it was made of")
        config = with_declared_size(config, manifest)
        vouched |= {input / shard["file"]: shard["sha256"] for shard in manifest["shards"]}
    else:
        vouched |= dict.fromkeys(_files(input))
    files = tuple(vouched)
    repeated = [stem for stem, count in Counter(file.stem for file in files).items() if count > 1]
    if repeated:
        raise ValueError(f"{input}: several files are called {repeated[0]}; rename them")
    full = next((file for file in files if not _is_empty(file)), None)
    if full is None:
        raise ValueError(f"{input}: there are no rows")
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


def _files(input: Path) -> list[Path]:
    pattern = input / "*" if input.is_dir() else input
    endings = (*JSONL_SUFFIXES, *PARQUET_SUFFIXES) if input.is_dir() else ("",)
    found = sorted(Path(name) for name in glob(str(pattern)) if name.endswith(endings))
    if not found:
        raise FileNotFoundError(f"{input}: there is no such file, or no .parquet or .jsonl in the folder")
    return found


def _is_empty(path: Path) -> bool:
    """Whether it is one of the files without rows that a distributed writer leaves."""
    if path.suffix in PARQUET_SUFFIXES:
        return bool(open_parquet(path).metadata.num_rows == 0)
    return path.stat().st_size == 0


def _reading(source: TrajectorySource | WeightedSource | OpenLog, outcomes: Outcomes) -> dict[str, str]:
    """What a file's columns are taken for, and the types of its group's key."""
    kinds = " and ".join(str(column.type).removeprefix("large_") for column in outcomes.key_columns)
    if isinstance(source, OpenLog):
        return {"format": source.format.name, **source.took, "type of group": kinds}
    return {"format": "trajectories", "type of group": kinds}


def _pipeline(job: Job) -> Dataset:
    """Read each file, bring groups together and weigh them, bring each file's weights together."""
    items = [{"file": file} for file in range(len(job.files))]
    rows = from_items(items, override_num_blocks=len(items)).map_batches(
        partial(read, job=job), batch_size=1, batch_format="pyarrow"
    )
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
    hash_N2, sample = job.hashing.hash(outcomes.key_columns), outcomes.sample
    if sample is not None and pa.types.is_dictionary(sample.type):
        sample = sample.dictionary_decode()
    return_N = outcomes.return_N
    if return_N is None:
        assert outcomes.solved_N is not None, "without a return a log says which rows are right"
        return_N = trajectory_return(
            outcomes.solved_N,
            outcomes.length_N,
            outcomes.unique_N,
            counted_N=outcomes.counted_N,
            penalty_N=0.0 if outcomes.penalty_N is None else outcomes.penalty_N,
            gamma=job.config.gamma,
            lam=job.config.lam,
        )
    values = {
        "part": (hash_N2[:, 0] % np.uint64(job.parts)).astype(np.int32),
        "file": np.full(rows, file, np.int32),
        "row": np.arange(first, first + rows),
        "group_high": hash_N2.view(np.int64)[:, 0],
        "group_low": hash_N2.view(np.int64)[:, 1],
        "return": return_N,
        "solved": pa.nulls(rows, pa.bool_()) if outcomes.solved_N is None else outcomes.solved_N,
        "unscored": np.zeros(rows, bool) if outcomes.unscored_N is None else outcomes.unscored_N,
        "sample": pa.nulls(rows, pa.string()) if sample is None else sample.cast(pa.string()),
    }
    return pa.table(values, schema=FORTH)


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
        counted = f" (counted in one of {job.parts} parts of the log)" if job.parts > 1 else ""
        raise ValueError(f"{place(error.row)}: {error.says}{counted}") from error
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


def write(rows: pa.Table, *, job: Job, file: int | None = None) -> pa.Table:
    """Write the side file of one file, and give its facts.

    Raises:
        ValueError: the file is not the one that its folder's manifest vouches for.
    """
    file = rows.column("file")[0].as_py() if file is None else file
    row_N = rows.column("row").to_numpy()
    weight_N = np.zeros(int(row_N.max(initial=-1)) + 1)
    keep_N = np.zeros(len(weight_N), bool)
    weight_N[row_N], keep_N[row_N] = rows.column("weight").to_numpy(), True
    source, side = job.files[file], job.target / f"{job.files[file].stem}.weights.parquet"
    assert keep_N.sum() == rows.num_rows, f"{source}: a row has two weights"
    sha256 = file_sha256(source)
    if job.vouched[file] not in (None, sha256):
        raise ValueError(f"{source} is not the file that {MANIFEST} vouches for (sha256 differs)")
    with whole_file(side) as scratch:
        write_side(scratch, _batches(keep_N, weight_N))
    made = {"path": source.name, "sha256": sha256, "side": side.name, "side_sha256": file_sha256(side)}
    return pa.Table.from_pylist([{"file": file, "rows": rows.num_rows, **made}])


def _batches(keep_N: NDArray[np.bool_], weight_N: NDArray[np.float64]) -> Iterator[Kept]:
    for start in range(0, len(weight_N), _ROW_GROUP):
        rows = slice(start, start + _ROW_GROUP)
        yield (None if keep_N[rows].all() else keep_N[rows]), weight_N[rows]


def _executed(dataset: Dataset) -> list[dict[str, Any]]:
    """Run it; what a task refuses is raised here, without what Ray's log file says around it."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    dataset.context.enable_progress_bars = sys.stderr.isatty()
    dataset.context.raise_original_map_exception = True
    try:
        return dataset.take_all()
    except RayTaskError as error:
        if not isinstance(error.cause, ValueError | OSError):
            raise
        raise ValueError(str(error.cause).partition("\nFailed to apply")[0]) from None


def _facts(job: Job, written: list[dict[str, Any]]) -> dict[str, Any]:
    if not written:
        raise ValueError("every group is left out: unscored, or all wrong and not to be kept")
    for file in set(range(len(job.files))) - {entry["file"] for entry in written}:
        written += write(BACK.empty_table(), job=job, file=file).to_pylist()
    sources = sorted(written, key=lambda entry: entry.pop("file"))
    return {
        "form": "side",
        "weighting": asdict(job.config),
        "columns": asdict(job.columns),
        "format_of_log": job.reading["format"],
        "rows": sum(entry["rows"] for entry in written),
        "sources": sources,
    }


if __name__ == "__main__":
    main()
