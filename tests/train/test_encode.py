"""The loss mask is exactly what was sampled (M12; audit lines 1, 6, 7 and 8)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_train import Example, encode, step_batch
from drift_weights import prompt_id
from drift_weights.types import Message
from tiny import bpe_tokenizer
from train.weighted_rows import USER, token_row, weighted_row, weighted_table

TOKENIZERS = {
    "pad differs from eos": bpe_tokenizer(pad=True),
    "no pad": bpe_tokenizer(pad=False),
    "adds a BOS": bpe_tokenizer(pad=False, bos=True),
}
TOKENIZERS["pad is eos"] = bpe_tokenizer(pad=False)
TOKENIZERS["pad is eos"].pad_token = TOKENIZERS["pad is eos"].eos_token
HISTORY = [
    *USER,
    {"role": "assistant", "content": "<answer> 41 </answer>"},
    {"role": "user", "content": "Incorrect. Please think again."},
]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]


def only(rows: list[dict[str, Any]], tokenizer: Any = None, **settings: Any) -> Example:
    vocab = 512 if tokenizer is None else len(tokenizer)
    (example,) = encode(weighted_table(rows), vocab_size=vocab, tokenizer=tokenizer, **settings).examples
    return example


def supervised(example: Example, *, padding: int = 3) -> tuple[list[int], list[int]]:
    """Positions with loss in the padded row, counted from the example's first token, and their ids."""
    longer = Example(
        input_ids=np.zeros(len(example.input_ids) + padding, np.int32),
        spans=((1, 2),),
        weight=1.0,
        prompt_id="other",
        group="other",
        sample=0,
        row=1,
    )
    weights, both = np.array([3.0, 1.0]), np.arange(2)
    batch = step_batch([example, longer], weights, both, micro_tokens=10**6, packed=False)
    (micro,) = batch.micro_batches
    mine = micro.weight[micro.example_R] == 3
    positions = micro.source_R[mine] % len(longer.input_ids) + 1
    return positions.tolist(), micro.target_R[mine].tolist()


