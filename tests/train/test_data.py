"""The data module: what it reads, how it splits, and the paper's defaults (M15)."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_train import WeightedDataModule, encode, read_rows, split
from drift_weights import write_folder
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import random_rows, token_row, weighted_row, weighted_table


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = tiny_model(vocab=512, max_position_embeddings=40)
    return str(save_policy(tmp_path_factory.mktemp("policy"), bpe_tokenizer(), model))


def examples_of(count: int) -> Any:
    rows = [token_row(n, [1, 2], [(1, 2)]) for n in range(count)]
    return encode(weighted_table(rows), vocab_size=9).examples


def test_the_defaults_are_the_papers() -> None:
    defaults = inspect.signature(WeightedDataModule).parameters
    assert defaults["batch_size"].default == 128
    assert defaults["weighting"].default == "loss"
    assert defaults["supervise"].default == "terminal"
    assert defaults["val_share"].default == 0.0


@settings(deadline=None)
@given(order=st.permutations(range(80)), share=st.floats(0.15, 0.85))
def test_no_prompt_is_on_both_sides_and_order_decides_nothing(order: list[int], share: float) -> None:
    examples = examples_of(80)
    train, held_out = split(examples, share)
    sides = {e.prompt_id for e in train}, {e.prompt_id for e in held_out}
    assert not sides[0] & sides[1]
    assert len(train) + len(held_out) == 80
    shuffled = split([examples[i] for i in order], share)
    assert {e.prompt_id for e in shuffled[1]} == sides[1]
    more = split(examples_of(160), share)[1]
    assert sides[1] <= {e.prompt_id for e in more}, "new rows move no old prompt"


def test_the_held_out_share_is_near_what_was_asked_for() -> None:
    _, held_out = split(examples_of(8000), 0.3)
    assert abs(len(held_out) / 8000 - 0.3) < 0.03
    assert split(examples_of(40), 0.0)[1] == []


def test_a_split_with_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"val_share 1e-12 of 2 prompts leaves the held-out side empty"):
        split(examples_of(8), 1e-12)
    with pytest.raises(ValueError, match="leaves the training side empty"):
        split(examples_of(8), 1 - 1e-12)


def test_folder_parquet_and_jsonl_give_the_same_examples(tmp_path: Path) -> None:
    rows = [*random_rows(5, vocab=512), weighted_row(9)]
    table = weighted_table(rows)
    write_folder(tmp_path / "folder", table, "weighted", {})
    pq.write_table(table, tmp_path / "rows.parquet")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    found = [
        encode(read_rows(tmp_path / name), vocab_size=512, tokenizer=bpe_tokenizer()).examples
        for name in ("folder", "rows.parquet", "rows.jsonl")
    ]
    for examples in found[1:]:
        for one, other in zip(found[0], examples, strict=True):
            assert one.input_ids.tolist() == other.input_ids.tolist()
            assert (one.spans, one.weight, one.group) == (other.spans, other.weight, other.group)


def test_a_slice_of_a_table_keeps_its_own_tokens() -> None:
    table = weighted_table(random_rows(9, vocab=512))
    whole = encode(table, vocab_size=512).examples
    part = encode(table.slice(4, 3), vocab_size=512).examples
    assert [e.input_ids.tolist() for e in part] == [e.input_ids.tolist() for e in whole[4:7]]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.parquet does not exist"):
        read_rows(tmp_path / "nothing.parquet")
    with pytest.raises(FileNotFoundError, match=r"drift\.json"):
        read_rows(tmp_path)
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"weight": 1.0}\n{"weight": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"torn\.jsonl does not read as jsonl"):
        read_rows(torn)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"bad\.parquet does not read as parquet"):
        read_rows(tmp_path / "bad.parquet")
    (tmp_path / "rows.csv").write_text("weight\n1\n")
    with pytest.raises(ValueError, match="neither a folder of weighted turns"):
        read_rows(tmp_path / "rows.csv")


def test_the_models_context_limits_the_rows_and_what_is_dropped_is_named(
    policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = weighted_table([token_row(n, range(length), [(1, 2)]) for n, length in enumerate((40, 41))])
    data = WeightedDataModule.from_table(table, policy)
    with pytest.raises(ValueError, match=r"1 row \(1\) of 2 longer than 40 tokens"):
        data.setup("fit")
    data = WeightedDataModule.from_table(table, policy, too_long="drop")
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "left out 1 row (1)" in caplog.text


def test_settings_out_of_range_are_refused(policy: str) -> None:
    with pytest.raises(ValueError, match="val_share must lie in"):
        WeightedDataModule("x", policy, val_share=1.0)
    table = pa.Table.from_pylist([token_row(0, [1, 2], [(1, 2)])])
    with pytest.raises(ValueError, match="batch_size must be ≥ 1"):
        WeightedDataModule.from_table(table, policy, batch_size=0).setup("fit")
