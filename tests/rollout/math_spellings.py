r"""What a gold may be written as and still be itself; for golds as MATH writes them.

Text for text, apart from the verifier's own normal form. A respelling returns nothing where it says nothing
about that gold.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_WORDS = re.compile(r"\\(?:text|mbox|textnormal|mathrm|textbf|operatorname|begin|end)\s*\{[^{}]*\}")
UNIT = re.compile(
    r"(?P<value>[^a-z]*\d[^A-Za-z]*?)(?:\\ )?\s*\\(?:text|mbox|textnormal)\{\s*"
    r"(?P<unit>[A-Za-z .]+?)\.?\s*\}"
)
_INTEGER = re.compile(r"-?\d+")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{(\d+)\}\s*\{(\d+)\}|(\d)(\d))")
_DEGREES = re.compile(r"(-?[\d.]+)\s*(?:\^\\circ|\^\{\\circ\})")
PERCENT = re.compile(r"(-?[\d.]+) ?\\%")
BRACKETED = re.compile(r"(?P<open>(?:\\left)?\s*[(\[])(?P<inside>.*?)(?P<close>(?:\\right)?\s*[)\]])\.?")
_THOUSANDS = re.compile(r"\d{1,3}(?:,(?:\\!)?\d{3})+")
BASE = re.compile(r"(\w+)_(?:\{(\d+)\}|(\d+))\.?")
_OTHER_WORDS = {
    "cm": "centimeters", "feet": "ft", "inches": "in", "miles": "mi", "square units": "sq. units",
    "hours": "hrs", "pounds": "lb", "degrees": "degree", "min": "minutes", "gallons": "gal.",
    "dollars": "dollar", "days": "day", "units": "unit", "square inches": "sq in", "square cm": "sq cm",
}  # fmt: skip


def outside_words(gold: str, change: Callable[[str], str]) -> str:
    r"""The gold with its formula changed, and what stands in \text{…} as it was."""
    parts, start = [], 0
    for words in _WORDS.finditer(gold):
        parts += [change(gold[start : words.start()]), words[0]]
        start = words.end()
    return "".join([*parts, change(gold[start:])])


def elements(inside: str) -> list[str]:
    """A text at its commas outside of brackets; none if there is one part only."""
    parts, depth = [""], 0
    for character in inside:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return (
        [re.sub(r"^\\[,;] ?", "", part.strip()) for part in parts] if len(parts) > 1 and depth == 0 else []
    )


def bare_list(gold: str) -> list[str]:
    """The elements of a list of formulas without brackets around it, none for anything else."""
    return (
        []
        if _THOUSANDS.fullmatch(gold) or gold.startswith("{") or re.search("=|text|\\\\[$]", gold)
        else elements(gold)
    )


def bracketed(gold: str) -> tuple[str, list[str], str] | None:
    """Opening bracket, elements and closing bracket of one tuple or interval."""
    match = BRACKETED.fullmatch(gold.strip())
    if match is None or len(parts := elements(match["inside"])) < 2:
        return None
    return match["open"], parts, match["close"]


def _spaced(gold: str) -> list[str]:
    # A list of two may read as one number, and `{,}` is a comma of thousands.
    if _THOUSANDS.fullmatch(gold.replace(" ", "")) or re.search(r"\{,\}|,\\|\\\$|\^", gold):
        return [f" \t{gold}\n "]
    changed = [
        outside_words(
            gold, lambda text, space=space: re.sub(r" ?([+=,()\[\]<>]) ?", rf"{space}\1{space}", text)
        )
        for space in (" ", "")
    ]
    return [*changed, f" \t{gold}\n "]


def _close_degrees(gold: str) -> list[str]:
    return [gold.replace(", ", ",")] if gold.count("\\circ") > 1 else []


def _fractions(gold: str) -> list[str]:
    plain = re.sub(r"\\[dt]frac", r"\\frac", gold)
    return (
        [re.sub(r"\\frac", rf"\\{name}", plain) for name in ("frac", "dfrac", "tfrac")]
        if "frac" in gold
        else []
    )


def _short_fractions(gold: str) -> list[str]:
    match = _FRACTION.fullmatch(gold.lstrip("-"))
    if match is None:
        return []
    sign, above, below = gold[: gold.startswith("-")], match[1] or match[3], match[2] or match[4]
    found = [
        f"{sign}{above}/{below}",
        f"\\frac{{{sign}{above}}}{{{below}}}",
        f"{sign}\\frac {{{above}}} {{{below}}}",
    ]
    return [*found, f"{sign}\\frac{above}{below}"] if len(above) == len(below) == 1 else found


def _sized(gold: str) -> list[str]:
    bare = re.sub(r"\\(?:left|right)\s*", "", gold)
    if not re.search(r"[(\[]", bare) or bare.count("(") + bare.count("[") != bare.count(")") + bare.count(
        "]"
    ):
        return []
    sized = re.sub(r"([)\]])", r"\\right\1", re.sub(r"([(\[])", r"\\left\1", bare))
    return [bare, sized, sized.replace("\\left", "\\left ").replace("\\right", "\\right ")]


def _delimited(gold: str) -> list[str]:
    bare = gold.replace("\\$", "").replace("$", "")
    if "approx" in gold:
        return [f"${bare}$"]
    return [f"${bare}$", f"$${bare}$$", f"\\({bare}\\)", f"\\[{bare}\\]", f"\\boxed{{{bare}}}"]


def _units(gold: str) -> list[str]:
    match = UNIT.fullmatch(gold.rstrip("."))
    if match is None or match["unit"] not in _OTHER_WORDS:
        return []
    value, unit, other = match["value"], match["unit"], _OTHER_WORDS[match["unit"]]
    return [
        value,
        f"{value}\\,\\mathrm{{{unit}}}",
        f"{value} \\text{{ {other}}}",
        f"{value}~\\text{{{unit}}}",
        f"{value}\\mbox{{ {unit}}}",
        *(f"{value} {plain}" for plain in (unit, other) if "\\" not in value),
    ]


def _full_stop(gold: str) -> list[str]:
    return [gold.rstrip(".") + ".", f"{gold.rstrip('.')} ."]


def _thousands(gold: str) -> list[str]:
    digits = re.sub(r",(\\!)?", "", gold) if _THOUSANDS.fullmatch(gold) else gold
    if not _INTEGER.fullmatch(digits) or len(digits.lstrip("-")) < 4:
        return []
    return [digits, *(f"{int(digits):,}".replace(",", comma) for comma in (",", ",\\!", "{,}", "\\,"))]


def _unicode(gold: str) -> list[str]:
    found = [gold.replace("-", "−")] if "-" in gold else []
    found += [
        outside_words(gold, lambda text, space=space: re.sub(r"(?<!\\) ", space, text))
        for space in "\u00a0\u2009"
        if " " in gold
    ]
    found += [f"\u00a0{gold}\u00a0"]
    if re.search(r"\\pi(?![a-z])", gold):
        found.append(re.sub(r"\\pi(?![a-z])", "π", gold))
    return found + ([gold.replace("\\infty", "∞").replace("\\cup", "∪")] if "\\infty" in gold else [])


def _decimals(gold: str) -> list[str]:
    match = re.fullmatch(r"(-?)0?(\.\d+)", gold)
    if match is None:
        return [f"{gold}.0", f"{gold}.00"] if re.fullmatch(r"-?\d{1,3}", gold) else []
    return [f"{match[1]}{match[2]}", f"{match[1]}0{match[2]}", f"{gold}0"]


def _ordered(gold: str) -> list[str]:
    parts = bare_list(gold)
    if not parts:
        return []
    turned = [parts[::-1], parts[1:] + parts[:1]]
    spoken = [" and ".join(turned[0])] if len(parts) == 2 and re.search(r"\d", gold) else []
    return [*(", ".join(turn) for turn in turned), f"\\{{{', '.join(parts)}\\}}", *spoken]


def _degrees(gold: str) -> list[str]:
    match = _DEGREES.fullmatch(gold.rstrip("."))
    return (
        []
        if match is None
        else [
            match[1] + end
            for end in ("", "°", "^\\circ", "^{\\circ}", "\\text{ degrees}", " degrees", "\\degree")
        ]
    )


def _percents(gold: str) -> list[str]:
    match = PERCENT.fullmatch(gold)
    return (
        []
        if match is None
        else [match[1] + end for end in ("\\%", "%", " %", "\\text{ percent}", " percent", "")]
    )


def _percent_in_text(gold: str) -> list[str]:
    match = PERCENT.fullmatch(gold)
    return [] if match is None else [f"{match[1]}\\text{{\\%}}"]


def _bases(gold: str) -> list[str]:
    match = BASE.fullmatch(gold)
    if match is None:
        return []
    base = match[2] or match[3]
    return [f"{match[1]}_{{{base}}}", f"{match[1]}_{base}", f"{match[1]}_{{\\text{{{base}}}}}"]


def _named(gold: str) -> list[str]:
    return [f"x={gold}", f"x = {gold}"] if re.fullmatch(r"-?\d+|-?\\frac\{\d+\}\{\d+\}", gold) else []


def _money(gold: str) -> list[str]:
    match = re.fullmatch(r"\\\$([\d.]+)", gold)
    return [] if match is None else [match[1], f"${match[1]}", f"\\${match[1]}\\text{{ dollars}}"]


RESPELLINGS: dict[str, Callable[[str], list[str]]] = {
    "spaces": _spaced,
    "dfrac and tfrac": _fractions,
    "short fractions": _short_fractions,
    "left and right": _sized,
    "delimiters": _delimited,
    "units": _units,
    "full stop": _full_stop,
    "thousands commas": _thousands,
    "unicode": _unicode,
    "decimals": _decimals,
    "order of a list": _ordered,
    "degrees": _degrees,
    "degrees in a list": _close_degrees,
    "percent": _percents,
    "percent in text": _percent_in_text,
    "bases": _bases,
    "names": _named,
    "money": _money,
}
"""Other spellings of a gold, by what they change."""
