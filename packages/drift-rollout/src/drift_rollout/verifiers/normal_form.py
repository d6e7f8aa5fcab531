r"""The normal form of an answer: 1/2 and 0.5 cm are one value. Nothing here knows mathematics."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from drift_rollout.verifiers.numerals import Numeral, read_numeral, written
from drift_rollout.verifiers.spelling import closing, respelled, tight
from drift_rollout.verifiers.units import read_unit

_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
"""What needs no rule at all, and is most of what answers are."""
_LIST_WORD = re.compile(r",? ?\ue000 ?,? ?(?:or|and) ?\ue001|,? (?:or|and) ")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])")
_PERCENT = re.compile("\ue000? ?(?:\\\\?%|\\bpercent) ?\ue001?$")
_DEGREE = re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])")
_DEGREES = re.compile(rf"(\d+(?:\.\d+)?) ?(?:{_DEGREE.pattern})")
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_TEXT_OF_VALUE = re.compile("\ue000 ?(\\d[\\d.,/]*(?: [A-Za-z. ]+)?)\ue001")
_NAMED = re.compile(
    r"(?P<name>\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z]\))?|\\(?:angle|triangle) ?[A-Z]+|\|[A-Z]+\|"
    r"|\([A-Za-z](?:,[A-Za-z])+\))(?:=|\\in(?=[\[(]|\\\{))(?P<value>[^=]+|[^=,]+(?:=[^=,]+)+)"
)
_BASE = re.compile(r"(-?[0-9A-F]+)_(?:\{(\d+)\}|(\d+))")
_BASE_TEN = re.compile(r"^(-?\d+)_(?:\{10\}|10)$")
_OPTION = re.compile(r"^([A-Z])\)$")
_WORDS = re.compile("\ue000[^\ue001]*[A-Za-z]{2}|\ue000[^,\ue001]*[A-Za-z][^,\ue001]*\ue001")
_ONLY_WORDS = re.compile(r"[A-Za-z]{2,}|\\(?:angle|triangle) ?[A-Z]+|[^\\]*[A-Za-z]{4}[^\\]*")
_BRACKETS = {"(": ")", "[": "]", "\\{": "\\}"}


@dataclass(frozen=True, kw_only=True)
class Form:
    """An answer in its normal form.

    Args:
        text: without spaces, unit and name.
        unit: the canonical unit behind it, if any.
        name: what is said to be equal to it, such as `x` of `x = 5`.
        percent: whether a percent sign stands behind it.
        textual: whether it is words, which are spelled and not computed.
        counted: what it is if the words behind it, which are no known unit, are one.
        as_list: what it is if its commas part values, where they may part thousands.
    """

    text: str
    unit: str | None = None
    name: str | None = None
    percent: bool = False
    textual: bool = False
    counted: Form | None = None
    as_list: Form | None = None

    @cached_property
    def number(self) -> Numeral | None:
        """What it is, if it is a plain number; the percent sign apart."""
        return read_numeral(self.text)

    @cached_property
    def canonical(self) -> str:
        """The same for all spellings of one answer, as far as spelling goes."""
        value = self.spelled if self.textual else self.text
        if self.number is not None:
            value = written(self.number.value)
        return value + ("%" if self.percent else "")

    @cached_property
    def spelled(self) -> str:
        """As words: without full stops and outer brackets; case counts for single letters alone."""
        words = self.text.replace(".", "").strip("()")
        return re.sub(r"[A-Za-z]{3,}|[A-Z]?[a-z]|[A-Z]{2}", _lowered, words)

    @cached_property
    def base(self) -> tuple[str, str] | None:
        """Digits and base of a number with a base written under it."""
        match = _BASE.fullmatch(self.text)
        return None if match is None else (match[1].replace("-0", "-").lstrip("0"), match[2] or match[3])

    @cached_property
    def brackets(self) -> str:
        """Opening and closing bracket around the whole of a list, such as `(]`; empty without."""
        return self._parts[0]

    @cached_property
    def elements(self) -> tuple[Form, ...]:
        r"""The elements of a list, tuple or interval, or of \pm; none for a single value."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[str, tuple[Form, ...]]:
        opening = next((mark for mark in _BRACKETS if self.text.startswith(mark)), "")
        ending = next((mark for mark in _BRACKETS.values() if self.text.endswith(mark)), "")
        inner = self.text[len(opening) : len(self.text) - len(ending)] if opening and ending else ""
        parts = None if not inner else split_list(inner)
        if parts is None:
            opening, ending, parts = "", "", split_list(self.text)
        if parts is not None and len(parts) == 1 and self.text.count("\\pm") == 1:
            opening, ending, parts = "", "", [self.text.replace("\\pm", sign) for sign in "+-"]
        if parts is None or (len(parts) < 2 and opening not in ("\\{", "[")):
            return "", ()
        return (opening + ending).replace("\\", ""), tuple(normal_form(part) for part in parts)


