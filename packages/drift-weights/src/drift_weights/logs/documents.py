"""Logs that are one JSON value: mapped into memory, and made into Python values a part at a time."""

from __future__ import annotations

import codecs
import mmap
from pathlib import Path
from typing import Any

import msgspec

_AT_ONCE = 1 << 20
"""Bytes checked at a time."""


def json_document(path: Path, kind: Any) -> Any:
    """A file that is one JSON value of the type `kind`, mapped rather than read.

    Parts that `kind` says are `msgspec.Raw` stay bytes of the file.

    Raises:
        ValueError: an empty file, or no JSON of this shape.
    """
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            raise ValueError(f"{path} is empty")
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    _check_text(view, path)
    body = view[3:] if bytes(view[:3]) == codecs.BOM_UTF8 else view
    return _decoded(body, kind, str(path))


def _check_text(view: memoryview, path: Path) -> None:
    """The decoder does not check values that it skips."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(view), _AT_ONCE):
            decoder.decode(view[start : start + _AT_ONCE], final=start + _AT_ONCE >= len(view))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid UTF-8: {error.reason}") from error


def json_object(raw: msgspec.Raw, place: str) -> dict[str, Any]:
    """One part of a document as a dict.

    Raises:
        ValueError: not valid JSON, or no object (`place` says where it stands).
    """
    value = _decoded(raw, object, place)
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(value).__name__}")
    return value


def _decoded(data: Any, kind: Any, place: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{place} is not the JSON expected: {error}; a torn file ends early, and NaN and Infinity, "
            "which Python writes, are no JSON"
        ) from error
