"""Problems: first prompts with their gold answers, each once, without contradictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from drift_rollout.asking import ask, ask_for_gold, refusal
from drift_rollout.problem_files import locate
from drift_rollout.problem_sources import SourceName, row_format, stated
from drift_rollout.prompts import PromptTemplate
from drift_rollout.verify import Verifier
from drift_weights.types import Message, prompt_id

OnMistake = Literal["refuse", "drop"]
SHOWN = 10
"""Problems listed of those that have something wrong with them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A first prompt x_1 and its gold answer; build it with `make_problem` to get its identity."""

    prompt_id: str
    messages: tuple[Message, ...]
    target: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    question: str | None = field(default=None, compare=False)
    """As the source states it, without the template; no part of the identity or of a trajectory."""
    place: str | None = field(default=None, compare=False)
    """File and row that it was first read from."""

    @property
    def named(self) -> str:
        """Its id, and its place if that is known, for messages."""
        return self.prompt_id if self.place is None else f"{self.prompt_id} ({self.place})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """One prompt that comes with different golds."""

    question: str
    golds: tuple[tuple[str | None, str | None], ...]
    """Each gold, and the place where it was first read."""
    rows: int
    """How many rows state the prompt."""

    def __str__(self) -> str:
        golds = ", ".join(f"{gold!r} ({place or 'no place'})" for gold, place in self.golds)
        return f"{self.question[:80]!r}: {golds}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemSet:
    """Distinct problems, and what was left out on the way to them."""

    problems: tuple[Problem, ...]
    repeated: int
    """Rows that repeat a problem."""
    conflicts: tuple[Conflict, ...] = ()
    """Prompts left out whole because their golds differ."""
    without_gold: int = 0
    """Rows left out because their answer's text says no gold."""
    overlapping: int = 0
    """Problems left out because an evaluation asks the same."""
    origin: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Where they came from, as the manifest of a run records it."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What a user should be told."""

    @property
    def counts(self) -> dict[str, int]:
        """How many problems there are, and how many were left out for which reason."""
        rarer = {
            "conflicting": len(self.conflicts),
            "without_gold": self.without_gold,
            "overlapping": self.overlapping,
        }
        found = {name: count for name, count in rarer.items() if count}
        return {"count": len(self.problems), "repeated": self.repeated} | found

    def __str__(self) -> str:
        left_out = [
            f"{number} {what}"
            for number, what in (
                (self.repeated, "repeated rows"),
                (len(self.conflicts), "prompts with different golds"),
                (self.without_gold, "rows without a gold"),
                (self.overlapping, "problems of the evaluation"),
            )
            if number
        ]
        said = f" ({', '.join(left_out)} are left out)" if left_out else ""
        return f"{len(self.problems)} problems{said}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedGold:
    """A gold answer that its own verifier does not call correct."""

    problem: Problem
    verdict: str
    """The verifier's; or `refused`, where it does not take the gold at all."""
    reason: str = ""

    def __str__(self) -> str:
        place = self.problem.place or "no place"
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"{place}: problem {self.problem.prompt_id}: gold {self.problem.target!r}: {self.verdict}{why}"
        )


def make_problem(
    messages: tuple[Message, ...],
    target: str | None,
    metadata: Mapping[str, Any] | None = None,
    *,
    question: str | None = None,
    place: str | None = None,
) -> Problem:
    """A problem whose id is the hash of its messages and target, stable under shuffles and merges."""
    return Problem(
        prompt_id=prompt_id(messages, target),
        messages=messages,
        target=target,
        metadata=metadata or {},
        question=question,
        place=place,
    )


def problem_set(
    problems: Iterable[Problem], *, source: str, on_conflict: OnMistake = "refuse"
) -> ProblemSet:
    """Keep equal problems once; refuse equal prompts with different golds, or leave them out whole.

    Raises:
        ValueError: no problem at all or none left, or contradicting golds and `on_conflict` is refuse
            (the first ten are listed).
    """
    by_prompt: dict[tuple[Message, ...], dict[str | None, Problem]] = {}
    rows: dict[tuple[Message, ...], int] = {}
    for problem in problems:
        by_prompt.setdefault(problem.messages, {}).setdefault(problem.target, problem)
        rows[problem.messages] = rows.get(problem.messages, 0) + 1
    if not by_prompt:
        raise ValueError(f"{source} holds no problem")
    conflicts = tuple(
        _conflict(found.values(), rows[prompt]) for prompt, found in by_prompt.items() if len(found) > 1
    )
    kept = tuple(next(iter(found.values())) for found in by_prompt.values() if len(found) == 1)
    if conflicts and on_conflict == "refuse":
        raise ValueError(
            f"{source}: {len(conflicts)} prompts come with different golds; settle them, or leave them out "
            f"by --on_conflict drop:\n  {listed(conflicts)}"
        )
    if not kept:
        raise ValueError(f"{source}: all {len(conflicts)} prompts come with different golds")
    left_out = sum(conflict.rows for conflict in conflicts)
    return ProblemSet(
        problems=kept,
        repeated=sum(rows.values()) - left_out - len(kept),
        conflicts=conflicts,
        notes=tuple(f"left out, its golds differ: {conflict}" for conflict in conflicts[:SHOWN]),
    )


