"""Problems: from files, and the MATH subset of MetaMathQA."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift_rollout.prompts import PromptTemplate
from drift_rollout.verify import Verifier
from drift_weights.files import read_rows
from drift_weights.types import Message, prompt_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A first prompt x_1 and its gold answer; build it with `make_problem` to get its identity."""

    prompt_id: str
    messages: tuple[Message, ...]
    target: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemSet:
    """Distinct problems, and how many rows were repetitions of one."""

    problems: tuple[Problem, ...]
    repeated: int


def make_problem(
    messages: tuple[Message, ...], target: str | None, metadata: Mapping[str, Any] | None = None
) -> Problem:
    """A problem whose id is the hash of its content, stable under shuffles and merges."""
    identity = prompt_id(messages, target)
    return Problem(prompt_id=identity, messages=messages, target=target, metadata=metadata or {})


def problem_set(problems: Iterable[Problem], *, source: str) -> ProblemSet:
    """Keep equal problems once, and refuse equal prompts with different golds.

    Raises:
        ValueError: no problem at all, or contradicting golds (the first ten are listed).
    """
    by_id: dict[str, Problem] = {}
    golds: dict[tuple[Message, ...], set[str | None]] = {}
    total = 0
    for problem in problems:
        total += 1
        by_id.setdefault(problem.prompt_id, problem)
        golds.setdefault(problem.messages, set()).add(problem.target)
    if not by_id:
        raise ValueError(f"{source} holds no problem")
    contradictions = [(m[-1].content, found) for m, found in golds.items() if len(found) > 1]
    if contradictions:
        shown = "\n  ".join(f"{text[:80]!r}: {sorted(map(str, g))}" for text, g in contradictions[:10])
        raise ValueError(
            f"{source}: {len(contradictions)} prompts come with different golds; settle them:\n  {shown}"
        )
    return ProblemSet(problems=tuple(by_id.values()), repeated=total - len(by_id))


def check_targets(problems: Iterable[Problem], verifier: Verifier) -> None:
    """Hold every gold answer against the verifier that will judge by it.

    Raises:
        ValueError: problems without a gold, or with one that the verifier refuses (the first ten are
            listed).
    """
    refused = []
    for problem in problems:
        if problem.target is None:
            refused.append(f"problem {problem.prompt_id} has no target to verify against")
            continue
        try:
            verifier.check_target(problem.target)
        except ValueError as error:
            refused.append(f"problem {problem.prompt_id}: {error}")
    if refused:
        raise ValueError(
            f"{len(refused)} problems cannot be judged by {verifier.name}; mend or remove them, or choose "
            "another verifier:\n  " + "\n  ".join(refused[:10])
        )


def load_problems(
    path: Path,
    template: PromptTemplate,
    *,
    question: str = "problem",
    answer: str = "answer",
    max_turns: int = 5,
) -> ProblemSet:
    """Problems of a JSONL or Parquet file with a question and an answer column.

    A number becomes the text of its value, and a whole one that of an integer: 18.0 is the gold "18".

    Raises:
        ValueError: a torn or foreign line, a missing or blank field or one that is not finite (file
            and row are named), contradicting golds.
    """
    return problem_set(_from_rows(path, template, question, answer, max_turns), source=str(path))


def load_metamath(
    template: PromptTemplate,
    *,
    name: str = "meta-math/MetaMathQA",
    revision: str | None = None,
    max_turns: int = 5,
) -> ProblemSet:
    """MetaMathQA's MATH subset from the Hub, or from a local copy in the same shape (M6).

    Args:
        template: of the first prompt.
        name: Hub id or folder.
        revision: a commit or tag to pin.
        max_turns: T, as the prompt tells it.

    Raises:
        ValueError: a row without a gold, or equal questions with different golds.
    """
    # Seconds to import, and needed for nothing else here.
    import datasets

    rows = datasets.load_dataset(name, split="train", revision=revision)
    return metamath_math(rows, template, max_turns=max_turns)


def metamath_math(
    rows: Iterable[Mapping[str, str]], template: PromptTemplate, *, max_turns: int = 5
) -> ProblemSet:
    """MetaMathQA's MATH subset: rows whose `type` starts with MATH_, gold behind "The answer is:" (M6).

    Raises:
        ValueError: a row without such a gold.
    """

    def problems() -> Iterator[Problem]:
        for number, row in enumerate(rows):
            if not row["type"].startswith("MATH_"):
                continue
            _, found, gold = row["response"].rpartition("The answer is:")
            if not found or not gold.strip():
                raise ValueError(f"MetaMathQA row {number}: response has no 'The answer is:'")
            yield make_problem(template.render(row["query"], max_turns=max_turns), gold.strip())

    return problem_set(problems(), source="MetaMathQA")


def _from_rows(
    path: Path, template: PromptTemplate, question: str, answer: str, max_turns: int
) -> Iterator[Problem]:
    for number, row in enumerate(read_rows(path)):
        texts = [_text(row, name, f"{path}, row {number}") for name in (question, answer)]
        yield make_problem(template.render(texts[0], max_turns=max_turns), texts[1])


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place}: field {name!r} is {value}; give a number or a text")
        # A column of whole numbers is one of floats as soon as one tool met a gap in it.
        value = int(value) if value.is_integer() else value
    text = "" if value is None else str(value)
    if not text.strip():
        raise ValueError(
            f"{place}: field {name!r} is missing or empty; it has {sorted(row)}; name the columns by "
            "--question and --answer"
        )
    return text
