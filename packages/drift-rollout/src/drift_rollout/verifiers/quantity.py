r"""The text of one quantity, its exact value, and the one spelling of that value.

A quantity is a sign, a currency sign, a numeral, and a unit. The numeral is an integer, a decimal,
scientific notation (1e-5, 3\times 10^5, 10^5), a fraction (3/4, \frac{3}{4}) or a mixed number whose
fraction is proper (1 3/4). Commas stand before every three digits or nowhere. A unit is %, °, a currency
sign, or one to four words behind a space (or in \text{…}): the symbols of units (cm, m^2, km/h), and words
of three letters or more, none of which is a number, an operation or a link between two numbers.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Context, Decimal, Inexact
from fractions import Fraction

LONGEST = 1_000
"""Characters of the longest text that is read as numbers."""

_LATEX = [
    (re.compile(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])"), ""),
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\[ ,;:]|~"), " "),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\(?:text|textrm|textbf|mathrm|mathbf) ?\{([^{}]*)\}"), r" \1 "),
    # Set apart on both sides: 1\frac{3}{4} is a mixed number, \frac{3}{4}5 is none.
    (re.compile(r"\\[dt]?frac ?\{ ?([+-]?[0-9]+) ?\} ?\{ ?([0-9]+) ?\}"), r" \1/\2 "),
]
_WRAPPED = re.compile(r"\$\$(.+)\$\$|\$(.+)\$|\\\((.+)\\\)|\\\[(.+)\\\]|\\boxed ?\{(.+)\}")

DIGITS = "(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
"""The pattern of a whole number without sign."""
_CURRENCY = "[$€£¥₹]"
_POWER = r"10 ?(?:\^|\*\*) ?(?:\{ ?([+-]?[0-9]{1,3}) ?\}|([+-]?[0-9]{1,3}))"
_QUANTITY = re.compile(
    rf"(?P<sign>[+-]? ?{_CURRENCY}? ?[+-]?) ?"
    r"(?:"
    rf"(?:(?P<whole>{DIGITS}) )?(?P<over>{DIGITS}) ?/ ?(?P<under>{DIGITS})"
    rf"|(?P<decimal>{DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
    rf"(?:[eE](?P<exponent>[+-]?[0-9]{{1,3}})| ?(?:\\times|\\cdot|[×·*x]) ?(?P<power>{_POWER}))?"
    rf"|(?P<bare>{_POWER})"
    r")"
    rf"(?: ?(?:%|°(?: ?[CF])?|{_CURRENCY})| (?P<unit>[^\s].*))?"
)
_WORD = r"[A-Za-zµμΩ]+(?: ?\^ ?(?:\{ ?-?[1-9] ?\}|-?[1-9])|[²³])?"
_UNIT = re.compile(rf"{_WORD}(?:(?: | ?/ ?|·){_WORD}){{0,3}}")
_SHORT = (
    "A C F H J L N T V W d g h l m s Ω cm mm km nm um µm μm ft yd mi in kg mg ug lb oz mL ml dL cL hr "
    "ms ns us Hz Pa eV kV mV mA kJ MJ kN kW MW kΩ pF nF of at by on an a"
)
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds "
    "thousand thousands million millions billion billions trillion trillions mil mln thou grand lakh crore "
    "dozen dozens half halves third thirds quarter quarters fourths fifths tenths hundredths score inf "
    "infinity"
)
_OPERATIONS = "plus minus over squared cubed factorial mod modulo root sqrt log exp sin cos tan cot sec csc"
_LINKS = (
    "and nor but not was are isn were than either about around approximately maybe perhaps wrong incorrect "
    "instead rather versus more less fewer remainder"
)
_SYMBOLS = frozenset(_SHORT.split())
_NO_UNITS = frozenset(f"{_NUMBERS} {_OPERATIONS} {_LINKS}".split())


def tidied(text: str) -> str | None:
    """The text in plain characters, without LaTeX spacing, fonts and delimiters; None if too long."""
    if len(text) > LONGEST:
        return None
    plain = "".join(map(_plain, text))
    for pattern, replacement in _LATEX:
        plain = pattern.sub(replacement, plain)
    plain = _without_stop(plain)
    while wrapped := _WRAPPED.fullmatch(plain):
        plain = _without_stop(wrapped[wrapped.lastindex or 0])
    return plain


def _without_stop(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip()


def _plain(character: str) -> str:
    if character in "−–‐‑":
        return "-"
    # Not all that NFKC folds: it makes 5² to 52, and 3½ to 31/2.
    if unicodedata.decomposition(character).startswith(("<wide>", "<narrow>", "<font>")):
        return unicodedata.normalize("NFKC", character)
    return character


def read_quantity(text: str) -> Fraction | None:
    """The exact value of a tidied text that is one quantity as a whole; None if it is none."""
    found = _QUANTITY.fullmatch(text)
    if found is None or found["sign"].count("-") + found["sign"].count("+") > 1:
        return None
    size = None if found["unit"] and not _is_unit(found["unit"]) else _size(found)
    return -size if size is not None and "-" in found["sign"] else size


def _size(found: re.Match[str]) -> Fraction | None:
    if found["over"]:
        return _mixed(found["whole"], _digits(found["over"]), _digits(found["under"]))
    if found["bare"]:
        return Fraction(10) ** _exponent(found["bare"])
    size = Fraction(found["decimal"].replace(",", ""))
    if found["power"]:
        return size * Fraction(10) ** _exponent(found["power"])
    return size * Fraction(10) ** int(found["exponent"] or 0)


def _mixed(whole: str | None, over: int, under: int) -> Fraction | None:
    if under == 0 or (whole is not None and over >= under):
        return None
    return _digits(whole or "0") + Fraction(over, under)


def _digits(text: str) -> int:
    return int(text.replace(",", ""))


def _exponent(power: str) -> int:
    return int(re.split(r"\^|\*\*", power)[1].strip(" {}"))


def _is_unit(text: str) -> bool:
    words = re.findall("[A-Za-zµμΩ]+", text)
    known = all(len(word) > 2 or word in _SYMBOLS for word in words)
    return known and _UNIT.fullmatch(text) is not None and _NO_UNITS.isdisjoint(map(str.lower, words))


def decimal_text(value: Fraction) -> str:
    """The decimal of a value if it ends, else its reduced fraction: 18, 2.5, 1/3."""
    exact = Context(prec=3 * LONGEST, traps=[Inexact])
    try:
        quotient = exact.divide(Decimal(value.numerator), Decimal(value.denominator))
    except Inexact:
        return str(value)
    text = f"{quotient:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