def load_problems(
    place: Path,
    template: PromptTemplate,
    *,
    source: SourceName = "table",
    question: str | None = None,
    answer: str | None = None,
    drop_ending: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    split: str = "train",
    on_conflict: OnMistake = "refuse",
    on_no_gold: OnMistake = "refuse",
    max_turns: int = 5,
) -> ProblemSet:
    """Problems of a file, a folder or a data set of the Hub.

    Args:
        place: a JSONL, JSON, Parquet or CSV file, a folder of such, or org/name on the Hub; a path
            that exists wins.
        template: of the first prompt.
        source: table (the gold is a column), metamath-math (MetaMathQA's MATH rows), math or gsm8k.
        question: column with the question; the source's own if not given. A dot leads into an object.
        answer: column with the gold, or with the text that says it; likewise.
        drop_ending: text at the end of every question that is no part of it.
        revision: tag or commit of a Hub data set; without it nothing is asked of the Hub.
        subset: one of several data sets in a folder or on the Hub.
        split: of a folder or a Hub data set.
        on_conflict: refuse equal prompts with different golds, or drop them whole.
        on_no_gold: refuse an answer's text that says no gold, or drop its row.
        max_turns: T, as the prompt tells it.

    Raises:
        OSError: nothing is there, or the Hub did not answer.
        ValueError: a torn or foreign line, a missing or blank field, one that is not finite, an answer
            without a gold (file, row and field are named), or contradicting golds.
    """
    form = row_format(source, question=question, answer=answer, ending=drop_ending)
    located = locate(place, revision=revision, subset=subset, split=split)
    goldless: list[str] = []
    rows = stated(located, form, on_no_gold=goldless.append if on_no_gold == "drop" else None)
    made = (
        make_problem(
            template.render(found.question, max_turns=max_turns),
            found.gold,
            question=found.question,
            place=found.place,
        )
        for found in rows
    )
    settled = problem_set(made, source=str(place), on_conflict=on_conflict)
    notes = (*located.notes, *(f"left out: {said}" for said in goldless[:SHOWN]), *settled.notes)
    return replace(settled, without_gold=len(goldless), origin=located.origin, notes=notes)


def check_targets(problems: Iterable[Problem], verifier: Verifier) -> None:
    """Hold every gold answer against the verifier that will judge by it.

    Raises:
        ValueError: problems without a gold, or with one that the verifier refuses (the first ten are
            listed).
        VerifierError: its `check_target` raised something else; the problem is named.
    """
    refused, goldless = [], 0
    for problem in problems:
        reason = _refusal(problem, verifier)
        if reason is not None:
            refused.append(f"problem {problem.named}{reason}")
            goldless += problem.target is None
    if not refused:
        return
    remedy = "mend or remove them, or choose another verifier"
    if goldless:
        needed = f"{goldless} have no target, and every verifier needs one: give them their gold answers"
        remedy = needed if goldless == len(refused) else f"{needed}; of the others, {remedy}"
    raise ValueError(
        f"{len(refused)} problems cannot be judged by {verifier.name}; {remedy}:\n  {listed(refused)}"
    )


def golds_that_fail(problems: Iterable[Problem], verifier: Verifier) -> list[FailedGold]:
    """The problems whose gold, given as the answer, is not correct by the verifier.

    No model can solve them by answering with the gold, so their groups teach the wrong thing.

    Raises:
        VerifierError: the verifier raised, or gave no `Verified`; the problem is named.
    """
    failed = []
    for problem in problems:
        reason = _refusal(problem, verifier)
        if reason is not None:
            failed.append(FailedGold(problem=problem, verdict="refused", reason=reason.lstrip(": ")))
            continue
        target = problem.target or ""
        response = ask_for_gold(verifier, target, problem=problem.named)
        verdict = ask(verifier, response, target, problem=problem.named).verdict
        if verdict != "correct":
            failed.append(FailedGold(problem=problem, verdict=verdict))
    return failed


def fewer(problems: ProblemSet, count: int) -> ProblemSet:
    """So many problems, whatever the order of their source: those whose ids, which are hashes, come first.

    A smaller choice is part of every larger one. Where there are fewer, all are taken.

    Raises:
        ValueError: count below 1.
    """
    if count < 1:
        raise ValueError(f"at least 1 problem must be taken, got {count}")
    kept = sorted(problems.problems, key=lambda problem: problem.prompt_id)[:count]
    return replace(problems, problems=tuple(kept))


def listed(items: Sequence[object]) -> str:
    """The first ten, a line each, and how many more there are."""
    more = [f"… and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return "\n  ".join([*map(str, items[:SHOWN]), *more])


def _conflict(problems: Iterable[Problem], rows: int) -> Conflict:
    found = list(problems)
    return Conflict(
        question=found[0].question or found[0].messages[-1].content,
        golds=tuple((problem.target, problem.place) for problem in found),
        rows=rows,
    )


def _refusal(problem: Problem, verifier: Verifier) -> str | None:
    """Why the verifier cannot judge by this gold; None where it can."""
    if problem.target is None:
        return " has no target to verify against"
    reason = refusal(verifier, problem.target, problem=problem.named)
    return None if reason is None else f": {reason}"
