"""A rollout run on disk: its journal while it lasts, and the trajectories folder when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from drift_rollout.engine import Engine
from drift_rollout.journal import Journal
from drift_rollout.problems import ProblemSet, check_targets
from drift_rollout.sampler import RolloutConfig, sample_to_journal
from drift_rollout.verify import Verifier
from drift_weights.folder import is_folder, write_folder
from drift_weights.manifest import read_manifest
from drift_weights.schema import to_table
from drift_weights.types import Trajectory

JOURNAL = "journal.sqlite"


def rollout(
    problems: ProblemSet,
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig,
    out: Path,
    *,
    about: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    on_finished: Callable[[Sequence[Trajectory]], None] = lambda batch: None,
) -> Path:
    """Sample what is missing into OUT/journal.sqlite, then write OUT/trajectories with its manifest.

    Run again after a kill, with the same settings, it goes on; K and the problems may grow.

    Args:
        about: further settings that must stay the same on resume, such as the prompt template.
        origin: noted in the manifest alone, such as where the model lay.
        on_finished: told of each batch; on resume first of what is there already of this run.

    Returns:
        The trajectories folder.

    Raises:
        ValueError: what `check_run` and `sample` refuse, OUT belongs to a run of another
            configuration, or another run is writing to it.
    """
    check_run(problems, verifier, config, out)
    fixed = {
        "policy": engine.policy,
        "verifier": verifier.name,
        "seeded": engine.seeded,
        "protocol": asdict(config.protocol),
        "sampling": asdict(config.sampling),
        "seed": config.seed,
        "round": config.round,
        **(about or {}),
    }
    wanted = {problem.prompt_id for problem in problems.problems}
    with Journal(out / JOURNAL, fixed) as journal:
        stored = (t for t in journal.trajectories() if t.prompt_id in wanted and t.sample < config.samples)
        on_finished([t for t in stored if t.scored])
        sample_to_journal(journal, problems.problems, engine, verifier, config, on_finished=on_finished)
        kept = (t for t in journal.trajectories() if t.prompt_id in wanted and t.sample < config.samples)
        table = to_table(kept)
    manifest = {
        "rollout": {**fixed, "samples": config.samples},
        "problems": problems.counts,
    }
    if origin:
        manifest["origin"] = dict(origin)
    return write_folder(out / "trajectories", table, "trajectories", manifest, overwrite=True)


def check_run(problems: ProblemSet, verifier: Verifier, config: RolloutConfig, out: Path) -> None:
    """What can be said of a run before its model is loaded: golds, and what lies in OUT.

    Raises:
        ValueError: golds that the verifier refuses, or an OUT/trajectories of which the export would
            lose something: trajectories of no journal, of other problems, or of a larger K.
    """
    check_targets(problems.problems, verifier)
    folder = out / "trajectories"
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not is_folder(folder) or not (out / JOURNAL).is_file():
        raise ValueError(f"{folder} is there, and {out} holds no run that made it; choose another output")
    wanted = {problem.prompt_id for problem in problems.problems}
    before = _sampled(folder)
    kept = sum(prompt_id in wanted and sample < config.samples for prompt_id, sample in before)
    if kept < len(before):
        raise ValueError(
            f"{folder} holds {len(before)} trajectories, and with {len(wanted)} problems × "
            f"{config.samples} samples only {kept} of them would be left; give at least the problems and "
            "samples that it was made with, or move it away (the journal keeps everything)"
        )


def origin_of(model: str, revision: str | None, problems: Mapping[str, Any]) -> dict[str, Any]:
    """Where policy and problems came from, for the manifest; of a folder its name alone, not its path."""
    folder = Path(model)
    model = folder.resolve().name if folder.is_dir() else model
    return {"model": model, "revision": revision, "problems": dict(problems)}


def _sampled(folder: Path) -> list[tuple[str, int]]:
    """(prompt_id, sample) of every row; the other columns may be large and stay where they are."""
    found: list[tuple[str, int]] = []
    for shard in read_manifest(folder)["shards"]:
        table = pq.ParquetFile(folder / shard["file"]).read(columns=["prompt_id", "sample"])
        found += zip(table["prompt_id"].to_pylist(), table["sample"].to_pylist(), strict=True)
    return found
