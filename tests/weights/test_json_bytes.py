"""json_bytes: one value goes into JSON text, and every other byte stays.

The oracle is the standard library: the text read again is what was read before, with the new weight.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.json_bytes import append_value, array_elements, put_value

NAMES = st.sampled_from(["weight", "a", "weights", "Weight", "", 'a"b', "\\", "wei\nght", "中文", "}", "{"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(['"weight": 1', "}", "{", "],[", '\\"', "\u2028", "weight"])
)
SPACES = st.sampled_from(["", " ", "\t", "  ", " \t"])


def values() -> st.SearchStrategy[Any]:
    return st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=6,
    )


@st.composite
def spelled(draw: st.DrawFn, value: Any, spaces: st.SearchStrategy[str] = SPACES) -> str:
    """A JSON text of a value, with any spaces and any of the spellings of its strings."""

    def space() -> str:
        return draw(spaces)

    def string(text: str) -> str:
        letters = "".join(
            f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 and draw(st.integers(0, 4)) == 0 else letter
            for letter in text
        )
        whole = json.dumps(text, ensure_ascii=draw(st.booleans()))
        # The escapes by hand only where the letters stand for themselves.
        return f'"{letters}"' if whole[1:-1] == text else whole

    if isinstance(value, dict):
        inner = ",".join(
            f"{space()}{string(name)}{space()}:{space()}{draw(spelled(each, spaces))}{space()}"
            for name, each in value.items()
        )
        return "{" + (inner or space()) + "}"
    if isinstance(value, list):
        return (
            "["
            + (",".join(f"{space()}{draw(spelled(v, spaces))}{space()}" for v in value) or space())
            + "]"
        )
    return string(value) if isinstance(value, str) else json.dumps(value)


@st.composite
def objects(draw: st.DrawFn, *, weight: bool | None = None) -> tuple[dict[str, Any], bytes]:
    """A JSON object, and a line of it with spaces and a line end around it."""
    found = draw(st.dictionaries(NAMES, values(), max_size=5))
    if weight is False:
        found.pop("weight", None)
    elif weight:
        at = draw(st.integers(0, len(found)))
        members = [(name, value) for name, value in found.items() if name != "weight"]
        found = dict([*members[:at], ("weight", draw(values())), *members[at:]])
    end = draw(st.sampled_from(["", "\n", "\r\n", " \n"]))
    return found, f"{draw(SPACES)}{draw(spelled(found))}{end}".encode()


@given(objects(weight=False))
def test_append_adds_a_last_member_and_nothing_else(case) -> None:
    value, text = case
    written = append_value(text, b"0.25")
    assert list(json.loads(written).items()) == [*value.items(), ("weight", 0.25)]
    added = b'"weight":0.25' if not value else b',"weight":0.25'
    cut = text.rindex(b"}")
    assert written == text[:cut] + added + text[cut:]


@given(objects(weight=False))
def test_put_appends_where_there_is_no_weight_at_the_top(case) -> None:
    # A nested weight, a name that ends like it, a text that holds it: none of them is the weight.
    _, text = case
    assert put_value(text, b"0.25") == append_value(text, b"0.25")


@given(objects(weight=True))
def test_put_replaces_a_weight_where_it_stands(case) -> None:
    value, text = case
    written = put_value(text, b"0.25")
    assert list(json.loads(written).items()) == list((value | {"weight": 0.25}).items())
    # What stood before and behind the old value is there still, and makes the whole text but for it.
    start = next(
        n for n in range(len(written)) if written.startswith(b"0.25", n) and _fits(n, text, written)
    )
    behind = len(written) - start - len(b"0.25")
    assert text.startswith(written[:start])
    assert text.endswith(written[len(written) - behind :])
    assert json.loads(text[start : len(text) - behind]) == value["weight"]


def _fits(start: int, text: bytes, written: bytes) -> bool:
    behind = written[start + len(b"0.25") :]
    middle = text[start : len(text) - len(behind)]
    try:
        json.loads(middle)
    except ValueError:
        return False
    return text.startswith(written[:start]) and text.endswith(behind)


@given(objects())
def test_putting_twice_is_putting_once(case) -> None:
    _, text = case
    once = put_value(text, b"0.25")
    assert put_value(once, b"0.25") == once
    assert put_value(put_value(text, b"17"), b"0.25") == once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{}", b'{"weight":1.5}'),
        (b"{ }\n", b'{ "weight":1.5}\n'),
        (b'{"a":{}}', b'{"a":{},"weight":1.5}'),
        (b'{"a":{"weight":2}}\r\n', b'{"a":{"weight":2},"weight":1.5}\r\n'),
        (b'{"weight" : null , "a":1}', b'{"weight" : 1.5 , "a":1}'),
        (b'{"a":[{"weight":0}],"weight":{"x":[1,"}"]}}', b'{"a":[{"weight":0}],"weight":1.5}'),
        (b'{"we\\u0069ght":2,"b":"\\"weight\\":3"}', b'{"we\\u0069ght":1.5,"b":"\\"weight\\":3"}'),
        (b'\xef\xbb\xbf{"a":1}\n', b'\xef\xbb\xbf{"a":1,"weight":1.5}\n'),
        (b'\xef\xbb\xbf{"weight":1}\n', b'\xef\xbb\xbf{"weight":1.5}\n'),
    ],
)
def test_by_hand(text: bytes, expected: bytes) -> None:
    assert put_value(text, b"1.5") == expected


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":2,"weight":3}',
        b'{"a":3,"a":3,"weight":3}',
        b'{"weight":3,"weight":3}',
        b'{"weight":3,"weight":4}',
        b'{"weight":3,"a":1,"weight":3}',
        b'{"weight":3,"a":3,"we\\u0069ght":3}',
        b'{"a":{"a":3},"a":3,"weight":3}',
        b'{"a":3,"b":3,"a":3,"weight":3}',
    ],
)
def test_a_name_that_stands_twice_is_refused_where_a_weight_is_replaced(text: bytes) -> None:
    # In most of these the old weight has the same text as another member.
    with pytest.raises(ValueError, match="twice"):
        put_value(text, b"1.5")


@pytest.mark.parametrize("text", [b'{"a":1,"a":2}', b'{"a":{"b":1,"b":2}}'])
def test_names_that_stand_twice_stay_where_nothing_is_replaced(text: bytes) -> None:
    assert put_value(text, b"1.5") == text[:-1] + b',"weight":1.5}'


GAPS = st.sampled_from(["", " ", "\n", "\r\n  ", "\t"])


@given(st.lists(st.dictionaries(NAMES, values(), max_size=3), max_size=5), st.data())
def test_an_array_comes_apart_into_its_elements_and_what_is_between(elements, data) -> None:
    texts = [data.draw(spelled(element)) for element in elements]
    gaps = [data.draw(GAPS) for _ in range(2 * len(texts) + 2)]
    inner = ",".join(f"{gaps[2 * n]}{text}{gaps[2 * n + 1]}" for n, text in enumerate(texts))
    whole = f"{gaps[-1]}[{inner or gaps[0]}]{gaps[-2]}".encode()
    found = list(array_elements(whole))
    assert b"".join(gap + element for gap, element in found) == whole
    assert [element for _, element in found[:-1]] == [text.encode() for text in texts]
    assert found[-1][1] == b""


def test_an_array_may_be_a_memory_map(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(b'[ {"a": "],["},\n {"b": 1} ]\n')
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = list(array_elements(data))
    assert found == [(b"[ ", b'{"a": "],["}'), (b",\n ", b'{"b": 1}'), (b" ]\n", b"")]
