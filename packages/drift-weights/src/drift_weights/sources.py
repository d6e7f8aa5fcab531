"""What the commands read and write: trajectories, weighted turns, logs and what vouches for them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drift_weights.columns import Columns, outcomes_of_columns
from drift_weights.files import (
    JSONL_SUFFIXES,
    PARQUET_SUFFIXES,
    column_names,
    file_format,
    read_columns,
    write_with_weight,
)
from drift_weights.folder import (
    MANIFEST,
    file_sha256,
    is_folder,
    read_folder,
    read_manifest,
    refuse_existing,
    write_folder,
    write_json,
)
from drift_weights.outcomes import (
    Outcomes,
    outcomes_of_trajectories,
    outcomes_of_weighted,
    refuse_other_sizes,
    whole_trajectories,
)
from drift_weights.reweighting import WeightConfig, weigh, weighted_turns
from drift_weights.schema import TRAJECTORIES, check
from drift_weights.selections import Selection, select


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighed:
    """Outcomes with the weights that were written or found, and what a user should be told."""

    outcomes: Outcomes
    weight_N: NDArray[np.float64] | None
    """None where the outcomes are there but no weights yet."""
    config: WeightConfig
    remarks: tuple[str, ...] = ()


def reweight_file(
    source: Path,
    output: Path,
    config: WeightConfig,
    columns: Columns,
    selection: Selection = "drift",
    *,
    overwrite: bool = False,
) -> Weighed:
    """Write weights for whatever `source` is; nothing is written on an error.

    Trajectories become a folder of weighted turns; any other table comes back in its own format with
    a `weight` column, beside an `OUT.drift.json` that vouches for it.

    Raises:
        ValueError: bad input (file, row or group, and field are named); a selection of a plain table;
            a `weight` column that is not ours.
        FileExistsError: the output is there and `overwrite` is off.
    """
    refuse_existing(output, overwrite=overwrite)
    trajectories = read_trajectories(source)
    if trajectories is not None:
        return _write_turns(*trajectories, output, config, selection, overwrite=overwrite)
    if selection != "drift":
        raise ValueError(f"--selection {selection} needs trajectories; {source} is a table of outcomes")
    return _write_log(source, output, config, columns, overwrite=overwrite)


def weigh_file(source: Path, config: WeightConfig | None, columns: Columns) -> Weighed:
    """Outcomes of whatever `source` is; for a folder of weighted turns also the weights in it.

    Args:
        config: None takes the settings that a weighted folder was made with, or the paper's.
    """
    if is_folder(source) and read_manifest(source)["kind"] == "weighted":
        return _weighted_folder(source, config)
    settings = config or WeightConfig()
    trajectories = read_trajectories(source)
    if trajectories is None:
        outcomes = _log_outcomes(source, columns)
        remarks = _remarks(source, columns, outcomes)
        refuse_other_sizes(outcomes.group_N, settings.group_size)
        return Weighed(outcomes=outcomes, weight_N=None, config=settings, remarks=remarks)
    table, origin = trajectories
    settings = _with_declared_size(settings, origin)
    whole, omitted = whole_trajectories(table)
    outcomes = outcomes_of_trajectories(whole, settings.malformed)
    refuse_other_sizes(outcomes.group_N, settings.group_size)
    return Weighed(outcomes=outcomes, weight_N=None, config=settings, remarks=_omitted(omitted))


def read_trajectories(path: Path) -> tuple[pa.Table, dict[str, Any]] | None:
    """A TRAJECTORIES table and what is known of its origin; None for any other kind of input.

    Raises:
        ValueError: a folder of another kind or without a manifest, or a table that does not fit.
    """
    if is_folder(path):
        table, manifest = read_folder(path, "trajectories")
        return table, {"path": path.name, "manifest": manifest}
    if path.is_dir():
        raise ValueError(f"{path} is a folder without {MANIFEST}; name the folder that holds it, or a file")
    if file_format(path) != "parquet" or not {"turns", "ended"} <= set(column_names(path)):
        return None
    table = check(pq.read_table(path), TRAJECTORIES, source=str(path))
    return table, {"path": path.name, "sha256": file_sha256(path)}


def side_file(output: Path) -> Path:
    """The file that vouches for a reweighted log."""
    return output.with_name(f"{output.name}.{MANIFEST}")


def _write_turns(
    table: pa.Table,
    origin: dict[str, Any],
    output: Path,
    config: WeightConfig,
    selection: Selection,
    *,
    overwrite: bool,
) -> Weighed:
    if output.suffix in (*JSONL_SUFFIXES, *PARQUET_SUFFIXES):
        raise ValueError(f"{output}: trajectories become a folder; name one without a file's ending")
    config = _with_declared_size(config, origin)
    turns, made = weighted_turns(table, config)
    selected = select(turns, selection)
    facts = {**made, "selection": selection, "source": origin}
    write_folder(output, selected, "weighted", facts, overwrite=overwrite)
    return Weighed(
        outcomes=outcomes_of_weighted(selected),
        weight_N=selected.column("weight").to_numpy(),
        config=config,
        remarks=_omitted(made["omitted_groups"]),
    )


def _write_log(
    source: Path, output: Path, config: WeightConfig, columns: Columns, *, overwrite: bool
) -> Weighed:
    if "weight" in column_names(source) and not (overwrite or _ours(source)):
        raise ValueError(f"{source} has a column 'weight' that is not ours; pass --overwrite to replace it")
    outcomes = _log_outcomes(source, columns)
    try:
        _, weights = weigh(outcomes, config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    facts = {
        "weighting": asdict(config),
        "columns": asdict(columns),
        # Before the output is written, which may be the source itself.
        "source": {"path": source.name, "sha256": file_sha256(source)},
    }
    remarks = _remarks(source, columns, outcomes)
    write_with_weight(source, output, weights)
    write_json(side_file(output), facts | {"sha256": file_sha256(output)})
    return Weighed(outcomes=outcomes, weight_N=weights, config=config, remarks=remarks)


def _weighted_folder(path: Path, config: WeightConfig | None) -> Weighed:
    table, manifest = read_folder(path, "weighted")
    outcomes = outcomes_of_weighted(table)
    if config is not None:
        if manifest.get("selection", "drift") != "drift":
            raise ValueError(
                f"{path} holds the selection {manifest['selection']}; look at other β, γ, λ in the "
                "trajectories that it came from"
            )
        return Weighed(outcomes=outcomes, weight_N=None, config=config)
    stored = manifest.get("weighting", {})
    known = {name: stored[name] for name in ("beta", "gamma", "lam", "malformed") if name in stored}
    remarks = (f"weights as they are stored, selection {manifest.get('selection', 'drift')}",)
    weights = table.column("weight").to_numpy()
    return Weighed(outcomes=outcomes, weight_N=weights, config=WeightConfig(**known), remarks=remarks)


def _log_outcomes(path: Path, columns: Columns) -> Outcomes:
    try:
        return outcomes_of_columns(read_columns(path, columns.needed(column_names(path))), columns)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _with_declared_size(config: WeightConfig, origin: dict[str, Any]) -> WeightConfig:
    """The K that a rollout declared holds for its trajectories unless the user declares another."""
    declared = origin.get("manifest", {}).get("rollout", {}).get("samples")
    return replace(config, group_size=declared) if config.group_size is None else config


def _omitted(groups: list[dict[str, Any]]) -> tuple[str, ...]:
    if not groups:
        return ()
    return (f"{len(groups)} groups hold an unscored dialogue and are left out whole; sample them again",)


def _remarks(path: Path, columns: Columns, outcomes: Outcomes) -> tuple[str, ...]:
    """What a user may not have meant: a mixture of policies, rows as single turns, groups of one row."""
    present = column_names(path)
    found = []
    if columns.group is not None and "policy" in present and "policy" not in columns.groups(present):
        count = len(set(map(str, read_columns(path, ["policy"])["policy"])))
        if count > 1:
            found.append(f"groups mix {count} policies: not i.i.d. samples of one reference policy")
    if columns.return_column is None and columns.length not in present:
        found.append(f"no columns {columns.length!r} and {columns.unique!r}: every row counts as one turn")
    if len(set(outcomes.group_N)) == len(outcomes.group_N):
        named = ", ".join(columns.groups(present))
        found.append(
            f"every group (one {named}) has a single row, so every weight is 1; if rows belong together, "
            "name what they share, such as --group prompt_id"
        )
    return tuple(found)


def _ours(path: Path) -> bool:
    """Whether a side file vouches for exactly these bytes."""
    side = side_file(path)
    if not side.is_file():
        return False
    return bool(json.loads(side.read_text(encoding="utf-8")).get("sha256") == file_sha256(path))
