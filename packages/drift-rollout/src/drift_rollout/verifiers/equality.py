"""Whether two normal forms are the same mathematics; what they do not tell is asked of math-verify."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from drift_rollout.verifiers.normal_form import Form, normal_form
from drift_rollout.verifiers.numerals import Numeral


class Oracle(Protocol):
    """math-verify, behind whatever keeps its word and bounds its time."""

    def same(self, gold: str, said: str) -> bool:
        """Whether it takes the second text for the first."""

    def rounds(self, value: str, decimal: str) -> bool:
        """Whether the value is the decimal, to as many places as that has."""


_ELEMENTS = 20
"""Longest list whose elements are compared one by one."""
_PLACES = Fraction(5, 10**7)
"""How far a number with a decimal point may be off, as for math-verify; a whole gold without one is
exact."""
_DIGITS = Fraction(5, 10**6)
"""And relative to a small gold, of which six places would say too little."""
_RELATION = re.compile(r"[<>]|\\(?:le|ge|leq|geq|lt|gt|ne|neq)(?![A-Za-z])")
"""An inequality, which an interval may stand for."""
_APPROXIMATELY = "\\approx"
_LETTERS = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_LETTERS_BEHIND = re.compile(r"[\d.]+[A-Za-z]+")


# No slots: jsonargparse reads the fields of a default from its __dict__.
@dataclass(frozen=True, kw_only=True)
class MathGuards:
    r"""What math-verify would accept and these refuse; each can be turned off."""

    units: bool = True
    """A letter is no unit (`3m` is not 3), and two units that are given have to be the same."""
    brackets: bool = True
    """A tuple is no set: `(1,2)` is not `\\{1,2\\}`; a bare list is a set."""
    repeats: bool = True
    """A list has the elements of the gold, each as often: `3,3` is not 3."""
    unevaluated: bool = True
    """A gold that is a plain number wants one: `8+9` is not 17. Fractions, mixed numbers, repeating
    decimals and powers of ten are plain numbers."""
    subscripts: bool = True
    """A base that is written has to be the same: `11_2` is not 11."""
    words: bool = True
    """Words are spelled, not multiplied: `listen` is not `silent`."""
    names: bool = True
    """Two names that are given have to be the same: `y=3` is not `x=3`, and `f'` is not `f`."""
    percent: bool = False
    """A percent sign counts: `5` is not `5\\%`, but `0.05` is. Off, both are."""


def equal(gold: Form, said: Form, guards: MathGuards, oracle: Oracle) -> bool:
    """Whether an answer is the gold: by spelling, as a number, element by element, or by math-verify."""
    gold, said = _readings(gold, said, guards)
    if _APPROXIMATELY in gold.text + said.text:
        return _same_approximation(gold, said, guards, oracle)
    if guards.units and _measured_otherwise(gold, said):
        return False
    if _same_spelling(gold, said):
        return True
    if _is_chain(gold, said) and guards.names:
        return all(equal(gold, normal_form(side), guards, oracle) for side in said.text.split("="))
    if _refused(gold, said, guards):
        return False
    if gold.number and said.number:
        return _same_number(gold, said, guards)
    if guards.repeats and _is_list(gold, said):
        return _same_elements(gold, said, guards, oracle)
    texts = _texts(gold, said)
    # math-verify takes a set for a relation, but no relation for a set.
    turned = gold.elements and _RELATION.search(said.text)
    return oracle.same(*reversed(texts)) if turned else oracle.same(*texts)


def _readings(gold: Form, said: Form, guards: MathGuards) -> tuple[Form, Form]:
    """What gold and answer are to each other: whose words are units, and whose commas part values."""
    gold = gold.counted or gold
    if said.counted is not None and (said.counted.unit == gold.unit or not guards.units):
        said = said.counted
    listed = gold.elements and not said.elements and said.as_list is not None
    return gold, said.as_list or said if listed else said


def _measured_otherwise(gold: Form, said: Form) -> bool:
    """Whether units differ; degrees are not what a gold with π is in."""
    if gold.unit is None and said.unit == "degree" and "\\pi" in gold.text + said.text:
        return True
    return None not in (gold.unit, said.unit) and gold.unit != said.unit


def _same_approximation(gold: Form, said: Form, guards: MathGuards, oracle: Oracle) -> bool:
    """A value and its approximation: both alike, one of the gold's, or a value that rounds to the rest."""
    wanted, given = (
        [normal_form(part) for part in form.text.split(_APPROXIMATELY)] for form in (gold, said)
    )
    if len(wanted) == len(given):
        return all(equal(g, s, guards, oracle) for g, s in zip(wanted, given, strict=True))
    if len(given) == 1:
        return any(equal(part, said, guards, oracle) for part in wanted)
    if len(wanted) > 1 or not any(equal(gold, part, guards, oracle) for part in given):
        return False
    return all(part.number and _rounds(given[0], part, oracle) for part in given[1:])


