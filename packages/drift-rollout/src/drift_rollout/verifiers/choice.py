"""`choice`: one of several options, by its letter or its own text."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from drift_rollout.verify import MALFORMED, AnswerVerifier, Verified, mark_answer

LETTERS = "ABCDEFGHIJ"
LONGEST = 4_000
"""Characters of the longest answer that is read, and of the longest text of an option."""

_ALONE = re.compile(r"[\s(\[]*([A-J])[\s)\].:]*")
_WITH_TEXT = re.compile(r"(?:\(([A-J])\)|\[([A-J])\]|([A-J])\)|([A-J])(?=[.:]))[.:]?\s+(\S.*)", re.DOTALL)
_STANDALONE = re.compile(r"(?<!\w)[A-J](?!\w)")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    """A gold letter, and what each letter stands for; empty where the target does not say."""

    gold: str
    texts: Mapping[str, str]

    def letters_of(self, text: str) -> set[str]:
        """The options of this text: as it is written, or else whatever the case."""
        text = _tidied(text)
        same = {letter for letter, own in self.texts.items() if own == text}
        return same or {letter for letter, own in self.texts.items() if own.casefold() == text.casefold()}


@dataclass(frozen=True, kw_only=True)
class ChoiceVerifier(AnswerVerifier):
    """One option letter A-J, case-sensitive, alone or in front of its text.

    Brackets, a full stop or a colon around a lone letter are tolerated. Where the target has the texts
    (`choice_target`), "B. blue" must be B's own text, and "blue" alone is B if no other option says so;
    a letter alone is always that letter. Where it has none, "B. blue" is B unless another capital letter
    A-J stands by itself in the text. Anything else ("A or B", "B, I think", "b", A with B's text) is
    malformed, so no letter is ever picked out of prose.
    """

    @property
    def name(self) -> str:
        """As in `Verifier`."""
        return self.named("choice/2")

    def check_target(self, target: str) -> None:
        """Refuse a target that is neither a letter A-J nor one of `choice_target`."""
        _read(target)

    def judge(self, answer: str, target: str) -> Verified:
        """Correct if and only if the answer names the gold option, and no other.

        Raises:
            ValueError: the target is neither a letter A-J nor one of `choice_target`.
        """
        options = _read(target)
        letter = _chosen(answer, options)
        if letter is None:
            return MALFORMED
        return Verified(answer=letter, verdict="correct" if letter == options.gold else "wrong")

    def gold_response(self, target: str) -> str:
        """A response that gives the gold letter."""
        return mark_answer(_read(target).gold, self.grammar)


def choice_target(letter: str, options: Mapping[str, str] | Sequence[str]) -> str:
    """A target that has the texts of the options: {"answer": "B", "options": {"A": "red", "B": "blue"}}.

    Two options may have the same text; an answer must then give the letter.

    Args:
        letter: the gold letter, A-J.
        options: the text of each letter, or the texts from A on.

    Raises:
        ValueError: the gold letter is none of the options, a letter is none of A-J, or a text is blank.
    """
    named = options if isinstance(options, str) else _by_letter(options)
    target = json.dumps({"answer": letter, "options": named}, ensure_ascii=False, sort_keys=True)
    _read(target)
    return target


def _chosen(answer: str, options: _Options) -> str | None:
    """The one option that an answer names; None if it names none or several."""
    # Normalisation takes the square of a run of combining marks.
    if len(answer) > LONGEST:
        return None
    seen = unicodedata.normalize("NFKC", answer)
    if alone := _ALONE.fullmatch(seen):
        return alone[1]
    named = options.letters_of(answer)
    if headed := _WITH_TEXT.fullmatch(seen):
        letter, text = next(filter(None, headed.groups())), headed[5]
        own = letter in options.letters_of(text) if options.texts else _no_other(letter, text)
        named = named | {letter} if own else named
    return named.pop() if len(named) == 1 else None


def _no_other(letter: str, text: str) -> bool:
    return {letter}.issuperset(_STANDALONE.findall(text))


def _tidied(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    return text.removesuffix(".").rstrip() or text


@lru_cache(maxsize=1024)
def _read(target: str) -> _Options:
    if letter := _ALONE.fullmatch(target):
        return _Options(gold=letter[1], texts={})
    try:
        read = json.loads(target, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict) or set(read) != {"answer", "options"}:
        raise ValueError(
            f"the target of a choice must be one letter A-J, got {target!r}; or, with the texts of its "
            'options, {"answer": "B", "options": {"A": "red", "B": "blue"}}'
        )
    texts = _texts(read["options"], target)
    if not isinstance(read["answer"], str) or read["answer"] not in texts:
        raise ValueError(f"the target's answer must be one of its options {', '.join(texts)}: {target!r}")
    return _Options(gold=read["answer"], texts={letter: _tidied(text) for letter, text in texts.items()})


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _by_letter(options: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    if isinstance(options, Mapping):
        return dict(options)
    # Beyond J there is no letter, and _texts says so.
    return {LETTERS[i : i + 1]: text for i, text in enumerate(options)}


def _texts(options: Any, target: str) -> dict[str, str]:
    texts = _by_letter(options) if isinstance(options, list | dict) else {}
    if len(texts) < 2 or not {*texts} <= {*LETTERS}:
        raise ValueError(f"the target's options must be two to ten texts, of letters A-J, got {target!r}")
    for letter, text in texts.items():
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
            raise ValueError(f"option {letter} must be a text of 1 to {LONGEST} characters: {target!r}")
    return texts