def _lowered(words: re.Match[str]) -> str:
    return words[0] if len(words[0]) == 1 else words[0].lower()


@lru_cache(maxsize=1 << 12)
def normal_form(text: str) -> Form:
    """The normal form of an answer; those seen last are kept, since samples of a problem repeat answers."""
    if _PLAIN.fullmatch(text):
        return Form(text=text)
    text = _listed(respelled(text))
    text = text if text.endswith("..") else text.rstrip(".,;: ")
    grouped = _without_grouping(text)
    form = _measured(grouped)
    return form if grouped == text else replace(form, as_list=_measured(text))


def split_list(text: str) -> list[str] | None:
    """A text at its commas that stand in no bracket; None if its brackets do not close each other."""
    parts, open_brackets, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            open_brackets += 1
        elif character in ")]}":
            open_brackets -= 1
            if open_brackets < 0:
                return None
        elif character == "," and open_brackets == 0:
            parts.append(text[start:index])
            start = index + 1
    return None if open_brackets else [*parts, text[start:]]


def depth(text: str) -> int | None:
    """The most brackets that are open at once; None if they do not close each other."""
    deepest = 0
    stack: list[str] = []
    for bracket in re.findall(r"\\\\|\\[{}]|[(\[{)\]}]", text):
        kind = bracket[-1]
        if kind in "([{":
            stack.append(bracket)
            deepest = max(deepest, len(stack))
        # Intervals may be half open.
        elif kind in ")]}" and (not stack or (stack.pop()[-1] == "{") != (kind == "}")):
            return None
    return None if stack else deepest


def _listed(text: str) -> str:
    """With a comma for `and` and `or`, between values and between single letters."""
    listed = _LIST_WORD.sub(", ", text)
    return listed if re.search(r"\d", text) or not re.search("[A-Za-z]{2,}", listed) else text


def _without_grouping(text: str) -> str:
    """Digits without commas or spaces between thousands.

    In brackets a comma parts values, unless others have a space behind them.
    """
    text = _GROUPS.sub(lambda match: match[0].replace(" ", ""), text)
    if re.search(r"[(\[]|\\\{", text) and ", " not in text:
        return text
    return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)


def _measured(text: str) -> Form:
    """With the unit apart, if it is one."""
    text = _TEXT_OF_VALUE.sub(r"\1", text) if text.count("\ue000") == 1 else text
    bare = _PERCENT.sub("", text)
    measured = read_unit(bare)
    if measured is None:
        return _form(bare, None, percent=bare != text)
    inside = _form(measured.value, measured.unit, percent=bare != text)
    return inside if measured.known else replace(_form(bare, None, percent=bare != text), counted=inside)


def _form(text: str, unit: str | None, *, percent: bool) -> Form:
    if _TRIGONOMETRY.search(text):
        text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    else:
        text, degrees = _DEGREE.subn("", text)
        unit = unit or ("degree" if degrees else None)
    textual = _WORDS.search(text) is not None
    text = _BASE_TEN.sub(r"\1", tight(text))
    name = _NAMED.fullmatch(text)
    if name is not None:
        return Form(text=_bare(name["value"]), unit=unit, name=name["name"], percent=percent)
    textual = textual or _ONLY_WORDS.fullmatch(text) is not None
    return Form(text=_bare(text), unit=unit, percent=percent, textual=textual)


def _bare(text: str) -> str:
    """Without round brackets around a single value, and without that behind an option's letter."""
    while text.startswith("(") and closing(text, 0) == len(text):
        inner = split_list(text[1:-1])
        if inner is None or len(inner) > 1:
            break
        text = text[1:-1]
    return _OPTION.sub(r"\1", text)
