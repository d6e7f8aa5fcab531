"""Nothing that was committed is lost, and nothing is doubled."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from threading import Timer

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drift_rollout import Completion, ExactVerifier, Journal, RolloutConfig, ScriptedEngine, make_problem
from drift_rollout.journal import JournalReader
from drift_rollout.problems import problem_set
from drift_rollout.protocol import Protocol
from drift_rollout.run import rollout
from drift_rollout.sampler import sample, sample_to_journal
from drift_weights import Message, read_folder

CONFIG = RolloutConfig(samples=3, protocol=Protocol(max_turns=4), seed=5)
PROBLEMS = [make_problem((Message(role="user", content=f"q{n}"),), str(n % 3)) for n in range(7)]


def answer_by_seed(request) -> Completion:
    return Completion(id=request.id, text=f"<answer> {request.seed % 3} </answer>")


def engine(**options) -> ScriptedEngine:
    return ScriptedEngine(answer_by_seed, **options)


class DiedError(Exception):
    """Stands for a run that dies."""


def dying(calls: int) -> ScriptedEngine:
    left = [calls]

    def script(request) -> Completion:
        if left[0] == 0:
            raise DiedError
        left[0] -= 1
        return answer_by_seed(request)

    return ScriptedEngine(script)


@given(st.lists(st.integers(0, 40), max_size=4), st.integers(1, 5))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_interruptions_give_the_uninterrupted_set(tmp_path_factory, calls, batch) -> None:
    path = tmp_path_factory.mktemp("journal") / "j.sqlite"
    for count in calls:
        with Journal(path, {"seed": 5}) as journal, suppress(DiedError):
            sample_to_journal(journal, PROBLEMS, dying(count), ExactVerifier(), CONFIG)
    with Journal(path, {"seed": 5}) as journal:
        sample_to_journal(journal, PROBLEMS, engine(batch=batch), ExactVerifier(), CONFIG)
        resumed = list(journal.trajectories())
    straight = sorted(sample(PROBLEMS, engine(), ExactVerifier(), CONFIG), key=lambda t: t.key)
    assert resumed == straight


def test_an_engine_that_dies_at_any_call_loses_nothing(tmp_path) -> None:
    """At call n, for every n up to 50: what was committed stays, once, and the export is the same."""
    problems = problem_set(PROBLEMS, source="here")

    def shards(out: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted((out / "trajectories" / "data").iterdir())]

    rollout(problems, engine(), ExactVerifier(), CONFIG, tmp_path / "straight")
    for call in range(1, 51):
        out = tmp_path / str(call)
        with pytest.raises(DiedError):
            rollout(problems, dying(call), ExactVerifier(), CONFIG, out)
        with JournalReader(out / "journal.sqlite") as journal:
            before = list(journal.trajectories())
        # 8 in flight, 3 of a poll; a dialogue has 4 turns at most.
        assert len(before) >= (call - 11) // 4
        rollout(problems, engine(), ExactVerifier(), CONFIG, out)
        with JournalReader(out / "journal.sqlite") as journal:
            after = {t.key: t for t in journal.trajectories()}
        assert len(after) == 21
        assert all(after[t.key] == t for t in before)
        assert shards(out) == shards(tmp_path / "straight")


def test_another_configuration_is_refused_and_named(tmp_path: Path) -> None:
    Journal(tmp_path / "j", {"seed": 1, "policy": "a"}).close()
    with pytest.raises(ValueError, match=r"policy: 'a' before, 'b' now"):
        Journal(tmp_path / "j", {"seed": 1, "policy": "b"})


def test_a_scored_key_is_never_replaced(tmp_path: Path) -> None:
    trajectories = list(sample(PROBLEMS, engine(), ExactVerifier(), CONFIG))
    with Journal(tmp_path / "j", {}) as journal:
        journal.add(trajectories[:2])
        with pytest.raises(ValueError, match="in the journal already"):
            journal.add(trajectories[1:])
        assert journal.scored_keys() == {t.key for t in trajectories[:2]}


def test_an_engine_error_is_sampled_again(tmp_path: Path) -> None:
    def failing(request) -> Completion:
        return Completion(id=request.id, text="", finish_reason="error", error="out of memory")

    with Journal(tmp_path / "j", {}) as journal:
        sample_to_journal(journal, PROBLEMS, ScriptedEngine(failing), ExactVerifier(), CONFIG)
        assert {t.ended for t in journal.trajectories()} == {"error"}
        assert journal.scored_keys() == set()
        sample_to_journal(journal, PROBLEMS, engine(), ExactVerifier(), CONFIG)
        assert len(journal.scored_keys()) == 21
        assert all(t.scored for t in journal.trajectories())


def test_samples_and_problems_may_grow(tmp_path: Path) -> None:
    small = problem_set(PROBLEMS[:3], source="small")
    few = RolloutConfig(samples=2, protocol=CONFIG.protocol, seed=5)
    rollout(small, engine(), ExactVerifier(), few, tmp_path)
    grown = engine()
    rollout(problem_set(PROBLEMS, source="all"), grown, ExactVerifier(), CONFIG, tmp_path)
    table, manifest = read_folder(tmp_path / "trajectories", "trajectories")
    assert table.num_rows == 21
    assert manifest["rollout"]["samples"] == 3
    first_turns = {r.id for r in grown.requests if r.id.endswith("/1")}
    assert len(first_turns) == 21 - 6


SCRIPT = """
import sys
from contextlib import suppress
from pathlib import Path
sys.path.insert(0, {here!r})
from test_journal import CONFIG, PROBLEMS, answer_by_seed
from drift_rollout import ExactVerifier, Journal, ScriptedEngine
from drift_rollout.sampler import sample_batches
with Journal(Path({path!r}), {{}}) as journal:
    for batch in sample_batches(PROBLEMS, ScriptedEngine(answer_by_seed), ExactVerifier(), CONFIG):
        journal.add(batch)
        for t in batch:
            print(*t.key, flush=True)
        if len(journal.scored_keys()) > 9:
            print("ready", flush=True)
            sys.stdin.read()
