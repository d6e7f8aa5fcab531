r"""`math` against real answers and their grades, and every gold of MATH train, respelled and changed."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from drift_rollout.problem_sources import last_boxed
from drift_rollout.verifiers.math import MathVerifier
from drift_rollout.verifiers.numeric import NumericVerifier
from drift_rollout.verify import mark_answer
from rollout.math_check import independently_equal
from rollout.math_near_misses import CHANGES
from rollout.math_spellings import RESPELLINGS

DATA = os.environ.get("DRIFT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="DRIFT_DATA is not set")
WITHOUT_GOLD = {5341, 5343}
"""Rows of MATH train whose last box is empty: the exceptions."""
SEED = 7
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
Pair = tuple[str, str]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    opened = MathVerifier()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def golds() -> list[str]:
    """Every gold of MATH train, once."""
    return sorted({gold for gold in boxed_golds() if gold is not None})


@cache
def boxed_golds() -> list[str | None]:
    """The gold of each row of MATH train; None where there is none."""
    table = pq.read_table(Path(str(DATA)) / "math_train" / "train.parquet", columns=["reward_model"])
    return [gold_or_none(row["ground_truth"]["solution"]) for row in table["reward_model"].to_pylist()]


def gold_or_none(solution: str) -> str | None:
    try:
        return last_boxed(solution)
    except ValueError:
        return None


def rows_of(*names: str) -> list[dict]:
    with Path(str(DATA)).joinpath(*names).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@needs_data
def test_qwen_on_math_nothing_wrong_is_accepted_and_a_hundredth_of_what_is_right_at_most_rejected(
    verifier: MathVerifier,
) -> None:
    graded = Counter(
        (row["adjudicated"], verifier.verify(mark_answer(row["answer"]), row["gold"]).verdict == "correct")
        for row in rows_of("qwen_math_cot", "adjudicated.jsonl")
    )
    assert graded.total() == 800
    assert graded[False, True] == 0
    assert graded[True, False] <= 0.01 * (graded[True, True] + graded[True, False])


@needs_data
@pytest.mark.parametrize("name", ["math", "numeric"])
def test_gsm8k_every_grade_is_the_data_s(name: str, verifier: MathVerifier) -> None:
    """The answer stands in the last line, behind `A:`; a solution whose last line has none is malformed."""
    judge = verifier if name == "math" else NumericVerifier()
    different, malformed, count = [], 0, 0
    for number, row in enumerate(rows_of("gsm8k", "example_model_solutions.jsonl")):
        gold = last_line_answer(row["ground_truth"])
        assert gold is not None
        for model in MODELS:
            answer = last_line_answer(row[model]["solution"])
            response = row[model]["solution"] if answer is None else mark_answer(answer)
            verdict = judge.verify(response, gold).verdict
            count, malformed = count + 1, malformed + (verdict == "malformed")
            if (verdict == "correct") != row[model]["is_correct"]:
                different.append((number, model, gold, answer, verdict))
    assert different == []
    assert (count, malformed) == (4 * 1319, 11)


def last_line_answer(solution: str) -> str | None:
    last = solution.rstrip("\n").rpartition("\n")[2]
    return last[2:] if last.startswith("A:") else None


@needs_data
@pytest.mark.parametrize("grammar", ["answer", "boxed"])
def test_every_gold_of_math_passes(grammar: str) -> None:
    verifier = MathVerifier(grammar=grammar)
    rows = boxed_golds()
    assert {row for row, gold in enumerate(rows) if gold is None} == WITHOUT_GOLD
    refused = []
    for gold in filter(None, rows):
        verifier.check_target(gold)
        if verifier.verify(verifier.gold_response(gold), gold).verdict != "correct":
            refused.append(gold)
    verifier.close()
    assert refused == []


@needs_data
@pytest.mark.parametrize("name", RESPELLINGS)
def test_a_respelled_gold_passes(name: str, golds: list[str], verifier: MathVerifier) -> None:
    pairs = [(gold, other) for gold in golds for other in RESPELLINGS[name](gold)]
    assert pairs
    refused = [(gold, other) for gold, other in pairs if verifier.judge(other, gold).verdict != "correct"]
    assert refused == []


def accepted_wrongly(pairs: list[Pair], verifier: MathVerifier) -> list[Pair]:
    """Accepted, though an opinion of its own says that they are two answers."""
    with ThreadPoolExecutor(verifier.concurrency) as threads:
        judged = threads.map(lambda pair: verifier.judge(pair[1], pair[0]).verdict, pairs)
        verdicts = dict(zip(pairs, judged, strict=True))
    assert set(verdicts.values()) <= {"correct", "wrong", "timeout"}
    assert sum(verdict == "timeout" for verdict in verdicts.values()) <= 1 + len(pairs) // 1000
    accepted = [pair for pair, verdict in verdicts.items() if verdict == "correct"]
    return [pair for pair in accepted if not independently_equal(*pair)]


def near_misses(name: str, golds: list[str]) -> list[Pair]:
    chance = random.Random(f"{SEED} {name}")
    return [(gold, other) for gold in golds for other in CHANGES[name](gold, chance)]


@needs_data
@pytest.mark.parametrize("name", CHANGES)
def test_a_near_miss_is_never_accepted(name: str, golds: list[str], verifier: MathVerifier) -> None:
    pairs = near_misses(name, golds)
    sampled = random.Random(SEED).sample(pairs, min(50, len(pairs)))
    assert sampled
    assert accepted_wrongly(sampled, verifier) == []


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_no_near_miss_is_accepted(name: str, golds: list[str], verifier: MathVerifier) -> None:
    assert accepted_wrongly(near_misses(name, golds), verifier) == []


def pairs_of_golds(golds: list[str], count: int) -> list[Pair]:
    """Pairs of different golds: two of three alike but for their digits and signs."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for gold in golds:
        alike[re.sub(r"-|\s|\\left|\\right|\\text.*", "", re.sub(r"\d+", "0", gold))].append(gold)
    shapes = [shape for shape in alike.values() if len(shape) > 1]
    chance = random.Random(SEED)
    found = []
    for number in range(count):
        # The square root, or plain integers would be nearly all of them.
        shape = chance.choices(shapes, [len(shape) ** 0.5 for shape in shapes])[0] if number % 3 else golds
        one, other = chance.sample(shape, 2)
        found.append((one, other))
    return found


