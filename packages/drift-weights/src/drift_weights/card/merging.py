"""A card that is published again: what a user wrote or changed stays, what nobody touched is made anew."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

_LINE = r"(?:\r\n|\r|\n)"
_FRONT = re.compile(
    rf"\A(?P<head>\ufeff?\s*---)[ \t]*{_LINE}(?P<yaml>(?:.*?{_LINE})??)(?P<tail>---[ \t]*(?:{_LINE}|\Z))",
    re.DOTALL,
)
_MARK = re.compile(
    r"(?:\A|(?<=[\r\n]))"
    r"<!--[ \t]*(?P<end>/?)[ \t]*drift:[ \t]*(?P<name>[a-z-]+)[ \t]*-->[ \t]*(?=[\r\n]|\Z)"
)
_ENTRIES = ("configs", "dataset_info")
"""Keys that hold an entry for each config; ours are replaced, others stay."""


@dataclass(kw_only=True)
class Ledger:
    """What was written last time and what is written now, as hashes, and what is left alone."""

    before: Mapping[str, str]
    now: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    def ours(self, name: str, found: str | None, new: str | None) -> bool:
        """Whether a part may be made anew, since it is as it was left.

        Args:
            found: the hash of what is there; None where nothing is.
            new: the hash of what is made now; None where nothing is.
        """
        if new is not None:
            self.now[name] = new
        elif found is None and name in self.before:
            self.now[name] = self.before[name]
        if found in (new, self.before.get(name)):
            return True
        if new is not None or found is not None:
            self.kept.append(name)
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A card taken apart: head, yaml, tail and body, one behind the other."""

    head: str
    yaml: str
    tail: str
    body: str
    newline: str

    def line(self, place: int) -> int:
        """The number, from 1, of the line at a place of the body."""
        return 1 + _lines(self.head + self.yaml + self.tail + self.body[:place])


def open_card(text: str) -> Opened:
    """Take the YAML block off a card.

    Raises:
        ValueError: a block is opened and not closed.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    found = _FRONT.match(text)
    if found:
        return Opened(
            head=found["head"] + newline,
            yaml=found["yaml"],
            tail=found["tail"],
            body=text[found.end() :],
            newline=newline,
        )
    if re.match(rf"\ufeff?\s*---[ \t]*(?:{_LINE}|\Z)", text):
        line = 1 + _lines(text[: text.index("---")])
        raise ValueError(
            f"README.md, line {line}: --- opens a block of YAML, and no later line --- closes it; "
            "close it, or remove the line"
        )
    return Opened(head=f"---{newline}", yaml="", tail=f"---{newline}", body=text, newline=newline)


def merge_front(opened: Opened, ours: Mapping[str, Any], ledger: Ledger) -> str:
    """The YAML block with our keys in it; to the letter as it was where no value changes.

    Where one changes, the block is written anew: order stays, comments go.

    Raises:
        ValueError: broken YAML, no mapping, or more than one default config.
    """
    theirs = _load(opened)
    merged = dict(theirs)
    told = (name.removeprefix("yaml: ") for name in ledger.before if name.startswith("yaml: "))
    for key in dict.fromkeys([*ours, *told]):
        if key in _ENTRIES:
            merged[key] = _merge_entries(key, _entries(key, theirs.get(key)), ours[key], ledger)
            continue
        found, new = (_hash(_dump(side[key])) if key in side else None for side in (theirs, ours))
        if ledger.ours(f"yaml: {key}", found, new):
            merged.pop(key, None) if new is None else merged.update({key: ours[key]})
    return opened.yaml if merged == theirs else _dump(merged).replace("\n", opened.newline)


def merge_body(opened: Opened, parts: Mapping[str, str], ledger: Ledger) -> str:
    """The body with our parts in it: in their places, or behind everything else.

    Raises:
        ValueError: a part that begins or ends without its other end, or stands twice.
    """
    body, found = opened.body, _find(opened)
    added, edits = [], []
    told = (name for name in ledger.before if ": " not in name)
    for name in dict.fromkeys([*parts, *found, *told]):
        if name == "title" and name not in found and body.strip():
            continue  # a page of the user's own has one
        outer, inner = found.get(name, (None, None))
        there = None if inner is None else _hash(body[inner])
        new = _hash(parts[name]) if name in parts else None
        if not ledger.ours(name, there, new) or there == new:
            continue
        if outer is None:
            added.append(_block(name, parts[name], opened.newline))
        else:
            text = _block(name, parts[name], opened.newline) if name in parts else ""
            edits.append((outer, text))
    for outer, text in sorted(edits, key=lambda edit: edit[0].start, reverse=True):
        body = body[: outer.start] + text + body[outer.stop :]
    return _append(body, added, opened.newline)


def _load(opened: Opened) -> dict[Any, Any]:
    line = 1 + _lines(opened.head)
    remedy = "correct it on the Hub, or remove the block"
    try:
        found = yaml.safe_load(opened.yaml)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line += _line_of(error, _lines(opened.yaml))
        what = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ValueError(f"README.md, line {line}: no valid YAML ({what}); {remedy}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"README.md, line {line}: the YAML is no mapping of `key: value`; {remedy}")
    return found


def _line_of(error: Exception, lines: int) -> int:
    """The line of the block, from 0; what is found out at the end is said where it began."""
    marks = [getattr(error, name, None) for name in ("problem_mark", "context_mark")]
    found = [mark.line for mark in marks if mark is not None and mark.line < lines]
    return found[0] if found else 0


def _entries(key: str, value: Any) -> list[dict[Any, Any]]:
    """A user's entries; `datasets` writes a single one without the list."""
    entries = [value] if isinstance(value, dict) else value or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"README.md: {key} in the YAML block must be a list of entries with config_name; correct it on "
            "the Hub, or remove it"
        )
    return entries