"""


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """The second is refused at once, before it samples anything; the first goes on undisturbed."""
    second = engine()
    problems = problem_set(PROBLEMS, source="here")
    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"another run is writing to .*journal\.sqlite"):
            rollout(problems, second, ExactVerifier(), CONFIG, tmp_path)
        assert time.monotonic() - start < 5
        assert second.requests == []
        sample_to_journal(journal, PROBLEMS, engine(), ExactVerifier(), CONFIG)
    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        assert len(journal.scored_keys()) == 21


def test_who_only_asks_whether_it_runs_keeps_no_run_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal(path, {}).close()
    lock = FileLock(f"{path}.lock", thread_local=False)
    lock.acquire()
    # What `live` holds, as long as a slow machine may take over it.
    free = Timer(0.05, lock.release)
    free.start()
    Journal(path, {}).close()
    free.join()


def test_a_journal_that_was_killed_at_birth_holds_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "j").touch()
    with pytest.raises(ValueError, match="j holds nothing yet"):
        JournalReader(tmp_path / "j")
    Journal(tmp_path / "j", {}).close()


def test_a_refused_opener_leaves_the_file_free(tmp_path: Path) -> None:
    Journal(tmp_path / "j", {"seed": 1}).close()
    with pytest.raises(ValueError, match="another configuration"):
        Journal(tmp_path / "j", {"seed": 2})
    Journal(tmp_path / "j", {"seed": 1}).close()


@pytest.mark.parametrize("foreign", ["text", "table", "folder"])
def test_what_is_no_journal_is_named(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "j.sqlite"
    if foreign == "text":
        path.write_text("not a database " * 100)
    elif foreign == "folder":
        path.mkdir()
    else:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE run (other TEXT)")
    with pytest.raises(ValueError, match=r"j\.sqlite: .*is it a journal of ours"):
        Journal(path, {})


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    trajectories = list(sample(PROBLEMS, engine(), ExactVerifier(), CONFIG))
    with Journal(tmp_path / "j", {}) as journal:
        journal.add(trajectories[:2])
        journal._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(ValueError, match=r"j: database or disk is full"):
            journal.add(trajectories[2:])
        assert len(journal.scored_keys()) == 2


def test_kill_9_loses_no_committed_trajectory(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    script = SCRIPT.format(here=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    reported = []
    for line in process.stdout:
        if line.strip() == "ready":
            break
        reported.append(line.split())
    with pytest.raises(ValueError, match=f"another run is writing to {path}"):
        Journal(path, {})
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stdin.close()
    with Journal(path, {}) as journal:
        kept = sorted([t.prompt_id, str(t.round), t.policy, str(t.sample)] for t in journal.trajectories())
    assert len(kept) > 9
    assert kept == sorted(reported)
