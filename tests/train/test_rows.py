"""Files become rows: the same examples from every format, no type guessed, errors that name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from drift_train import encode, read_rows
from drift_weights import write_folder
from tiny import bpe_tokenizer
from train.weighted_rows import USER, random_rows, token_row, weighted_row, weighted_table


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_folder_parquet_and_jsonl_give_the_same_examples(tmp_path: Path) -> None:
    rows = [*random_rows(5, vocab=512), weighted_row(9)]
    table = weighted_table(rows)
    write_folder(tmp_path / "folder", table, "weighted", {})
    for name in ("rows.parquet", "rows.pq"):
        pq.write_table(table, tmp_path / name)
    for name in ("rows.jsonl", "rows.ndjson"):
        jsonl(tmp_path / name, *rows)
    found = [
        encode(read_rows(tmp_path / name), vocab_size=512, tokenizer=bpe_tokenizer()).examples
        for name in ("folder", "rows.parquet", "rows.pq", "rows.jsonl", "rows.ndjson")
    ]
    for examples in found[1:]:
        for one, other in zip(found[0], examples, strict=True):
            assert one.input_ids.tolist() == other.input_ids.tolist()
            assert (one.spans, one.weight, one.group) == (other.spans, other.weight, other.group)


def test_text_that_looks_like_a_date_stays_text(tmp_path: Path) -> None:
    dated = [{"role": "user", "content": "2024-01-31"}]
    path = jsonl(tmp_path / "dated.jsonl", weighted_row(0, prompt=dated), weighted_row(1, prompt=dated))
    tokenizer = bpe_tokenizer()
    ids = encode(read_rows(path), vocab_size=512, tokenizer=tokenizer).examples[0].input_ids
    assert "2024-01-31<|im_end|>" in tokenizer.decode(ids)


def test_names_may_be_text_or_numbers_even_in_one_column(tmp_path: Path) -> None:
    rows = [weighted_row(n, prompt_id=name, policy=7) for n, name in enumerate(["a", 3, "b"])]
    examples = encode(
        read_rows(jsonl(tmp_path / "mixed.jsonl", *rows)), vocab_size=512, tokenizer=bpe_tokenizer()
    ).examples
    assert [example.group for example in examples] == [("a", 0, "7"), ("3", 0, "7"), ("b", 0, "7")]
    grouped = [
        {"group": n, "prompt": USER, "completion": row["completion"], "weight": 1}
        for n, row in enumerate(rows)
    ]
    examples = encode(
        read_rows(jsonl(tmp_path / "group.jsonl", *grouped)), vocab_size=512, tokenizer=bpe_tokenizer()
    ).examples
    assert [example.group for example in examples] == [0, 1, 2], "as from a Parquet file"


def test_columns_that_training_does_not_read_may_hold_anything(tmp_path: Path) -> None:
    row = token_row(0, [1, 2], [(1, 2)])
    path = jsonl(
        tmp_path / "rows.jsonl", row | {"note": 1}, token_row(1, [1, 2], [(1, 2)]) | {"note": ["x", {}]}
    )
    assert "note" not in read_rows(path).column_names
    assert len(encode(read_rows(path), vocab_size=9).examples) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": [1, 1.5]}, r"line 2: column 'input_ids' must hold whole numbers, got \[1, 1.5\]"),
        ({"input_ids": [1, 2.0]}, r"line 2: column 'input_ids' must hold whole numbers, got \[1, 2.0\]"),
        ({"input_ids": [1, 2**70]}, "line 2: column 'input_ids' must hold whole numbers"),
        ({"input_ids": [1, "2"]}, "line 2: column 'input_ids' must hold whole numbers"),
        ({"input_ids": [1, 2**32 + 1]}, "row 1: token id 4294967297 is outside"),
        ({"response_spans": [[1, 2]]}, r"line 2: column 'response_spans' must .*got \[\[1, 2\]\]"),
        (
            {"response_spans": [{"start": 1, "end": 1.5}]},
            "row 1: end of response_spans must be a whole number",
        ),
        ({"sample": "1"}, "line 2: column 'sample' must hold whole numbers, got '1'"),
        ({"sample": 0.5}, "row 1: sample must be a whole number, got 0.5"),
        ({"round": 0.5}, "row 1: round must be a whole number, got 0.5"),
        ({"weight": "1"}, "line 2: column 'weight' must hold double, got '1'"),
        ({"weight": None}, "row 1: weight must be finite"),
        ({"prompt": "hello"}, "line 2: column 'prompt' must hold list<.*got 'hello'"),
        ({"prompt": [{"role": "user", "content": 3}]}, "line 2: column 'prompt' must hold list<"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    rows = [token_row(n, [1, 2], [(1, 2)]) for n in range(4)]
    rows[1] |= changes
    path = jsonl(tmp_path / "bad.jsonl", *rows)
    with pytest.raises(ValueError, match=rf"bad\.jsonl, {message}"):
        encode(read_rows(path), vocab_size=512, source=str(path))


@pytest.mark.parametrize("name", ["sample", "response_spans", "input_ids"])
def test_a_column_that_is_wrong_throughout_is_refused_too(tmp_path: Path, name: str) -> None:
    wrong = {"sample": "1", "response_spans": [[1, 2]], "input_ids": ["1", "2"]}[name]
    rows = [token_row(n, [1, 2], [(1, 2)]) | {name: wrong} for n in range(2)]
    with pytest.raises(ValueError, match=f"row 0: {name} must be"):
        encode(read_rows(jsonl(tmp_path / "bad.jsonl", *rows)), vocab_size=512)


def test_empty_token_lists_are_refused(tmp_path: Path) -> None:
    rows = [token_row(n, [], [(1, 2)]) for n in range(2)]
    with pytest.raises(ValueError, match=r"row 0: .*beyond the 0 tokens"):
        encode(read_rows(jsonl(tmp_path / "none.jsonl", *rows)), vocab_size=512)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.parquet does not exist"):
        read_rows(tmp_path / "nothing.parquet")
    with pytest.raises(FileNotFoundError, match=r"drift\.json"):
        read_rows(tmp_path)
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"weight": 1.0}\n{"weight": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"torn\.jsonl, line 2: .*may be torn"):
        read_rows(torn)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl has no rows"):
        read_rows(tmp_path / "empty.jsonl")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"bad\.parquet is no readable Parquet file"):
        read_rows(tmp_path / "bad.parquet")
    (tmp_path / "rows.csv").write_text("weight\n1\n")
    with pytest.raises(ValueError, match=r"rows\.csv.*ending in \.jsonl or \.parquet"):
        read_rows(tmp_path / "rows.csv")
