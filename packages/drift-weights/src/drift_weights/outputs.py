"""Weights written out: weighted terminal turns, the log again with a weight, or the weights alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from drift_weights.arrays import to_arrow
from drift_weights.columns import Columns
from drift_weights.files import JSONL_SUFFIXES, PARQUET_SUFFIXES
from drift_weights.folder import FolderWriter, file_sha256, refuse_existing, write_json
from drift_weights.inspection import Inspection, Tally, inspect_ledger, inspection
from drift_weights.log_turns import log_turns
from drift_weights.logs import OpenLog
from drift_weights.manifest import MANIFEST
from drift_weights.outcomes import GROUP_KEY, RowError, outcomes_of_trajectories
from drift_weights.reweighting import weighted_batch
from drift_weights.selections import Selection, select_some
from drift_weights.sources import (
    Advance,
    TrajectorySource,
    Weighable,
    WeightedSource,
    log_facts,
    weighable,
)
from drift_weights.weighing import WeighedBatch, Weighing, WeightConfig
from drift_weights.writers import Kept, whole_file, write_array, write_jsonl, write_parquet, write_side

Form = Literal["log", "turns", "side"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written, and what a user should be told of it."""

    form: Form
    inspection: Inspection
    remarks: tuple[str, ...]
    took: dict[str, str]


def reweight_file(
    source: Path,
    output: Path,
    config: WeightConfig | None = None,
    columns: Columns | None = None,
    selection: Selection = "drift",
    *,
    form: Form | None = None,
    format: str | None = None,
    overwrite: bool = False,
    advance: Advance | None = None,
) -> Written:
    """Write weights for whatever `source` is; nothing is written on an error.

    Rows are read twice and never held together: memory grows with the groups, not with the rows.

    Args:
        form: `turns`, a folder of weighted terminal turns, as trajectories become by default; `log`, the
            same log with `weight` in each row, as a log becomes by default; `side`, a Parquet file of
            `row` and `weight` alone, as is written of another log when the output is named .parquet.
        format: of a log, where it is not to be recognised.
        advance: called with the number of rows of each batch that was read or written.

    Raises:
        ValueError: bad input (file, row or group, and field are named); a selection of something that
            is no trajectories; a `weight` that is not ours.
        FileExistsError: the output is there and `overwrite` is off.
    """
    config = config or WeightConfig()
    if form is not None and form not in get_args(Form):
        raise ValueError(f"form {form!r} is not one of {', '.join(get_args(Form))}")
    refuse_existing(output, overwrite=overwrite)
    found = weighable(source, config, columns, format=format, advance=advance)
    if not isinstance(found.source, OpenLog):
        form = form or "turns"
        if form == "log":
            raise ValueError(f"{source} is trajectories; they become turns or a side file (--form)")
    elif selection != "drift" and form != "turns":
        raise ValueError(f"{source}: --selection {selection} is about terminal turns; add --form turns")
    form = form or _form_of(found.source.path, output)
    _refuse_ending(output, form, found)
    weighing = weighing_of(found)
    tally = Tally(found.ledger)
    batches = _tallied(weighing, tally, advance)
    if form == "turns":
        _write_turns(found, weighing, batches, output, selection, overwrite=overwrite)
    else:
        _write_file(found, batches, output, form, overwrite=overwrite)
    remarks = found.remarks
    if weighing.all_wrong:
        remarks += (f"{weighing.all_wrong} groups without a success are left out",)
    made = inspection(weighing, [tally.setting(weighing)])
    if selection != "drift":
        chosen = weighable(output, found.config)
        made = inspect_ledger(chosen.ledger, [replace(found.config, group_size=None)], stored=True)
    return Written(form=form, inspection=made, remarks=remarks, took=found.took)


def weighing_of(found: Weighable) -> Weighing:
    """The weights of what was read.

    Raises:
        ValueError: groups of another size than declared, or nothing left; the place is named.
    """
    try:
        return Weighing(found.ledger, found.config)
    except RowError as error:
        raise ValueError(f"{found.source.place(error.row)}: {error.says}") from error
    except ValueError as error:
        raise ValueError(f"{found.source.path}: {error}") from error


def _form_of(source: Path, output: Path) -> Form:
    """What the names say: a Parquet file of a log that is none holds the weights alone."""
    return "side" if output.suffix in PARQUET_SUFFIXES and source.suffix not in PARQUET_SUFFIXES else "log"


def side_file(output: Path) -> Path:
    """The file that vouches for a reweighted log."""
    return output.with_name(f"{output.name}.{MANIFEST}")


def _tallied(weighing: Weighing, tally: Tally, advance: Advance | None) -> Iterator[WeighedBatch]:
    for batch in weighing.batches():
        tally.add(batch)
        yield batch
        if advance is not None:
            advance(len(batch.weight_N))


def _refuse_ending(output: Path, form: Form, found: Weighable) -> None:
    """An output's ending says what it holds."""
    file_endings = (*JSONL_SUFFIXES, *PARQUET_SUFFIXES)
    if form == "turns":
        if output.suffix in file_endings:
            raise ValueError(f"{output}: weighted turns become a folder; name one without a file's ending")
        return
    if form == "side":
        if output.suffix not in PARQUET_SUFFIXES:
            raise ValueError(f"{output}: weights alone are a Parquet file; name it so")
        return
    source = found.source.path
    if isinstance(found.source, OpenLog) and _log_writer(found.source, output) is None:
        raise ValueError(
            f"{source}: a {found.source.format.name} file does not have one object a trajectory, so no "
            "weight fits in; write the weights alone (--form side) or the terminal turns (--form turns)"
        )
    same = next(
        (group for group in (JSONL_SUFFIXES, PARQUET_SUFFIXES) if source.suffix in group), (source.suffix,)
    )
    if output.suffix not in same:
        raise ValueError(f"{output}: the output keeps the input's format ({source.suffix[1:]}); name it so")


