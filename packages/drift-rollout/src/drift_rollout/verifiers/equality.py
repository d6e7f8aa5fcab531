"""Whether two normal forms are the same mathematics; what they do not tell is asked of math-verify."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from drift_rollout.verifiers.normal_form import Form, normal_form
from drift_rollout.verifiers.numerals import Numeral

Ask = Callable[[str, str], bool]
"""Of two texts, the gold first: whether math-verify takes the second for the first."""

_ELEMENTS = 20
"""Longest list whose elements are compared one by one."""
_ROUNDED = 6
"""Decimal places at which a number with a decimal point equals another, as for math-verify.
A gold without a point is exact if it is a whole number."""
_SMALL = Fraction(1, 1000)
"""Below it, a gold is never rounded: six places of it say too little."""
_RELATION = re.compile(r"[<>]|\\(?:le|ge|leq|geq|lt|gt|ne|neq)(?![A-Za-z])")
"""An inequality, which an interval may stand for."""
_APPROXIMATELY = "\\approx"
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


def equal(gold: Form, said: Form, guards: MathGuards, ask: Ask) -> bool:
    """Whether an answer is the gold: by spelling, as a number, element by element, or by math-verify."""
    if _APPROXIMATELY in gold.text + said.text:
        return _same_approximation(gold, said, guards, ask)
    if gold.elements and said.as_list is not None:
        said = said.as_list
    if guards.units and gold.unit and said.unit and gold.unit != said.unit:
        return False
    if _same_spelling(gold, said):
        return True
    if _refused(gold, said, guards):
        return False
    if gold.number and said.number:
        return _same_number(gold, said, guards)
    if guards.repeats and _is_list(gold, said):
        return _same_elements(gold, said, guards, ask)
    texts = _texts(gold, said)
    # math-verify takes a set for a relation, but no relation for a set.
    return ask(*reversed(texts)) if gold.elements and _RELATION.search(said.text) else ask(*texts)


def _same_approximation(gold: Form, said: Form, guards: MathGuards, ask: Ask) -> bool:
    """A value and its approximation: both alike, or the answer opens with one of the gold's."""
    wanted, given = (
        [normal_form(part) for part in form.text.split(_APPROXIMATELY)] for form in (gold, said)
    )
    if len(wanted) == len(given):
        return all(equal(g, s, guards, ask) for g, s in zip(wanted, given, strict=True))
    return any(equal(part, given[0], guards, ask) for part in wanted)


def _named_otherwise(gold: Form, said: Form) -> bool:
    return gold.name is not None and said.name is not None and gold.name != said.name


def _otherwise_lettered(gold: Form, said: Form) -> bool:
    """Whether primes, or two letters that stand alone, differ."""
    letters = len(gold.text) == len(said.text) == 1 and (gold.text + said.text).isalpha()
    return gold.text.count("'") != said.text.count("'") or letters


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
    return _close(*scaled) or (not guards.percent and _close(gold.number, said.number))


def _scaled(form: Form) -> Numeral:
    assert form.number is not None
    return Numeral(form.number.value / 100, True) if form.percent else form.number


def _close(gold: Numeral, said: Numeral) -> bool:
    if gold.value == said.value:
        return True
    whole = gold.value.denominator == 1 and not gold.decimal
    if whole or not (gold.decimal or said.decimal) or abs(gold.value) < _SMALL:
        return False
    return round(gold.value, _ROUNDED) == round(said.value, _ROUNDED)


def _is_list(gold: Form, said: Form) -> bool:
    """Whether elements are to be compared; an interval may be told by inequalities, too."""
    if _RELATION.search(gold.text) or _RELATION.search(said.text):
        return False
    return bool(gold.elements or said.elements) and len(gold.elements) <= _ELEMENTS


def _same_elements(gold: Form, said: Form, guards: MathGuards, ask: Ask) -> bool:
    wanted, left = gold.elements or (gold,), list(said.elements or (said,))
    if len(wanted) != len(left):
        return False
    if _kind(gold):
        return all(equal(g, s, guards, ask) for g, s in zip(wanted, left, strict=True))
    # What is spelled alike goes first: it costs nothing, and leaves less to ask about.
    for element in sorted(wanted, key=lambda g: not any(_same_spelling(g, s) for s in left)):
        found = next((i for i, other in enumerate(left) if _same_spelling(element, other)), None)
        if found is None:
            found = next((i for i, other in enumerate(left) if equal(element, other, guards, ask)), None)
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
