"""tau-bench's result files: what a run says of turns, verdict and group, and what is refused."""

import codecs
import json
import math
from pathlib import Path
from typing import Any

import pytest

from drift_weights.columns import Columns
from drift_weights.logs.messages import TRAILING
from drift_weights.logs.opening import open_log
from drift_weights.logs.reader import Outcome
from drift_weights.logs.tau_bench import TAU_BENCH
from drift_weights.outcomes import Outcomes

SYSTEM = {"role": "system", "content": "Help customers with orders."}
ASKED = {"role": "user", "content": "Where is order W12?"}
STOP = {"role": "user", "content": "###STOP###"}


def said(content: str | None, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls) or None}


def call(number: int, order: str) -> dict[str, Any]:
    function = {"name": "get_order", "arguments": json.dumps({"id": order})}
    return {"id": f"call_{number}", "type": "function", "function": function}


def told(number: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{number}", "name": "get_order", "content": "shipped"}


def run(*after: dict[str, Any], **changes: Any) -> dict[str, Any]:
    found = {"task_id": 7, "reward": 1.0, "info": {"task": {}}, "traj": [SYSTEM, ASKED, *after], "trial": 0}
    return found | changes


def outcome(found: dict[str, Any], columns: Columns | None = None, malformed: Any = "count") -> Outcome:
    reader = TAU_BENCH.bind(found, columns or Columns(), malformed)
    return reader.outcome({name: found[name] for name in reader.fields})


def write(path: Path, runs: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(runs, indent=2), encoding="utf-8")
    return path


def read(path: Path, columns: Columns | None = None, *, answers_matter: bool = True) -> Outcomes:
    (batch,) = open_log(path, columns, answers_matter=answers_matter).outcomes()
    return batch


def test_a_run_is_recognised_and_other_rows_are_not() -> None:
    assert TAU_BENCH.sniff(run(said("Shipped."), STOP))
    assert not TAU_BENCH.sniff({"task_id": 7, "reward": 1.0, "traj": []})


def test_every_assistant_message_is_a_turn_and_the_users_last_word_is_none() -> None:
    found = outcome(run(said(None, call(1, "W12")), told(1), said("It is on its way."), STOP))
    assert (found.group, found.reward, found.sample) == (7, 1.0, 0)
    assert (found.length, found.unique) == (2, None)
    assert found.note == TRAILING
    assert outcome(run(said("Shipped."))).note is None


def test_a_tool_call_is_an_answer_of_its_own_whatever_its_id() -> None:
    answers = Columns(answers="responses")
    same = run(said(None, call(1, "W12")), told(1), said(None, call(2, "W12")), told(2), said("Shipped."))
    other = run(said(None, call(1, "W12")), told(1), said(None, call(2, "W13")), told(2), said("Shipped."))
    assert outcome(same, answers)[2:5] == (3, 2, None)
    assert outcome(other, answers)[2:5] == (3, 3, None)


def test_messages_with_neither_text_nor_call_are_one_answer_or_none() -> None:
    found = run(said(None), STOP, said(""), STOP, said("Shipped."), STOP)
    answers = Columns(answers="responses")
    assert outcome(found, answers)[2:5] == (3, 2, None)
    assert outcome(found, answers, "skip")[2:5] == (3, 1, 1)


def test_a_run_that_broke_off_is_unscored_though_it_has_a_reward(tmp_path: Path) -> None:
    broken = run(reward=0.0, info={"error": "rate limit"}) | {"traj": []}
    path = write(tmp_path / "runs.json", [run(said("Shipped.")), broken])
    assert read(path).unscored_N.tolist() == [False, True]


@pytest.mark.parametrize(
    ("traj", "what"), [([ASKED], "no assistant message"), (None, "null"), ("x", "string")]
)
def test_what_holds_no_response_is_refused(traj: Any, what: str) -> None:
    with pytest.raises(ValueError, match=f"'traj' .*{what}"):
        outcome(run(traj=traj))


@pytest.mark.parametrize("size", [3, 4, 8])
def test_groups_of_any_size(tmp_path: Path, size: int) -> None:
    runs = [
        run(said("Shipped."), task_id=task, trial=trial, reward=float(trial == 0))
        for trial in range(size)
        for task in (0, 1)
    ]
    batch = read(write(tmp_path / "runs.json", runs))
    assert batch.key_columns[0].to_pylist() == [0, 1] * size
    assert batch.sample is not None
    assert batch.sample.to_pylist() == [trial for trial in range(size) for _ in range(2)]
    assert batch.solved_N is not None
    assert batch.solved_N.tolist() == [True] * 2 + [False] * 2 * (size - 1)


def test_several_turns_need_answers_or_no_penalty(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.json", [run(said("Which one?"), ASKED, said("Shipped."), STOP)])
    with pytest.raises(ValueError, match=r"trajectory 0: 2 turns and no answers.*--answers.*responses"):
        read(path)
    assert read(path, answers_matter=False).length_N.tolist() == [2]
    assert read(path, Columns(answers="responses")).unique_N.tolist() == [2]


def test_string_and_number_ids_do_not_mix(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.json", [run(said("A")), run(said("B"), task_id="7")])
    with pytest.raises(ValueError, match=r"trajectory 1: .*task_id"):
        read(path)


def test_a_partial_reward_needs_a_threshold(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.json", [run(said("A"), reward=0.5)])
    with pytest.raises(ValueError, match=r"0\.5.*--threshold"):
        read(path)
    assert read(path, Columns(threshold=0.5)).solved_N is not None


@pytest.mark.parametrize("reward", [None, "1.0", math.nan])
def test_a_reward_that_is_no_number_is_refused(tmp_path: Path, reward: Any) -> None:
    path = write(tmp_path / "runs.json", [run(said("A"), reward=reward)])
    with pytest.raises(ValueError, match=r"runs\.json"):
        read(path)


def test_the_terminal_turn_is_the_last_text_and_a_call_has_none() -> None:
    reader = TAU_BENCH.bind(run(), Columns(), "count")
    found = reader.dialogue(run(said("Which one?"), ASKED, said("Shipped."), STOP))
    assert [message["content"] for message in found.prompt][1:] == [
        "Where is order W12?",
        "Which one?",
        "Where is order W12?",
    ]
    assert found.completion == "Shipped."
    with pytest.raises(ValueError, match=r"traj\[2\] calls tools.*side file"):
        reader.dialogue(run(said(None, call(1, "W12"))))
    with pytest.raises(ValueError, match=r"traj\[2\]\.content is null"):
        reader.dialogue(run(said(None)))


def trajectories(path: Path) -> list[Any]:
    assert TAU_BENCH.trajectories is not None
    return list(TAU_BENCH.trajectories(path))


def test_the_array_is_read_run_by_run_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    runs = [run(said("Größe 7"), trial=trial) for trial in range(3)]
    path = write(tmp_path / "runs.json", runs)
    assert trajectories(path) == runs
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert trajectories(path) == runs


@pytest.mark.parametrize(
    "body", [b"", b'[{"task_id": 7}, {"task', b'{"a": 1}', b"[3]", b'[{"reward": NaN}]']
)
def test_what_is_no_array_of_runs_is_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "runs.json"
    path.write_bytes(body)
    with pytest.raises(ValueError, match=r"runs\.json"):
        trajectories(path)
