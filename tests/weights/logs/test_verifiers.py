"""verifiers' results: groups, turns, and rollouts that failed."""

import json
from pathlib import Path
from typing import Any

import pytest

from drift_weights.columns import Columns
from drift_weights.logs.messages import TRAILING
from drift_weights.logs.opening import open_log
from drift_weights.logs.reader import LogReader, Outcome
from drift_weights.logs.verifiers import VERIFIERS
from drift_weights.outputs import reweight_file

ASKED = {"role": "user", "content": "What is 3 + 4?"}
AGAIN = {"role": "user", "content": "Try again."}


def answered(*texts: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for text in texts:
        messages += [AGAIN] * bool(messages) + [{"role": "assistant", "content": text}]
    return messages


def row(*texts: Any, **changes: Any) -> dict[str, Any]:
    made = {
        "example_id": 3,
        "prompt": [ASKED],
        "completion": answered(*texts),
        "task": "arith",
        "answer": "7",
        "reward": 1.0,
        "error": None,
        "is_completed": True,
        "is_truncated": False,
        "stop_condition": "solved",
        "metrics": {"correct": 1.0},
        "correct": 1.0,
        "generation_ms": 12.5,
    }
    return made | changes


def bind(found: dict[str, Any], columns: Columns | None = None, malformed: Any = "count") -> LogReader:
    return VERIFIERS.bind(found, columns or Columns(), malformed)


def outcome(found: dict[str, Any], columns: Columns | None = None, malformed: Any = "count") -> Outcome:
    reader = bind(found, columns, malformed)
    return reader.outcome({name: found[name] for name in reader.fields})


def without(found: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in names}


def test_a_row_is_recognised_in_all_its_ages() -> None:
    assert VERIFIERS.sniff(row("7"))
    assert VERIFIERS.sniff(without(row("7"), "task", "answer", "generation_ms"))
    first_release = without(row("7", id=3), "example_id", "error")
    assert VERIFIERS.sniff(first_release)
    assert outcome(first_release).group == (3, "arith")
    assert not VERIFIERS.sniff({"id": 3, "prompt": "What?", "completion": "7", "reward": 1.0})


def test_an_example_of_a_task_is_a_group() -> None:
    assert outcome(row("7")).group == outcome(row("8", reward=0.0)).group
    assert outcome(row("7")).group != outcome(row("7", example_id=4)).group
    assert outcome(row("7")).group != outcome(row("7", task="algebra")).group
    assert outcome(without(row("7"), "task")).group == (3,)
    assert outcome(row("7", task={"env_id": "arith"})).group == (3,)
    assert outcome(row("7")).sample is None


def test_turns_are_the_assistant_messages_of_the_completion() -> None:
    assert outcome(row("7"))[1:4] == (1.0, 1, 1)
    assert outcome(row("8", "8", "7"))[2:4] == (3, None)
    assert outcome(row("8", "8", "7"), Columns(answers="responses"))[2:4] == (3, 2)
    assert outcome(row("8", None, "7"), Columns(answers="responses"), "skip")[2:5] == (3, 2, 2)
    assert outcome(row(prompt="What is 3 + 4?", completion="7"))[2:4] == (1, 1)


def test_other_numbers_beside_the_reward_are_no_reward() -> None:
    assert outcome(row("7", reward=0.25, correct=1.0)).reward == 0.25
    assert bind(row("7"), Columns(return_column="reward")).fields == (
        "example_id",
        "task",
        "reward",
        "error",
    )


@pytest.mark.parametrize(
    "failed", ["Timeout()", {"error": "ModelError", "error_chain_repr": "ModelError()"}]
)
def test_a_failed_rollout_is_no_wrong_answer(failed: Any) -> None:
    found = row("7", reward=0.0, error=failed)
    assert outcome(found).unscored
    assert outcome(found | {"completion": []}).unscored
    assert not outcome(row("7")).unscored
    with pytest.raises(ValueError, match="rollout failed"):
        bind(row("7")).dialogue(found)


@pytest.mark.parametrize(
    ("says", "completion"),
    [
        ("holds no assistant message", []),
        ("'completion' is null", None),
        ("holds no assistant message", [AGAIN]),
        ("expected a message with role", ["7"]),
    ],
)
def test_a_rollout_without_a_response_is_refused(says: str, completion: Any) -> None:
    with pytest.raises(ValueError, match=says):
        outcome(row(completion=completion))


def test_what_the_environment_says_last_is_no_turn() -> None:
    found = row(completion=[*answered("8", "9"), AGAIN])
    assert outcome(found)[2] == 2
    assert outcome(found).note == TRAILING
    assert bind(found).dialogue(found).completion == "9"


def test_the_terminal_turn() -> None:
    found = row("8", "7")
    dialogue = bind(found).dialogue(found)
    assert list(dialogue.prompt) == [ASKED, {"role": "assistant", "content": "8"}, AGAIN]
    assert (dialogue.completion, dialogue.finish_reason) == ("7", "stop")
    found = row(prompt="What is 3 + 4?", completion="7", is_truncated=True)
    assert bind(found).dialogue(found) == ([ASKED], "7", "length")


@pytest.mark.parametrize(
    "call", [{"id": "1", "name": "add"}, '{"id": "1", "function": {"name": "add"}, "type": "function"}']
)
def test_tool_calls_are_turns_but_no_text(call: Any) -> None:
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    found = row(completion=[calling, {"role": "tool", "content": "7"}, *answered("7")])
    assert outcome(found)[2] == 2
    with pytest.raises(ValueError, match=r"\[1\] calls tools"):
        bind(found).dialogue(found)


def test_groups_of_three_four_and_eight(tmp_path: Path) -> None:
    rows = [row("8", "7", example_id=size, reward=n % 2) for size in (3, 4, 8) for n in range(size)]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    log = open_log(path, Columns(answers="responses"))
    batch = next(log.outcomes())
    assert log.format is VERIFIERS
    assert [batch.key_columns[0].to_pylist().count(size) for size in (3, 4, 8)] == [3, 4, 8]
    assert batch.length_N.tolist() == [2] * 15
    assert batch.solved_N is not None
    assert batch.solved_N.tolist() == [bool(n % 2) for size in (3, 4, 8) for n in range(size)]


def test_ids_of_two_kinds_and_scores_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for second, says in (
        (row("7", example_id="3"), "line 2: .*one type"),
        (row("7", reward=0.5), "line 2: 'reward'"),
    ):
        path.write_text(json.dumps(row("7")) + "\n" + json.dumps(second) + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=says):
            list(open_log(path).outcomes())


def test_the_group_of_a_failed_rollout_is_left_out_whole(tmp_path: Path) -> None:
    rows = [
        row("7", example_id=number % 2, error="Timeout()" if number == 2 else None) for number in range(6)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    written = reweight_file(tmp_path / "results.jsonl", tmp_path / "out.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(one["example_id"], one["weight"]) for one in kept] == [(1, 1.0)] * 3
    assert "1 groups hold an unscored row" in written.remarks[0]
