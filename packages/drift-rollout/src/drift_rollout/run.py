"""A rollout run on disk: its journal while it lasts, and the trajectories folder when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drift_rollout.engine import Engine
from drift_rollout.journal import Journal
from drift_rollout.problems import ProblemSet
from drift_rollout.sampler import RolloutConfig, sample_to_journal
from drift_rollout.verify import Verifier
from drift_weights.folder import write_folder
from drift_weights.schema import to_table
from drift_weights.types import Trajectory


def rollout(
    problems: ProblemSet,
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig,
    out: Path,
    *,
    about: Mapping[str, Any] | None = None,
    on_finished: Callable[[Sequence[Trajectory]], None] = lambda batch: None,
) -> Path:
    """Sample what is missing into OUT/journal.sqlite, then write OUT/trajectories with its manifest.

    Run again after a kill, with the same settings, it goes on; K and the problems may grow.

    Args:
        about: further settings that must stay the same on resume, such as the prompt template.
        on_finished: told of each batch; on resume first of what the journal holds already.

    Returns:
        The trajectories folder.

    Raises:
        ValueError: OUT belongs to a run of another configuration.
    """
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
    with Journal(out / "journal.sqlite", fixed) as journal:
        finished = [t for t in journal.trajectories() if t.scored and t.prompt_id in wanted]
        on_finished(finished)
        sample_to_journal(journal, problems.problems, engine, verifier, config, on_finished=on_finished)
        kept = (t for t in journal.trajectories() if t.prompt_id in wanted and t.sample < config.samples)
        table = to_table(kept)
    manifest = {
        "rollout": {**fixed, "samples": config.samples},
        "problems": {"count": len(problems.problems), "repeated": problems.repeated},
    }
    return write_folder(out / "trajectories", table, "trajectories", manifest, overwrite=True)
