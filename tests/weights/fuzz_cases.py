"""Broken logs: valid ones with a few changes, each made again by its format, seed and number."""

from __future__ import annotations

import io
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_formats import FORMATS

VALUE = re.compile(rb'"(?:\\.|[^"\\])*"|-?\d[\d.eE+-]*|true|false|null')
TOKENS = [
    *(b"null", b"true", b"false", b"0", b"1", b"-1", b"2", b"0.5", b"1.0", b"-0.0", b"1e999", b"1e-999"),
    *(b"NaN", b"Infinity", b"99999999999999999999", b"-9223372036854775809", b"1" + b"0" * 400, b"01"),
    *(b'""', b'"1"', b'"\\ud800"', b'"\\u0000"', b'"\\q"', b'"assistant"', b'"C"', b'"weight"', b'"P"'),
    *(b"[]", b"{}", b"[null]", b"[[]]", b"[{}]", b'[""]', b'{"role":"assistant"}', b"[" * 3000),
    *(
        b"\xef\xbb\xbf",
        b"\xff",
        b"\xed\xa0\x80",
        b"\0",
        b"\r",
        b"\n",
        b"\n\n",
        b",",
        b":",
        b"}",
        b"]",
        b'"',
    ),
    *(b'"weight":1,', b'"prompt_id":null,', b'"correct":0,', b'"sample":3,', b'"error":"x",', b'"role":1,'),
]


def mutated(name: str, seed: int, number: int) -> bytes:
    """The bytes of a case."""
    draw = random.Random(f"{seed} {name} {number}")
    data = FORMATS[name].seed
    if FORMATS[name].suffix == ".parquet" and draw.random() < 0.7:
        data = other_columns(draw, data)
        if draw.random() < 0.7:
            return data
    for _ in range(draw.choice([1, 1, 1, 2, 3, 6])):
        data = draw.choice(MUTATIONS)(draw, data)
    return data


def flip(draw: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def overwrite(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def truncate(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def piece(draw: random.Random, data: bytes) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + int(draw.expovariate(1 / 20)) + 1)


def delete(draw: random.Random, data: bytes) -> bytes:
    start, end = piece(draw, data)
    return data[:start] + data[end:]


def splice(draw: random.Random, data: bytes) -> bytes:
    """A piece of this file or of another, put somewhere."""
    other = draw.choice([data, data, FORMATS[draw.choice(list(FORMATS))].seed])
    start, end = piece(draw, other)
    at, behind = piece(draw, data)
    return data[:at] + other[start:end] + data[draw.choice([at, behind]) :]


def insert(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(TOKENS) + data[at:]


def replace_value(draw: random.Random, data: bytes) -> bytes:
    """Another token where a JSON value or name stands: most of these are valid JSON."""
    found = [match.span() for match in VALUE.finditer(data)]
    if not found:
        return insert(draw, data)
    start, end = draw.choice(found)
    other = draw.choice(found)
    token = draw.choice([*draw.choices(TOKENS, k=3), data[slice(*other)]])
    return data[:start] + token + data[end:]


def move_lines(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    if draw.random() < 0.5:
        lines.pop(draw.randrange(len(lines)))
    return b"".join(lines)


MUTATIONS = [flip, overwrite, truncate, delete, splice, insert, move_lines, *[replace_value] * 4]


def other_columns(draw: random.Random, data: bytes) -> bytes:
    """A Parquet file with a column of another type, with nulls, doubled or gone."""
    table = pq.read_table(io.BytesIO(data))
    for _ in range(draw.choice([1, 1, 2])):
        place = draw.randrange(table.num_columns)
        name = table.column_names[place]
        kind = draw.randrange(10)
        if kind == 0:
            table = table.remove_column(place)
        elif kind == 1:
            table = table.append_column(draw.choice(table.column_names), table.column(place))
        else:
            table = table.set_column(place, name, other_values(draw, table.column(place)))
        if not table.num_columns:
            break
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=draw.choice([1, 2, 3, 100]))
    return sink.getvalue()


def other_values(draw: random.Random, column: pa.ChunkedArray) -> pa.Array:
    rows = len(column)
    numbers = [draw.choice([0, 1, 2, -1]) for _ in range(rows)]
    doubles = [draw.choice([0.0, -0.0, 1.0, 0.5, float("nan"), float("inf"), 1e300]) for _ in range(rows)]
    whole = pa.array([draw.choice([0, 1]) for _ in range(rows)], pa.int32())
    narrow = draw.choice([pa.int8(), pa.uint8(), pa.float32(), pa.decimal128(20, 3), pa.date32()])
    return draw.choice(
        [
            pa.array(numbers),
            pa.array(doubles),
            pa.nulls(rows),
            whole.cast(pa.bool_()),
            whole.cast(narrow),
            whole.cast(pa.int64()).cast(
                draw.choice([pa.timestamp("us"), pa.time64("us"), pa.duration("s")])
            ),
            pa.array([str(number) for number in numbers]).cast(
                draw.choice([pa.large_string(), pa.binary()])
            ),
            pa.array([str(number) for number in numbers]).dictionary_encode(),
            pa.array([draw.choice([2**63 + n % 2, 1]) for n in numbers], pa.uint64()),
            pa.array([draw.choice([None, number]) for number in numbers], pa.int64()),
            pa.array([[number] for number in numbers]),
            pa.array([{"a": number} for number in numbers]),
            pa.array(draw.sample(column.to_pylist(), rows), column.type),
            pa.array([draw.choice([None, value]) for value in column.to_pylist()], column.type),
        ]
    )