@pytest.mark.parametrize("ended", [True, False])
def test_the_mask_is_the_sampled_response_with_its_end_token_iff_sampled(
    tokenizer: Any, ended: bool
) -> None:
    """The response holds special ids in the middle and does not survive decode and encode."""
    end, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    prompt = tokenizer.apply_chat_template(
        HISTORY, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    pieces = [tokenizer.convert_tokens_to_ids(letter) for letter in "answer"]
    response = [*pieces, 0, other, end, *pieces] + [end] * ended
    text = tokenizer.decode(response)
    assert tokenizer.encode(text, add_special_tokens=False) != response
    spans = [(3, 5), (len(prompt), len(prompt) + len(response))]
    finish = "stop" if ended else "length"
    row = token_row(0, [*prompt, *response], spans, prompt=HISTORY, finish_reason=finish)
    positions, ids = supervised(only([row], tokenizer))
    assert positions == list(range(len(prompt), len(prompt) + len(response)))
    assert ids == response
    assert (ids[-1] == end) is ended


@settings(deadline=None)
@given(
    ids=st.lists(st.integers(0, 511), min_size=2, max_size=30),
    cuts=st.data(),
    padding=st.integers(0, 5),
)
def test_the_mask_goes_by_position_whatever_the_ids(ids: list[int], cuts: Any, padding: int) -> None:
    bounds = sorted(
        cuts.draw(st.sets(st.integers(1, len(ids)), min_size=2, max_size=8)) if len(ids) > 2 else {1, 2}
    )
    spans = list(zip(bounds[::2], bounds[1::2], strict=False))
    row = token_row(0, ids, spans)
    last = list(range(*spans[-1]))
    assert supervised(only([row]), padding=padding) == (last, [ids[t] for t in last])
    every = [t for span in spans for t in range(*span)]
    found = supervised(only([row], supervise="all"), padding=padding)
    assert found == (every, [ids[t] for t in every])


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_text_is_rendered_with_the_template_and_ends_iff_the_model_did(
    tokenizer: Any, finish_reason: str
) -> None:
    answer = "<answer> 42 </answer>"
    example = only([weighted_row(prompt=HISTORY, finish_reason=finish_reason)], tokenizer)
    prompt = tokenizer.apply_chat_template(
        HISTORY, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    own = tokenizer.encode(answer, add_special_tokens=False)
    end = [tokenizer.convert_tokens_to_ids("<|im_end|>")] if finish_reason == "stop" else []
    assert example.input_ids.tolist() == [*prompt, *own, *end]
    assert example.spans == ((len(prompt), len(prompt) + len(own) + len(end)),)


def test_bos_is_never_doubled() -> None:
    tokenizer = TOKENIZERS["adds a BOS"]
    assert tokenizer.encode("x")[0] == tokenizer.bos_token_id
    example = only([weighted_row(prompt=HISTORY)], tokenizer)
    assert example.input_ids.tolist().count(tokenizer.bos_token_id) == 1


def test_the_turn_end_is_the_templates_own_where_eos_is_another_token() -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    example = only([weighted_row()], tokenizer)
    assert example.input_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_foreign_table_needs_only_prompt_completion_and_weight() -> None:
    row = {name: weighted_row()[name] for name in ("prompt", "completion", "weight")}
    encoded = encode(
        pa.Table.from_pylist([row | {"prompt": HISTORY}, row]),
        vocab_size=512,
        tokenizer=TOKENIZERS["no pad"],
    )
    first, second = encoded.examples
    end = TOKENIZERS["no pad"].convert_tokens_to_ids("<|im_end|>")
    assert first.input_ids[-1] == end
    known = prompt_id([Message(**USER[0])], None)
    assert (first.prompt_id, second.prompt_id) == (known, known), "turns of one problem stay together"
    assert (first.sample, second.sample) == (0, 1)


def test_the_group_is_the_contracts_and_else_the_group_column() -> None:
    assert only([token_row(5, [1, 2], [(1, 2)])]).group == ("p1", 0, "ref")
    table = weighted_table([token_row(5, [1, 2], [(1, 2)])]).drop_columns(["round", "policy"])
    assert encode(table, vocab_size=9).examples[0].group == "p1"
    grouped = table.append_column("group", pa.array(["g7"]))
    assert encode(grouped, vocab_size=9).examples[0].group == "g7"


LONG = [token_row(n, range(n + 2), [(n + 1, n + 2)]) for n in range(6)]


def test_rows_that_are_too_long_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"2 rows \(4, 5\) of 6 longer than 5 tokens"):
        encode(weighted_table(LONG), vocab_size=512, max_length=5)


def test_or_dropped_and_counted_with_the_other_rows_untouched() -> None:
    encoded = encode(weighted_table(LONG), vocab_size=512, max_length=5, too_long="drop")
    free = encode(weighted_table(LONG), vocab_size=512)
    assert encoded.too_long == (4, 5)
    assert [e.row for e in encoded.examples] == [0, 1, 2, 3]
    for kept, before in zip(encoded.examples, free.examples, strict=False):
        assert supervised(kept) == supervised(before)
        assert kept.weight == before.weight


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (token_row(0, [1, 2], [(1, 2)], weight=math.nan), r"row 1: weight must be finite"),
        (token_row(0, [1, 2], [(1, 2)], weight=math.inf), r"row 1: weight must be finite"),
        (token_row(0, [1, 2], [(1, 2)], weight=-0.5), r"row 1: weight must be finite and not negative"),
        (token_row(0, [1, 512], [(1, 2)]), r"row 1: token id 512 is outside the model's 512 tokens"),
        (token_row(0, [1, -1], [(1, 2)]), r"row 1: token id -1 is outside"),
        (token_row(0, [1, 2], [(0, 2)]), r"row 1: .*no prompt before it"),
        (token_row(0, [1, 2], [(1, 3)]), r"row 1: .*beyond the 2 tokens"),
        (
            token_row(0, [1, 2], [(1, 1)]),
            r"row 1: response_spans hold no token to learn from; drop",
        ),
        (token_row(0, [1, 2], [(2, 1)]), r"row 1: response span \[2, 1\) is empty, out of order"),
        (token_row(0, [1, 2], []), r"row 1: input_ids without response_spans"),
        (weighted_row(), r"row 1: text without input_ids needs a tokenizer"),
    ],
)
def test_bad_rows_are_named_with_their_remedy(row: dict[str, Any], message: str) -> None:
    table = weighted_table([token_row(0, [1, 2], [(1, 2)]), row])
    with pytest.raises(ValueError, match=message):
        encode(table, vocab_size=512)


def typed(table: pa.Table, name: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    """The table with one column replaced, in whatever type it comes."""
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


TWO = [token_row(n, [1, 2], [(1, 2)]) for n in range(2)]
WIDE = pa.list_(pa.int64())
ENDS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64())]))