def _rounds(value: Form, approximation: Form, oracle: Oracle) -> bool:
    if value.number is None or approximation.number is None:
        return oracle.rounds(value.text, approximation.text)
    places = len(approximation.text.partition(".")[2])
    return abs(value.number.value - approximation.number.value) <= Fraction(1, 10**places)


def _is_chain(gold: Form, said: Form) -> bool:
    """Whether an answer says several times what it is, where the gold is no equation."""
    return "=" in said.text and "," not in said.text and "=" not in gold.text and gold.name is None


def _named_otherwise(gold: Form, said: Form) -> bool:
    return gold.name is not None and said.name is not None and gold.name != said.name


def _otherwise_lettered(gold: Form, said: Form) -> bool:
    """Whether primes differ, or letters in nothing but their case; or an equation lacks the gold's name."""
    letters = [set(_LETTERS.findall(form.text)) for form in (gold, said)]
    folded = [{letter.casefold() for letter in found} for found in letters]
    if "\\in" in letters[1] - letters[0]:
        return True
    if gold.name is not None and said.name is None and "=" in said.text:
        return not set(_LETTERS.findall(gold.name)) <= letters[1]
    return gold.text.count("'") != said.text.count("'") or (
        letters[0] != letters[1] and folded[0] == folded[1]
    )


def _same_spelling(gold: Form, said: Form) -> bool:
    if gold.percent != said.percent or _named_otherwise(gold, said):
        return False
    if gold.base is not None and gold.base == said.base:
        return True
    return gold.text == said.text or ((gold.textual or said.textual) and gold.spelled == said.spelled)


def _refused(gold: Form, said: Form, guards: MathGuards) -> bool:
    if gold.textual:
        return guards.words
    if gold.base or said.base:
        return guards.subscripts and gold.base != said.base
    if _named_otherwise(gold, said) or _otherwise_lettered(gold, said):
        return guards.names
    if _kind(gold) != _kind(said) and _is_list(gold, said):
        return guards.brackets
    if gold.number and not said.number and not said.elements:
        if _LETTERS_BEHIND.fullmatch(said.text):
            return guards.units
        return guards.unevaluated
    return False


def _kind(form: Form) -> str:
    """The brackets of a tuple or interval; a bare list and a single value are a set without them."""
    return "" if form.brackets == "{}" else form.brackets


def _same_number(gold: Form, said: Form, guards: MathGuards) -> bool:
    assert gold.number is not None
    assert said.number is not None
    if gold.percent == said.percent:
        return _close(gold.number, said.number)
    scaled = [_scaled(form) for form in (gold, said)]
    # A sign that the gold lacks says something; one that only the gold has goes without saying.
    lenient = gold.percent and not guards.percent
    return _close(*scaled) or (lenient and _close(gold.number, said.number))


def _scaled(form: Form) -> Numeral:
    assert form.number is not None
    return Numeral(form.number.value / 100, True) if form.percent else form.number


def _close(gold: Numeral, said: Numeral) -> bool:
    if gold.value == said.value:
        return True
    whole = gold.value.denominator == 1 and not gold.decimal
    if whole or not (gold.decimal or said.decimal):
        return False
    return abs(gold.value - said.value) <= min(_PLACES, _DIGITS * abs(gold.value))


def _is_list(gold: Form, said: Form) -> bool:
    """Whether elements are to be compared; an interval may be told by inequalities, too."""
    if _RELATION.search(gold.text) or _RELATION.search(said.text):
        return False
    return bool(gold.elements or said.elements) and len(gold.elements) <= _ELEMENTS


def _same_elements(gold: Form, said: Form, guards: MathGuards, oracle: Oracle) -> bool:
    wanted, left = gold.elements or (gold,), list(said.elements or (said,))
    if len(wanted) != len(left):
        return False
    named = any(g.name for g in wanted) and not any(s.name for s in left)
    if _kind(gold) or named:
        return all(equal(g, s, guards, oracle) for g, s in zip(wanted, left, strict=True))
    # What is spelled alike goes first: it costs nothing, and leaves less to ask about.
    for element in sorted(wanted, key=lambda g: not any(_same_spelling(g, s) for s in left)):
        found = next((i for i, other in enumerate(left) if _same_spelling(element, other)), None)
        if found is None:
            found = next((i for i, other in enumerate(left) if equal(element, other, guards, oracle)), None)
        if found is None:
            return False
        left.pop(found)
    return True


def _texts(gold: Form, said: Form) -> tuple[str, str]:
    """What math-verify is to read; with names only where it has to compare equations."""
    named = _named_otherwise(gold, said) or "=" in gold.text + said.text
    texts = [f"{form.name}={form.text}" if named and form.name else form.text for form in (gold, said)]
    signs = ["\\%" if form.percent else "" for form in (gold, said)]
    return texts[0] + signs[0], texts[1] + signs[1]
