"""Problems that an evaluation asks, too: rollouts on them would train on the test."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from drift_rollout.problem_files import DataFile, rows_of
from drift_rollout.problem_sources import text_of, without_ending
from drift_rollout.problems import SHOWN, Problem, ProblemSet, listed

OnOverlap = Literal["refuse", "drop", "allow"]
# Both begin with a literal character, by which a long text is passed over fast.
_SPACING = re.compile(
    r"\\(?:(\\)|[,;:!>\s]|(?:q?quad|(?:thin|med|thick|neg|en)space)(?![a-z])|[hv]space\*?\{[^{}]*\})"
)
"""TeX's spaces in lower case; or two backslashes, which end a line and begin no space."""
_LOOSE = re.compile(r" (?:(?!\w)|(?<!\w ))")
"""A space beside something that is no letter and no digit."""
_QUOTES = '"“”«»'
_ENDS = f"{_QUOTES} .,;:?。"
"""What may stand behind a question without a meaning. Neither "!" nor "'": 5! is no 5, f' no f."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """A problem, and the place in the evaluation where the same is asked."""

    problem: Problem
    place: str

    def __str__(self) -> str:
        question = self.problem.question or ""
        return f"{self.problem.place or self.problem.prompt_id} = {self.place}: {question[:80]!r}"


def normal_form(question: str) -> str:
    """A question's text without what typesetting changes and meaning does not.

    Unicode NFKC, lower case; TeX's spacing commands are white space; white space counts only between
    two letters or digits ("x + 1" is "x+1", "1 2" is not "12"); quotes at both ends and . , ; : ? at the
    end are dropped. A text of which nothing would be left stays what it is.
    """
    text = unicodedata.normalize("NFKC", question).lower().strip()
    text = _SPACING.sub(lambda found: found.group() if found.group(1) else " ", text)
    text = " ".join(text.replace("~", " ").split())
    return _LOOSE.sub("", text).rstrip(_ENDS).lstrip(_QUOTES + " ") or question.strip()


def overlap(
    problems: Iterable[Problem],
    evaluation: Path,
    *,
    question: str = "problem",
    drop_ending: str | None = None,
) -> list[Overlap]:
    """The problems whose question an evaluation asks, too, by `normal_form`.

    Ids cannot tell: the prompts of rollout and evaluation differ (D.7). A rephrased question is not found.

    Args:
        problems: with their `question`.
        evaluation: a JSONL, JSON, Parquet or CSV file with a question column.
        question: the evaluation's column.
        drop_ending: text that is no part of a question of the evaluation where it stands at its end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a problem without `question`, or a row of the evaluation without one.
    """
    places = _asked(evaluation, question, drop_ending)
    found = []
    for problem in problems:
        if problem.question is None:
            raise ValueError(
                f"problem {problem.prompt_id} has no question to compare; give make_problem its question="
            )
        place = places.get(normal_form(problem.question))
        if place is not None:
            found.append(Overlap(problem=problem, place=place))
    return found


def without_overlap(
    problems: ProblemSet,
    evaluation: Path,
    on_overlap: OnOverlap = "refuse",
    *,
    question: str = "problem",
    drop_ending: str | None = None,
) -> ProblemSet:
    """Refuse problems that an evaluation asks, too, leave them out, or let them in; notes list ten.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is an overlap and `on_overlap` is refuse, nothing is left, or what `overlap`
            refuses.
    """
    overlaps = overlap(problems.problems, evaluation, question=question, drop_ending=drop_ending)
    if not overlaps:
        note = f"no problem is asked by {evaluation}"
        return replace(problems, notes=(*problems.notes, note))
    told = f"{len(overlaps)} of {len(problems.problems)} problems are asked by {evaluation}, too"
    if on_overlap == "refuse":
        raise ValueError(
            f"{told}; leave them out by --overlap drop, or let them in by --overlap allow:\n  "
            f"{listed(overlaps)}"
        )
    notes = (*problems.notes, told, *(f"asked by both: {found}" for found in overlaps[:SHOWN]))
    if on_overlap == "allow":
        return replace(problems, notes=notes)
    out = {found.problem.prompt_id for found in overlaps}
    kept = tuple(problem for problem in problems.problems if problem.prompt_id not in out)
    if not kept:
        raise ValueError(f"{told}: nothing is left to sample")
    return replace(problems, problems=kept, overlapping=len(out), notes=notes)


def _asked(evaluation: Path, question: str, drop_ending: str | None) -> dict[str, str]:
    """Each normal form that the evaluation asks, and where it does first."""
    if not evaluation.is_file():
        raise FileNotFoundError(f"{evaluation} is no file; an overlap is looked for in a file")
    places: dict[str, str] = {}
    for number, row in enumerate(rows_of(DataFile(path=evaluation, name=str(evaluation)), (question,))):
        place = f"{evaluation}, row {number}"
        text = text_of(row, question, place, "name the column by --overlap_question")
        places.setdefault(normal_form(without_ending(text, drop_ending or "")), place)
    if not places:
        raise ValueError(f"{evaluation} holds no question")
    return places
