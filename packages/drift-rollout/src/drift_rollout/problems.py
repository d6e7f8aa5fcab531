"""Problems: from files, and the MATH subset of MetaMathQA."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift_rollout.prompts import PromptTemplate
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


def load_problems(
    path: Path,
    template: PromptTemplate,
    *,
    question: str = "problem",
    answer: str = "answer",
    max_turns: int = 5,
) -> ProblemSet:
    """Problems of a JSONL or Parquet file with a question and an answer column.

    Raises:
        ValueError: a torn or foreign line, a missing or empty field (file and row are named),
            contradicting golds.
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
        for name in (question, answer):
            if row.get(name) is None or row[name] == "":
                raise ValueError(
                    f"{path}, row {number}: field {name!r} is missing or empty; it has {sorted(row)}"
                )
        yield make_problem(template.render(str(row[question]), max_turns=max_turns), str(row[answer]))
