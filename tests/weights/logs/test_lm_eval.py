"""lm-evaluation-harness's sample files: metric, group and prompt, and what cannot be weighed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from drift_weights.columns import Columns
from drift_weights.logs.lm_eval import LM_EVAL
from drift_weights.logs.opening import open_log
from drift_weights.logs.reader import Outcome
from drift_weights.outcomes import Outcomes

ASKED = "Question: What is 3 + 4?\nAnswer:"


def row(response: Any = "It is 7.", **changes: Any) -> dict[str, Any]:
    return {
        "doc_id": 3,
        "doc": {"question": "What is 3 + 4?", "answer": "#### 7"},
        "target": "7",
        "arguments": {"gen_args_0": {"arg_0": ASKED, "arg_1": {"until": ["\n\n"]}}},
        "resps": [[response]],
        "filtered_resps": ["7"],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "b1c2",
        "prompt_hash": "d3e4",
        "target_hash": "f5a6",
        "exact_match": 1.0,
    } | changes


def old(**changes: Any) -> dict[str, Any]:
    """A row as versions before 0.4.5 wrote it."""
    made = row(arguments=[[ASKED, {"until": ["\n\n"]}]])
    names = ("filter", "metrics", "doc_hash", "prompt_hash", "target_hash")
    return {name: value for name, value in made.items() if name not in names} | changes


def outcome(found: dict[str, Any], columns: Columns | None = None) -> Outcome:
    reader = LM_EVAL.bind(found, columns or Columns(), "count")
    return reader.outcome({name: found[name] for name in reader.fields})


def read(path: Path, rows: list[dict[str, Any]], columns: Columns | None = None) -> Outcomes:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    (batch,) = open_log(path, columns).outcomes()
    return batch


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples_sums_2026-01-01.jsonl"


def test_old_and_new_rows_are_recognised_and_others_are_not() -> None:
    assert LM_EVAL.sniff(row())
    assert LM_EVAL.sniff(old())
    assert not LM_EVAL.sniff({"doc_id": 3, "exact_match": 1.0})


def test_a_row_is_one_turn_of_its_document() -> None:
    assert outcome(row()) == Outcome(group=(3, "b1c2"), reward=1.0)
    assert outcome(old(exact_match=False)) == Outcome(group=3, reward=False)


def test_the_same_number_in_two_tasks_is_two_groups(path: Path) -> None:
    batch = read(path, [row(), row(doc_hash="other"), row()])
    assert list(zip(*(key.to_pylist() for key in batch.key_columns), strict=True)) == [
        (3, "b1c2"),
        (3, "other"),
        (3, "b1c2"),
    ]


def test_of_several_metrics_one_is_named(path: Path) -> None:
    several = row(metrics=["exact_match", "f1"], f1=0.5)
    for found in (several, old(f1=0.5)):
        with pytest.raises(
            ValueError, match=r"several metrics: exact_match, f1; .*--correct.*--return-column"
        ):
            outcome(found)
    named = read(path, [several], Columns(correct="exact_match"))
    assert named.solved_N is not None
    assert named.solved_N.tolist() == [True]
    returns = read(path, [several], Columns(return_column="f1")).return_N
    assert returns is not None
    assert returns.tolist() == [0.5]
    with pytest.raises(ValueError, match="no metric; name the column"):
        outcome(row(metrics=[]))


def test_rows_of_a_second_filter_are_refused(path: Path) -> None:
    rows = [row(), row(filter="flexible-extract")]
    with pytest.raises(ValueError, match=r"line 2: 'filter' is 'flexible-extract', .* 'strict-match'"):
        read(path, rows)


def test_several_responses_under_one_verdict_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2: 'resps' holds 4 responses.*one verdict"):
        read(path, [row(), row(resps=[["7", "8", "7", "9"]])])


@pytest.mark.parametrize("resps", [[[["-1.5", "False"]], [["-0.2", "True"]]], [[["-1.5", "False"]]]])
def test_log_likelihoods_are_refused(resps: Any) -> None:
    with pytest.raises(ValueError, match="log-likelihoods of choices: nothing was sampled"):
        outcome(row(resps=resps))


@pytest.mark.parametrize("resps", [None, [], [[]], ["7"]])
def test_rows_without_a_response_are_refused(resps: Any) -> None:
    with pytest.raises(ValueError, match="'resps' holds no response"):
        outcome(row(resps=resps))


@pytest.mark.parametrize("found", [row(), old()])
def test_the_prompt_is_the_first_argument(found: dict[str, Any]) -> None:
    dialogue = LM_EVAL.bind(found, Columns(), "count").dialogue(found)
    assert dialogue.prompt == [{"role": "user", "content": ASKED}]
    assert (dialogue.completion, dialogue.finish_reason) == ("It is 7.", "stop")


def test_rendered_prompts_and_messages_sent_to_an_api_are_messages_again() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3 + 4?"}]
    rendered = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    sent = json.dumps([{**message, "type": "text"} for message in messages])
    for prompt in (rendered + "<|im_start|>assistant\n", [sent]):
        found = row(arguments={"gen_args_0": {"arg_0": prompt}})
        dialogue = LM_EVAL.bind(found, Columns(), "count").dialogue(found)
        assert dialogue[:2] == (messages, "It is 7.")


@pytest.mark.parametrize("arguments", [None, {}, {"gen_args_0": None}, [], [[]], [[None]], [[["no JSON"]]]])
def test_a_row_without_a_prompt_has_no_dialogue(arguments: Any) -> None:
    found = row(arguments=arguments)
    with pytest.raises(ValueError, match="'arguments'"):
        LM_EVAL.bind(found, Columns(), "count").dialogue(found)


def test_an_empty_response_has_no_dialogue() -> None:
    with pytest.raises(ValueError, match="empty"):
        LM_EVAL.bind(row(), Columns(), "count").dialogue(row(""))


@pytest.mark.parametrize("size", [3, 4, 8])
def test_groups_of_any_size(path: Path, size: int) -> None:
    rows = [row(doc_id=number, exact_match=float(k == 0)) for k in range(size) for number in (0, 1)]
    batch = read(path, rows)
    assert batch.key_columns[0].to_pylist() == [0, 1] * size
    assert batch.solved_N is not None
    assert batch.solved_N.tolist() == [True] * 2 + [False] * 2 * (size - 1)


def test_string_and_number_ids_do_not_mix(path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2.*doc_id"):
        read(path, [row(), row(doc_id="3")])


@pytest.mark.parametrize("value", [None, "correct", math.nan, 0.5, 999])
def test_a_metric_that_is_no_verdict_is_refused(path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"jsonl, line 2.*exact_match"):
        read(path, [row(), row(exact_match=value)])
