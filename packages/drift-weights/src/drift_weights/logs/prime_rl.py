"""The `traces.jsonl` of verifiers v1 and prime-rl: an episode a line, a graph of messages a trajectory.

A line, shortened (token ids, timing and most configuration left out):
    {"id": "e1", "env": {"id": "arith"}, "task": {"type": "Sum", "data": {"idx": 3}, "key": "3"},
     "group": {"id": "g7"}, "run": {"type": "train", "id": "r1", "work": {"type": "train", "step": 12}},
     "ok": true, "traces": [{"id": "t1", "task": {"type": "Sum", "data": {"idx": 3}, "key": "3"},
       "agent": {"config": {"max_turns": 4}, "name": "solver", "trainable": true},
       "nodes": [{"message": {"role": "user", "content": "What is 3 + 4?"}, "sampled": false},
                 {"parent": 0, "message": {"role": "assistant", "content": "8"}, "sampled": true},
                 {"parent": 1, "message": {"role": "user", "content": "Try again."}, "sampled": false},
                 {"parent": 2, "message": {"role": "assistant", "content": "7"}, "sampled": true}],
       "calls": [{"node": 1, "finish_reason": "stop"}, {"node": 3, "finish_reason": "stop"}],
       "rewards": {"correct": {"score": 1.0, "weight": 1.0}}, "ok": true, "errors": []}]}

Nulls are left out, so a root has no `parent`. Source: verifiers, `Episode` of `v1/episode.py`, `Trace` of
`v1/trace.py`, `MessageNode` of `v1/graph.py`, and `write_episode`. Lines that are one bare trace, as first
versions wrote them, are read too.

- Every trace of a trainable agent is a trajectory; the others were sampled from other models.
- The terminal turn is the last sampled node, its prompt the path from the root to it, and the turns are the
  sampled nodes on that path. There are no answers.
- Verdict and reward: the score of the one reward whose weight is not 0. Rewards and metrics can be named:
  `rewards.correct`, `metrics.steps`; `reward` is the sum of the scores by weight, as verifiers has it.
- A group is the task's key (else its hash), the agent, the environment and, in training, the step, since
  the policy changes with each. `group_id`, the trainer's own, can be named as well.
- A trace's id tells samples apart, so a trace that was written twice is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drift_weights.columns import Columns
from drift_weights.files import read_rows
from drift_weights.logs.exchange import Turns, count_responses, require, terminal_message
from drift_weights.logs.messages import trailing_note
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed

OFF_PATH = (
    "sampled messages off the path to the last one (compaction, subagents) are no turns of the trajectory"
)


def _sniff(row: Row) -> bool:
    return {"task", "traces"} <= row.keys() or {"task", "agent", "nodes"} <= row.keys()


def _trajectories(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_rows(path), start=1):
        try:
            yield from _traces(line)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _traces(line: Row) -> list[Row]:
    if "nodes" in line:
        return [_trajectory({}, line)]
    traces = line.get("traces")
    if not isinstance(traces, list):
        raise ValueError("'traces' is no list, expected an episode of verifiers v1")
    if not all(isinstance(trace, Mapping) for trace in traces):
        raise ValueError("'traces' holds something that is no object, expected traces of verifiers v1")
    trained = [trace for trace in traces if _object(trace, "agent").get("trainable", True)]
    if not trained:
        raise ValueError(f"the episode has no trace of a trainable agent{_why(line)}; drop its group")
    return [_trajectory(line, trace) for trace in trained]


def _trajectory(episode: Row, trace: Row) -> Row:
    """A trace, and what column options can name: what its episode says of it, and its scores."""
    task = _object(trace, "task") or _object(episode, "task")
    environment = _object(episode, "env")
    return {
        **trace,
        "task_key": task.get("key") or task.get("hash"),
        "agent_name": _object(trace, "agent").get("name", "agent"),
        "env_name": environment.get("name") or environment.get("id", ""),
        "step": _object(_object(episode, "run"), "work").get("step"),
        "group_id": _object(episode, "group").get("id"),
        **_scores(trace),
    }


def _scores(trace: Row) -> dict[str, Any]:
    rewards = _object(trace, "rewards")
    scores: dict[str, Any] = {name: _object(rewards, name).get("score") for name in rewards}
    known = {f"metrics.{name}": value for name, value in _object(trace, "metrics").items()}
    known |= {f"rewards.{name}": score for name, score in scores.items()}
    if scores and all(isinstance(score, int | float) for score in scores.values()):
        known["reward"] = sum(float(score) * _weight(rewards, name) for name, score in scores.items())
    return known


def _object(row: Row, name: str) -> Row:
    value = row.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name!r} is {value!r}, expected an object")
    return value


def _weight(rewards: Row, name: str) -> float:
    weight = _object(rewards, name).get("weight", 1.0)
    if not isinstance(weight, int | float):
        raise ValueError(f"rewards.{name}.weight is {weight!r}, expected a number")
    return weight


def _why(row: Row) -> str:
    errors = row.get("errors")
    last = errors[-1] if isinstance(errors, list) and errors else None
    return f" ({last.get('type')}: {last.get('message')})" if isinstance(last, Mapping) else ""


def _group(row: Row, *, stepped: bool) -> tuple[Any, ...]:
    if row["task_key"] is None:
        raise ValueError("'task' has neither key nor hash; name the column of the group (--group)")
    if (row["step"] is not None) != stepped:
        raise ValueError("'run.work.step' is in some episodes only; keep runs of both kinds apart")
    group = (row["task_key"], row["agent_name"], row["env_name"])
    return (*group, row["step"]) if stepped else group


def _path(nodes: Any) -> list[int]:
    """Positions from a root to the last sampled node."""
    if not isinstance(nodes, list):
        raise ValueError(f"'nodes' is {type(nodes).__name__}, expected a list")
    for number, node in enumerate(nodes):
        if not isinstance(node, Mapping) or not isinstance(node.get("message"), Mapping):
            raise ValueError(f"nodes[{number}] has no message")
    sampled = [number for number, node in enumerate(nodes) if node.get("sampled")]
    if not sampled:
        raise ValueError("'nodes' holds no sampled message; a trajectory needs a response")
    path = [sampled[-1]]
    while (parent := nodes[path[-1]].get("parent")) is not None:
        if not isinstance(parent, int) or not 0 <= parent < path[-1]:
            raise ValueError(f"nodes[{path[-1]}].parent is {parent!r}, expected an earlier node")
        path.append(parent)
    return path[::-1]


def _check_budget(row: Row, sampled: int) -> None:
    budget = _object(_object(row, "agent"), "config").get("max_turns")
    if isinstance(budget, int) and sampled > budget:
        raise ValueError(
            f"agent.config.max_turns is {budget}, but 'nodes' holds {sampled} sampled messages; drop its "
            "group"
        )


def _only_reward(row: Row) -> str | None:
    """The name of the one score; None where the trajectory has none."""
    rewards = _object(row, "rewards")
    weighted = [f"rewards.{name}" for name in rewards if _weight(rewards, name) != 0]
    if len(weighted) > 1:
        raise ValueError(
            f"there are several rewards: {', '.join(weighted)}; name the one that says correct "
            "(--correct), or 'reward', their sum by weight, as the return (--return-column)"
        )
    return weighted[0] if weighted and row[weighted[0]] is not None else None


def _turns(row: Row, columns: Columns, malformed: Malformed) -> Turns:
    nodes = row["nodes"]
    path = _path(nodes)
    said = [nodes[n]["message"] for n in path if nodes[n].get("sampled")]
    sampled = sum(bool(node.get("sampled")) for node in nodes)
    _check_budget(row, sampled)
    note = OFF_PATH if sampled > len(said) else trailing_note(nodes, path)
    return count_responses(said, columns.answers, malformed, note)


def _dialogue(row: Row) -> Dialogue:
    nodes = row["nodes"]
    path = _path(nodes)
    last = nodes[path[-1]]
    if last["message"].get("reasoning_content"):
        raise ValueError(
            f"nodes[{path[-1]}].message.reasoning_content is part of the response, which role and content "
            "cannot hold; write the log with its weight, or a side file"
        )
    calls = [call for call in row.get("calls") or () if call.get("node") == path[-1]]
    truncated = "length" in [each.get("finish_reason") for each in (last, *calls)]
    return terminal_message([nodes[n]["message"] for n in path], "nodes", truncated=truncated)


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    require(row, ("id", "nodes", "task_key"), "prime-rl")
    named = columns.correct or columns.return_column
    taken = named or _only_reward(row)
    if taken is None:
        raise ValueError(f"the first trajectory has no score{_why(row)}; name the reward (--correct)")
    stepped = row["step"] is not None

    def outcome(row: Row) -> Outcome:
        turns = _turns(row, columns, malformed)
        group = None if columns.group is not None else _group(row, stepped=stepped)
        reward = None if named else _only_reward(row)
        return Outcome(
            group,
            None if reward is None else row[reward],
            *turns[:3],
            sample=row["id"],
            unscored=named is None and reward is None,
            note=turns.note,
        )

    return LogReader(
        fields=("id", "task_key", "agent_name", "env_name", "step", "agent", "nodes", "rewards"),
        outcome=outcome,
        dialogue=_dialogue,
        key=("task", "agent", "env", "round") if stepped else ("task", "agent", "env"),
        took={
            "prompt": "the path of nodes to the last sampled one",
            "turns": "the sampled nodes on that path",
            "verdict": taken,
            "group": f"task key, agent and environment{' and step' if stepped else ''}",
            "reward": taken,
        },
    )


PRIME_RL = LogFormat(
    name="prime-rl",
    source="verifiers v1 and prime-rl, traces.jsonl",
    suffixes=(".jsonl",),
    sniff=_sniff,
    bind=_bind,
    trajectories=_trajectories,
)
