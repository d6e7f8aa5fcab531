"""A broken verifier: too many failures stop a run, an exception says where, an end does not wait."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from drift_eval.cli import main as evaluate
from drift_rollout import Completion, ExactVerifier, Journal, RolloutConfig, ScriptedEngine, make_problem
from drift_rollout.asking import VerifierError
from drift_rollout.cli import main
from drift_rollout.engine import EngineError, Request
from drift_rollout.journal import JournalReader
from drift_rollout.problems import golds_that_fail, problem_set
from drift_rollout.progress import findings
from drift_rollout.protocol import Protocol
from drift_rollout.run import rollout
from drift_rollout.sampler import sample, sample_to_journal
from drift_rollout.unscored import UnscoredBound, UnscoredError
from drift_rollout.verify import Verified
from drift_weights import Message
from rollout.late_verdicts import Late, telling

PROBLEMS = [make_problem((Message(role="user", content=f"q{n}"),), str(n)) for n in range(300)]
ONE = RolloutConfig(samples=1, protocol=Protocol(max_turns=1))


def numbered(failing: Callable[[int], bool] = lambda number: False) -> ScriptedEngine:
    """Says the number of its request, counted from 0, or fails."""
    asked: list[str] = []

    def script(request: Request) -> Completion:
        asked.append(request.id)
        if failing(len(asked) - 1):
            return Completion(id=request.id, text="", finish_reason="error", error="out of memory")
        return Completion(id=request.id, text=f"{len(asked) - 1} <answer> x </answer>")

    return ScriptedEngine(script)


def late(failing: Callable[[int], bool], **options: Any) -> Late:
    return Late(times=lambda response: 9 if failing(int(response.split()[0])) else 0, **options)


@pytest.mark.parametrize("threads", [0, 2], ids=["at once", "threads"])
def test_half_of_the_last_dialogues_stop_a_run_and_less_do_not(tmp_path: Path, threads: int) -> None:
    """Every second one fails, and none in a row; of 100 each, 49 may fail for ever."""
    with Journal(tmp_path / "half", {}) as journal:
        half = late(lambda number: number % 2 == 1, concurrency=threads)
        with pytest.raises(
            UnscoredError,
            match=r"10\d of the last 200 dialogues ended unscored: 10\d by a timeout of the verifier exact/"
            r"1; the last one: exact/1 gave the verdict timeout; what is in the journal stays; mend this",
        ):
            sample_to_journal(journal, PROBLEMS, numbered(), half, ONE)
        assert 95 <= len(journal.scored_keys()) < 120
        sample_to_journal(journal, PROBLEMS, numbered(), ExactVerifier(), ONE)
        assert len(journal.scored_keys()) == 300
    with Journal(tmp_path / "less", {}) as journal:
        less = late(lambda number: number % 100 < 49, concurrency=threads)
        sample_to_journal(journal, PROBLEMS, numbered(), less, ONE)
        assert len(journal.scored_keys()) == 300 - 3 * 49


def test_engine_and_verifier_are_counted_together_and_named_apart(tmp_path: Path) -> None:
    engine, verifier = numbered(lambda number: number % 4 == 1), late(lambda number: number % 4 == 3)
    with Journal(tmp_path / "j", {}) as journal:
        with pytest.raises(
            UnscoredError, match=r": \d\d by a timeout of .*, \d\d by an error of the engine"
        ):
            sample_to_journal(journal, PROBLEMS, engine, verifier, ONE)
        found = findings(journal.finished(), 1)
    assert 45 <= found.timeouts <= 55
    assert 45 <= found.errors <= 55
    assert found.timeouts + found.errors >= 100


def test_what_fails_again_does_not_stop_a_run(tmp_path: Path) -> None:
    """All that is left of a run may be hard to verify; it is settled in the third run nevertheless."""
    hard = late(lambda number: number % 5 < 2)
    with Journal(tmp_path / "j", {}) as journal:
        sample_to_journal(journal, PROBLEMS, numbered(), hard, ONE)
        assert len(journal.scored_keys()) == 180
        used = numbered()
        sample_to_journal(journal, PROBLEMS, used, hard, ONE)
        assert len(journal.scored_keys()) == 180
        sample_to_journal(journal, PROBLEMS, used, hard, ONE)
        assert len(journal.scored_keys()) == 300
        assert used.requests == []
        assert findings(journal.finished(), 1).settled == 120


def test_the_bound_looks_back_on_two_hundred_dialogues() -> None:
    bound = UnscoredBound("exact/1")
    for _ in range(99):
        bound.note("error", None)
    bound.check()
    for _ in range(101):
        bound.note(None, None)
    bound.note("timeout", None)
    bound.check()
    # The first ninety-nine are left behind, one by one.
    for _ in range(98):
        bound.note("timeout", None)
    bound.check()
    bound.note("timeout", None)
    with pytest.raises(
        UnscoredError, match="100 of the last 200 dialogues ended unscored: 100 by a timeout"
    ):
        bound.check()


def test_a_hundred_in_a_row_are_enough() -> None:
    bound = UnscoredBound("exact/1")
    for _ in range(100):
        bound.check()
        bound.note("engine", "no such model")
    with pytest.raises(UnscoredError, match=r"100 of the last 100 .* the last one: no such model"):
        bound.check()


@dataclass(frozen=True, kw_only=True)
class Broken(ExactVerifier):
    """Raises, or gives what it is told to give."""

    concurrency: int = field(default=0, metadata={"bears_on_verdicts": False})
    gives: Any = field(default=None, metadata={"bears_on_verdicts": False})
    refuses: str | None = field(default=None, metadata={"bears_on_verdicts": False})

    def check_target(self, target: str) -> None:
        if target == self.refuses:
            raise IndexError(target)

    def verify(self, response: str, target: str) -> Verified:
        if self.gives is not None:
            return self.gives
        raise ValueError("no such unit")


RAISED = r"verifier exact/1 raised ValueError: no such unit \(test_judging.py, line \d+, in verify\); "


@pytest.mark.parametrize("threads", [0, 1], ids=["at once", "threads"])
def test_an_exception_names_verifier_problem_and_response(threads: int) -> None:
    engine = ScriptedEngine(lambda request: Completion(id=request.id, text="y" * 1000))
    place = replace(PROBLEMS[0], place="q.jsonl, row 7")
    with pytest.raises(VerifierError) as raised:
        list(sample([place], engine, Broken(concurrency=threads), ONE))
    about = f"problem {PROBLEMS[0].prompt_id} \\(q.jsonl, row 7\\), response '{'y' * 200}'"
    assert re.fullmatch(RAISED + about, str(raised.value))
    assert isinstance(raised.value.__cause__, ValueError)


def test_what_is_no_verdict_is_named() -> None:
    engine = ScriptedEngine(lambda request: Completion(id=request.id, text="y"))
    with pytest.raises(VerifierError) as raised:
        list(sample(PROBLEMS[:1], engine, Broken(gives=True), ONE))
    assert str(raised.value) == (
        f"verifier exact/1 must give a Verified, got bool; problem {PROBLEMS[0].prompt_id}, response 'y'"
    )


class BrokenGold(ExactVerifier):
    """Has no response for a gold."""

    def gold_response(self, target: str) -> str:
        return {}[target]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (Broken(), RAISED + "problem .*, response '<answer> 0 </answer>'"),
        (Broken(gives="correct"), "verifier exact/1 must give a Verified, got str; problem .*, response"),
        (Broken(refuses="0"), r"raised IndexError: 0 .*; problem .*, check_target of '0'"),
        (BrokenGold(), r"raised KeyError: '0' .*; problem .*, gold_response of the target '0'"),
    ],
)
def test_a_check_of_golds_names_the_problem(broken: ExactVerifier, says: str) -> None:
    with pytest.raises(VerifierError, match=says) as raised:
        golds_that_fail(PROBLEMS[:1], broken)
    assert PROBLEMS[0].prompt_id in str(raised.value)


@pytest.mark.parametrize("command", ["sample", "run", "check", "reverify"])
def test_commands_say_it_in_a_line_and_end_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    problems, folder = tmp_path / "problems.jsonl", tmp_path / "run"
    problems.write_text(json.dumps({"problem": "0 + 1", "answer": 1}) + "\n")
    for module in ("drift_rollout", "drift_eval"):
        monkeypatch.setattr(f"{module}.cli.open_verifier", lambda options: Broken())
        monkeypatch.setattr(f"{module}.cli.open_engine", lambda *_, **__: ScriptedEngine(script(None)))
    if command == "reverify":
        found = problem_set(PROBLEMS[:1], source="here")
        rollout(found, ScriptedEngine(script(None)), ExactVerifier(), ONE, folder)
    words = {
        "sample": ["sample", str(problems), "model", str(folder)],
        "check": ["sample", str(problems), "model", str(folder), "--check-gold"],
        "run": ["run", str(problems), "model", str(folder)],
        "reverify": ["reverify", str(folder), str(tmp_path / "new"), "--verifier=exact"],
    }[command]
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        (evaluate if command == "run" else main)(words)
    assert raised.value.code == 1
    line, *more = capsys.readouterr().err.strip().splitlines()[-2 if command in ("sample", "run") else -1 :]
    assert re.match("error: " + RAISED + "problem [0-9a-f]{64}.*, response '<answer> 1 </answer>'", line)
    goes_on = "what had finished is in the journal; mend the verifier, and the same command goes on"
    assert more == ([goes_on] if command in ("sample", "run") else [])
    assert not (tmp_path / "new").exists()


@dataclass(frozen=True, kw_only=True)
class Closable(ExactVerifier):
    """Notes that it was closed."""

    closed: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Note it."""
        self.closed.append("closed")


