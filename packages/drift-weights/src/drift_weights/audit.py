"""Whether a data set is what its manifest says: hashes, schema, counts, and the weights themselves.

Suffix legend: N rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from drift_weights.columns import Columns
from drift_weights.features import features_yaml
from drift_weights.files import open_parquet
from drift_weights.folder import ROW_GROUP, folder_shards
from drift_weights.inspection import HISTOGRAM_EDGES, Inspection, inspect_ledger
from drift_weights.ledger import Ledger
from drift_weights.manifest import MANIFEST, read_manifest
from drift_weights.sources import Advance, TrajectorySource, Weighable, WeightedSource, weighable
from drift_weights.weighing import WeighedBatch, Weighing, WeightConfig

LARGEST_SHARD = 500_000_000
"""Bytes of a shard that a Hub still shows, streams and resumes well."""
_TOLERANCE = 1e-9
"""Relative; a weight written by another version may differ in its last bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audited:
    """A data set that is what it says."""

    path: Path
    manifest: dict[str, Any]
    files: list[Path]
    schema: pa.Schema
    statistics: dict[str, Any]
    """Counts, group composition and ESS, as they were found in the rows."""


def audit(path: Path, *, advance: Advance | None = None) -> Audited:
    """Hold a folder of drift data to its manifest.

    Args:
        advance: called with the number of rows of each batch that was read.

    Raises:
        FileNotFoundError: no manifest there.
        ValueError: a shard that is not the one vouched for, is too large, or holds other rows; rows
            that do not fit the schema; a weight that is not finite, or not the one that its return,
            its group and the manifest's β give; statistics other than the manifest's.
    """
    said = read_manifest(path)
    # Before any row is read: what the footers claim.
    schema = _check_files(said, folder_shards(path, said["kind"])[0])
    found = weighable(path, WeightConfig(), Columns(), advance=advance)
    source = found.source
    assert isinstance(source, TrajectorySource | WeightedSource)
    assert source.manifest is not None
    if isinstance(source, WeightedSource):
        _check_weights(source, found.ledger)
    statistics = _statistics(found)
    _check_statistics(path, source.manifest.get("statistics"), statistics)
    if source.manifest.get("features", features_yaml(schema)) != features_yaml(schema):
        raise ValueError(f"{path / MANIFEST}: features are not the columns of its shards; do not trust it")
    return Audited(
        path=path, manifest=source.manifest, files=source.files, schema=schema, statistics=statistics
    )


def _check_files(manifest: Mapping[str, Any], files: Sequence[Path]) -> pa.Schema:
    schema: pa.Schema | None = None
    for file, shard in zip(files, manifest["shards"], strict=True):
        if file.stat().st_size > LARGEST_SHARD:
            raise ValueError(f"{file} is larger than {LARGEST_SHARD / 1e6:.0f} MB; write the folder again")
        metadata, found = (parquet := open_parquet(file)).metadata, parquet.schema_arrow
        if metadata.num_rows != shard["rows"]:
            raise ValueError(f"{file} has {metadata.num_rows} rows, {MANIFEST} says {shard['rows']}")
        groups = range(metadata.num_row_groups)
        if any(metadata.row_group(group).num_rows > ROW_GROUP for group in groups):
            raise ValueError(
                f"{file} has row groups of more than {ROW_GROUP} rows, which do not stream; write it again"
            )
        if schema is not None and not found.equals(schema):
            raise ValueError(f"{file} has other columns than {files[0].name}; write the folder again")
        schema = found
    assert schema is not None
    return schema


def _check_weights(source: WeightedSource, ledger: Ledger) -> None:
    """Every stored weight is eq. 13's, or 1 where the selection says so."""
    for batch in _expected(source, ledger):
        stored_N = batch.entry.weight_N
        assert stored_N is not None
        near_N = np.abs(stored_N - batch.weight_N) <= _TOLERANCE * np.maximum(batch.weight_N, 1.0)
        if not near_N.all():
            row = int(np.argmin(near_N))
            config = source.config
            raise ValueError(
                f"{source.place(batch.entry.first_row + row)}: weight is {stored_N[row]}, and "
                f"{batch.weight_N[row]} by its return and group (selection {source.selection}, β "
                f"{config.beta:g}, γ {config.gamma:g}, λ {config.lam:g}); weigh it again"
            )


def _expected(source: WeightedSource, ledger: Ledger) -> Iterator[WeighedBatch]:
    batches = Weighing(ledger, replace(source.config, group_size=None, all_wrong="keep")).batches()
    for batch in batches:
        ones_N = np.ones_like(batch.weight_N)
        yield batch if source.selection == "drift" else replace(batch, weight_N=ones_N)


def _statistics(found: Weighable) -> dict[str, Any]:
    """What a reader wants to know of the rows before loading them."""
    source = found.source
    config = source.config if isinstance(source, WeightedSource) else WeightConfig()
    stored = isinstance(source, WeightedSource)
    made = inspect_ledger(found.ledger, [replace(config, group_size=None)], stored=stored)
    counts = {
        "rows": found.ledger.rows,
        "groups": found.ledger.groups,
        "group_sizes": {str(size): count for size, count in made.group_sizes.items()},
        "composition": _composition(made),
        "unscored_groups": found.ledger.unscored,
    }
    return counts | (_weights(made) if stored else {})


def _composition(made: Inspection) -> dict[str, Any] | None:
    if made.composition is None:
        return None
    return asdict(made.composition) | {"coverage": made.composition.coverage}


def _weights(made: Inspection) -> dict[str, Any]:
    (setting,) = made.settings
    wrong = setting.upweighted_wrong
    edges = [edge if math.isfinite(edge) else None for edge in HISTOGRAM_EDGES]
    return {
        "ess_mean": setting.ess_mean,
        "ess_median": setting.ess_median,
        "largest_weight": setting.largest,
        "upweighted_wrong": None if wrong is None else asdict(wrong),
        "histogram": {"edges": edges, "rows": list(setting.histogram), "mass": list(setting.mass)},
    }


def _check_statistics(path: Path, said: Any, found: Mapping[str, Any], name: str = "statistics") -> None:
    """Refuse a manifest that says other numbers than the rows give; what it does not say is no lie."""
    if said is None:
        return
    if not isinstance(said, dict):
        raise ValueError(f"{path / MANIFEST}: {name} must be an object, got {said!r}")
    for key, value in said.items():
        if key not in found:
            continue
        place, true = f"{name}.{key}", found[key]
        if isinstance(true, dict):
            _check_statistics(path, value, true, place)
        elif not _same(value, true):
            raise ValueError(
                f"{path / MANIFEST}: {place} is {value!r}, and the rows give {true!r}; do not trust it"
            )


def _same(said: Any, found: Any) -> bool:
    if isinstance(found, list):
        return isinstance(said, list) and len(said) == len(found) and all(map(_same, said, found))
    if isinstance(found, float) and isinstance(said, int | float):
        return math.isclose(said, found, rel_tol=1e-6, abs_tol=1e-9)
    return type(said) is type(found) and bool(said == found)
