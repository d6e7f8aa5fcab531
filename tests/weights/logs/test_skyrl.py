"""SkyRL's dumped generations: rendered dialogues are taken apart, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.columns import Columns
from drift_weights.logs.opening import open_log
from drift_weights.logs.reader import Outcome
from drift_weights.logs.skyrl import SKYRL, rendered_messages
from drift_weights.outcomes import Outcomes

PROMPT = "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"
AGAIN = "<|im_end|>\n<|im_start|>user\nTry again.<|im_end|>\n<|im_start|>assistant\n"


def row(response: Any = "It is 7.<|im_end|>", **changes: Any) -> dict[str, Any]:
    found = {"input_prompt": PROMPT, "output_response": response, "score": 1.0, "stop_reason": "stop"}
    return found | {"env_class": "sums", "env_extras": {"max_turns": 3}, "data_source": "sums"} | changes


def outcome(found: dict[str, Any], columns: Columns | None = None, malformed: Any = "count") -> Outcome:
    reader = SKYRL.bind(row(), columns or Columns(), malformed)
    return reader.outcome({name: found[name] for name in reader.fields})


def read(path: Path, rows: list[dict[str, Any]], columns: Columns | None = None) -> Outcomes:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    (batch,) = open_log(path, columns).outcomes()
    return batch


def render(template: str, messages: list[dict[str, str]]) -> str:
    """Three families of chat templates, written out by hand."""
    text = {"chatml": "", "llama": "<|begin_of_text|>", "gemma": "<bos>"}[template]
    for message in messages:
        role, content = message["role"], message["content"]
        if template == "chatml":
            text += f"<|im_start|>{role}\n{content}<|im_end|>\n"
        elif template == "llama":
            text += f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
        else:
            name = "model" if role == "assistant" else role
            text += f"<start_of_turn>{name}\n{content}<end_of_turn>\n"
    return text


def test_a_dump_is_recognised_and_other_rows_are_not() -> None:
    assert SKYRL.sniff(row())
    assert not SKYRL.sniff({"input": "a", "output": "b", "score": 1.0, "step": 3})


@pytest.mark.parametrize("template", ["chatml", "llama", "gemma"])
@given(
    turns=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|>"), min_size=1),
        min_size=1,
        max_size=4,
    )
)
def test_a_dialogue_rendered_and_cut_anywhere_between_turns_is_found_again(
    template: str, turns: list[str]
) -> None:
    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    for turn in turns:
        messages += [{"role": "assistant", "content": turn}, {"role": "user", "content": "Try again."}]
    messages.pop()
    whole = render(template, messages)
    assert rendered_messages(whole) == messages
    start = len(render(template, messages[:1]))
    opening = len(render(template, [{"role": "assistant", "content": ""}])) - len(render(template, []))
    opening -= {"chatml": len("<|im_end|>\n"), "llama": len("<|eot_id|>"), "gemma": len("<end_of_turn>\n")}[
        template
    ]
    found = row(whole[start + opening :], input_prompt=whole[: start + opening], env_extras={})
    reader = SKYRL.bind(found, Columns(answers="responses"), "count")
    seen = reader.outcome(found)
    assert (seen.length, seen.unique) == (len(turns), len(set(turns)))
    assert reader.dialogue(found)[:2] == (messages[:-1], turns[-1])


def test_one_turn_needs_no_answers_and_several_do(tmp_path: Path) -> None:
    assert outcome(row())[2:5] == (1, 1, None)
    found = row(f"8{AGAIN}8{AGAIN}7<|im_end|>")
    assert outcome(found)[2:5] == (3, None, None)
    assert outcome(found, Columns(answers="responses"))[2:5] == (3, 2, None)
    with pytest.raises(ValueError, match=r"line 1: 3 turns and no answers.*--answers.*responses"):
        read(tmp_path / "sums.jsonl", [found])


def test_examples_in_the_prompt_are_no_turns() -> None:
    shots = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n" + PROMPT
    found = row(f"8{AGAIN}7<|im_end|>", input_prompt=shots)
    assert outcome(found, Columns(answers="responses"))[2:5] == (2, 2, None)


def test_an_empty_response_is_malformed() -> None:
    found = row(f"{AGAIN}{AGAIN}7<|im_end|>")
    answers = Columns(answers="responses")
    assert outcome(found, answers)[2:5] == (3, 2, None)
    assert outcome(found, answers, "skip")[2:5] == (3, 1, 1)


def test_turns_beyond_the_budget_are_refused() -> None:
    assert outcome(row(f"8{AGAIN}8{AGAIN}7")).length == 3
    with pytest.raises(
        ValueError, match=r"env_extras\.max_turns is 3, but 'output_response' holds 4 turns"
    ):
        outcome(row(f"8{AGAIN}8{AGAIN}8{AGAIN}7"))


def test_text_without_headers_is_one_message_each() -> None:
    found = row("It is 7.", input_prompt="Q: 3 + 4?\nA:", stop_reason="length")
    dialogue = SKYRL.bind(found, Columns(), "count").dialogue(found)
    assert dialogue.prompt == [{"role": "user", "content": "Q: 3 + 4?\nA:"}]
    assert (dialogue.completion, dialogue.finish_reason) == ("It is 7.", "length")


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("Hello <|im_start|>assistant\n", "7"),
        (PROMPT, "7<|im_end|>\n and more"),
        (PROMPT, "7<|im_start|>user\nTry again.<|im_end|>\n<|im_start|>assistant\n8"),
    ],
)
def test_what_a_template_did_not_render_is_refused(prompt: str, response: str) -> None:
    found = row(response, input_prompt=prompt)
    with pytest.raises(ValueError, match="no message of its chat template"):
        SKYRL.bind(found, Columns(), "count").dialogue(found)


@pytest.mark.parametrize("name", ["input_prompt", "output_response"])
@pytest.mark.parametrize("value", [None, ["7"], ""])
def test_null_and_empty_texts_have_no_dialogue(name: str, value: Any) -> None:
    found = row(**{"input_prompt": "Q:", "output_response": "7"} | {name: value})
    if value == "" and name == "input_prompt":
        with pytest.raises(ValueError, match="the group is unknown"):
            outcome(found)
        return
    with pytest.raises(ValueError, match=name):
        SKYRL.bind(found, Columns(), "count").dialogue(found)


def test_scores_of_tokens_are_summed(tmp_path: Path) -> None:
    assert outcome(row(score=[0.25, 0.75, 0.0])).reward == 1.0
    assert outcome(row(score=[])).reward == 0
    with pytest.raises(ValueError, match="line 2: 'score' is a list with values that are no numbers"):
        read(tmp_path / "sums.jsonl", [row(), row(score=[0.0, None])])


@pytest.mark.parametrize("score", [None, "1.0", math.nan, 0.5])
def test_a_score_that_is_no_verdict_is_refused(tmp_path: Path, score: Any) -> None:
    with pytest.raises(ValueError, match=r"sums\.jsonl, line 2.*score"):
        read(tmp_path / "sums.jsonl", [row(), row(score=score)])


@pytest.mark.parametrize("size", [3, 4, 8])
def test_a_group_is_a_prompt_of_any_size(tmp_path: Path, size: int) -> None:
    other = PROMPT.replace("3", "5")
    rows = [row(input_prompt=prompt) for _ in range(size) for prompt in (PROMPT, other)]
    (keys,) = read(tmp_path / "sums.jsonl", rows).key_columns
    first, second = keys.to_pylist()[:2]
    assert first != second
    assert keys.to_pylist() == [first, second] * size


def test_the_user_may_name_another_group(tmp_path: Path) -> None:
    rows = [row(input_prompt=None, uid=number) for number in (1, 1, 2)]
    (keys,) = read(tmp_path / "sums.jsonl", rows, Columns(group="uid")).key_columns
    assert keys.to_pylist() == [1, 1, 2]
    with pytest.raises(ValueError, match=r"'input_prompt' is None.*--group"):
        read(tmp_path / "sums.jsonl", rows)