def _merge_entries(
    key: str, theirs: Sequence[dict[Any, Any]], ours: Sequence[dict[str, Any]], ledger: Ledger
) -> list[dict[Any, Any]]:
    """Ours in place of entries of their names and of those that we once wrote; others as they are."""
    names = {entry["config_name"] for entry in ours}
    merged: dict[str, dict[Any, Any]] = {}
    for entry in theirs:
        name = str(entry.get("config_name", "default"))
        if name in names or f"config: {name}" not in ledger.before:
            # drift.json says which config is the default, and there can be one only.
            merged[name] = {field: value for field, value in entry.items() if field != "default"}
    for entry in ours:
        name = entry["config_name"]
        merged[name] = entry
        ledger.now[f"config: {name}"] = _hash(_dump(entry))
    defaults = [name for name, entry in merged.items() if name == "default" or entry.get("default")]
    if key == "configs" and len(defaults) > 1:
        raise ValueError(
            f"both {' and '.join(map(repr, defaults))} would be the default config; readers take a config "
            "named 'default' for it: rename that one, or make it the default"
        )
    return list(merged.values())


def _find(opened: Opened) -> dict[str, tuple[slice, slice]]:
    """Each part's place in the body, with its two comments and without."""
    found: dict[str, tuple[slice, slice]] = {}
    for first, last in _pairs(opened):
        name = first["name"]
        if name in found:
            raise ValueError(
                f"README.md, line {opened.line(first.start())}: part {name!r} is there a second time; "
                "remove one"
            )
        found[name] = slice(first.start(), last.end()), slice(first.end(), last.start())
    return found


def _pairs(opened: Opened) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    """The comments around each part."""
    first: re.Match[str] | None = None
    for mark in _MARK.finditer(opened.body):
        if mark["end"] and (first is None or first["name"] != mark["name"]):
            raise _unbalanced(opened, mark, f"no <!-- drift: {mark['name']} --> is open")
        if not mark["end"] and first is not None:
            break
        if first is not None:
            yield first, mark
        first = None if mark["end"] else mark
    if first is not None:
        raise _unbalanced(opened, first, f"no <!-- /drift: {first['name']} --> follows it")


def _unbalanced(opened: Opened, mark: re.Match[str], why: str) -> ValueError:
    return ValueError(
        f"README.md, line {opened.line(mark.start())}: {mark.group().strip()} stands alone, since {why}; "
        "put its other half back on a line of its own, or remove it"
    )


def _block(name: str, text: str, newline: str) -> str:
    return f"<!-- drift: {name} -->\n{text}\n<!-- /drift: {name} -->".replace("\n", newline)


def _append(body: str, blocks: Sequence[str], newline: str) -> str:
    for block in blocks:
        ends = _lines(body) - _lines(body.rstrip("\r\n"))
        body += newline * max(0, (2 if body.strip() else 1) - ends) + block + newline
    return body


def _hash(text: str) -> str:
    """Of what a part says, however its lines end."""
    return hashlib.sha256(re.sub(_LINE, "\n", text).strip().encode()).hexdigest()


def _dump(value: Any) -> str:
    text = str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
    # PyYAML writes these ends of line as they are, and reads them back as others.
    strange = any(end in text for end in "\x85\u2028\u2029")
    return str(yaml.safe_dump(value, sort_keys=False)) if strange else text


def _lines(text: str) -> int:
    return len(re.findall(_LINE, text))