@needs_data
@pytest.mark.parametrize("count", [400, pytest.param(8_000, marks=pytest.mark.slow)])
def test_another_gold_is_never_accepted(count: int, golds: list[str], verifier: MathVerifier) -> None:
    assert accepted_wrongly(pairs_of_golds(golds, count), verifier) == []


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{3}{4}", "0.75"),
        (r"\frac34", r"\dfrac{6}{8}"),
        (r"2\frac{1}{2}", r"\frac{5}{2}"),
        (r"3\sqrt{2}", r"\sqrt{18}"),
        (r"(1, \frac{1}{2})", r"\left( 1, 0.5 \right)"),
        ("1, 2, 3", "3,1,2"),
        (r"(-\infty, 1) \cup [2, 3]", r"[2,3]\cup(-\infty,1)"),
        (r"\begin{pmatrix} 1 \\ 0.5 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 1/2 \end{pmatrix}"),
        ("(x+1)^2", "x^2 + 2x + 1"),
        ("2x + y - 3 = 0", "4x + 2y = 6"),
        (r"5\text{ cm}", "5"),
        (r"90^\circ", "90"),
        (r"50\%", "0.5"),
        (r"-2\frac{1}{2}", "-2.5"),
        (r"\text{(E)}", "E"),
        ("007", "7"),
        ("1,234", "1234"),
        ("i", "i"),
    ],
)
def test_the_other_opinion_knows_what_is_equal(gold: str, answer: str) -> None:
    assert independently_equal(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("3", "-3"),
        ("3", "33"),
        (r"\frac{3}{4}", r"\frac{4}{3}"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2)"),
        ("(1,2)", "1,2"),
        ("1,2", "1,2,2"),
        ("1,2", "1"),
        (r"(-\infty, 1) \cup [2, 3]", r"(-\infty, 1) \cup [2, 3)"),
        (r"(0,\infty)", r"[0,\infty)"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        ("(x+1)^2", "x^2 + 1"),
        ("2x + y - 3 = 0", "2x + y + 3 = 0"),
        (r"5\text{ cm}", r"5\text{ m}"),
        ("1 - i", "1 + i"),
        ("x", "y"),
        ("2B", "2D"),
        ("11_2", "112"),
        ("2^{5000}", "2^{5001}"),
        (r"\text{A, B}", r"\text{A, C}"),
        ("-x", "x"),
        (r"\text{east}", r"\text{west}"),
        (r"\frac{1}{0", r"\frac{1}{0}"),
    ],
)
def test_the_other_opinion_excuses_nothing_else(gold: str, answer: str) -> None:
    assert not independently_equal(gold, answer)
    assert not independently_equal(answer, gold)