def _write_file(
    found: Weighable, batches: Iterable[WeighedBatch], output: Path, form: Form, *, overwrite: bool
) -> None:
    facts: dict[str, Any] = {"weighting": asdict(found.config), "form": form}
    kept: Iterator[Kept] = ((batch.keep_N, batch.weight_N) for batch in batches)
    if isinstance(found.source, OpenLog):
        facts |= log_facts(found.source, found.config)
        if form == "log" and found.source.has_weight and not (overwrite or _ours(found.source.path)):
            raise ValueError(
                f"{found.source.path} has a column 'weight' that is not ours; pass --overwrite to "
                "replace it"
            )
    else:
        facts["source"] = _origin(found.source)
    facts["omitted_group_count"] = found.ledger.unscored
    with whole_file(output) as scratch:
        if form == "side":
            write_side(scratch, kept)
        else:
            assert isinstance(found.source, OpenLog)
            writer = _log_writer(found.source, scratch)
            assert writer is not None
            writer(kept)
        # A weight column is known as ours by this file, so it must be there before the output is.
        write_json(side_file(output), facts | {"sha256": file_sha256(scratch)})


def _log_writer(log: OpenLog, target: Path) -> Callable[[Iterable[Kept]], None] | None:
    """What writes the log again; None where a row has no object of its own."""
    if log.format.trajectories is None:
        if log.path.suffix in JSONL_SUFFIXES:
            return lambda kept: write_jsonl(log.path, target, kept, replace=log.has_weight)
        return lambda kept: write_parquet(log.path, target, kept)
    if log.format.array and log.path.suffix == ".json":
        return lambda kept: write_array(log.path, target, kept)
    return None


def _write_turns(
    found: Weighable,
    weighing: Weighing,
    batches: Iterator[WeighedBatch],
    output: Path,
    selection: Selection,
    *,
    overwrite: bool,
) -> None:
    facts: dict[str, Any] = {"weighting": asdict(found.config), "selection": selection}
    omitted: dict[int, dict[str, Any]] = {}
    if isinstance(found.source, OpenLog):
        facts |= log_facts(found.source, found.config)
        tables = log_turns(found.source, weighing, batches, omitted)
    elif isinstance(found.source, WeightedSource):
        # What the rows were made of before stays true of them.
        carried = ("columns", "format_of_log", "omitted_groups")
        facts |= {name: found.source.manifest[name] for name in carried if name in found.source.manifest}
        facts["source"] = _origin(found.source)
        tables = _weighed_again(found.source, batches)
    else:
        facts["source"] = found.source.origin
        tables = _turns(found.source, weighing, batches, omitted)
    with FolderWriter(output, "weighted", overwrite=overwrite) as folder:
        rows = 0
        for table in tables:
            kept = select_some(table, selection)
            rows += table.num_rows
            if kept.num_rows:
                folder.write(kept)
        if not folder.rows:
            raise ValueError(f"selection {selection!r} keeps none of {rows} rows")
        listed = [{name: group[name] for name in GROUP_KEY} for group in omitted.values()]
        listed.sort(key=lambda group: tuple(group.values()))
        folder.finish({"omitted_groups": listed} | facts)


def _turns(
    source: TrajectorySource,
    weighing: Weighing,
    batches: Iterable[WeighedBatch],
    omitted: dict[int, dict[str, Any]],
) -> Iterator[pa.Table]:
    unscored_G = weighing.ledger.omitted_G()
    for table, batch in zip(source.tables(), batches, strict=True):
        outcomes = outcomes_of_trajectories(table, source.malformed)
        code_N = batch.entry.code_N
        size_N = weighing.ledger.size_G[code_N]
        turns = weighted_batch(table, outcomes, batch.return_N, batch.weight_N, size_N)
        for row in np.flatnonzero(unscored_G[code_N]).tolist():
            if code_N[row] not in omitted:
                omitted[int(code_N[row])] = table.select(GROUP_KEY).slice(row, 1).to_pylist()[0]
        yield turns if batch.keep_N is None else turns.filter(to_arrow(batch.keep_N))


def _weighed_again(source: WeightedSource, batches: Iterable[WeighedBatch]) -> Iterator[pa.Table]:
    if source.selection != "drift":
        raise ValueError(
            f"{source.path} holds the selection {source.selection}; weigh the trajectories that it "
            "came from"
        )
    for table, batch in zip(source.tables(), batches, strict=True):
        for name, values in (("weight", batch.weight_N), ("return", batch.return_N)):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(name), to_arrow(values))
        yield table if batch.keep_N is None else table.filter(to_arrow(batch.keep_N))


def _origin(source: TrajectorySource | WeightedSource) -> dict[str, Any]:
    if isinstance(source, TrajectorySource):
        return source.origin
    return {"path": source.path.name, "manifest": source.manifest}


def _ours(path: Path) -> bool:
    """Whether a side file vouches for exactly these bytes."""
    side = side_file(path)
    if not side.is_file():
        return False
    return bool(json.loads(side.read_text(encoding="utf-8")).get("sha256") == file_sha256(path))
