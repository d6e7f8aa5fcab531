"""A rollout run on disk: its journal while it lasts, and the trajectories folder when it is done."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from drift_rollout.engine import Engine
from drift_rollout.finished import Finished
from drift_rollout.journal import Journal, JournalReader, Plan, check_config
from drift_rollout.problems import ProblemSet, check_targets
from drift_rollout.rendering import ChatRenderer
from drift_rollout.sampler import RolloutConfig, sample_to_journal
from drift_rollout.unscored import Key, settled_turns
from drift_rollout.verify import Verifier
from drift_weights.folder import FolderWriter, is_folder
from drift_weights.manifest import read_manifest
from drift_weights.schema import to_table
from drift_weights.types import Trajectory

_log = logging.getLogger(__name__)
JOURNAL = "journal.sqlite"
TRAJECTORIES = "trajectories"
_ROWS = 512
"""Trajectories that are in memory at once while a folder is written."""


def rollout(
    problems: ProblemSet,
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig,
    out: Path,
    *,
    about: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    on_finished: Callable[[Sequence[Finished]], None] = lambda batch: None,
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
        EngineError: the engine died; what had finished is in the journal.
        UnscoredError: too many dialogues ended unscored; likewise.
        VerifierError: the verifier raised, or gave no `Verified`; likewise.
    """
    check_run(problems, verifier, config, out, about=about)
    wanted = {problem.prompt_id for problem in problems.problems}
    # The lock is held until the folder is there: two runs that end would get in each other's way.
    with filled_journal(
        problems, engine, verifier, config, out, about=about, origin=origin, on_finished=on_finished
    ) as journal:
        plan = journal.plan
        assert plan is not None
        kept = (t for t in journal.trajectories() if t.prompt_id in wanted and t.sample < config.samples)
        alike = _Alike()
        manifest = _with_settled(
            plan.manifest, journal, lambda key: key[0] in wanted and key[3] < config.samples
        )
        folder = write_trajectories(out / TRAJECTORIES, alike.watch(kept), manifest)
    if config.sampling.temperature > 0 and alike.everywhere:
        _log.warning(
            "the samples of each of %d problems begin with the same response, and so groups teach nothing; "
            "does the engine decode greedily, or ignore seeds?",
            alike.groups,
        )
    return folder