def script(ends: BaseException | None) -> Callable[[Request], Completion]:
    def answer(request: Request) -> Completion:
        if ends is not None:
            raise ends
        return Completion(id=request.id, text="<answer> 1 </answer>")

    return answer


@pytest.mark.parametrize(
    ("ends", "code"),
    [(None, None), (EngineError("died"), 1), (KeyboardInterrupt(), 130), (MemoryError(), None)],
    ids=["done", "engine", "interrupt", "other"],
)
@pytest.mark.parametrize("command", ["sample", "run"])
def test_commands_close_the_verifier_however_they_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: BaseException | None,
    code: int | None,
    command: str,
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"problem": "0 + 1", "answer": 1}) + "\n")
    verifier, entry = Closable(), main if command == "sample" else evaluate
    module = "drift_rollout" if command == "sample" else "drift_eval"
    monkeypatch.setattr(f"{module}.cli.open_verifier", lambda options: verifier)
    monkeypatch.setattr(f"{module}.cli.open_engine", lambda *_, **__: ScriptedEngine(script(ends)))
    words = [command, str(problems), "model", str(tmp_path / "run")]
    if ends is None:
        entry(words)
    else:
        with pytest.raises(SystemExit if code else type(ends)) as raised:
            entry(words)
        if code:
            assert raised.value.code == code
    assert verifier.closed == ["closed"]


