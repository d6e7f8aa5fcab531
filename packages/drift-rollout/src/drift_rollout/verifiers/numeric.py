"""`numeric`: booleans, numbers, lists of them and options, of which the gold answer's type decides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from drift_rollout.verifiers.quantity import DIGITS, LONGEST, decimal_text, read_quantity, tidied
from drift_rollout.verify import AnswerVerifier, Verified

_Value = bool | Fraction | str | tuple["_Value", ...]
"""What an answer says; a text is an option."""

_INTEGER = re.compile(rf"[+-]?{DIGITS}")
_FLOAT = re.compile(rf"[+-]?(?:{DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}})?")
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
_OPTION = re.compile(r"\(([A-Za-z])\)|([A-Za-z])")
_LIST = re.compile(r"\[(.*)\]|\((.*)\)")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Float:
    """A gold answer that need not be met exactly."""

    value: Fraction


_Gold = bool | Fraction | str | _Float | tuple["_Gold", ...]


@dataclass(frozen=True, kw_only=True)
class NumericVerifier(AnswerVerifier):
    """Typed and signed: the gold answer's type decides what is asked.

    True or False (or yes, no); an integer (18; 1,800), which wants the exact value; a decimal (2.5;
    1e-5), which wants |a − g| ≤ tolerance·|g|; a list of these ([1, 2.5]), element by element; an option
    ((a)). An answer is one number or one list as a whole: a currency sign, % and a unit behind it are
    dropped, and no number is ever picked out of prose. What reads as nothing of this is wrong.

    Args:
        tolerance: largest relative error under a decimal gold, 0 ≤ tolerance < 1, so that a sign never
            passes for the other one (TheoremQA's 4 %).
    """

    tolerance: float = 0.04

    def __post_init__(self) -> None:
        """Refuse a tolerance out of range."""
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be at least 0 and below 1, got {self.tolerance}")

    @property
    def name(self) -> str:
        """As in `Verifier`."""
        return self.named("numeric/1")

    def check_target(self, target: str) -> None:
        """Refuse a target that is of no type."""
        _read_gold(target)

    def judge(self, answer: str, target: str) -> Verified:
        """Correct if and only if the answer is of the target's type and agrees with it.

        Raises:
            ValueError: the target is of no type.
        """
        gold, value = _read_gold(target), _read(answer)
        if value is None:
            return Verified(answer="".join(answer.split()).lower(), verdict="wrong")
        # As it is written: 0.04, not the binary fraction next to it.
        correct = _agree(gold, value, Fraction(str(self.tolerance)))
        return Verified(answer=_spelled(value), verdict="correct" if correct else "wrong")


def _agree(gold: _Gold, value: _Value, tolerance: Fraction) -> bool:
    if isinstance(gold, tuple):
        return (
            isinstance(value, tuple)
            and len(gold) == len(value)
            and all(_agree(g, v, tolerance) for g, v in zip(gold, value, strict=True))
        )
    if isinstance(gold, _Float):
        return isinstance(value, Fraction) and abs(value - gold.value) <= tolerance * abs(gold.value)
    # In Python True equals 1.
    return type(value) is type(gold) and value == gold


@lru_cache(maxsize=1024)
def _read_gold(target: str) -> _Gold:
    text = target.strip()
    inner = re.fullmatch(r"\[(.*)\]", text, re.DOTALL)
    parts = [part.strip() for part in inner[1].split(",")] if inner else [text]
    golds = [_gold_scalar(part) for part in parts if len(text) <= LONGEST]
    known = [gold for gold in golds if gold is not None]
    if not known or len(known) < len(golds):
        raise ValueError(
            "the target of `numeric` must be True or False, an integer (18; 1,800), a decimal (0.5; 1e-5), "
            f"an option ((a)), or a list of these ([1, 2.5]), of at most {LONGEST} characters: {target!r}"
        )
    return tuple(known) if inner else known[0]


def _gold_scalar(text: str) -> _Gold | None:
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if _INTEGER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if _FLOAT.fullmatch(text):
        return _Float(value=Fraction(text.replace(",", "")))
    return text.lower() if text.startswith("(") and _OPTION.fullmatch(text) else None


def _read(answer: str) -> _Value | None:
    """What an answer says, whatever the gold; None if it is neither number, boolean, option nor list."""
    text = tidied(answer)
    if text is None:
        return None
    option, listed = _OPTION.fullmatch(text), _LIST.fullmatch(text)
    if option:
        return f"({(option[1] or option[2]).lower()})"
    if listed is None:
        return _scalar(text)
    values = [_scalar(part.strip()) for part in (listed[1] or listed[2] or "").split(",")]
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None


def _scalar(text: str) -> bool | Fraction | None:
    return _BOOLEANS[text.lower()] if text.lower() in _BOOLEANS else read_quantity(text)


def _spelled(value: _Value) -> str:
    """One spelling for each value, so that unique answers are counted right."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_spelled, value))}]"
    return decimal_text(value) if isinstance(value, Fraction) else str(value)
