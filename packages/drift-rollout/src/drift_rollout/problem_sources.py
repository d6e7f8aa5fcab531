"""How a row says its question and its gold answer: any table, MetaMathQA's MATH rows, MATH, GSM8K."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from drift_rollout.problem_files import Located, rows_of

SourceName = Literal["table", "metamath-math", "math", "gsm8k"]
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
_COLUMNS = "name the columns by --question and --answer"


class Stated(NamedTuple):
    """A question as it stands in a row, its gold, and where that row is."""

    question: str
    gold: str
    place: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFormat:
    """Which columns hold question and answer, and how the answer's text says the gold."""

    question: str
    answer: str
    gold: Callable[[str], str] = str
    """The gold of an answer's text; raises ValueError where there is none."""
    only: tuple[str, str] | None = None
    """(column, prefix): rows whose column starts otherwise are of no concern."""
    ending: str | None = None
    """Text glued to the end of every question, and no part of it."""

    def with_names(self, question: str | None, answer: str | None, ending: str | None) -> RowFormat:
        """The same, with a user's own columns and ending where they are given."""
        return replace(
            self, question=question or self.question, answer=answer or self.answer, ending=ending
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (self.question, self.answer, *(self.only or ())[:1])


def stated(
    located: Located, form: RowFormat, *, on_no_gold: Callable[[str], None] | None = None
) -> Iterator[Stated]:
    """Question and gold of every row that the format is about.

    Args:
        on_no_gold: told of each answer's text without a gold, whose row is left out; None refuses it.

    Raises:
        ValueError: a missing or blank field, one that is neither text nor a finite number, or an
            answer without a gold; file, row and field are named.
    """
    for file in located.files:
        for number, row in enumerate(rows_of(file, form.columns)):
            place = f"{file.name}, row {number}"
            if form.only is not None and not _concerned(row, *form.only, place):
                continue
            question = _question(row, form, place)
            answer = text_of(row, form.answer, place)
            try:
                gold = form.gold(answer)
            except ValueError as error:
                said = f"{place}: field {form.answer!r}: {error}"
                if on_no_gold is None:
                    raise ValueError(f"{said}; mend it, or leave it out by --on_no_gold drop") from error
                on_no_gold(said)
                continue
            yield Stated(question, gold, place)


def _concerned(row: Mapping[str, Any], column: str, prefix: str, place: str) -> bool:
    hint = f"this source is about the rows whose {column!r} starts with {prefix}; --source table takes all"
    return text_of(row, column, place, hint).startswith(prefix)


def without_ending(text: str, ending: str) -> str:
    """A question without what is glued to its end, or as it is where it ends otherwise."""
    shorter = text.rstrip().removesuffix(ending.strip())
    return text if shorter == text.rstrip() else shorter.rstrip()


def _question(row: Mapping[str, Any], form: RowFormat, place: str) -> str:
    text = text_of(row, form.question, place)
    if form.ending is None:
        return text
    question = without_ending(text, form.ending)
    if not question or question == text:
        raise ValueError(
            f"{place}: field {form.question!r} does not end in {form.ending!r} behind a question; mend "
            "--drop_ending"
        )
    return question


def text_of(row: Mapping[str, Any], name: str, place: str, hint: str = _COLUMNS) -> str:
    """A field as text; a dot in the name leads into a nested one.

    A number becomes the text of its value, and a whole one that of an integer: 18.0 is "18".

    Args:
        hint: what to do about a field that is no text.

    Raises:
        ValueError: it is missing, blank, no finite number, or a list or an object.
    """
    value = row[name] if name in row else _nested(row, name)
    if isinstance(value, str):
        text = value
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place}: field {name!r} is {value}; give a number or a text")
        # A column of whole numbers is one of floats as soon as one tool met a gap in it.
        text = str(int(value) if value.is_integer() else value)
    elif isinstance(value, list | dict | bytes):
        inside = f", with {sorted(_names({name: value}))}" if isinstance(value, dict) else ""
        raise ValueError(f"{place}: field {name!r} is no text but a {type(value).__name__}{inside}; {hint}")
    else:
        text = "" if value is None else str(value)
    if not text.strip():
        raise ValueError(
            f"{place}: field {name!r} is missing or empty; it has {sorted(_names(row))}; {hint}"
        )
    return text


def _nested(row: Mapping[str, Any], name: str) -> Any:
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _names(row: Mapping[str, Any]) -> Iterator[str]:
    """All names under which a row holds a value, with those inside objects."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in _names(value))
        else:
            yield name


def after_the_answer_is(text: str) -> str:
    """MetaMathQA's gold: what stands behind the last "The answer is:" (M6).

    Raises:
        ValueError: nothing does.
    """
    gold = text.rpartition("The answer is:")[2].strip() if "The answer is:" in text else ""
    if not gold:
        raise ValueError("there is no 'The answer is:' with an answer behind it")
    return gold


def last_boxed(text: str) -> str:
    r"""MATH's gold: what the last \boxed{…} (or \fbox{…}) holds, with its braces balanced.

    Escaped braces are characters, not braces. Of `\boxed 2$`, without braces, it is all up to the `$`.

    Raises:
        ValueError: there is no box, an empty one, or one that is not closed.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        raise ValueError("there is no \\boxed{…}")
    start = boxes[-1].end()
    inside, dollar, _ = text[start:].partition("$")
    gold = _braced(text, start) if inside.startswith("{") else inside if dollar else ""
    if not gold.strip():
        raise ValueError("the last \\boxed holds nothing")
    return gold.strip()


def _braced(text: str, start: int) -> str:
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start + 1 : brace.start()]
    raise ValueError("the last \\boxed{ is not closed")


def after_hashes(text: str) -> str:
    """GSM8K's gold: the number behind the last "####", without its thousands commas.

    Raises:
        ValueError: there is no number.
    """
    _, hashes, behind = text.rpartition("####")
    gold = behind.strip().replace(",", "")
    if not hashes or not _NUMBER.fullmatch(gold):
        raise ValueError(f"there is no '####' with a number behind it, but {text[-40:]!r}")
    return gold


SOURCES: Mapping[str, RowFormat] = {
    "table": RowFormat(question="problem", answer="answer"),
    "metamath-math": RowFormat(
        question="query", answer="response", gold=after_the_answer_is, only=("type", "MATH_")
    ),
    "math": RowFormat(question="problem", answer="solution", gold=last_boxed),
    "gsm8k": RowFormat(question="question", answer="answer", gold=after_hashes),
}
"""Formats by the name that a configuration uses."""


def row_format(
    source: str, *, question: str | None = None, answer: str | None = None, ending: str | None = None
) -> RowFormat:
    """A format by name, with a user's own columns where they are given.

    Raises:
        ValueError: no format has that name.
    """
    if source not in SOURCES:
        raise ValueError(f"source {source!r} is none of {', '.join(SOURCES)}")
    return SOURCES[source].with_names(question, answer, ending)
