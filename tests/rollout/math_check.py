r"""An opinion of its own on two answers: by trivial spelling, else by their values at a few points.

It shares nothing with the verifier: no normal form, no math-verify. What it cannot read it calls different,
so that a person looks at it.
"""

from __future__ import annotations

import cmath
import itertools
import re
import tokenize
import zlib

import sympy
from sympy.parsing.sympy_parser import (
    convert_xor,
    implicit_multiplication,
    parse_expr,
    split_symbols,
    standard_transformations,
)

_POINTS = (0.7319, 1.2843)
_RULES = (*standard_transformations, split_symbols, implicit_multiplication, convert_xor)
_FUNCTIONS = {
    name: getattr(sympy, name) for name in ("sqrt", "pi", "sin", "cos", "tan", "cot", "sec", "csc", "log")
}
_NAMES = {**_FUNCTIONS, "i": sympy.I, "oo": sympy.oo, "e": sympy.E}
_UNIT = re.compile(
    r"(?P<value>.*\d.*?)\\(?:text|mbox|textnormal|mathrm)\{"
    r"\s*(?P<unit>[a-z. ]+?)\.?\s*\}(?P<power>\^\{?[23]\}?)?"
)


def independently_equal(gold: str, answer: str) -> bool:
    """Whether two answers are the same; a unit or a percent sign may be missing from one."""
    one, other = _tidy(gold), _tidy(answer)
    if one == other or _words(one) == _words(other) != "":
        return True
    (one, unit), (other, other_unit) = _without_unit(one), _without_unit(other)
    if unit and other_unit and unit != other_unit:
        return False
    return any(_same(a, b) for a, b in itertools.product(_readings(one), _readings(other)))


def _tidy(text: str) -> str:
    text = (
        re.sub(r"\\(?:left|right)(?![a-z])|\\[!,;$]|\$|~", "", text).replace("{,}", ",").replace("−", "-")
    )
    text = re.sub(r"\\[dt]frac", r"\\frac", text).strip().rstrip(".")
    text = (
        re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
        if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\D.*)?", text)
        else text
    )
    return re.sub(r"\s+", " ", text)


def _words(text: str) -> str:
    """Words in \\text{…} or letters of a choice, without spaces and brackets; nothing of a formula."""
    bare = re.sub(r"\\(?:text|mbox)\{([^{}]*)\}", r"\1", text)
    return "" if re.search(r"[\\\d+*/^=-]", bare) else re.sub(r"[ ().]|,$", "", bare)


def _without_unit(text: str) -> tuple[str, str]:
    match = _UNIT.fullmatch(text)
    if match is not None:
        return match["value"], match["unit"] + (match["power"] or "")
    bare = re.sub(r"\s*(?:\^\{?\\circ\}?)$", "", text)
    return bare, "degrees" if bare != text else ""


def _readings(text: str) -> list[str]:
    """A percentage as it stands and as a number; a named value without its name."""
    text = re.sub(r"_(?:\{10\}|10)$", "", text)
    bare = re.sub(r"\s*\\?%$", "", text)
    named = re.fullmatch(r"[A-Za-z]+ ?= ?([^=]+)", text)
    return [bare] + ([f"({bare})/100"] if bare != text else []) + ([named[1]] if named else [])


def _same(one: str, other: str) -> bool:
    if _rows(one) or _rows(other):
        return _all_same(_rows(one), _rows(other))
    if "\\cup" in one or "\\cup" in other:
        return _matched(one.split("\\cup"), other.split("\\cup"))
    (left, first, right), (other_left, second, other_right) = _bracketed(one), _bracketed(other)
    if bool(left) != bool(other_left):
        return False
    if left:
        return _closed(left, first, right) == _closed(other_left, second, other_right) and _all_same(
            first, second
        )
    if len(first) > 1 or len(second) > 1:
        return _matched(first, second)
    return _same_values(one, other)


def _closed(left: str, parts: list[str], right: str) -> tuple[bool, bool]:
    """Whether each end is closed; at infinity a bracket adds no number."""
    return left == "[" and "\\infty" not in parts[0], right == "]" and "\\infty" not in parts[-1]


