r"""One spelling for what TeX lets people write in many: the normal form of an answer.

Nothing here knows mathematics: \dfrac12, \frac{1}{2} and `$\frac 1 2$` become one text, 1/2 and 0.5
one number.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cached_property

from drift_rollout.verifiers.numerals import Numeral, read_numeral, written
from drift_rollout.verifiers.units import without_unit

_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/",
        "⁄": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "±": r"\pm ", "θ": r"\theta ",
        "′": "'", "“": '"', "”": '"', "’": "'", "∅": r"\emptyset ",
    }
)  # fmt: skip
_RAISED = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_DOLLAR = "\ue002"
"""A dollar sign that is one."""
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|texttt|mbox|hbox|mathrm|operatorname)\s*\{([^{}]*)\}"
)
_LIST_WORD = re.compile(r",?\s*\ue000\s*,?\s*(?:or|and)\s*\ue001|,?\s+(?:or|and)\s+")
_DELIMITER = re.compile(r"(?<!\\)\\[()\[\]]")
_BOX = re.compile(r"\s*\\(?:boxed|fbox)\s*\{")
_FUNCTION = re.compile(
    r"(?<![\\A-Za-z\ue000])(sqrt(?=\()|pi(?![A-Za-z])|(?:sin|cos|tan|cot|sec|csc|log|ln|exp)(?=\s*[(\d\\]))"
)
_OVER = re.compile(r"\{?([^{}]*)\\over(?![A-Za-z])([^{}]*)\}?")
_SIZING = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?)\s*(?![A-Za-z])\.?|\\(?:display|text|script)style(?![A-Za-z])"
)
_SPACING = re.compile(
    r"(?<!\\)\\(?:[;:>,/ ]|quad|qquad|thinspace|medspace|thickspace|enspace|hfill|newline)(?![A-Za-z])|~"
)
_HSPACE = re.compile(r"\\(?:hspace|vspace|phantom|hphantom)\*?\s*\{[^{}]*\}")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])")
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SQRT_BARE = re.compile(r"\\sqrt\s*(\d|[A-Za-z](?![A-Za-z]))")
_ARGUMENT = re.compile(r"\s*(\\[A-Za-z]+|[^\s{}\\])")
_PERCENT = re.compile("\ue000?\\s*(?:\\\\?%|\\bpercent)\\s*\ue001?$")
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])")
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_SPACE = re.compile(r"(\\[A-Za-z]+)\s+(?=[A-Za-z])|(?<=\d)\s*(\s)\s*(?=[\d.])|\s+")
_NAMED = re.compile(
    r"(?P<name>\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z]\))?|\\angle\s?[A-Z]+|\|[A-Z]+\|)(?:=|\\in(?![A-Za-z]))(?P<value>[^=]+)"
)
_BASE = re.compile(r"(-?[0-9A-F]+)_(?:\{(\d+)\}|(\d+))")
_BASE_TEN = re.compile(r"^(-?\d+)_(?:\{10\}|10)$")
_ALONE = re.compile(r"^\(([A-Za-z]|-?[\d.]+)\)$")
_WORDS = re.compile("\ue000[^\ue001]*[A-Za-z]{2}|\ue000[^,\ue001]*[A-Za-z][^,\ue001]*\ue001")
_RUN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
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
        as_list: what it is if its commas part values, where they may part thousands.
    """

    text: str
    unit: str | None = None
    name: str | None = None
    percent: bool = False
    textual: bool = False
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
        return re.sub(r"[A-Za-z]{2,}", lambda match: match[0].casefold(), words)

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
        """The elements of a list or tuple, two at least; none for a single value."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[str, tuple[Form, ...]]:
        opening = next((mark for mark in _BRACKETS if self.text.startswith(mark)), "")
        closing = next((mark for mark in _BRACKETS.values() if self.text.endswith(mark)), "")
        inner = self.text[len(opening) : len(self.text) - len(closing)] if opening and closing else ""
        parts = None if not inner else split_list(inner)
        if parts is None:
            opening, closing, parts = "", "", split_list(self.text)
        if parts is not None and len(parts) == 1 and self.text.count("\\pm") == 1:
            opening, closing, parts = "", "", [self.text.replace("\\pm", sign) for sign in "+-"]
        if parts is None or (len(parts) < 2 and opening != "\\{"):
            return "", ()
        return (opening + closing).replace("\\", ""), tuple(normal_form(part) for part in parts)


def normal_form(text: str) -> Form:
    """The normal form of an answer; of a long one in time that grows with its length alone."""
    text = _formula(_without_markup(text))
    text = _listed(text).strip().rstrip(".,;: ").strip()
    listed, text = text, _without_grouping(text)
    form = _form(text)
    return form if text == listed else replace(form, as_list=_form(listed))


def _form(text: str) -> Form:
    text, percent = _without_percent(text)
    text, unit = without_unit(text)
    unit, text = unit or ("dollar" if _DOLLAR in text else None), text.replace(_DOLLAR, "")
    if unit == "degree" or not _TRIGONOMETRY.search(text):
        text, degrees = _DEGREE.subn("", text)
        unit = unit or ("degree" if degrees else None)
    textual = _WORDS.search(text) is not None
    text = _BASE_TEN.sub(r"\1", _tight(text.replace("\ue000", " ").replace("\ue001", " ")))
    name = _NAMED.fullmatch(text)
    if name is not None:
        return Form(text=name["value"], unit=unit, name=name["name"], percent=percent)
    textual = textual or (_RUN.search(text) is not None and "\\" not in text)
    return Form(text=_ALONE.sub(r"\1", text), unit=unit, percent=percent, textual=textual)


def _listed(text: str) -> str:
    """With a comma for `and` and `or`, between values and between single letters."""
    values = re.search(r"\d", text) or not re.search("[A-Za-z]{2,}", _LIST_WORD.sub(",", text))
    return _LIST_WORD.sub(",", text) if values else text


def _without_grouping(text: str) -> str:
    """Digits without commas or spaces between thousands; in brackets a comma parts values."""
    text = _GROUPS.sub(lambda match: match[0].replace(" ", ""), text)
    if re.search(r"[(\[]|\\\{", text):
        return text
    return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)


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


def split_list(text: str) -> list[str] | None:
    """A text at its commas that stand in no bracket; None if its brackets do not close each other."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return None if depth else [*parts, text[start:]]


