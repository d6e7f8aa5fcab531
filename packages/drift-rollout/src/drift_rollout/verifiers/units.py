r"""Units behind an answer, by explicit rule: \text{…} of any words, or up to three plain words.

Words that change what a number says ("million", "or", "not") are no unit.
"""

from __future__ import annotations

import re

_CHANGES = frozenset(
    re.findall(
        r"\w+",
        """
        am pm hundred thousand million billion trillion dozen dozens half third thirds quarter quarters
        fourth percent squared cubed factorial mod base or and not no nor is isn are aren was were
        be wrong right correct false true than more less fewer greater most least about at to from
        by per over under plus minus times divided of the if but only unknown undefined none
        infinity infinite any all answer
        """,
    )
)
_SAME = {
    alias: name
    for name, aliases in {
        "inch": "in inches",
        "foot": "ft feet",
        "yard": "yd yds yards",
        "mile": "mi miles",
        "millimeter": "mm millimeters millimetre millimetres",
        "centimeter": "cm cms centimeters centimetre centimetres",
        "meter": "m meters metre metres",
        "kilometer": "km kilometers kilometre kilometres",
        "second": "s sec secs seconds",
        "minute": "min mins minutes",
        "hour": "h hr hrs hours",
        "day": "days",
        "gram": "g grams",
        "kilogram": "kg kgs kilograms",
        "pound": "lb lbs pounds",
        "ounce": "oz ounces",
        "liter": "l liters litre litres",
        "gallon": "gal gallons",
        "degree": "deg degrees",
        "dollar": "dollars usd",
        "cent": "cents",
        "square": "sq",
        "cubic": "cu",
        "unit": "units",
    }.items()
    for alias in aliases.split()
}
_TEXT, _END = "\ue000", "\ue001"
"""Around what stood in \\text{…}; private characters, which no answer keeps."""
_WORD = r"[A-Za-z]+(?:\.(?=\s|$|\ue001))?"
_WORDS = rf"{_WORD}(?:[\s-]+{_WORD}){{0,2}}"
_POWER = r"(?:\s*\^\s*\{?\s*[23]\s*\}?)?"
_BEHIND = re.compile(
    rf"(?P<value>.*[\d)\]}}A-Za-z\ue001])\s*(?:{_TEXT}\s*(?P<text>{_WORDS})\s*{_END}(?P<power>{_POWER})"
    rf"|(?<=[\d)\]}}])\s+(?P<plain>[A-Za-z]{{2,}}\.?(?:\s+{_WORD}){{0,2}})(?P<plain_power>{_POWER}))\s*",
    re.DOTALL,
)


def without_unit(text: str) -> tuple[str, str | None]:
    """A value, and the canonical unit behind it; None where there is none."""
    match = _BEHIND.fullmatch(text)
    if match is None:
        return text, None
    words = (match["text"] or match["plain"]).lower().replace(".", " ").replace("-", " ").split()
    if not any(character.isdigit() for character in match["value"]) or _CHANGES.intersection(words):
        return text, None
    power = "".join(re.findall(r"\d", match["power"] or match["plain_power"] or ""))
    return match["value"], _canonical(words, power)


def _canonical(words: list[str], power: str) -> str:
    named = [_SAME.get(word, word[:-1] if len(word) > 3 and word.endswith("s") else word) for word in words]
    sized = {"2": ["square"], "3": ["cubic"]}.get(power, [])
    return " ".join(sized + named)