def _rows(text: str) -> list[str]:
    match = re.fullmatch(r"\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}", text)
    if match is None:
        return []
    rows = [row.split("&") for row in match[1].split("\\\\")]
    return [f"{len(rows)}", *(cell.replace("\\phantom", "") for row in rows for cell in row)]


def _bracketed(text: str) -> tuple[str, list[str], str]:
    text = text.strip()
    for opening, closing in itertools.product("([", ")]"):
        if text.startswith(opening) and text.endswith(closing) and len(parts := _parts(text[1:-1])) > 1:
            return opening, parts, closing
    return "", _parts(re.sub(r"^\\\{(.*)\\\}$", r"\1", text)), ""


def _parts(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in re.sub(r"\\text\{,? ?(?:and|or) \}", ",", text):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return [text]
        parts = [*parts, ""] if character == "," and depth == 0 else [*parts[:-1], parts[-1] + character]
    return parts


def _all_same(first: list[str], second: list[str]) -> bool:
    return len(first) == len(second) and all(map(_same, first, second))


def _matched(first: list[str], second: list[str]) -> bool:
    left = list(second)
    for part in first:
        found = next((other for other in left if _same(part, other)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _same_values(one: str, other: str) -> bool:
    if one.strip() == other.strip():
        return True
    if one.count("=") == other.count("=") == 1:
        return _same_equation(one, other)
    found = [_values(text) for text in (one, other)]
    return all(found) and all(_close(a, b) for a, b in zip(*found, strict=True))


def _same_equation(one: str, other: str) -> bool:
    sides = [_values("({})-({})".format(*text.split("="))) for text in (one, other)]
    if not all(sides):
        return False
    ratios = [a / b for a, b in zip(*sides, strict=True)]
    return all(_close(ratio, ratios[0]) for ratio in ratios)


def _close(one: complex, other: complex) -> bool:
    # A decimal stands for what it rounds: 1e-6, as the verifiers' rule.
    return one == other or abs(one - other) < 1e-9 * max(1.0, abs(one)) or abs(one - other) < 6e-7


def _values(text: str) -> list[complex]:
    """What a formula is at the points; none if it cannot be read, or is too large."""
    if "_" in text:
        return []
    try:
        formula = parse_expr(_python(text), local_dict=dict(_NAMES), transformations=_RULES)
        # By name: another letter is another value.
        drawn = {
            symbol: 1 + zlib.crc32(str(symbol).encode()) % 997 / 997 for symbol in formula.free_symbols
        }
        points = [{symbol: point * value for symbol, value in drawn.items()} for point in _POINTS]
        values = [complex(formula.subs(point).evalf()) for point in points]
        return values if all(map(cmath.isfinite, values)) else []
    except (SyntaxError, tokenize.TokenError, TypeError, ValueError, AttributeError, sympy.SympifyError):
        return []


def _python(text: str) -> str:
    text = re.sub(r"(?<!\\)\\ ", " ", text)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    text = re.sub(r"^(-?)(\d+) ?(\\frac\{\d+\}\{\d+\})$", r"\1(\2+\3)", text)
    text = re.sub(r"\\frac *(\d) *(\d)", r"((\1)/(\2))", text)
    text = re.sub(r"\\sqrt *(\d)", r"sqrt(\1)", text)
    for _ in range(5):
        text = re.sub(r"\\frac *\{([^{}]*)\} *\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\\sqrt\[(\d+)\]\{([^{}]*)\}", r"((\2)**(1/\1))", text)
        text = re.sub(r"\\sqrt *\{([^{}]*)\}", r"sqrt(\1)", text)
        text = re.sub(r"\^ *\{([^{}]*)\}", r"**(\1)", text)
    text = text.replace("\\cdot", "*").replace("\\times", "*").replace("\\infty", "oo")
    return re.sub(r"\\([a-z]+)", r" \1 ", text).replace("[", "(").replace("]", ")")
