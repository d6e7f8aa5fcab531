"""For each log format a small valid file, and a second reader of it that shares no code with the package.

A second reader says of each trajectory what its weight is made of: its group, whether it is right, and its
turns L. It reads JSON with the standard library, and Parquet with polars where that is installed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


class Read(NamedTuple):
    """What a weight is made of."""

    group: Any
    solved: Any
    """Equal to 1 where the trajectory is right; means nothing where it is unscored."""
    length: Any
    unscored: bool = False


@dataclass(frozen=True)
class Format:
    name: str
    """As `--format` takes it."""
    suffix: str
    seed: bytes
    second: Callable[[bytes], list[Read]]
    """Raises where it cannot read the bytes."""


def lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
    return sink.getvalue()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    if abs(value) == float("inf"):
        raise ValueError(f"{number} is no finite number")
    return value


def parsed(text: bytes) -> Any:
    """JSON as the standard library reads it, without the constants that Python adds."""
    return json.loads(text.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)


def objects(data: bytes) -> list[Row]:
    data = data.removeprefix(b"\xef\xbb\xbf")
    rows = [parsed(line) for line in data.removesuffix(b"\n").split(b"\n")]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no object")
    return rows


def table_rows(data: bytes) -> list[Row]:
    try:
        import polars
    except ModuleNotFoundError:
        return pq.read_table(io.BytesIO(data), use_threads=False).to_pylist()
    try:
        return polars.read_parquet(io.BytesIO(data)).to_dicts()
    except Exception:  # noqa: BLE001 whatever it does not read is read whole by pyarrow
        return pq.read_table(io.BytesIO(data), use_threads=False).to_pylist()


def chat(*answers: str | None) -> list[Row]:
    messages: list[Row] = [{"role": "user", "content": "What is 3 + 4?"}]
    for answer in answers:
        messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": "Wrong, try again."})
    return messages[:-1]


def by_assistant(messages: list[Row]) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def text_of(value: Any) -> str:
    """A name for a JSON value that is the same for equal values."""
    return json.dumps(value, sort_keys=True)


ANSWERS = [("8", "7"), ("7",), ("8", "8", "9"), ("7",), ("8", None), ("sieben", "7")]
RIGHT = [1, 1, 0, 1, 0, 1]


def _drift() -> list[Row]:
    rows = []
    for number, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True)):
        turns = {f"t{turn}": int(right and turn == len(given)) for turn in range(1, 4)}
        details = {f"t{turn}": {"actions": [a] if a else []} for turn, a in enumerate(given, start=1)}
        rows.append(
            {
                "prompt_id": f"sample_{number // 3}",
                "gold": "7",
                "messages": chat(*(f"<answer>{answer}</answer>" for answer in given)),
                "verifier": turns,
                "turn_rewards": {name: float(value) for name, value in turns.items()},
                "reward_details": details,
                "t_star": len(given) if right else None,
                "answer_norms": [answer for answer in given if answer],
                "format_penalty": 0.0,
            }
        )
    return rows


def _read_drift(data: bytes) -> Iterator[Read]:
    for row in objects(data):
        messages = row["messages"]
        length = by_assistant(messages)
        first = [message["role"] for message in messages].index("assistant")
        yield Read((row["prompt_id"], text_of(messages[:first])), row["verifier"][f"t{length}"], length)


def _named(rows: list[Row]) -> Iterator[Read]:
    """The contract's own columns, with dialogues where no column has the turns."""
    names = [name for name in ("prompt_id", "round", "policy") if name in rows[0]]
    for row in rows:
        length = row["length"] if "length" in rows[0] else 1
        if "messages" in row and "length" not in rows[0]:
            length = by_assistant(row["messages"])
        yield Read(tuple(row[name] for name in names), row["correct"], length)


def _table() -> list[Row]:
    return [
        {
            "prompt_id": n // 3,
            "round": 0,
            "sample": n,
            "correct": right,
            "length": len(given),
            "unique": len(set(given)),
            "note": "é {}",
        }
        for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True))
    ]


def _chat() -> list[Row]:
    return [
        {"prompt_id": f"q{n // 3}", "sample": n, "correct": right, "messages": chat(*given)}
        for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True))
    ]


def _trl() -> list[Row]:
    return [
        {
            "step": 12 + n // 4,
            "prompt": [{"role": "user", "content": f"question {n // 2}"}],
            "completion": chat(*given)[1:],
            "accuracy_reward": float(right),
            "advantage": 0.7,
        }
        for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True))
    ]


