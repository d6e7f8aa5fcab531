"""Putting one value into JSON text without touching any other byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

_NAME = re.compile(rb'[\s,]*"((?:[^"\\]|\\.)*)"\s*:\s*', re.DOTALL)
_GAP = re.compile(rb"[\s,]*")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode


def append_value(text: bytes, value: bytes) -> bytes:
    """A JSON object with a last member `weight`; the object has none yet."""
    cut = text.rindex(b"}")
    head = text[:cut]
    comma = b"" if head.rstrip().endswith(b"{") else b","
    return b"".join((head, comma, b'"weight":', value, text[cut:]))


def put_value(text: bytes, value: bytes) -> bytes:
    """A JSON object with this `weight`, in the place of the old one if there is one.

    Raises:
        ValueError: a name stands twice in the object, so that it is unclear what it says.
    """
    start = text.index(b"{") + 1
    members = _members(text[start - 1 :])
    if "weight" not in members:
        return append_value(text, value)
    place = (0, 0)
    for name, old in members.items():
        found = _NAME.match(text, start)
        # A name that stands twice has one place among the members, but two in the text.
        if found is None or _text(b'"' + found[1] + b'"') != name:
            raise ValueError("a name stands twice in one JSON object; keep one of them")
        start, end = found.end(), found.end() + len(old)
        if text[start:end] != bytes(old):
            raise ValueError(f"{name!r} stands twice in one JSON object; keep one of them")
        place = (start, end) if name == "weight" else place
        start = end
    if text[start:].strip() != b"}":
        raise ValueError("a name stands twice in one JSON object; keep one of them")
    return text[: place[0]] + value + text[place[1] :]


def array_elements(data: Any) -> Iterator[tuple[bytes, bytes]]:
    """The objects of a JSON array, each with the bytes before it; last, what stands behind them.

    Args:
        data: the whole text, as bytes or a memory map.
    """
    position = 0
    opening = data[:].index(b"[") + 1 if isinstance(data, bytes) else data.find(b"[") + 1
    for number, element in enumerate(_elements(data)):
        gap = _GAP.match(data, opening if number == 0 else position)
        assert gap is not None
        start = gap.end()
        yield bytes(data[position:start]), bytes(element)
        position = start + len(element)
    yield bytes(data[position:]), b""
