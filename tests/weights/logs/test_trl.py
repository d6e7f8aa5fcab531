"""TRL's completions files: which column is the reward, and what a group is."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_weights.columns import Columns
from drift_weights.logs.messages import TRAILING
from drift_weights.logs.opening import open_log
from drift_weights.logs.reader import LogReader, Outcome
from drift_weights.logs.trl import TRL


def asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def answered(*texts: str | None) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text} for text in texts]


def row(prompt: Any = "What is 3 + 4?", completion: Any = "7", **changes: Any) -> dict[str, Any]:
    made = {
        "step": 12,
        "prompt": prompt,
        "completion": completion,
        "accuracy_reward": 1.0,
        "advantage": 0.7,
    }
    return made | changes


def bind(found: dict[str, Any], columns: Columns | None = None, malformed: Any = "count") -> LogReader:
    return TRL.bind(found, columns or Columns(), malformed)


def outcome(found: dict[str, Any], columns: Columns | None = None, malformed: Any = "count") -> Outcome:
    return bind(found, columns, malformed).outcome(found)


def test_a_row_is_recognised_by_its_advantage() -> None:
    assert TRL.sniff(row())
    without = row()
    del without["advantage"]
    assert not TRL.sniff(without)
    assert outcome(without | {"step": "12", "accuracy_reward": 1.0}).reward == 1.0


def test_the_only_reward_column_is_the_verdict() -> None:
    reader = bind(row(remark="good"))
    assert reader.fields == ("step", "prompt", "accuracy_reward")
    assert reader.took["verdict"] == "accuracy_reward"
    # A function that gave no reward leaves a null.
    assert bind(row(accuracy_reward=None)).took["verdict"] == "accuracy_reward"


def test_several_reward_columns_are_listed_and_one_is_named() -> None:
    found = row(format_reward=0.5, remark="good")
    with pytest.raises(ValueError, match=r"accuracy_reward, format_reward; .*--correct"):
        bind(found)
    assert outcome(found, Columns(correct="format_reward")).reward == 0.5
    assert outcome(found, Columns(return_column="accuracy_reward")).reward == 1.0


def test_no_reward_column_is_refused() -> None:
    found = row()
    del found["accuracy_reward"]
    with pytest.raises(ValueError, match=r"no reward column.*--correct"):
        bind(found)


def test_a_group_is_a_step_and_a_prompt() -> None:
    assert outcome(row()).group == outcome(row(completion="8", accuracy_reward=0.0)).group
    assert outcome(row()).group != outcome(row(step=13)).group
    assert outcome(row()).group != outcome(row("What is 9 − 2?")).group
    chats = [outcome(row(asked(text), answered("7"))).group for text in ("a", "a", "b")]
    assert chats[0] == chats[1] != chats[2]


def test_a_prompt_that_is_not_there_is_no_group() -> None:
    for nothing in (None, "", []):
        with pytest.raises(ValueError, match="group is unknown"):
            outcome(row(nothing))


def test_turns_are_the_assistant_messages_of_the_completion() -> None:
    history = [*asked("What?"), *answered("8"), *asked("Again.")]
    assert outcome(row(history, answered("7")))[2:4] == (1, 1)
    completion = [*answered("8"), *asked("Again."), *answered("8")]
    assert outcome(row(history, completion))[2:4] == (2, None)
    assert outcome(row(history, completion), Columns(answers="responses"))[2:4] == (2, 1)
    assert outcome(row(history, completion), Columns(return_column="accuracy_reward"))[2:4] == (1, 1)


def test_a_completion_is_read_only_where_it_says_something() -> None:
    assert "completion" not in bind(row()).fields
    chat = row(asked("What?"), answered("7"))
    assert "completion" in bind(chat).fields
    assert "completion" not in bind(chat, Columns(return_column="accuracy_reward")).fields
    assert "completion" not in bind(chat, Columns(length="turns", unique="answers")).fields
    assert "completion" in bind(chat, Columns(length="turns")).fields


def test_a_tool_result_at_the_end_is_no_turn() -> None:
    found = row(asked("What?"), [*answered("let me see"), {"role": "tool", "content": "4"}])
    assert outcome(found)[2] == 1
    assert outcome(found).note == TRAILING
    assert bind(found).dialogue(found).completion == "let me see"


def test_the_terminal_turn() -> None:
    found = row()
    assert bind(found).dialogue(found) == (asked("What is 3 + 4?"), "7", "stop")
    found = row(asked("What?"), [*answered("8"), *asked("Again."), *answered("7")])
    dialogue = bind(found).dialogue(found)
    assert list(dialogue.prompt) == [*asked("What?"), *answered("8"), *asked("Again.")]
    assert dialogue.completion == "7"


@pytest.mark.parametrize(
    ("says", "completion"),
    [
        ("is empty", ""),
        ("is null", None),
        ("no assistant message", []),
        ("calls tools", [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]),
    ],
)
def test_what_cannot_be_trained_on_is_refused(says: str, completion: Any) -> None:
    found = row(completion=completion)
    with pytest.raises(ValueError, match=says):
        bind(found).dialogue(found)


@pytest.mark.parametrize("chat", [True, False])
def test_groups_of_three_four_and_eight(tmp_path: Path, chat: bool) -> None:
    rows = [
        row(
            asked(f"p{size}") if chat else f"p{size}",
            answered("7") if chat else "7",
            accuracy_reward=float(n == 0),
        )
        for size in (3, 4, 8)
        for n in range(size)
    ]
    path = tmp_path / "completions_00012.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    log = open_log(path)
    batch = next(log.outcomes())
    assert log.format is TRL
    keys = list(zip(*(column.to_pylist() for column in batch.key_columns), strict=True))
    assert [keys.count(key) for key in dict.fromkeys(keys)] == [3, 4, 8]
    assert batch.solved_N is not None
    assert batch.solved_N.sum() == 3


def test_a_reward_that_is_missing_is_reported_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "completions_00012.parquet"
    pq.write_table(pa.Table.from_pylist([row(), row(accuracy_reward=None)]), path)
    with pytest.raises(ValueError, match="row 1: 'accuracy_reward' is null"):
        list(open_log(path).outcomes())
