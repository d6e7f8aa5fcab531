r"""What people and models write for one formula, in one spelling of TeX: ½, \dfrac12, sqrt(2), 2*pi."""

from __future__ import annotations

import re
import unicodedata

TEXT, END = "\ue000", "\ue001"
r"""Around what stood in \text{…}; private characters, which no answer keeps."""
DOLLAR = "\ue002"
"""A dollar sign that is one."""

_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/",
        "⁄": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "±": r"\pm ", "θ": r"\theta ",
        "≈": r"\approx ", "′": "'", "“": '"', "”": '"', "’": "'", "∅": r"\emptyset ",
    }
)  # fmt: skip
_RAISED = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_SAID = re.compile(r"(?:the )?(?:final )?answer (?:is|=)[: ]*|(?:final )?answer: *|= *", re.IGNORECASE)
_MARKDOWN = re.compile(r"\*\*(.+)\*\*|`(.+)`|__(.+)__")
_DELIMITER = re.compile(r"(?<!\\)\\[()\[\]]")
_SIZING = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?) ?(?![A-Za-z])\.?|\\(?:display|text|script)style(?![A-Za-z])"
)
_SPACING = re.compile(
    r"(?<!\\)\\(?:[;:>,/ ]|quad|qquad|thinspace|medspace|thickspace|enspace|hfill|newline)(?![A-Za-z])|~"
)
_HSPACE = re.compile(r"\\(?:hspace|vspace|phantom|hphantom)\*? ?\{[^{}]*\}")
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|texttt|mbox|hbox|mathrm|operatorname) ?\{([^{}]*)\}"
)
_FONT = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf|underline) ?\{([^{}]*)\}|\\(?:bf|it|rm)(?![A-Za-z])"
)
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_BOX = re.compile(r"\\(?:boxed|fbox) ?\{")
_OVER = re.compile(r"\{?([^{}]*)\\over(?![A-Za-z])([^{}]*)\}?")
_FUNCTION = re.compile(
    r"(?<![\\A-Za-z\ue000])(sqrt(?=\()|pi(?![A-Za-z])|(?:sin|cos|tan|cot|sec|csc|log|ln|exp)(?= ?[(\d\\]))"
)
_ABOUT = re.compile(r"^(?:\\approx|\\sim)(?![A-Za-z]) *")
_IN_BASE = re.compile(r"(\d+) base (\d+)$")
_PRODUCT = re.compile(r"(?<=\d) ?\* ?(?=[A-Za-z\\(])")
_SQRT_BARE = re.compile(r"\\sqrt ?(\d|[A-Za-z](?![A-Za-z]))")
_ARGUMENT = re.compile(r" *(\\[A-Za-z]+|[^\s{}\\])")
_SPACE = re.compile(r"(\\[A-Za-z]+) (?=[A-Za-z])|(?<=\d)( )(?=[\d.])| ")


def respelled(text: str) -> str:
    r"""In one spelling, single spaces left, words of \text{…} between TEXT and END."""
    text = _without_markup(_without_ornament(_visible(text)))
    box = _BOX.match(text)
    if box is not None and closing(text, box.end() - 1) == len(text):
        text = text[box.end() : -1].strip()
    text = _IN_BASE.sub(r"\1_{\2}", _OVER.sub(r"\\frac{\1}{\2}", _ABOUT.sub("", text)))
    return _with_calls_in_braces(_FUNCTION.sub(r"\\\1", _PRODUCT.sub("", text.replace("**", "^"))))


def tight(text: str) -> str:
    """Without spaces, but where one parts a command from a letter or two numbers; fractions with braces."""
    text = _SQRT_BARE.sub(r"\\sqrt{\1}", _with_braces(text.replace(TEXT, " ").replace(END, " ")))
    text = _SPACE.sub(lambda match: f"{match[1]} " if match[1] else match[2] or "", " ".join(text.split()))
    return text[1:-1] if text.startswith("{") and closing(text, 0) == len(text) else text


def closing(text: str, opening: int) -> int:
    """Behind the bracket that closes this one; 0 if none does."""
    depth, (more, less) = 0, "{}" if text[opening] == "{" else "()"
    for index in range(opening, len(text)):
        depth += {more: 1, less: -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    return 0


def _visible(text: str) -> str:
    """In plain characters, with single spaces."""
    text = _RAISED.sub(lambda match: f"^{{{match[0]}}}", text.translate(_CHARACTERS))
    # A space, or 1½ would become 11/2.
    text = _VULGAR.sub(lambda match: " \\frac{{{}}}{{{}}}".format(*_folded(match[0]).split("⁄")), text)
    text = _folded(text).translate(_CHARACTERS)
    return " ".join("".join(c if c.isprintable() or c.isspace() else "" for c in text).split())


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _without_ornament(text: str) -> str:
    """Without Markdown around the whole, and without "the answer is"."""
    text = _SAID.sub("", text, count=1) if _SAID.match(text) else text
    marked = _MARKDOWN.fullmatch(text)
    return text if marked is None else marked[1] or marked[2] or marked[3]


def _without_markup(text: str) -> str:
    text = text.replace("\\!", "").replace("{,}", ",").replace("\\$", DOLLAR).replace("$", "")
    text = _SIZING.sub("", _SPACING.sub(" ", _DELIMITER.sub(" ", text)))
    text = _FONT.sub(r"\1", _HSPACE.sub(" ", text))
    return " ".join(_FRAC.sub(r"\\frac", _TEXT_COMMAND.sub(f"{TEXT}\\1{END}", text)).split())


def _with_calls_in_braces(text: str) -> str:
    """sqrt(2) and x^(1/2) with braces."""
    for call in ("\\sqrt(", "^("):
        while (start := text.find(call)) >= 0 and (end := closing(text, start + len(call) - 1)):
            opening = start + len(call)
            text = f"{text[: opening - 1]}{{{text[opening : end - 1]}}}{text[end:]}"
    return text


def _with_braces(text: str) -> str:
    r"""\frac12, \frac1{2} and \frac{1}2 as \frac{1}{2}."""
    place = len(text)
    while (place := text.rfind("\\frac", 0, place)) >= 0:
        end = place + len("\\frac")
        above, end = _argument(text, end)
        below, end = _argument(text, end)
        if above is not None and below is not None:
            text = f"{text[:place]}\\frac{{{above}}}{{{below}}}{text[end:]}"
    return text


def _argument(text: str, start: int) -> tuple[str | None, int]:
    """An argument of a command, in braces or of one character, and where it ends."""
    opening = start + (text[start : start + 1] == " ")
    if text[opening : opening + 1] == "{":
        end = closing(text, opening)
        return (text[opening + 1 : end - 1].strip(), end) if end else (None, start)
    match = _ARGUMENT.match(text, start)
    return (match[1], match.end()) if match else (None, start)
