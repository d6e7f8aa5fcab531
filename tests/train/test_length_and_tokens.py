"""Rows that are cut to fit, and rows whose ids another tokenizer made (audit line 8)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_train import Example, WeightedDataModule, encode
from drift_weights.fingerprint import tokenizer_fingerprint
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import USER, random_rows, token_row, weighted_row, weighted_table

OWN, OTHER = bpe_tokenizer(), bpe_tokenizer(bos=True)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = tiny_model(vocab=512, max_position_embeddings=40)
    return str(save_policy(tmp_path_factory.mktemp("policy"), OWN, model))


def learned(example: Example) -> list[list[int]]:
    """The ids with loss, span by span."""
    return [example.input_ids[start:end].tolist() for start, end in example.spans]


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000), limit=st.integers(2, 30), supervise=st.sampled_from(["terminal", "all"])
)
def test_truncation_cuts_the_front_alone_and_never_a_token_with_loss(
    seed: int, limit: int, supervise: Any
) -> None:
    (row,) = random_rows(1, vocab=512, seed=seed)
    table = weighted_table([row])
    (whole,) = encode(table, vocab_size=512, supervise=supervise).examples
    size = len(whole.input_ids)
    if size - whole.spans[0][0] >= limit and size > limit:
        with pytest.raises(ValueError, match=r"row 0: from its first supervised token on it has"):
            encode(table, vocab_size=512, supervise=supervise, max_length=limit, too_long="truncate")
        return
    encoded = encode(table, vocab_size=512, supervise=supervise, max_length=limit, too_long="truncate")
    (cut,) = encoded.examples
    assert cut.input_ids.tolist() == whole.input_ids.tolist()[-limit:]
    assert learned(cut) == learned(whole)
    assert cut.spans[0][0] >= 1
    assert encoded.truncated == ((0,) if size > limit else ())
    assert (cut.weight, cut.group, cut.sample) == (whole.weight, whole.group, whole.sample)


def test_what_was_cut_is_said_and_kept_in_the_manifest(
    policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = (40, 41, 50)
    rows = [token_row(n, range(size), [(size - 2, size)]) for n, size in enumerate(lengths)]
    data = WeightedDataModule.from_table(weighted_table(rows), policy, too_long="truncate")
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "cut the first tokens of the prompt off 2 rows (1, 2)" in caplog.text
    assert data.about()["truncated"] == 2


def mixed() -> list[dict[str, Any]]:
    """A row of the model's own tokenizer, and two of another, one of them cut off at the limit."""
    own, other = tokenizer_fingerprint(OWN), tokenizer_fingerprint(OTHER)
    return [
        token_row(0, [1, 2, 3], [(1, 3)], tokenizer=own),
        token_row(1, [1, 2, 3], [(1, 3)], tokenizer=other),
        token_row(2, [1, 2, 3], [(1, 3)], tokenizer=other, finish_reason="length"),
    ]


def test_ids_of_another_tokenizer_give_way_to_the_text_only_when_told() -> None:
    table = weighted_table(mixed())
    with pytest.raises(ValueError, match=r"row 1: tokenizer .* rendered anew with reencode=true"):
        encode(table, vocab_size=512, tokenizer=OWN)
    encoded = encode(table, vocab_size=512, tokenizer=OWN, reencode=True)
    assert encoded.reencoded == (1, 2)
    prompt = OWN.apply_chat_template(USER, tokenize=True, add_generation_prompt=True, return_dict=False)
    answer = OWN.encode("<answer> 42 </answer>", add_special_tokens=False)
    end = OWN.convert_tokens_to_ids("<|im_end|>")
    assert [example.input_ids.tolist() for example in encoded.examples] == [
        [1, 2, 3],
        [*prompt, *answer, end],
        [*prompt, *answer],
    ]
    assert [learned(example) for example in encoded.examples[1:]] == [[[*answer, end]], [answer]]


def test_what_was_rendered_anew_is_said_and_kept_in_the_manifest(
    policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = WeightedDataModule.from_table(weighted_table(mixed()), policy, reencode=True)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "rendered 2 rows (1, 2) anew from their text" in caplog.text
    assert data.about()["reencoded"] == 2


def test_without_text_or_tokenizer_nothing_can_be_rendered_anew(policy: str, tmp_path: Path) -> None:
    textless = weighted_table(mixed()).drop_columns(["prompt", "completion"])
    with pytest.raises(ValueError, match="row 1: prompt must be messages"):
        encode(textless, vocab_size=512, tokenizer=OWN, reencode=True)
    tiny_model(vocab=512).save_pretrained(tmp_path)
    data = WeightedDataModule.from_table(weighted_table(mixed()), str(tmp_path), reencode=True)
    with pytest.raises((OSError, ValueError), match="tokenizer"):
        data.setup("fit")


def test_rows_of_the_models_own_tokenizer_need_no_template_to_be_kept() -> None:
    plain = bpe_tokenizer()
    plain.chat_template = None
    row = token_row(0, [1, 2], [(1, 2)], tokenizer=tokenizer_fingerprint(plain))
    encoded = encode(
        weighted_table([row, weighted_row(1)])[:1], vocab_size=512, tokenizer=plain, reencode=True
    )
    assert encoded.reencoded == ()