@pytest.mark.parametrize(
    ("name", "values", "kind", "message"),
    [
        ("input_ids", [[1, 2], [1, 2**32 + 5]], WIDE, "row 1: token id 4294967301 is outside"),
        ("input_ids", [[1, 2], [1, 2**31]], WIDE, "row 1: token id 2147483648 is outside"),
        (
            "input_ids",
            [[1, 2], [1, 2**63]],
            pa.list_(pa.uint64()),
            "row 1: token id 9223372036854775808 is",
        ),
        (
            "input_ids",
            [[1, 2], [1, None]],
            WIDE,
            "row 1: input_ids must be whole numbers, none of them null",
        ),
        ("input_ids", [[1.0, 2.0], [1.0, 2.5]], None, "row 0: input_ids must be whole numbers"),
        ("input_ids", [["1", "2"], ["1", "2"]], None, "row 0: input_ids must be whole numbers"),
        (
            "input_ids",
            ["1 2", "1 2"],
            None,
            "table: column 'input_ids' is string, expected lists of token ids",
        ),
        (
            "response_spans",
            [[{"start": 1, "end": 2}], [{"start": 1, "end": None}]],
            ENDS,
            "row 1: end of response_spans must be a whole number, got None",
        ),
        (
            "response_spans",
            [[[1, 2]], [[1, 2]]],
            None,
            r"row 0: response_spans must be such as .*got \[1, 2\]",
        ),
        ("sample", ["0", "1"], None, "row 0: sample must be a whole number, got '0'"),
        ("sample", [0.0, 0.5], None, "row 1: sample must be a whole number, got 0.5"),
        ("round", ["a", "a"], None, "row 0: round must be a whole number, got 'a'"),
    ],
)
def test_types_that_cannot_be_meant_are_named(
    name: str, values: list[Any], kind: pa.DataType | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode(typed(weighted_table(TWO), name, values, kind), vocab_size=512)


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int16(), pa.uint32(), pa.int64(), pa.uint64()])
def test_ids_of_every_width_are_the_same_ids(kind: pa.DataType) -> None:
    table = typed(weighted_table(TWO), "input_ids", [[7, 200], [3, 4]], pa.large_list(kind))
    assert [e.input_ids.tolist() for e in encode(table, vocab_size=512).examples] == [[7, 200], [3, 4]]


def test_whole_numbers_that_pandas_made_floats_are_taken() -> None:
    table = typed(weighted_table(TWO), "sample", [0.0, 3.0])
    assert [example.sample for example in encode(table, vocab_size=512).examples] == [0, 3]


def test_a_group_must_be_something_that_rows_can_share() -> None:
    table = weighted_table(TWO).drop_columns(["policy"]).append_column("group", pa.array([[1], [2]]))
    with pytest.raises(ValueError, match=r"row 0: group must be text or a whole number, got \[1\]"):
        encode(table, vocab_size=512)


def test_a_key_that_comes_twice_is_refused_and_named() -> None:
    rows = [*TWO, token_row(0, [1, 3], [(1, 2)])]
    key = r"prompt_id 'p0', round 0, policy 'ref', sample 0"
    with pytest.raises(ValueError, match=rf"row 2: row 0 has the same key \({key}\); drop one"):
        encode(weighted_table(rows), vocab_size=512)
    for name, other in {"prompt_id": "p1", "round": 1, "policy": "π", "sample": 5}.items():
        distinct = weighted_table([*TWO, rows[2] | {name: other}])
        assert len(encode(distinct, vocab_size=512).examples) == 3
    for name in ("prompt_id", "round", "policy", "sample"):
        keyless = weighted_table(rows).drop_columns([name])
        assert len(encode(keyless, vocab_size=512).examples) == 3, "a foreign log need not have the key"


def test_a_column_that_is_there_twice_is_refused() -> None:
    table = weighted_table(TWO)
    with pytest.raises(ValueError, match="has the columns weight more than once"):
        encode(table.append_column("weight", table.column("weight")), vocab_size=512)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completion": [*HISTORY[:2]]}, "completion must be one assistant message"),
        ({"completion": [USER[0]]}, "completion must be one assistant message"),
        ({"completion": [{"role": "assistant", "content": ""}]}, "completion is empty"),
        ({"prompt": []}, "prompt must be messages"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt must be messages"),
    ],
)
def test_bad_messages_are_named(changes: dict[str, Any], message: str) -> None:
    table = weighted_table([weighted_row(**changes)])
    with pytest.raises(ValueError, match=f"row 0: {message}"):
        encode(table, vocab_size=512, tokenizer=TOKENIZERS["no pad"])


def test_columns_that_are_missing_are_all_named() -> None:
    with pytest.raises(ValueError, match="lacks the columns completion, weight"):
        encode(pa.table({"prompt": ["x"]}), vocab_size=9)
    with pytest.raises(ValueError, match="'weight' is string"):
        encode(pa.table({"prompt": ["x"], "completion": ["y"], "weight": ["1"]}), vocab_size=9)


def test_text_alone_cannot_supervise_all_turns() -> None:
    table = weighted_table([weighted_row(prompt=HISTORY)])
    with pytest.raises(ValueError, match="supervise=all needs input_ids"):
        encode(table, vocab_size=512, tokenizer=TOKENIZERS["no pad"], supervise="all")


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode(weighted_table([weighted_row()]), vocab_size=512, tokenizer=tokenizer)
