"""evaluate: the rollout loop with one greedy sample a problem; and the Benchmark value."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from drift_eval.benchmark import Benchmark
from drift_eval.run import evaluate
from drift_eval.scoring import score
from drift_rollout import ChoiceVerifier, ExactVerifier
from drift_rollout.engine import Completion, Request, ScriptedEngine
from drift_rollout.problems import Problem, make_problem
from drift_weights.schema import from_table
from drift_weights.types import Message

# The slowest first, so that dialogues do not finish in the order of the problems.
FOUND_AT = {"9": 9, "3": 3, "2": 2, "1": 1}


def problems() -> tuple[Problem, ...]:
    return tuple(make_problem((Message(role="user", content=f"say {gold}"),), gold) for gold in FOUND_AT)


def script(request: Request) -> Completion:
    """Finds the answer at the turn that the problem is named after."""
    turn = sum(message.role == "assistant" for message in request.messages) + 1
    gold = request.messages[0].content.removeprefix("say ")
    answer = gold if turn == FOUND_AT[gold] else f"not at {turn}"
    return Completion(id=request.id, text=f"<answer>{answer}</answer>")


def test_a_scripted_policy_is_evaluated_exactly() -> None:
    engine = ScriptedEngine(script)
    steps: list[tuple[int, int]] = []
    table = evaluate(
        problems(),
        engine,
        ExactVerifier(),
        max_turns=4,
        max_new_tokens=9,
        feedback="Once more.",
        on_progress=lambda finished, total: steps.append((finished, total)),
    )
    rows = list(from_table(table))
    assert [row.prompt_id for row in rows] == [problem.prompt_id for problem in problems()]
    assert [row.length for row in rows] == [4, 3, 2, 1]
    assert {row.sample for row in rows} == {0}
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {request.sampling.temperature for request in engine.requests} == {0.0}
    assert {request.sampling.max_new_tokens for request in engine.requests} == {9}
    follow_ups = {m.content for r in engine.requests for m in r.messages[1:] if m.role == "user"}
    assert follow_ups == {"Once more."}
    (scores,) = score(table)
    assert [rate.successes for rate in scores.multi_at] == [1, 2, 3, 3]


def test_the_papers_protocol_is_the_default() -> None:
    engine = ScriptedEngine(script)
    table = evaluate(problems(), engine, ExactVerifier())
    assert set(table.column("max_turns").to_pylist()) == {5}
    assert {request.sampling.max_new_tokens for request in engine.requests} == {512}
    turns = table.column("turns").to_pylist()[2]
    assert [turn["feedback"] for turn in turns] == ["Incorrect. Please think again.", None]


def test_a_failing_engine_leaves_unscored_rows_not_wrong_ones() -> None:
    def broken(request: Request) -> Completion:
        if request.messages[0].content == "say 2":
            return Completion(id=request.id, text="", finish_reason="error", error="out of memory")
        return script(request)

    table = evaluate(problems(), ScriptedEngine(broken), ExactVerifier())
    with pytest.raises(ValueError, match="1 of 4 dialogues ended in a timeout or an error"):
        score(table)


def benchmark(count: int = 4, *, size: int = 4, allow_subset: bool = False) -> Benchmark:
    return Benchmark(
        name="Four",
        problems=problems()[:count],
        size=size,
        verifier="exact/1",
        allow_subset=allow_subset,
    )


def test_a_benchmark_wants_its_own_verifier() -> None:
    assert evaluate(benchmark(), ScriptedEngine(script), ExactVerifier()).num_rows == 4
    with pytest.raises(ValueError, match="Four is judged by exact/1, got choice/2"):
        evaluate(benchmark(), ScriptedEngine(script), ChoiceVerifier())


def test_a_benchmark_is_whole_unless_a_subset_is_meant() -> None:
    assert len(benchmark(3, allow_subset=True).problems) == 3
    with pytest.raises(ValueError, match="has 4 problems, got 3; load all"):
        benchmark(3)
    with pytest.raises(ValueError, match="has 2 problems, got 3"):
        benchmark(3, size=2, allow_subset=True)
    with pytest.raises(ValueError, match="no problems"):
        benchmark(0, allow_subset=True)
    first = problems()[0]
    with pytest.raises(ValueError, match="twice"):
        Benchmark(name="B", problems=(first, first), size=2, verifier="exact/1")
    with pytest.raises(ValueError, match="problem 0 has no target"):
        Benchmark(name="B", problems=(replace(first, target=None),), size=1, verifier="exact/1")


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ValueError, match="no problems to evaluate on"):
        evaluate([], ScriptedEngine(script), ExactVerifier())
    first = problems()[0]
    with pytest.raises(ValueError, match="appears twice"):
        evaluate([first, first], ScriptedEngine(script), ExactVerifier())


HEAVY = ("torch", "transformers", "datasets", "matplotlib.pyplot")
PROBE = f"""
import sys
def heavy(): return [name for name in {HEAVY!r} if name in sys.modules]
import drift_eval.cli
print(heavy())
import matplotlib.pyplot
print(heavy())
"""


def test_scoring_needs_no_torch() -> None:
    """The second line shows that the probe can see a heavy module."""
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[]", "['matplotlib.pyplot']"]
