"""Markdown made of values that come from data, none of which can end its cell, code span or block."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence

_SPAN = re.compile(r"(?! )[^`|\\<>&$]+(?<! )")
"""What stands safely between backticks, in a table as well."""
_MARKUP = re.compile(r"[^\w .-]|(?<!\d)\.|\.(?!\d)|(?<![^\W_])_|_(?![^\W_])")
"""All but letters, digits, blanks, and what joins them in names such as Qwen2.5-3B or top_p."""
_TICKS = re.compile(r"`+")
_LONGEST = 300
_BLOCKS = "▏▎▍▌▋▊▉█"
NOTHING = "–"


def visible(value: object) -> str:
    """One line of text, without characters that hide, reorder or break it; long text is cut."""
    text = str(value)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return "".join(_seen(char) for char in text.replace("\r\n", "\n"))


def escaped(value: object) -> str:
    """Text in which nothing is markup, whatever reads it: all that could be is an entity."""
    return _MARKUP.sub(lambda found: f"&#{ord(found.group())};", visible(value))


def code(value: object) -> str:
    """A code span, safe in a table; `–` for None and for nothing."""
    text = "" if value is None else visible(value)
    if not text.strip():
        return NOTHING
    return f"`{text}`" if _SPAN.fullmatch(text) else html_code(text)


def html_code(value: object) -> str:
    """The same as HTML, for what Markdown does not look into."""
    return f"<code>{escaped(value)}</code>"


def literal(value: str) -> str:
    """A quoted string on one line, the same in Python, JSON and YAML."""
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else _unicode(char) for char in quoted)


def shell(value: str) -> str:
    """One word of a command."""
    return shlex.quote(visible(value))


def number(value: object, form: str = "g") -> str:
    """A number in a format of `format`; `–` for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOTHING
    return format(value, form)


def fence(text: str, language: str = "text") -> str:
    """A code block that its own content cannot close."""
    ticks = "`" * max([3, *(len(run) + 1 for run in _TICKS.findall(text))])
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> str:
    """A table of cells that are Markdown already; the columns named in `right` hold numbers."""
    rule = ["---:" if name in set(right) else "---" for name in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def details(summary: str, content: str) -> str:
    """A block that is folded up; `summary` is HTML."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"


def bar(share: float, width: int = 20) -> str:
    """A bar of block characters; `share` in [0, 1] of `width`."""
    eighths = round(8 * width * share)
    rest = _BLOCKS[eighths % 8 - 1] if eighths % 8 else ""
    return "█" * (eighths // 8) + rest


def _seen(char: str) -> str:
    if char == "\n":
        return "⏎"
    return char if char.isprintable() else _unicode(char)


def _unicode(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