def test_gold_checks_and_mistakes_close_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"problem": "0 + 1", "answer": 1}) + "\n")
    verifier = Closable()
    monkeypatch.setattr("drift_rollout.cli.open_verifier", lambda options: verifier)
    words = ["sample", str(problems), "model", str(tmp_path / "run")]
    main([*words, "--check_gold"])
    with pytest.raises(SystemExit):
        main([*words, "--question", "nothing"])
    assert verifier.closed == ["closed"] * 2


BUSY = """
import os
import sys
import time
from pathlib import Path
from drift_rollout import Completion, ExactVerifier, Journal, RolloutConfig, ScriptedEngine, make_problem
from drift_rollout.ending import early_end
from drift_rollout.sampler import sample_to_journal
from drift_weights import Message

class Busy(ExactVerifier):
    concurrency = 2

    def verify(self, response, target):
        os.write(1, b"judging\\n")
        time.sleep(300)

problems = [make_problem((Message(role="user", content="q"),), "1")]
engine = ScriptedEngine(lambda request: Completion(id=request.id, text="x"))
with early_end(), Journal(Path(sys.argv[1]), {}) as journal:
    sample_to_journal(journal, problems, engine, Busy(), RolloutConfig())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_does_not_wait_for_verifiers(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path / "j")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "judging\n"
    os.kill(process.pid, number)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert said == "stopped; what had finished is in the journal, the same command goes on\n"
    Journal(tmp_path / "j", {}).close()


def test_a_command_says_how_many_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then `status` counts timeouts and errors apart, and what three runs could not judge."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"q{n}", "answer": n}) + "\n" for n in range(80)))
    words = [
        "sample",
        str(problems),
        "model",
        str(tmp_path / "run"),
        "--samples=2",
        "--protocol.max_turns=1",
    ]
    never = Late(times=lambda response: 9, verdict="error")
    monkeypatch.setattr("drift_rollout.cli.open_engine", lambda *_, **__: telling())
    monkeypatch.setattr("drift_rollout.cli.open_verifier", lambda options: never)

    def status() -> list[str]:
        capsys.readouterr()
        main(["status", str(tmp_path / "run")])
        return capsys.readouterr().out.splitlines()

    with pytest.raises(SystemExit) as raised:
        main(words)
    assert raised.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("stopped: 10")
    assert "by an error of the verifier exact/1" in said[-2]
    assert said[-1] == "the same command goes on"
    with JournalReader(tmp_path / "run" / "journal.sqlite") as journal:
        count = len(journal.finished())
    (line,) = [line for line in status() if line.startswith("unscored")]
    assert line.split(";")[0].split() == ["unscored", "timeout", "0,", "error", str(count)]
    main(words)
    assert "160 dialogues ended unscored" in capsys.readouterr().out
    main(words)
    out = capsys.readouterr().out
    for lines in (out.splitlines(), status()):
        (line,) = [line for line in lines if line.startswith("settled")]
        assert (
            line.split(maxsplit=1)[1].strip()
            == f"{count} turns as wrong, after 3 failed verifications each"
        )
