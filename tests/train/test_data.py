"""The data module: what it reads, how it splits, and the paper's defaults (M15)."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_train import WeightedDataModule, encode, split
from drift_weights.fingerprint import tokenizer_fingerprint
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


def test_a_slice_of_a_table_keeps_its_own_tokens() -> None:
    table = weighted_table(random_rows(9, vocab=512))
    whole = encode(table, vocab_size=512).examples
    part = encode(table.slice(4, 3), vocab_size=512).examples
    assert [e.input_ids.tolist() for e in part] == [e.input_ids.tolist() for e in whole[4:7]]


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


def test_ids_of_another_tokenizer_are_refused_with_both_hashes(policy: str) -> None:
    own, other = (tokenizer_fingerprint(bpe_tokenizer(bos=bos)) for bos in (False, True))
    row = token_row(0, [1, 2], [(1, 2)], tokenizer=own)
    WeightedDataModule.from_table(weighted_table([row]), policy).setup("fit")
    table = weighted_table([row, token_row(1, [1, 2], [(1, 2)], tokenizer=other)])
    with pytest.raises(ValueError, match=rf"row 1: tokenizer {other[:12]} .* {own[:12]}; train the model"):
        WeightedDataModule.from_table(table, policy).setup("fit")


def test_text_is_rendered_anew_whoever_sampled_it(policy: str) -> None:
    table = weighted_table([weighted_row(0, tokenizer="another")])
    WeightedDataModule.from_table(table, policy).setup("fit")


def test_without_a_tokenizer_the_ids_are_not_checked_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model(vocab=512).save_pretrained(tmp_path)
    for name, lines in (("another", 1), (None, 0)):
        table = weighted_table([token_row(0, [1, 2], [(1, 2)], tokenizer=name)])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            WeightedDataModule.from_table(table, str(tmp_path)).setup("fit")
        assert caplog.text.count("holds no tokenizer") == lines


def test_a_tokenizer_without_a_chat_template_will_do_for_rows_with_ids(tmp_path: Path) -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = None
    save_policy(tmp_path, tokenizer, tiny_model(vocab=512))
    row = token_row(0, [1, 2], [(1, 2)], tokenizer=tokenizer_fingerprint(tokenizer))
    WeightedDataModule.from_table(weighted_table([row]), str(tmp_path)).setup("fit")
