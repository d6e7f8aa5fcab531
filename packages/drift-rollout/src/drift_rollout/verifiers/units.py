"""Units behind a value, by explicit rule: those of the list here, and whatever the gold itself has.

Nothing else behind a number is a unit: "17 maybe", "17 lakh" and "17 cos x" are not 17.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from drift_rollout.verifiers.spelling import DOLLAR, END, TEXT

_NAMES = {
    "inch": "in inches",
    "foot": "ft feet",
    "yard": "yd yds yards",
    "mile": "mi miles",
    "millimeter": "mm millimeters millimetre millimetres",
    "centimeter": "cm cms centimeters centimetre centimetres",
    "meter": "m meters metre metres",
    "kilometer": "km kms kilometers kilometre kilometres",
    "acre": "acres",
    "second": "s sec secs seconds",
    "minute": "min mins minutes",
    "hour": "h hr hrs hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "yr yrs years",
    "milligram": "mg milligrams",
    "gram": "g grams",
    "kilogram": "kg kgs kilograms",
    "ton": "tons tonnes",
    "pound": "lb lbs pounds",
    "ounce": "oz ounces",
    "milliliter": "ml milliliters",
    "liter": "l L liters litre litres",
    "gallon": "gal gallons",
    "quart": "quarts",
    "pint": "pints",
    "cup": "cups",
    "degree": "deg degrees",
    "dollar": "dollars usd",
    "cent": "cents",
    "euro": "euros",
    "unit": "units",
    "way": "ways",
    "point": "points",
    "person": "people persons",
    "student": "students",
    "child": "children",
}
_KNOWN = {alias: name for name, aliases in _NAMES.items() for alias in (name, *aliases.split())}
_JOINED = {"mph": "mile / hour", "kph": "kilometer / hour", "kmh": "kilometer / hour"}
_SIZES = {"sq": "square", "square": "square", "cu": "cubic", "cubic": "cubic"}
_RAISED = {"squared": "square", "cubed": "cubic"}
_VOCABULARY = {**_KNOWN, **_JOINED, **_SIZES, "/": "/"}
_POWERS = {"": "", "2": "square ", "3": "cubic "}
_CURRENCIES = {DOLLAR: "dollar", "€": "euro", "£": "pound sterling", "¥": "yen"}
_WORD = r"[A-Za-z]+\.?"
_WORDS = rf"{_WORD}(?: ?[/-] ?{_WORD}| {_WORD}){{0,3}}"
_BEHIND = re.compile(
    r"(?P<value>.*?[\d)\]}A-Za-z]) ?"
    rf"(?:{TEXT} ?(?P<text>{_WORDS}) ?{END}|(?<=[\d)\]}}A-Za-z] )(?P<plain>{_WORDS})"
    r"|(?<=[\d)\]}])(?P<glued>[a-z]{2,}))"
    r"(?: ?\^ ?(?:\{ ?)?(?P<power>[23])(?: ?\})?)?"
)


_COMMAND = re.compile(r"\\(?!pi$)[A-Za-z]+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A value and the unit behind it."""

    value: str
    unit: str
    known: bool
    """Whether the unit is one of the list; if not, it counts only where the gold has it, too."""


def read_unit(text: str) -> Measured | None:
    """What a text measures; None if nothing that could be a unit stands behind it."""
    for sign, unit in _CURRENCIES.items():
        if text.startswith(sign):
            behind = read_unit(text[1:].strip())
            # $5 dollars is said twice, $5 cents is nothing.
            if behind is None or behind.unit == unit:
                return Measured(value=behind.value if behind else text[1:].strip(), unit=unit, known=True)
    match = _BEHIND.fullmatch(text)
    if match is None or not re.search(r"\d|\\pi", match["value"]) or _COMMAND.search(match["value"]):
        return None
    words = match["text"] or match["plain"] or match["glued"]
    unit, known = _canonical(words)
    if not known and not match["text"] and len(match["plain"] or "") < 2:
        return None
    return Measured(value=match["value"], unit=_POWERS[match["power"] or ""] + unit, known=known)


def _canonical(words: str) -> tuple[str, bool]:
    """One name for all spellings of a unit, and whether it is a known one."""
    parts = re.findall(r"[A-Za-z]+|/", re.sub(r"\bper\b", "/", words.replace(".", " ")))
    if len(parts) > 1 and parts[-1] in _RAISED:
        parts = [_RAISED[parts[-1]], *parts[:-1]]
    # m is a meter, M is none.
    found = [part if len(part) == 1 else part.lower() for part in parts]
    names = [_VOCABULARY.get(part) for part in found]
    plain = [part[:-1] if len(part) > 3 and part.endswith("s") else part for part in found]
    known = all(names) and any(part in _KNOWN or part in _JOINED for part in found)
    return " ".join(name or other for name, other in zip(names, plain, strict=True)), known
