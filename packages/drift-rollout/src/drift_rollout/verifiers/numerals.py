r"""Numbers as answers write them: 1234  -0.5  .5  3/4  \frac{3}{4}  1\frac{1}{2}  1e-5  3\times10^5."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_DIGITS = 400
"""Longest numeral that is read, in characters; a longer one is text."""
_EXPONENT = 400
"""Largest power of ten, so that 1e999999999 does not become a number of so many digits."""
_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"([+-]?){_DECIMAL}")
_POWER = re.compile(
    rf"(?P<head>[+-]?{_DECIMAL})(?:[eE](?P<e>[+-]?\d+)|(?:\\times|\\cdot|\*)10\^(?:\{{(?P<b>[+-]?\d+)\}}|(?P<c>\d)))"
)
_TEN = re.compile(r"(?P<sign>[+-]?)10\^(?:\{(?P<b>[+-]?\d+)\}|(?P<c>\d))")
_REPEATING = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d*)\.(?P<once>\d*)\\overline\{(?P<again>\d+)\}")
_RATIO = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>\d+)(?=\\frac| \d+/\d+$) ?)?"
    rf"(?:\\frac\{{(?P<a>[+-]?{_DECIMAL})\}}\{{(?P<b>[+-]?{_DECIMAL})\}}|(?P<c>{_DECIMAL})/(?P<d>{_DECIMAL}))"
)


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number, and whether it was written with a decimal point."""

    value: Fraction
    decimal: bool


def read_numeral(text: str) -> Numeral | None:
    """The number that a text without spaces is, exactly; None if it is none, or one of too many digits."""
    if not text or len(text) > _DIGITS:
        return None
    if _PLAIN.fullmatch(text):
        return Numeral(Fraction(text.removesuffix(".")), "." in text)
    for pattern, read in ((_RATIO, _ratio), (_POWER, _power), (_TEN, _power), (_REPEATING, _repeating)):
        if match := pattern.fullmatch(text):
            value = read(match)
            return None if value is None else Numeral(value, False)
    return None


def written(value: Fraction) -> str:
    """One spelling for each number."""
    return str(value)


def _ratio(match: re.Match[str]) -> Fraction | None:
    above, below = match["a"] or match["c"], match["b"] or match["d"]
    bottom = _fraction(below)
    # A mixed number has a proper fraction without signs of its own.
    if bottom == 0 or (match["whole"] and (above[0] in "+-" or below[0] in "+-")):
        return None
    value = Fraction(match["whole"] or 0) + _fraction(above) / bottom
    return -value if match["sign"] == "-" else value


def _power(match: re.Match[str]) -> Fraction | None:
    found = match.groupdict()
    exponent = int(found.get("e") or found.get("b") or found["c"])
    if abs(exponent) > _EXPONENT:
        return None
    head = found.get("head") or f"{found.get('sign', '')}1"
    return _fraction(head) * Fraction(10) ** exponent


def _repeating(match: re.Match[str]) -> Fraction:
    once, again = match["once"], match["again"]
    digits = int(f"{match['whole']}{once}{again}") - int(f"{match['whole']}{once}" or 0)
    value = Fraction(digits, (10 ** len(again) - 1) * 10 ** len(once))
    return -value if match["sign"] == "-" else value


def _fraction(text: str) -> Fraction:
    return Fraction(text.removesuffix("."))
