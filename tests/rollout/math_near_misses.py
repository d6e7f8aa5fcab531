r"""What looks like a gold but is another answer; for golds as MATH writes them.

A change returns nothing where it says nothing about that gold. Now and then it is none (a part of zero
changes its sign), so every answer that is accepted is held against math_check.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from rollout.math_spellings import BASE, PERCENT, UNIT, bare_list, bracketed

_OTHER_UNITS = {
    "cm": "m", "feet": "inches", "inches": "feet", "miles": "km", "hours": "days", "days": "hours",
    "pounds": "kg", "min": "hours", "gallons": "liters", "dollars": "cents", "cents": "dollars",
    "square units": "cubic units", "units": "square units", "square cm": "cm", "square inches": "inches",
    "cubic inches": "square inches", "square feet": "square yards", "mph": "ft",
}  # fmt: skip


def _sign(gold: str, chance: random.Random) -> list[str]:
    places = [
        match
        for match in re.finditer(r"(?<![\w}.,\\])-?(?=\d|\\d?frac|\\sqrt|\\pi)", gold)
        if "_" not in gold
    ]
    if not places:
        return []
    place = chance.choice(places)
    return [gold[: place.start()] + ("" if place[0] else "-") + gold[place.end() :]]


def _operator(gold: str, chance: random.Random) -> list[str]:
    places = [match.start() for match in re.finditer(r"(?<=[\w} ])[+-](?=[ \w\\])", gold)]
    if not places or "text" in gold:
        return []
    place = chance.choice(places)
    return [gold[:place] + ("-" if gold[place] == "+" else "+") + gold[place + 1 :]]


def _digit(gold: str, chance: random.Random) -> list[str]:
    places = [match.start() for match in re.finditer(r"\d", gold)]
    if not places or "\\approx" in gold[1:]:
        return []
    place = chance.choice(places)
    other = chance.choice([digit for digit in "123456789" if digit != gold[place]])
    return [gold[:place] + other + gold[place + 1 :]]


def _rounded_side(gold: str, chance: random.Random) -> list[str]:
    exact, about, rounded = gold.partition("\\approx")
    return [exact + about + digit for digit in _digit(rounded, chance)] if exact and about else []


def _more_digits(gold: str, chance: random.Random) -> list[str]:
    if not re.fullmatch(r"-?\d+", gold):
        return []
    return [
        gold + chance.choice("0123456789"),
        f"{gold}.5",
        f"{gold},{gold}",
        f"{gold}!",
        f"{gold}^2",
        f"{gold}i",
        f"{gold}x",
    ]


def _turned(gold: str, chance: random.Random) -> list[str]:
    turned = re.sub(r"\\([dt]?)frac\{([^{}]*)\}\{([^{}]*)\}", r"\\\1frac{\3}{\2}", gold, count=1)
    return [turned] if turned != gold else []


def _bracket(gold: str, chance: random.Random) -> list[str]:
    found = bracketed(gold)
    if found is None:
        return []
    opening, parts, closing = found
    inside = ", ".join(parts)
    left, right = (
        opening[:-1] + ("[" if opening[-1] == "(" else "("),
        closing[:-1] + ("]" if closing[-1] == ")" else ")"),
    )
    return [
        left + inside + closing,
        opening + inside + right,
        left + inside + right,
        f"\\{{{inside}\\}}",
        inside,
    ]


def _tuple_order(gold: str, chance: random.Random) -> list[str]:
    found = bracketed(gold)
    if found is None:
        return []
    return [
        found[0] + ", ".join(found[1][::-1]) + found[2],
        found[0] + ", ".join(found[1][1:]) + found[2],
        found[0] + ", ".join([*found[1], "0"]) + found[2],
    ]


def _list_elements(gold: str, chance: random.Random) -> list[str]:
    parts = bare_list(gold)
    if not parts:
        return []
    place = chance.randrange(len(parts))
    fewer, more = parts[:place] + parts[place + 1 :], [*parts, parts[place]]
    return [
        ", ".join(fewer),
        ", ".join(more),
        ", ".join([*parts, "77"]),
        "(" + ", ".join(parts) + ")",
        "+".join(parts),
    ]


def _unit(gold: str, chance: random.Random) -> list[str]:
    match = UNIT.fullmatch(gold.rstrip("."))
    if match is None or match["unit"] not in _OTHER_UNITS:
        return []
    other = _OTHER_UNITS[match["unit"]]
    return [
        f"{match['value']}\\text{{ {other}}}",
        f"{match['value']} {other}",
        f"{match['value']}\\text{{ thousand {match['unit']}}}",
    ]


def _currency(gold: str, chance: random.Random) -> list[str]:
    match = re.fullmatch(r"\\\$(\d+(?:\.\d+)?)", gold)
    return [f"{match[1]}\\text{{ cents}}", f"{match[1]} cents"] if match else []


def _base(gold: str, chance: random.Random) -> list[str]:
    match = BASE.fullmatch(gold)
    if match is None:
        return []
    base = int(match[2] or match[3])
    if not match[1].isdigit() or base >= 10 or match[1] == "1":
        return []
    return [f"{match[1]}_{{{base + 1}}}", match[1], str(int(match[1], base))]


def _part_lost(gold: str, chance: random.Random) -> list[str]:
    found = [
        re.sub(r" ?\\pi(?![a-z])", "", gold, count=1),
        re.sub(r"\\sqrt(?=\{)", "", gold, count=1),
        re.sub(r"(?<=[\d }])i$", "", gold),
    ]
    found += [
        re.sub(r"\^(?:\d|\{\d+\})", "", gold, count=1),
        re.sub(r"\\cup.*", "", gold),
        gold.replace("\\infty", "100"),
    ]
    return [text for text in found if text != gold and text.strip(" -")]


def _letter(gold: str, chance: random.Random) -> list[str]:
    places = [match.start() for match in re.finditer(r"(?<![A-Za-z\\{])[A-Za-z](?![A-Za-z])", gold)]
    if not places:
        return []
    place = chance.choice(places)
    other = chance.choice([letter for letter in "ABCDnkxyz" if letter.casefold() != gold[place].casefold()])
    return [gold[:place] + other + gold[place + 1 :]]


def _sizes(gold: str, chance: random.Random) -> list[str]:
    match = PERCENT.fullmatch(gold)
    if match is not None:
        return [f"0.{match[1]}1", f"{match[1]}0", f"0.0{match[1]}"]
    if not re.fullmatch(r"\d+", gold) or int(gold) < 2:
        return []
    return [
        f"{gold} million",
        f"{gold}\\text{{ or }}{int(gold) + 1}",
        f"\\text{{not }}{gold}",
        f"{gold}\\pm 1",
        f"<{gold}",
        f"\\frac{{1}}{{{gold}}}",
    ]


CHANGES: dict[str, Callable[[str, random.Random], list[str]]] = {
    "sign": _sign,
    "operator": _operator,
    "digit": _digit,
    "digit of a rounded side": _rounded_side,
    "more digits": _more_digits,
    "numerator and denominator": _turned,
    "bracket": _bracket,
    "order of a tuple": _tuple_order,
    "elements of a list": _list_elements,
    "unit": _unit,
    "currency": _currency,
    "base": _base,
    "part lost": _part_lost,
    "letter": _letter,
    "size": _sizes,
}
"""Other answers that look like a gold, by what they change."""