def _without_markup(text: str) -> str:
    """Characters, delimiters, sizes, spaces and fractions in one spelling; words of \\text{…} marked."""
    text = _RAISED.sub(lambda match: f"^{{{match[0]}}}", text.translate(_CHARACTERS))
    # A space, or 1½ would become 11/2.
    text = _VULGAR.sub(lambda match: " \\frac{{{}}}{{{}}}".format(*_folded(match[0]).split("⁄")), text)
    text = _folded(text).translate(_CHARACTERS)
    text = "".join(" " if c.isspace() else c for c in text if c.isprintable() or c.isspace())
    text = text.replace("\\!", "").replace("{,}", ",").replace("\\$", _DOLLAR).replace("$", "")
    text = _DELIMITER.sub(" ", text)
    text = _HSPACE.sub(" ", _SIZING.sub("", _SPACING.sub(" ", text)))
    text = _TEXT_COMMAND.sub("\ue000\\1\ue001", text)
    return _FRAC.sub(r"\\frac", text)


def _formula(text: str) -> str:
    """What is typed without TeX as TeX: sqrt(2), 2*pi, x^(1/2), sin(x); and no box around the whole."""
    box = _BOX.match(text)
    if box is not None and _closing(text, box.end() - 1) == len(text.rstrip()):
        text = text.rstrip()[box.end() : -1]
    text = re.sub(r"^\s*(?:\\approx|\\sim|[€£¥])\s*", "", text)
    text = _OVER.sub(r"\\frac{\1}{\2}", text)
    text = _FUNCTION.sub(r"\\\1", text.replace("**", "^"))
    for call in ("\\sqrt(", "^("):
        while (start := text.find(call)) >= 0 and (end := _closing(text, start + len(call) - 1)):
            opening = start + len(call)
            text = f"{text[: opening - 1]}{{{text[opening : end - 1]}}}{text[end:]}"
    return text


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _without_percent(text: str) -> tuple[str, bool]:
    bare = _PERCENT.sub("", text)
    return bare, bare != text


def _tight(text: str) -> str:
    """Without spaces, but where one parts a command from a letter or two numbers."""
    text = _SQRT_BARE.sub(r"\\sqrt{\1}", _with_braces(text))
    text = _SPACE.sub(lambda match: f"{match[1]} " if match[1] else match[2] or "", text)
    return text[1:-1] if text.startswith("{") and _closing(text, 0) == len(text) else text


def _with_braces(text: str) -> str:
    r"""\frac12, \frac1{2} and \frac{1}2 as \frac{1}{2}."""
    place = len(text)
    while (place := text.rfind("\\frac", 0, place)) >= 0:
        end = place + len("\\frac")
        above, end = _argument(text, end)
        below, end = _argument(text, end)
        if above is not None and below is not None:
            text = f"{text[:place]}\\frac{{{above}}}{{{below}}}{text[end:]}"
    return text


def _argument(text: str, start: int) -> tuple[str | None, int]:
    """An argument of a command, in braces or of one character, and where it ends."""
    opening = len(text) - len(text[start:].lstrip())
    if text[opening : opening + 1] == "{":
        end = _closing(text, opening)
        return (text[opening + 1 : end - 1].strip(), end) if end else (None, start)
    match = _ARGUMENT.match(text, start)
    return (match[1], match.end()) if match else (None, start)


def _closing(text: str, opening: int) -> int:
    """Behind the bracket that closes this one; 0 if none does."""
    depth, (more, less) = 0, "{}" if text[opening] == "{" else "()"
    for index in range(opening, len(text)):
        depth += {more: 1, less: -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    return 0
