"""A verifier that fails costs no response: what it failed on is verified again, and settled at last."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_rollout import Completion, ExactVerifier, Journal, RolloutConfig, ScriptedEngine, make_problem
from drift_rollout.engine import Request
from drift_rollout.journal import JournalReader
from drift_rollout.problems import Problem, problem_set
from drift_rollout.protocol import Protocol
from drift_rollout.rendering import ChatRenderer
from drift_rollout.run import export, rollout
from drift_rollout.sampler import sample_to_journal
from drift_rollout.verify import Verifier
from drift_weights import Message, Trajectory
from drift_weights.manifest import read_manifest
from rollout.fault_runs import exported
from rollout.late_verdicts import Late, seed_of, telling
from tiny import bpe_tokenizer

CONFIG = RolloutConfig(samples=3, protocol=Protocol(max_turns=4), seed=5)
PROBLEMS = [make_problem((Message(role="user", content=f"q{n}"),), str(n % 5)) for n in range(6)]
TOKENIZER = bpe_tokenizer()
FIRST = len(ChatRenderer(TOKENIZER).prompt_ids(PROBLEMS[0].messages))
ROOM = {"text": 1 << 20, "ids": 1 << 20, "short context": FIRST + 130}


def engine(kind: str) -> ScriptedEngine:
    return telling(None if kind == "text" else TOKENIZER, ROOM[kind])


def run(
    out: Path,
    used: ScriptedEngine,
    verifier: Verifier,
    config: RolloutConfig = CONFIG,
    problems: Sequence[Problem] = PROBLEMS,
) -> ScriptedEngine:
    rollout(problem_set(problems, source="here"), used, verifier, config, out)
    return used


def rows(out: Path) -> list[Trajectory]:
    with JournalReader(out / "journal.sqlite") as journal:
        return list(journal.trajectories())


def few(response: str) -> int:
    """0, 1 or 2 failures, which settle nothing."""
    return seed_of(response) % 3


@pytest.mark.parametrize("kind", ROOM)
@pytest.mark.parametrize("threads", [0, 3], ids=["at once", "threads"])
@pytest.mark.parametrize("verdict", ["timeout", "error"])
def test_late_verdicts_give_the_export_of_a_verifier_that_never_failed(
    tmp_path: Path, kind: str, threads: int, verdict: str
) -> None:
    run(tmp_path / "straight", engine(kind), ExactVerifier())
    late = Late(times=few, verdict=verdict, concurrency=threads)
    asked: Counter[str] = Counter()
    runs = 0
    while runs == 0 or not all(t.scored for t in rows(tmp_path / "late")):
        asked.update(request.id for request in run(tmp_path / "late", engine(kind), late).requests)
        runs += 1
        assert runs < 12
    assert runs > 3
    assert set(asked.values()) == {1}, "a response that was there was sampled again"
    assert exported(tmp_path / "late") == exported(tmp_path / "straight")
    ends = {"solved", "context"} if kind == "short context" else {"solved", "budget"}
    assert {t.ended for t in rows(tmp_path / "late")} == ends


class DiedError(Exception):
    """Stands for a run that dies."""


@given(st.lists(st.integers(0, 40), max_size=5), st.sampled_from(sorted(ROOM)), st.integers(0, 1))
@settings(max_examples=8, deadline=None)
def test_deaths_between_change_nothing(tmp_path_factory, calls: list[int], kind: str, threads: int) -> None:
    out = tmp_path_factory.mktemp("runs")
    run(out / "straight", engine(kind), ExactVerifier())
    late = Late(times=few, concurrency=threads)
    for count in calls:
        with suppress(DiedError):
            run(out / "late", dying(engine(kind), count), late)
    for _ in range(10):
        run(out / "late", engine(kind), late)
    assert exported(out / "late") == exported(out / "straight")


def dying(used: ScriptedEngine, calls: int) -> ScriptedEngine:
    script, left = used._script, [calls]

    def dies(request: Request) -> Completion:
        left[0] -= 1
        if left[0] < 0:
            raise DiedError
        return script(request)

    used._script = dies
    return used


@pytest.mark.parametrize("reads", [False, True], ids=["no answer", "with the answer"])
@pytest.mark.parametrize("threads", [0, 2], ids=["at once", "threads"])
@pytest.mark.parametrize("kind", ["text", "ids"])
def test_three_failures_settle_a_turn_as_wrong(
    tmp_path: Path, kind: str, threads: int, reads: bool
) -> None:
    """A third of the responses is never judged; each run is a process's, with nothing in memory."""

    def late() -> Late:
        return Late(
            times=lambda response: 0 if seed_of(response) % 3 else 99, reads=reads, concurrency=threads
        )

    seen = [run(tmp_path, engine(kind), late()) for _ in range(3)]
    settled = [t.turns[0] for t in rows(tmp_path) if seed_of(t.turns[0].response) % 3 == 0]
    assert settled
    for turn in settled:
        read = ExactVerifier().verify(turn.response, "").answer
        assert (turn.verdict, turn.answer) == ("wrong", read if reads else turn.response)
    while not all(t.scored for t in rows(tmp_path)):
        seen.append(run(tmp_path, engine(kind), late()))
        assert len(seen) < 15
    assert set(Counter(request.id for used in seen for request in used.requests).values()) == {1}
    turns = [turn for t in rows(tmp_path) for turn in t.turns]
    hard = sum(seed_of(turn.response) % 3 == 0 for turn in turns)
    with JournalReader(tmp_path / "journal.sqlite") as journal:
        assert sum(row.settled for row in journal.finished()) == hard > len(settled)
    assert read_manifest(tmp_path / "trajectories")["rollout"]["settled"] == hard
    export(tmp_path, tmp_path / "again")
    assert read_manifest(tmp_path / "again")["rollout"]["settled"] == hard


