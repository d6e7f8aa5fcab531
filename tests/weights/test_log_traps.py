"""What real logs hold besides clean rows: each is weighed as it is meant, or refused with file and line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_weights import WeightConfig, group_weights, trajectory_return
from drift_weights.columns import Columns
from drift_weights.logs import OpenLog
from drift_weights.outputs import reweight_file

READING = sys.modules[OpenLog.__module__]
Row = dict[str, Any]
TEN_MB = 10 << 20


def row(prompt_id: Any, correct: Any, **more: Any) -> Row:
    return {"prompt_id": prompt_id, "correct": correct} | more


def said(*answers: str | None) -> list[Row]:
    """A dialogue with these responses."""
    messages: list[Row] = [{"role": "user", "content": "What is 3 + 4?"}]
    for answer in answers:
        messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": "Incorrect."})
    return messages[:-1]


def text(rows: Iterable[Row], end: str = "\n") -> bytes:
    return "".join(json.dumps(each) + end for each in rows).encode()


def weigh(folder: Path, content: bytes | list[Row], **options: Any) -> list[float]:
    """The weights of a log of lines, which the side file and the log again agree on."""
    log = folder / "log.jsonl"
    log.write_bytes(content if isinstance(content, bytes) else text(content))
    reweight_file(log, folder / "out.jsonl", overwrite=True, **options)
    reweight_file(log, folder / "side.parquet", form="side", overwrite=True, **options)
    side = pq.read_table(folder / "side.parquet")["weight"].to_pylist()
    lines = (folder / "out.jsonl").read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    assert [json.loads(line)["weight"] for line in lines] == side
    return side


def expected(rows: list[Row]) -> list[float]:
    solved, lengths = [each["correct"] for each in rows], [each.get("length", 1) for each in rows]
    returns = trajectory_return(solved, lengths, [each.get("unique", 1) for each in rows])
    return group_weights(returns, [each["prompt_id"] for each in rows]).tolist()


def refusal(folder: Path, content: bytes | list[Row], **options: Any) -> str:
    """What a user is told, which names the file."""
    with pytest.raises(ValueError, match=re.escape(str(folder / "log.jsonl"))) as caught:
        weigh(folder, content, **options)
    assert not (folder / "out.jsonl").exists()
    return str(caught.value)


def weights_or_refusal(folder: Path, content: bytes | list[Row]) -> list[float] | str:
    """For what may be read or refused, as long as it is not read wrong."""
    try:
        return weigh(folder, content)
    except ValueError as error:
        return str(error)


GOOD = [row("a", 1), row("a", 0), row("b", 0)]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(READING, "BATCH", 2)


@pytest.mark.parametrize("size", [3, 4, 8])
@pytest.mark.parametrize("right", [0, 1, 2])
def test_groups_of_any_size(tmp_path: Path, size: int, right: int) -> None:
    rows = [row("q", int(k < right), sample=k, length=1 + k % 3, unique=1) for k in range(size)]
    found = weigh(tmp_path, rows, config=WeightConfig(group_size=size))
    assert found == expected(rows)
    assert sum(found) == pytest.approx(size)


@pytest.mark.parametrize("size", [3, 4, 8])
def test_one_row_short_of_the_declared_size_is_refused_with_its_line(tmp_path: Path, size: int) -> None:
    rows = [row("whole", 0) for _ in range(size)] + [row("short", 0) for _ in range(size - 1)]
    says = refusal(tmp_path, rows, config=WeightConfig(group_size=size))
    assert f"line {size + 1}: its group has {size - 1} rows" in says


def test_all_wrong_groups_are_weighed_by_repetition_alone(tmp_path: Path) -> None:
    rows = [row("q", 0, length=4, unique=u) for u in (4, 2, 1)] + [row("r", 0, length=5, unique=5)] * 3
    found = weigh(tmp_path, rows)
    assert found == expected(rows)
    assert found[0] > found[1] > found[2]
    assert found[3:] == [1.0, 1.0, 1.0]


def test_all_wrong_groups_can_be_left_out(tmp_path: Path) -> None:
    rows = [row("bad", 0), row("q", 1), row("bad", 0), row("q", 0)]
    found = weigh(tmp_path, rows, config=WeightConfig(all_wrong="drop"))
    assert found == expected([rows[1], rows[3]])


def test_a_log_of_nothing_but_all_wrong_groups_leaves_nothing(tmp_path: Path) -> None:
    assert "left out" in refusal(
        tmp_path, [row("a", 0), row("a", 0)], config=WeightConfig(all_wrong="drop")
    )


@pytest.mark.parametrize("ids", [("1", 1), (1, "1")])
def test_strings_among_number_ids_are_refused_with_the_line(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    says = refusal(tmp_path, [row(ids[0], 1), row(ids[0], 0), row(ids[1], 1)])
    assert "line 3" in says
    assert "prompt_id" in says


@pytest.mark.parametrize("ids", [("1", 1), (1, "1")])
@pytest.mark.usefixtures("small_batches")
def test_ids_that_change_their_type_in_a_later_batch_are_refused(
    tmp_path: Path, ids: tuple[Any, Any]
) -> None:
    # Read as they are, one prompt would be two groups.
    says = refusal(tmp_path, [row(ids[0], 1), row(ids[0], 0), row(ids[1], 1), row(ids[1], 0)])
    assert "prompt_id" in says


@pytest.mark.usefixtures("small_batches")
def test_ids_that_change_their_type_in_a_later_batch_of_dialogues_are_refused(tmp_path: Path) -> None:
    rows = [row(prompt_id, 1, messages=said("7")) for prompt_id in ("1", "1", 1, 1)]
    assert "prompt_id" in refusal(tmp_path, rows)


@pytest.mark.parametrize("batch", [2, 100])
@pytest.mark.parametrize("other", [1.0, True])
def test_equal_numbers_are_one_group_however_they_are_written(
    tmp_path: Path, batch: int, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(READING, "BATCH", batch)
    rows = [row(1, 1), row(1, 1), row(other, 1), row(other, 0)]
    found = weights_or_refusal(tmp_path, rows)
    assert found == expected(rows) or "log.jsonl, line" in found


@pytest.mark.parametrize("batch", [2, 100])
def test_ids_beyond_64_bits_with_a_sign_are_not_run_into_each_other(
    tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Hashes as ids; as floating-point numbers they would be one.
    monkeypatch.setattr(READING, "BATCH", batch)
    rows = [row(2**63 + 1, 1), row(2**63 + 1, 0), row(2**63 + 2, 1), row(2**63 + 2, 1)]
    found = weights_or_refusal(tmp_path, rows)
    assert found == expected(rows) or "log.jsonl, line" in found


@pytest.mark.parametrize("ids", [[2**63 + 1, 2**63 + 1, 2**63 + 2], [0, 0, 2**64 - 1]])
def test_unsigned_ids_of_a_parquet_file(tmp_path: Path, ids: list[int]) -> None:
    table = pa.table({"prompt_id": pa.array(ids, pa.uint64()), "correct": [1, 0, 1]})
    pq.write_table(table, tmp_path / "log.parquet")
    reweight_file(tmp_path / "log.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")["weight"].to_pylist()
    assert found == expected(table.to_pylist())


@pytest.fixture(scope="module")
def ten_megabytes() -> bytes:
    """Rows with a field that nobody needs, more of them than one batch."""
    line = json.dumps(row(7, 1, length=2, unique=1, sample=0, extra=3, note="x" * 120))
    made = "".join(
        line.replace('"sample": 0', f'"sample": {n}').replace(": 7", f": {n // 4}") + "\n"
        for n in range(68_000)
    ).encode()
    assert len(made) > TEN_MB
    return made


@pytest.mark.parametrize("value", ['{"a": [1]}', '"three"', "null", "[3]"])
def test_a_field_that_nobody_needs_may_change_its_shape_late(
    tmp_path: Path, ten_megabytes: bytes, value: str
) -> None:
    last = b'{"prompt_id": 16999, "correct": 0, "length": 1, "unique": 1, "sample": 9, "extra": %b}\n'
    log = tmp_path / "log.jsonl"
    log.write_bytes(ten_megabytes + last % value.encode())
    reweight_file(log, tmp_path / "side.parquet", form="side")
    found = pq.read_table(tmp_path / "side.parquet")["weight"].to_pylist()
    assert set(found[:-5]) == {1.0}
    same = [row(0, 1, length=2, unique=1)] * 4 + [row(0, 0)]
    assert found[-5:] == expected(same)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_id", '"7"'),
        ("prompt_id", '{"id": 7}'),
        ("correct", '"yes"'),
        ("correct", '{"score": 1}'),
        ("length", '"3"'),
        ("unique", "[1]"),
        ("sample", '{"n": 1}'),
    ],
)
def test_a_field_that_is_needed_may_not(
    tmp_path: Path, ten_megabytes: bytes, name: str, value: str
) -> None:
    last = json.dumps(row(1, 0, length=1, unique=1, sample=9, extra=3) | {name: json.loads(value)})
    (tmp_path / "log.jsonl").write_bytes(ten_megabytes + last.encode() + b"\n")
    with pytest.raises(ValueError, match=r"log\.jsonl") as caught:
        reweight_file(tmp_path / "log.jsonl", tmp_path / "side.parquet", form="side")
    assert "line 68001" in str(caught.value)
    assert name in str(caught.value)


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("end", ["\n", "\r\n", " \r\n"])
@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("ended", [True, False])
def test_line_ends_and_byte_order_marks_are_read_and_kept(
    tmp_path: Path, end: str, mark: bytes, ended: bool
) -> None:
    content = mark + text(GOOD, end)
    if not ended:
        content = content.removesuffix(end.encode())
    assert weigh(tmp_path, content) == expected(GOOD)
    written = (tmp_path / "out.jsonl").read_bytes()
    assert re.sub(rb',"weight":[^}]*', b"", written) == content
    # What was written is read again, mark and all.
    reweight_file(tmp_path / "out.jsonl", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == written


def test_a_byte_order_mark_before_dialogues(tmp_path: Path) -> None:
    rows = [row("a", n % 2, messages=said("7")) for n in range(3)]
    assert weigh(tmp_path, BOM + text(rows, "\r\n")) == expected(rows)


def test_a_second_byte_order_mark_is_none(tmp_path: Path) -> None:
    assert "line 2" in refusal(tmp_path, text(GOOD[:1]) + BOM + text(GOOD[1:]))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("dialogue", [False, True])
def test_rewards_that_are_not_finite_are_refused(tmp_path: Path, value: str, dialogue: bool) -> None:
    more = {"messages": said("7")} if dialogue else {}
    good = text([row("a", 1, **more)])
    bad = text([row("a", 0, **more)]).replace(b'"correct": 0', b'"correct": ' + value.encode())
    says = refusal(tmp_path, good + bad)
    assert "line 2" in says
    assert "correct" in says


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_rewards_of_a_parquet_file_that_are_not_finite_are_refused(tmp_path: Path, value: Any) -> None:
    table = pa.table({"prompt_id": ["a", "a", "a"], "r": [1.0, value, 0.0]})
    pq.write_table(table, tmp_path / "log.parquet")
    columns = Columns(group="prompt_id", return_column="r")
    with pytest.raises(ValueError, match=r"log\.parquet, row 1"):
        reweight_file(tmp_path / "log.parquet", tmp_path / "out.parquet", columns=columns)
    with pytest.raises(ValueError, match=r"log\.parquet, row 1"):
        reweight_file(
            tmp_path / "log.parquet",
            tmp_path / "out.parquet",
            columns=Columns(group="prompt_id", correct="r"),
        )


@pytest.mark.parametrize("dialogue", [False, True])
def test_null_rewards_are_refused_with_their_line(tmp_path: Path, dialogue: bool) -> None:
    more = {"messages": said("7")} if dialogue else {}
    rows = [row("a", 1, **more), row("a", 0, **more), row("b", None, **more)]
    says = refusal(tmp_path, rows)
    assert "line 3: 'correct' is null" in says
    assert "line 1: 'correct' is null" in refusal(tmp_path, rows[2:])


@pytest.mark.parametrize("cut", range(1, len(json.dumps(GOOD[2]))))
def test_a_torn_last_line_is_refused_wherever_it_is_torn(tmp_path: Path, cut: int) -> None:
    whole = text(GOOD[:2])
    says = refusal(tmp_path, whole + text(GOOD[2:])[:cut])
    assert "line 3" in says
    assert "torn" in says


def test_a_log_torn_at_a_line_end_is_a_shorter_log(tmp_path: Path) -> None:
    assert weigh(tmp_path, text(GOOD)[:-1]) == expected(GOOD)


@pytest.mark.parametrize("blank", [b"\n", b" \n", b"\r\n"])
def test_an_empty_line_is_refused_with_its_number(tmp_path: Path, blank: bytes) -> None:
    assert "line 3" in refusal(tmp_path, text(GOOD[:2]) + blank + text(GOOD[2:]))


DOUBLED = [
    b'{"prompt_id": "x", "correct": 1, "prompt_id": "a", "correct": 0}',
    b'{"correct": "no", "prompt_id": null, "prompt_id": "a", "correct": 1}',
    b'{"prompt_id": "a", "correct": 0, "c\\u006frrect": 1}',
]


@pytest.mark.parametrize("line", DOUBLED)
@pytest.mark.parametrize("first", [False, True])
def test_of_a_name_that_stands_twice_the_last_counts(tmp_path: Path, line: bytes, first: bool) -> None:
    parsed = json.loads(line)
    rows = [parsed, *GOOD] if first else [*GOOD, parsed]
    parts = [line + b"\n", text(GOOD)] if first else [text(GOOD), line + b"\n"]
    assert weigh(tmp_path, b"".join(parts)) == expected(rows)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("bytes_", [b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
def test_bytes_that_are_no_utf8_are_refused_even_where_nobody_reads_them(
    tmp_path: Path, first: bool, bytes_: bytes
) -> None:
    line = b'{"prompt_id": "a", "correct": 1, "note": "' + bytes_ + b'"}\n'
    content = line + text(GOOD) if first else text(GOOD) + line
    assert f"line {1 if first else 4}" in refusal(tmp_path, content)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "line", [b"[NaN]", b"NaN", b"null", b"3", b'"text"', b"[]", b"[{}]", b"[" * 9999, b'{"a":' * 9999]
)
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: bytes, first: bool) -> None:
    content = line + b"\n" + text(GOOD) if first else text(GOOD) + line + b"\n"
    assert f"line {1 if first else 4}" in refusal(tmp_path, content)


@pytest.mark.parametrize("name", ["prompt_id", "correct", "length", "unique", "sample"])
@pytest.mark.parametrize("digits", [19, 20, 40, 400, 5000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_numbers_with_any_number_of_digits_are_read_or_refused(
    tmp_path: Path, name: str, digits: int, sign: str
) -> None:
    good = row(1, 1, length=1, unique=1, sample=1)
    line = text([good | {name: 12345}]).replace(b"12345", sign.encode() + b"9" * digits)
    content = text([good | {"sample": 2}]) + line
    if name in ("prompt_id", "sample") and digits < 20 and not sign:
        assert weigh(tmp_path, content) == [1.0, 1.0]
        return
    found = weights_or_refusal(tmp_path, content)
    assert isinstance(found, list) or "log.jsonl, line 2" in found


def test_a_trajectory_that_was_written_again_later_is_refused_with_both_lines(tmp_path: Path) -> None:
    rows = [row(f"q{n // 4}", 1, sample=n % 4) for n in range(12)]
    says = refusal(tmp_path, [*rows, rows[5]])
    assert "line 13" in says
    assert "line 6" in says


@pytest.mark.parametrize("samples", [(3, 200, 2**40), ("a", "b", "")])
@pytest.mark.usefixtures("small_batches")
def test_a_sample_repeated_in_a_later_batch_is_refused_with_both_lines(
    tmp_path: Path, samples: tuple[Any, ...]
) -> None:
    for number, sample in enumerate(samples, start=1):
        rows = [row("a", 1, sample=each) for each in samples]
        others = [row("b", 0, sample=each) for each in samples]
        says = refusal(tmp_path, [*rows, *others, row("a", 1, sample=sample)])
        assert "line 7" in says
        assert f"line {number}" in says


def test_equal_samples_of_other_groups_are_no_repeats(tmp_path: Path) -> None:
    rows = [row(group, 1, sample=sample) for group in "abc" for sample in (0, 1, 99)]
    assert weigh(tmp_path, rows) == [1.0] * 9


def test_a_dialogue_repeated_later_is_refused_with_both_lines(tmp_path: Path) -> None:
    rows = [row("a", 1, sample=n, messages=said("7")) for n in range(3)]
    says = refusal(tmp_path, [*rows, rows[1]])
    assert "line 4" in says
    assert "line 2" in says


def test_null_contents_are_one_more_answer(tmp_path: Path) -> None:
    answers = [("8", None, "7"), (None, None, "7"), ("8", "8", None)]
    rows = [row("a", n % 2, messages=said(*given)) for n, given in enumerate(answers)]
    counted = [
        row("a", n % 2, length=3, unique=unique) for n, unique in zip(range(3), (3, 2, 2), strict=True)
    ]
    assert weigh(tmp_path, rows, columns=Columns(answers="responses")) == expected(counted)


@pytest.mark.parametrize(
    "messages", [None, [], "text", 7, [{"role": "user", "content": "?"}], [None], [{"content": "7"}]]
)
def test_a_dialogue_without_a_response_is_refused_with_its_line(tmp_path: Path, messages: Any) -> None:
    rows = [row("a", 1, messages=said("7")), row("a", 0, messages=messages)]
    says = refusal(tmp_path, rows)
    assert "line 2" in says
    assert "messages" in says


def test_what_follows_the_last_response_is_no_turn(tmp_path: Path) -> None:
    ended = [*said("8", "7"), {"role": "user", "content": "###STOP###"}]
    rows = [row("a", 1, messages=ended), row("a", 0, messages=said("8", "8"))]
    counted = [row("a", 1, length=2, unique=2), row("a", 0, length=2, unique=1)]
    assert weigh(tmp_path, rows, columns=Columns(answers="responses")) == expected(counted)


@pytest.mark.parametrize("name", ["length", "unique", "sample", "round", "policy"])
def test_a_field_that_matters_is_in_all_lines_or_in_none(tmp_path: Path, name: str) -> None:
    full = row("a", 1, length=1, unique=1, sample=0, round=0, policy="p")
    other = {key: value for key, value in (full | {"sample": 1}).items() if key != name}
    for rows in ([full, other], [other, full]):
        says = refusal(tmp_path, rows)
        assert "line 2" in says or name in says


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array([1]), pa.array([0])]
    table = pa.Table.from_arrays(columns, ["prompt_id", "correct", "correct"])
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"log\.parquet"):
        reweight_file(tmp_path / "log.parquet", tmp_path / "out.parquet")
