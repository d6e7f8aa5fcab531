"""A run on disk: what it exports, what it refuses to lose, and what it counts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from drift_rollout import (
    ChoiceVerifier,
    Completion,
    ExactVerifier,
    RolloutConfig,
    ScriptedEngine,
    make_problem,
)
from drift_rollout import run as run_on_disk
from drift_rollout.journal import JournalReader
from drift_rollout.problems import Problem, problem_set
from drift_rollout.protocol import Protocol
from drift_rollout.run import check_run, filled_journal, rollout
from drift_weights import Message, from_table, read_folder

CONFIG = RolloutConfig(samples=4, protocol=Protocol(max_turns=2))
PROBLEMS = [make_problem((Message(role="user", content=f"q{n}"),), str(n % 3)) for n in range(5)]


def engine() -> ScriptedEngine:
    return ScriptedEngine(lambda r: Completion(id=r.id, text=f"<answer> {r.seed % 3} </answer>"))


def run(
    out: Path, problems: Sequence[Problem] = PROBLEMS, samples: int = 4
) -> tuple[ScriptedEngine, list[int]]:
    """One run; returns its engine and how many trajectories it reported, batch by batch."""
    used, counts = engine(), []
    rollout(
        problem_set(problems, source="here"),
        used,
        ExactVerifier(),
        replace(CONFIG, samples=samples),
        out,
        on_finished=lambda batch: counts.append(len(batch)),
    )
    return used, counts


def exported(out: Path) -> set[tuple[str, int]]:
    table, _ = read_folder(out / "trajectories", "trajectories")
    return {(t.prompt_id, t.sample) for t in from_table(table)}


@pytest.mark.parametrize(
    ("problems", "samples", "left"),
    [(PROBLEMS, 2, 10), (PROBLEMS[:2], 4, 8), (PROBLEMS[:4], 16, 16)],
    ids=["smaller K", "fewer problems", "other problems"],
)
def test_an_export_never_shrinks(
    tmp_path: Path, problems: Sequence[Problem], samples: int, left: int
) -> None:
    run(tmp_path)
    before = exported(tmp_path)
    with pytest.raises(ValueError, match=f"holds 20 trajectories.* only {left} of them") as error:
        run(tmp_path, problems, samples)
    assert "move it away" in str(error.value)
    assert exported(tmp_path) == before
    # The remedy works, and nothing of the journal is lost by it.
    shutil.move(tmp_path / "trajectories", tmp_path / "moved")
    run(tmp_path, problems, samples)
    assert len(exported(tmp_path)) == len(problems) * samples
    shutil.rmtree(tmp_path / "trajectories")
    again, _ = run(tmp_path)
    assert again.requests == []
    assert exported(tmp_path) == before


def test_it_may_grow(tmp_path: Path) -> None:
    run(tmp_path, PROBLEMS[:2], 2)
    run(tmp_path)
    assert len(exported(tmp_path)) == 20


def test_only_rows_of_this_run_are_counted(tmp_path: Path) -> None:
    _, counts = run(tmp_path)
    assert sum(counts) == 20
    shutil.rmtree(tmp_path / "trajectories")
    _, counts = run(tmp_path, PROBLEMS[:3], 2)
    assert sum(counts) == 6


def test_an_export_of_nobody_knows_what_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "journal.sqlite").unlink()
    before = exported(tmp_path)
    with pytest.raises(ValueError, match="holds no run that made it"):
        run(tmp_path)
    assert exported(tmp_path) == before


def test_bad_golds_are_found_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 problems cannot be judged by choice/2"):
        check_run(problem_set(PROBLEMS, source="here"), ChoiceVerifier(), CONFIG, tmp_path / "run")
    with pytest.raises(ValueError, match="5 problems cannot be judged by choice/2"):
        rollout(problem_set(PROBLEMS, source="here"), engine(), ChoiceVerifier(), CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_lock_is_held_until_the_export_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run that began in between would write the same folder at the same time."""
    write, live = run_on_disk.write_trajectories, []

    def watched(folder: Path, *given: object) -> Path:
        with JournalReader(tmp_path / "journal.sqlite") as journal:
            live.append(journal.live)
        written = write(folder, *given)
        problems, verifier = problem_set(PROBLEMS, source="here"), ExactVerifier()
        with (
            pytest.raises(ValueError, match="another run is writing"),
            filled_journal(problems, engine(), verifier, CONFIG, tmp_path),
        ):
            pass
        return written

    monkeypatch.setattr(run_on_disk, "write_trajectories", watched)
    run(tmp_path)
    assert live == [True]
    with JournalReader(tmp_path / "journal.sqlite") as journal:
        assert not journal.live