def test_a_manifest_counts_what_its_folder_holds(tmp_path: Path) -> None:
    """Of one turn a dialogue, all are settled in the third run; a smaller folder has fewer."""
    config = replace(CONFIG, protocol=Protocol(max_turns=1))
    for _ in range(3):
        assert "settled" not in (
            read_manifest(tmp_path / "trajectories")["rollout"]
            if (tmp_path / "trajectories").exists()
            else {}
        )
        run(tmp_path, engine("text"), Late(times=lambda response: 99), config)
    assert read_manifest(tmp_path / "trajectories")["rollout"]["settled"] == 18
    assert {t.ended for t in rows(tmp_path)} == {"budget"}
    (tmp_path / "trajectories").rename(tmp_path / "moved")
    run(tmp_path, engine("text"), ExactVerifier(), replace(config, samples=2), PROBLEMS[:4])
    assert read_manifest(tmp_path / "trajectories")["rollout"]["settled"] == 8


def test_counts_are_of_a_turn_and_go_with_their_response(tmp_path: Path) -> None:
    """Twice the first turn fails, then the engine fails the second: all is sampled anew, and counted so."""
    config, problems = replace(CONFIG, samples=1), PROBLEMS[:1]
    key = (problems[0].prompt_id, 0, "scripted", 0)

    def counted() -> dict[int, int]:
        with JournalReader(tmp_path / "journal.sqlite") as journal:
            return journal.failures().get(key, {})

    late = Late(times=lambda response: 2 if response.startswith("1 ") else 9)

    def script(request: Request) -> Completion:
        turn = request.id.rsplit("/", 1)[1]
        if broken and turn == "2":
            return Completion(id=request.id, text="", finish_reason="error", error="lost")
        return Completion(id=request.id, text=f"{turn} <answer> x </answer>")

    broken = True
    for count in (1, 2):
        run(tmp_path, ScriptedEngine(script), late, config, problems)
        assert counted() == {1: count}
    run(tmp_path, ScriptedEngine(script), late, config, problems)
    assert counted() == {1: 2}
    (row,) = rows(tmp_path)
    assert [turn.verdict for turn in row.turns] == ["wrong", "error"]
    broken = False
    late.asked.clear()
    used = run(tmp_path, ScriptedEngine(script), late, config, problems)
    assert [request.id.rsplit("/", 1)[1] for request in used.requests] == ["1"]
    assert counted() == {1: 1}
    run(tmp_path, ScriptedEngine(script), late, config, problems)
    run(tmp_path, ScriptedEngine(script), late, config, problems)
    assert counted() == {1: 2, 2: 1}


def test_a_journal_of_before_the_count_goes_on(tmp_path: Path) -> None:
    run(tmp_path / "straight", engine("ids"), ExactVerifier())
    late = Late(times=lambda response: 1)
    run(tmp_path / "old", engine("ids"), late)
    with closing(sqlite3.connect(tmp_path / "old" / "journal.sqlite")) as database, database:
        database.execute("DROP TABLE failure")
    with JournalReader(tmp_path / "old" / "journal.sqlite") as journal:
        assert journal.failures() == {}
        assert {(row.unscored, row.settled) for row in journal.finished()} == {("timeout", 0)}
    for _ in range(4):
        run(tmp_path / "old", engine("ids"), late)
    assert exported(tmp_path / "old") == exported(tmp_path / "straight")


def test_counts_are_committed_with_their_trajectory_or_not_at_all(tmp_path: Path) -> None:
    run(tmp_path, engine("text"), Late(times=lambda response: 9))
    with Journal(tmp_path / "journal.sqlite", stored_config(tmp_path)) as journal:
        before = journal.failures()
        first, second = list(journal.trajectories())[:2]
        assert before[first.key] == before[second.key] == {1: 1}
        scored = replace(
            second, turns=(replace(second.turns[0], verdict="wrong", answer="x"),), ended="budget"
        )
        journal.add([scored], {})
        with pytest.raises(ValueError, match="in the journal already"):
            journal.add([first, scored], {first.key: {1: 2}})
        assert journal.failures() == {key: counts for key, counts in before.items() if key != second.key}


def stored_config(out: Path) -> dict[str, object]:
    with JournalReader(out / "journal.sqlite") as journal:
        return journal.config


def test_ids_of_another_tokenizer_are_not_gone_on_with(tmp_path: Path) -> None:
    """A declared policy may be served by ids today and by messages tomorrow."""
    late = Late(times=lambda response: 1)
    with Journal(tmp_path / "j", {}) as journal:
        sample_to_journal(journal, PROBLEMS, engine("ids"), late, CONFIG)
        used = engine("text")
        sample_to_journal(journal, PROBLEMS, used, ExactVerifier(), CONFIG)
        assert sum(request.id.endswith("/1") for request in used.requests) == 18
        assert {t.token_ids for t in journal.trajectories()} == {None}


def test_an_engine_that_only_says_error_is_never_verified_again(tmp_path: Path) -> None:
    """One that leaves the finish reason at its default; its empty text is no response."""
    failing = ScriptedEngine(lambda r: Completion(id=r.id, text="", error="out of memory"))
    run(tmp_path, failing, ExactVerifier())
    assert {t.turns[0].finish_reason for t in rows(tmp_path)} == {"error"}
    used = run(tmp_path, engine("text"), ExactVerifier())
    assert sum(request.id.endswith("/1") for request in used.requests) == 18