class _Alike:
    """Whether all first responses of each group are one and the same."""

    def __init__(self) -> None:
        self.groups = 0
        """Of two samples at least."""
        self._varied = False
        self._group: tuple[str, int, str] | None = None
        self._first = ""
        self._size = 0

    @property
    def everywhere(self) -> bool:
        """In every group, of which there are two at least."""
        return self.groups > 1 and not self._varied

    def watch(self, trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
        """The same trajectories, sorted by group."""
        for trajectory in trajectories:
            group, response = trajectory.key[:3], trajectory.turns[0].response
            if group != self._group:
                self._group, self._first, self._size = group, response, 0
            self._size += 1
            self.groups += self._size == 2
            self._varied |= response != self._first
            yield trajectory


@contextmanager
def filled_journal(
    problems: ProblemSet,
    engine: Engine,
    verifier: Verifier,
    config: RolloutConfig,
    out: Path,
    *,
    about: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    on_finished: Callable[[Sequence[Finished]], None] = lambda batch: None,
    part_of: ProblemSet | None = None,
) -> Iterator[Journal]:
    """The journal with everything sampled, still locked; arguments and errors as in `rollout`.

    Args:
        part_of: what the run is to sample in the end, if `problems` are only the first of them.
    """
    whole = part_of or problems
    fixed = {"policy": engine.policy, "seeded": engine.seeded, **_fixed(verifier, config, about)}
    manifest: dict[str, Any] = {
        "rollout": {**fixed, "samples": config.samples, **_opening(engine, config.prefill)},
        "problems": whole.counts,
    }
    if origin:
        manifest["origin"] = dict(origin)
    wanted = {problem.prompt_id for problem in problems.problems}
    with Journal(out / JOURNAL, fixed) as journal:
        plan = Plan(samples=config.samples, problems=len(whole.problems), manifest=manifest)
        journal.begin(plan)
        on_finished(
            [
                row
                for row in journal.finished()
                if row.scored and row.prompt_id in wanted and row.sample < config.samples
            ]
        )
        sample_to_journal(journal, problems.problems, engine, verifier, config, on_finished=on_finished)
        yield journal


def _fixed(verifier: Verifier, config: RolloutConfig, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """What must stay the same on resume, besides what the engine says of itself."""
    return {
        "verifier": verifier.name,
        "protocol": asdict(config.protocol),
        "sampling": asdict(config.sampling),
        "seed": config.seed,
        "round": config.round,
        "prefill": config.prefill,
        **(about or {}),
    }


def _opening(engine: Engine, prefill: str) -> dict[str, str]:
    """What the chat template lets the assistant say before each response, where that is no prefill.

    Verdicts depend on it, and who judges a log again has no tokenizer.
    """
    if engine.tokenizer is None or prefill:
        return {}
    opened = ChatRenderer(engine.tokenizer).opened
    return {"opened": opened} if opened else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote, and what it left out."""

    folder: Path
    groups: int
    trajectories: int
    incomplete: int
    """Groups that were left out, or that are in the folder because it was told to take them."""


def export(out: Path, folder: Path, *, partial: bool = False, overwrite: bool = False) -> Exported:
    """Write what a journal holds by now, whole or not at all; a run may be writing to it.

    A group is complete when all K of its trajectories are scored.

    Args:
        out: the folder of a rollout.
        folder: what to write.
        partial: incomplete groups, too, with what they have.
        overwrite: replace a folder of ours.

    Raises:
        FileNotFoundError: no journal in OUT.
        ValueError: nothing to write yet.
        FileExistsError: the folder holds something.
    """
    with JournalReader(out / JOURNAL) as journal:
        plan = journal.plan
        if plan is None:
            raise ValueError(f"{out / JOURNAL} holds nothing yet")
        rows = [row for row in journal.finished() if row.sample < plan.samples]
        scored = Counter(row.group for row in rows if row.scored)
        complete = {group for group, count in scored.items() if count == plan.samples}
        groups = {row.group for row in rows} if partial else complete
        keys = {row.key for row in rows if row.group in groups}
        if not keys:
            raise ValueError(
                f"{out / JOURNAL}: none of {len({row.group for row in rows})} groups is complete yet (K = "
                f"{plan.samples}); wait, or take what is there with --partial"
            )
        # What came in since then is of the next export.
        kept = (trajectory for trajectory in journal.trajectories() if trajectory.key in keys)
        manifest = _with_settled(plan.manifest, journal, keys.__contains__)
        if groups - complete:
            # Groups of other sizes than K are not declared to have K rows.
            manifest["rollout"] = {**manifest["rollout"], "samples": None}
        write_trajectories(folder, kept, manifest, overwrite=overwrite)
    incomplete = len({row.group for row in rows} - complete)
    return Exported(folder=folder, groups=len(groups), trajectories=len(keys), incomplete=incomplete)


def write_trajectories(
    folder: Path, trajectories: Iterable[Trajectory], manifest: Mapping[str, Any], *, overwrite: bool = True
) -> Path:
    """Write trajectories as a folder that appears whole or not at all, a few at a time."""
    with FolderWriter(folder, TRAJECTORIES, overwrite=overwrite) as writer:
        left = iter(trajectories)
        while batch := list(islice(left, _ROWS)):
            writer.write(to_table(batch))
        writer.finish(manifest)
    return folder


def check_run(
    problems: ProblemSet,
    verifier: Verifier,
    config: RolloutConfig,
    out: Path,
    *,
    about: Mapping[str, Any] | None = None,
) -> None:
    """What can be said of a run before its model is loaded: golds, settings, and what lies in OUT.

    Args:
        about: as `rollout` gets it.

    Raises:
        ValueError: golds that the verifier refuses, a journal in OUT of other settings or to which
            another run is writing, or an OUT/trajectories of which the export would lose something:
            trajectories of no journal, of other problems, or of a larger K.
    """
    check_targets(problems.problems, verifier)
    check_config(out / JOURNAL, _fixed(verifier, config, about), unknown=("policy", "seeded"))
    if (out / "config.json").is_file():
        raise ValueError(f"{out} is a model's folder; choose another output")
    folder = out / TRAJECTORIES
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not is_folder(folder) or not (out / JOURNAL).is_file():
        raise ValueError(f"{folder} is there, and {out} holds no run that made it; choose another output")
    wanted = {problem.prompt_id for problem in problems.problems}
    before = _sampled(folder)
    if before and not any(prompt_id in wanted for prompt_id, _ in before):
        raise ValueError(
            f"{folder} holds trajectories of other problems, or of another prompt; choose another output"
        )
    kept = sum(prompt_id in wanted and sample < config.samples for prompt_id, sample in before)
    if kept < len(before):
        raise ValueError(
            f"{folder} holds {len(before)} trajectories, and with {len(wanted)} problems × "
            f"{config.samples} samples only {kept} of them would be left; give at least the problems and "
            "samples that it was made with, or move it away (the journal keeps everything)"
        )


def origin_of(
    model: str, revision: str | None, problems: Mapping[str, Any], engine: Mapping[str, Any]
) -> dict[str, Any]:
    """Where policy and problems came from, for the manifest; of a folder its name alone, not its path."""
    folder = Path(model)
    model = folder.resolve().name if folder.is_dir() else model
    return {"model": model, "revision": revision, "problems": dict(problems), "engine": dict(engine)}


def _with_settled(
    manifest: Mapping[str, Any], journal: JournalReader, kept: Callable[[Key], bool]
) -> dict[str, Any]:
    """The manifest with the number of turns that were settled, if there are any."""
    settled = sum(settled_turns(counts) for key, counts in journal.failures().items() if kept(key))
    if not settled:
        return dict(manifest)
    return {**manifest, "rollout": {**manifest["rollout"], "settled": settled}}


def _sampled(folder: Path) -> list[tuple[str, int]]:
    """(prompt_id, sample) of every row; the other columns may be large and stay where they are."""
    found: list[tuple[str, int]] = []
    for shard in read_manifest(folder)["shards"]:
        table = pq.ParquetFile(folder / shard["file"]).read(columns=["prompt_id", "sample"])
        found += zip(table["prompt_id"].to_pylist(), table["sample"].to_pylist(), strict=True)
    return found