def _read_trl(data: bytes) -> Iterator[Read]:
    for row in table_rows(data):
        length = 1 if isinstance(row["completion"], str) else by_assistant(row["completion"])
        yield Read((row["step"], text_of(row["prompt"])), row["accuracy_reward"], length)


def _verifiers() -> list[Row]:
    rows: list[Row] = []
    for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True)):
        row = {"example_id": n // 3, "prompt": chat("")[:1], "completion": chat(*given)[1:]}
        more = {"task": "arith", "answer": "7", "reward": float(right), "error": None, "correct": 1.0}
        rows.append(row | more)
    broken = {"example_id": 9, "completion": [], "reward": 0.0, "error": {"error": "Timeout"}}
    return [*rows, rows[0] | broken]


def _read_verifiers(data: bytes) -> Iterator[Read]:
    rows = objects(data)
    identity = "id" if "example_id" not in rows[0] else "example_id"
    for row in rows:
        failed = bool(row.get("error"))
        said = row["completion"]
        length = 1 if failed or isinstance(said, str) else by_assistant(said)
        group = (row[identity], row["task"]) if isinstance(rows[0].get("task"), str) else row[identity]
        yield Read(group, row["reward"], length, failed)


def _verl() -> list[Row]:
    return [
        {
            "input": f"user\nquestion {n // 3}\n",
            "output": "7",
            "gts": "7",
            "score": float(right),
            "step": 12,
        }
        for n, right in enumerate(RIGHT)
    ]


def _prime() -> list[Row]:
    rows = []
    for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True)):
        nodes = [
            {"message": message, "sampled": place % 2 == 1} for place, message in enumerate(chat(*given))
        ]
        nodes = [node | ({"parent": place - 1} if place else {}) for place, node in enumerate(nodes)]
        trace = {
            "id": f"t{n}",
            "agent": {"config": {"max_turns": 4}, "name": "solver", "trainable": True},
            "nodes": nodes,
            "rewards": {"correct": {"score": float(right), "weight": 1.0}},
        }
        task = {"type": "Sum", "key": str(n // 3)}
        run = {"type": "train", "work": {"type": "train", "step": 12}}
        rows.append({"id": f"e{n}", "env": {"id": "arith"}, "task": task, "run": run, "traces": [trace]})
    return rows


def _read_prime(data: bytes) -> Iterator[Read]:
    for line in objects(data):
        episode = {} if "nodes" in line else line
        for trace in [line] if "nodes" in line else line["traces"]:
            agent = trace.get("agent") or {}
            if not agent.get("trainable", True):
                continue
            task = trace.get("task") or episode.get("task") or {}
            env = episode.get("env") or {}
            work = (episode.get("run") or {}).get("work") or {}
            key = (task.get("key") or task.get("hash"), agent.get("name", "agent"))
            group = (*key, env.get("name") or env.get("id", ""), work.get("step"))
            nodes = trace["nodes"]
            at, length = max(n for n, node in enumerate(nodes) if node.get("sampled")), 0
            while at is not None:
                length += bool(nodes[at].get("sampled"))
                at = nodes[at].get("parent")
            rewards = (trace.get("rewards") or {}).values()
            taken = [reward for reward in rewards if (reward or {}).get("weight", 1.0) != 0]
            score = (taken[0] or {}).get("score") if taken else None
            yield Read(group, score, length, score is None)


def _tau() -> bytes:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "f"}}]}
    runs = [
        {"task_id": n // 3, "trial": n, "reward": float(right), "traj": [*chat(*given), call, chat("")[0]]}
        for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True))
    ]
    return json.dumps([*runs, {"task_id": 9, "trial": 0, "reward": 0.0, "traj": []}], indent=1).encode()


def _read_tau(data: bytes) -> Iterator[Read]:
    runs = parsed(data.removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(runs, list):
        raise ValueError("no list")
    for run in runs:
        broken = run["traj"] == []
        yield Read(run["task_id"], run["reward"], 1 if broken else by_assistant(run["traj"]), broken)


def _inspect() -> bytes:
    samples = []
    for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True)):
        messages = [message | {"source": "generate"} for message in chat(*given)]
        scores = {"match": {"value": "C" if right else "I", "answer": "7"}}
        samples.append({"id": f"sum-{n // 3}", "epoch": n, "messages": messages, "scores": scores})
    samples.append(samples[0] | {"id": "sum-9", "scores": None})
    return json.dumps({"version": 2, "eval": {"task": "arithmetic"}, "samples": samples}).encode()


