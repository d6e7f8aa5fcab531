"""verifiers v1's traces: the path through the message graph, rewards, groups, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.columns import Columns
from drift_weights.logs.messages import TRAILING
from drift_weights.logs.opening import open_log
from drift_weights.logs.prime_rl import OFF_PATH, PRIME_RL
from drift_weights.logs.reader import Outcome, Row
from drift_weights.outcomes import Outcomes

TASK = {"type": "Sum", "data": {"idx": 3}, "key": "3", "hash": "abc"}
RIGHT = {"correct": {"score": 1.0, "weight": 1.0}}


def node(role: str, content: str | None, parent: int | None = None, **more: Any) -> dict[str, Any]:
    found = {"message": {"role": role, "content": content}, "sampled": role == "assistant", **more}
    return found if parent is None else {"parent": parent, **found}


def chain(*responses: str | None) -> list[dict[str, Any]]:
    nodes = [node("user", "What is 3 + 4?")]
    for response in responses:
        if len(nodes) > 1:
            nodes.append(node("user", "Try again.", len(nodes) - 1))
        nodes.append(node("assistant", response, len(nodes) - 1))
    return nodes


def trace(*responses: str | None, **changes: Any) -> dict[str, Any]:
    agent = {"config": {"max_turns": 4}, "name": "solver", "trainable": True}
    found = {
        "id": "t1",
        "task": TASK,
        "agent": agent,
        "nodes": chain(*responses or ("7",)),
        "rewards": RIGHT,
    }
    return found | {"ok": True, "errors": []} | changes


def episode(*traces: dict[str, Any], step: int | None = 12, **changes: Any) -> dict[str, Any]:
    found = {"id": "e1", "env": {"id": "arith"}, "task": TASK, "group": {"id": "g7"}, "ok": True}
    run = {"type": "eval", "id": "r1"} if step is None else {"type": "train", "work": {"step": step}}
    return found | {"run": run, "errors": [], "traces": list(traces)} | changes


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def rows(path: Path) -> list[Row]:
    assert PRIME_RL.trajectories is not None
    return list(PRIME_RL.trajectories(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traces.jsonl"


def outcome(
    path: Path, found: dict[str, Any], columns: Columns | None = None, malformed: Any = "count"
) -> Outcome:
    (row,) = rows(write(path, found))
    return PRIME_RL.bind(row, columns or Columns(), malformed).outcome(row)


def read(path: Path, columns: Columns | None = None) -> Outcomes:
    (batch,) = open_log(path, columns).outcomes()
    return batch


def test_episodes_and_bare_traces_are_recognised_and_other_rows_are_not() -> None:
    assert PRIME_RL.sniff(episode(trace()))
    assert PRIME_RL.sniff(trace())
    assert not PRIME_RL.sniff({"traces": [], "messages": []})


def test_the_group_is_task_agent_environment_and_step(path: Path) -> None:
    found = outcome(path, episode(trace("8", "7")))
    assert found.group == ("3", "solver", "arith", 12)
    assert (found.reward, found.length, found.unique, found.sample, found.note) == (
        1.0,
        2,
        None,
        "t1",
        None,
    )
    assert outcome(path, episode(trace(), step=None)).group == ("3", "solver", "arith")
    assert outcome(path, trace()).group == ("3", "solver", "")


def test_a_task_without_a_key_goes_by_its_hash_and_without_both_needs_a_name(path: Path) -> None:
    assert outcome(path, trace(task={"hash": "abc"})).group[0] == "abc"
    with pytest.raises(ValueError, match=r"neither key nor hash.*--group"):
        outcome(path, trace(task={}))
    named = write(path, episode(trace(task={}), task={}), episode(trace(task={}, id="t2"), task={}))
    assert read(named, Columns(group="group_id")).key_columns[0].to_pylist() == ["g7", "g7"]


def test_steps_in_some_episodes_only_are_refused(path: Path) -> None:
    write(path, episode(trace()), episode(trace(id="t2"), step=None))
    with pytest.raises(ValueError, match=r"trajectory 1: 'run\.work\.step' is in some episodes only"):
        read(path)


def test_every_trainable_trace_is_a_trajectory_and_no_other(path: Path) -> None:
    user = trace("Hello", id="u1", agent={"name": "user", "trainable": False})
    write(path, episode(user, trace(id="t1"), trace(id="t2")), episode(trace(id="t3")))
    assert [row["id"] for row in rows(path)] == ["t1", "t2", "t3"]
    with pytest.raises(ValueError, match="line 1: the episode has no trace of a trainable agent"):
        rows(write(path, episode(user)))


def test_an_episode_that_failed_says_why(path: Path) -> None:
    failed = episode(ok=False, errors=[{"type": "SandboxError", "message": "no box"}])
    with pytest.raises(
        ValueError, match=r"traces\.jsonl, line 1: .*\(SandboxError: no box\); drop its group"
    ):
        rows(write(path, failed))


def test_a_trace_that_was_not_scored_is_unscored(path: Path) -> None:
    errors = [{"type": "ProviderError", "message": "timeout"}]
    for rewards in ({}, {"correct": None}):
        with pytest.raises(ValueError, match=r"no score \(ProviderError: timeout\); name the reward"):
            outcome(path, trace(rewards=rewards, errors=errors))
    write(path, trace(), trace(id="t2", rewards={}))
    assert read(path).unscored_N.tolist() == [False, True]


def test_of_several_rewards_one_is_named_and_unweighted_ones_do_not_compete(path: Path) -> None:
    rewards = {"correct": {"score": 1.0, "weight": 1.0}, "form": {"score": 0.5, "weight": 0.2}}
    with pytest.raises(ValueError, match=r"several rewards: rewards\.correct, rewards\.form; .*--correct"):
        outcome(path, trace(rewards=rewards))
    free = rewards | {"form": {"score": 0.5, "weight": 0.0}}
    assert outcome(path, trace(rewards=free)).reward == 1.0
    write(path, trace(rewards=rewards, metrics={"steps": 3.0}))
    named = read(path, Columns(correct="rewards.correct"))
    assert named.solved_N is not None
    assert named.solved_N.tolist() == [True]
    for name, value in (("reward", 1.1), ("rewards.form", 0.5), ("metrics.steps", 3.0)):
        returns = read(path, Columns(return_column=name)).return_N
        assert returns is not None
        assert returns.tolist() == [pytest.approx(value)]
    with pytest.raises(ValueError, match=r"rewards\.style"):
        read(path, Columns(correct="rewards.style"))


def test_responses_may_be_the_answers(path: Path) -> None:
    answers = Columns(answers="responses")
    found = trace("8", "8", None, "7")
    assert outcome(path, found, answers)[2:5] == (4, 3, None)
    assert outcome(path, found, answers, "skip")[2:5] == (4, 2, 3)


def test_turns_beyond_the_budget_are_refused(path: Path) -> None:
    assert outcome(path, trace("1", "2", "3", "4")).length == 4
    with pytest.raises(ValueError, match=r"max_turns is 4, but 'nodes' holds 5 sampled messages"):
        outcome(path, trace("1", "2", "3", "4", "5"))


def test_messages_behind_the_last_response_are_no_turn(path: Path) -> None:
    nodes = [*chain("8"), node("user", "Wrong.", 1)]
    supplied = [*nodes, node("assistant", "Sorry.", 2, sampled=False)]
    for after in (nodes, supplied):
        found = outcome(path, trace(nodes=after))
        assert (found.length, found.note) == (1, TRAILING)
    assert dialogue(path, trace(nodes=supplied)).completion == "8"


def test_an_example_in_the_prompt_is_no_turn(path: Path) -> None:
    nodes = [
        node("user", "What is 1 + 1?"),
        node("assistant", "2", 0, sampled=False),
        node("user", "What is 3 + 4?", 1),
        node("assistant", "7", 2),
    ]
    assert outcome(path, trace(nodes=nodes)).length == 1


def test_a_compacted_dialogue_counts_the_turns_of_its_last_branch(path: Path) -> None:
    nodes = [*chain("8", "9"), node("user", "In short: 3 + 4?"), node("assistant", "7", 4)]
    found = outcome(path, trace(nodes=nodes))
    assert (found.length, found.note) == (1, OFF_PATH)
    (row,) = rows(path)
    dialogue = PRIME_RL.bind(row, Columns(), "count").dialogue(row)
    assert dialogue.prompt == [{"role": "user", "content": "In short: 3 + 4?"}]


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([], "no sampled message"),
        ([node("user", "What?")], "no sampled message"),
        ([node("assistant", "7", 0)], r"nodes\[0\].parent is 0, expected an earlier node"),
        ([node("user", "What?"), node("assistant", "7", 5)], "expected an earlier node"),
        ([{"sampled": True}], r"nodes\[0\] has no message"),
        ({}, "expected a list"),
    ],
)
def test_a_broken_graph_is_refused(path: Path, nodes: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        outcome(path, trace(nodes=nodes))


@given(data=st.data())
def test_the_path_is_the_ancestors_of_the_last_sampled_node(data: st.DataObject) -> None:
    nodes: list[dict[str, Any]] = []
    for number in range(data.draw(st.integers(1, 12))):
        parent = data.draw(st.none() | st.integers(0, number - 1)) if number else None
        nodes.append(node(data.draw(st.sampled_from(["user", "assistant"])), str(number), parent))
    nodes.append(node("assistant", "last", data.draw(st.integers(0, len(nodes) - 1))))
    nodes += [node("user", "later", len(nodes) - 1)] * data.draw(st.integers(0, 2))
    last = next(n for n in nodes if n["message"]["content"] == "last")

    def ancestors(found: dict[str, Any]) -> list[str]:
        above = ancestors(nodes[found["parent"]]) if "parent" in found else []
        return [*above, found["message"]["content"]]

    names = ancestors(last)
    row = {**trace(nodes=nodes, agent={}), "task_key": "3", "agent_name": "a", "env_name": "", "step": None}
    row["rewards.correct"] = 1.0
    reader = PRIME_RL.bind(row, Columns(), "count")
    assert [message["content"] for message in reader.dialogue(row).prompt] == names[:-1]
    sampled = {n["message"]["content"] for n in nodes if n["sampled"]}
    assert reader.outcome(row).length == sum(name in sampled for name in names)


def dialogue(path: Path, found: dict[str, Any]) -> Any:
    (row,) = rows(write(path, found))
    return PRIME_RL.bind(row, Columns(), "count").dialogue(row)


def test_a_cut_response_says_so(path: Path) -> None:
    calls = [{"node": 1, "finish_reason": "length"}, {"node": 3, "finish_reason": "stop"}]
    assert dialogue(path, trace("8", "7", calls=calls)).finish_reason == "stop"
    assert dialogue(path, trace("8", calls=calls)).finish_reason == "length"
    older = chain("8")
    older[1]["finish_reason"] = "length"
    assert dialogue(path, trace(nodes=older)).finish_reason == "length"


def test_responses_that_role_and_content_cannot_hold_are_refused(path: Path) -> None:
    thinking, calling = chain("7"), chain(None)
    thinking[1]["message"]["reasoning_content"] = "3 + 4 is 7"
    calling[1]["message"]["tool_calls"] = [{"id": "c1", "name": "add", "arguments": "{}"}]
    for nodes, says in ((thinking, "reasoning_content"), (calling, "calls tools"), (chain(None), "null")):
        with pytest.raises(ValueError, match=says):
            dialogue(path, trace(nodes=nodes))


@pytest.mark.parametrize("size", [3, 4, 8])
def test_groups_of_any_size_and_one_for_each_step(path: Path, size: int) -> None:
    write(path, *(episode(trace(id=f"{step}-{n}"), step=step) for n in range(size) for step in (1, 2)))
    batch = read(path)
    assert batch.key_columns[3].to_pylist() == [1, 2] * size
    assert [column.to_pylist() for column in batch.key_columns[:3]] == [
        [value] * 2 * size for value in ("3", "solver", "arith")
    ]


def test_string_and_number_keys_do_not_mix(path: Path) -> None:
    write(path, trace(), trace(id="t2", task={"key": 3}))
    with pytest.raises(ValueError, match=r"trajectory 1: .*task key"):
        read(path)


def test_a_score_that_is_no_number_is_refused(path: Path) -> None:
    write(path, trace(rewards={"correct": {"score": "1.0"}}))
    with pytest.raises(ValueError, match=r"trajectory 0: .*rewards\.correct"):
        read(path)


@pytest.mark.parametrize(
    "broken",
    [
        {"task": TASK, "traces": "none"},
        {"task": TASK, "traces": [3]},
        episode(trace(agent=3)),
        episode(trace(), env="arith"),
        episode(trace(rewards={"correct": 1.0})),
    ],
)
def test_what_is_no_episode_is_refused_by_line(path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"traces\.jsonl, line 2: "):
        rows(write(path, episode(trace()), broken))


def test_a_score_beyond_every_number_is_refused_by_its_line(path: Path) -> None:
    rewards = {"correct": {"score": 10**400, "weight": 1.0}}
    with pytest.raises(ValueError, match=r"traces\.jsonl, line 1"):
        read(write(path, episode(trace(rewards=rewards))))