def _read_inspect(data: bytes) -> Iterator[Read]:
    samples = parsed(data.removeprefix(b"\xef\xbb\xbf"))["samples"]
    (name,) = samples[0]["scores"]
    for sample in samples:
        if not sample.get("scores"):
            yield Read(sample["id"], None, 1, True)
            continue
        value = sample["scores"][name]["value"]
        solved = {"C": 1, "I": 0, "N": 0, "P": 0.5}.get(value, value) if isinstance(value, str) else value
        own = [message for message in sample["messages"] if message.get("source") != "input"]
        yield Read(sample["id"], solved, by_assistant(own))


def _lm_eval() -> list[Row]:
    return [
        {
            "doc_id": n // 3,
            "doc": {"question": "?"},
            "target": "7",
            "arguments": {"gen_args_0": {"arg_0": "Question: ?\nAnswer:", "arg_1": {"until": ["\n"]}}},
            "resps": [["It is 7."]],
            "filtered_resps": ["7"],
            "filter": "strict-match",
            "metrics": ["exact_match"],
            "doc_hash": f"b{n // 3}",
            "exact_match": float(right),
        }
        for n, right in enumerate(RIGHT)
    ]


def _read_lm_eval(data: bytes) -> Iterator[Read]:
    rows = objects(data)
    first = rows[0]
    other = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
    other |= {"doc_hash", "prompt_hash", "target_hash"}
    numbers = [
        name for name, value in first.items() if name not in other and isinstance(value, int | float)
    ]
    (metric,) = first["metrics"] if isinstance(first.get("metrics"), list) else numbers
    for row in rows:
        yield Read((row["doc_id"], row["doc_hash"] if "doc_hash" in first else None), row[metric], 1)


HEADERS = ("<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n")


def _skyrl() -> list[Row]:
    rows = []
    for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True)):
        turns = [f"{answer}<|im_end|>\n" for answer in given]
        joined = f"<|im_start|>user\nWrong.<|im_end|>\n{HEADERS[0]}".join(turns)
        prompt = f"<|im_start|>user\nquestion {n // 3}<|im_end|>\n{HEADERS[0]}"
        extras = {"max_turns": 3}
        rows.append(
            {"input_prompt": prompt, "output_response": joined, "score": float(right)}
            | {"env_extras": extras}
        )
    return rows


def _read_skyrl(data: bytes) -> Iterator[Read]:
    for row in objects(data):
        said, score = row["output_response"], row["score"]
        length = 1 + sum(said.count(header) for header in (*HEADERS, "<start_of_turn>model\n"))
        yield Read(row["input_prompt"], sum(score) if isinstance(score, list) else score, length)


FORMATS = {
    "drift": Format("drift", ".jsonl", lines(_drift()), lambda data: [*_read_drift(data)]),
    "table": Format("table", ".jsonl", lines(_table()), lambda data: [*_named(objects(data))]),
    "table-parquet": Format(
        "table", ".parquet", parquet(_table()), lambda data: [*_named(table_rows(data))]
    ),
    "chat": Format("chat", ".jsonl", lines(_chat()), lambda data: [*_named(objects(data))]),
    "chat-parquet": Format("chat", ".parquet", parquet(_chat()), lambda data: [*_named(table_rows(data))]),
    "trl": Format("trl", ".parquet", parquet(_trl()), lambda data: [*_read_trl(data)]),
    "verifiers": Format("verifiers", ".jsonl", lines(_verifiers()), lambda data: [*_read_verifiers(data)]),
    "verl": Format(
        "verl",
        ".jsonl",
        lines(_verl()),
        lambda data: [Read((row["step"], row["input"]), row["score"], 1) for row in objects(data)],
    ),
    "prime-rl": Format("prime-rl", ".jsonl", lines(_prime()), lambda data: [*_read_prime(data)]),
    "tau-bench": Format("tau-bench", ".json", _tau(), lambda data: [*_read_tau(data)]),
    "inspect": Format("inspect", ".json", _inspect(), lambda data: [*_read_inspect(data)]),
    "lm-eval": Format("lm-eval", ".jsonl", lines(_lm_eval()), lambda data: [*_read_lm_eval(data)]),
    "skyrl": Format("skyrl", ".jsonl", lines(_skyrl()), lambda data: [*_read_skyrl(data)]),
}
