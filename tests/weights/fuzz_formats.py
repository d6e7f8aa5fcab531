"""A second reader of each log format, which shares no code with the package.

It says of each trajectory what its weight is made of: its group, whether it is right, and its turns L. It
reads JSON with the standard library, and Parquet with polars where that is installed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import fuzz_seeds as seeds
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
    seconds: Sequence[Callable[[bytes], list[Read]]]
    """Each raises where it cannot read the bytes."""


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


def whole_table(data: bytes) -> list[Row]:
    return pq.read_table(io.BytesIO(data), use_threads=False).to_pylist()


def polars_rows(data: bytes) -> list[Row]:
    import polars

    return polars.read_parquet(io.BytesIO(data)).to_dicts()


TABLES = (polars_rows, whole_table) if find_spec("polars") else (whole_table,)
"""Readers of Parquet. A file names its columns twice, in Parquet's schema and in Arrow's, and readers take
one or the other where they were broken apart: one reader that agrees is enough."""


def by_assistant(messages: list[Row]) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def text_of(value: Any) -> str:
    """A name for a JSON value that is the same for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def _read_drift(rows: list[Row]) -> Iterator[Read]:
    for row in rows:
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


def _read_trl(rows: list[Row]) -> Iterator[Read]:
    known = {"step", "prompt", "completion", "advantage", "weight"}
    (reward,) = (name for name in rows[0] if name not in known)
    for row in rows:
        length = 1 if isinstance(row["completion"], str) else by_assistant(row["completion"])
        yield Read((row["step"], text_of(row["prompt"])), row[reward], length)


def _read_verifiers(rows: list[Row]) -> Iterator[Read]:
    identity = "id" if "example_id" not in rows[0] else "example_id"
    for row in rows:
        failed = bool(row.get("error"))
        said = "" if failed else row["completion"]
        length = 1 if isinstance(said, str) else by_assistant(said)
        group = (row[identity], row["task"]) if isinstance(rows[0].get("task"), str) else row[identity]
        yield Read(group, row["reward"], length, failed)


def _read_verl(rows: list[Row]) -> Iterator[Read]:
    for row in rows:
        yield Read((row["step"], text_of(row["input"])), row["score"], 1)


def _read_prime(rows: list[Row]) -> Iterator[Read]:
    for line in rows:
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


def _read_tau(data: bytes) -> Iterator[Read]:
    runs = parsed(data.removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(runs, list):
        raise ValueError("no list")
    for run in runs:
        broken = run["traj"] == []
        yield Read(run["task_id"], run.get("reward"), 1 if broken else by_assistant(run["traj"]), broken)


def _read_inspect(data: bytes) -> Iterator[Read]:
    log = json.loads(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8"), parse_constant=_no_constant)
    # Of the header nothing is read, so that a number out of range may stand in it.
    samples = parsed(json.dumps(log["samples"]).encode())
    (name,) = samples[0]["scores"]
    for sample in samples:
        if not sample.get("scores"):
            yield Read(sample["id"], None, 1, True)
            continue
        value = sample["scores"][name]["value"]
        solved = {"C": 1, "I": 0, "N": 0, "P": 0.5}.get(value, value) if isinstance(value, str) else value
        own = [message for message in sample["messages"] if message.get("source") != "input"]
        yield Read(sample["id"], solved, by_assistant(own))


def _read_lm_eval(rows: list[Row]) -> Iterator[Read]:
    first = rows[0]
    other = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
    other |= {"doc_hash", "prompt_hash", "target_hash"}
    numbers = [
        name for name, value in first.items() if name not in other and isinstance(value, int | float)
    ]
    (metric,) = first["metrics"] if isinstance(first.get("metrics"), list) else numbers
    for row in rows:
        yield Read((row["doc_id"], row["doc_hash"] if "doc_hash" in first else None), row[metric], 1)


def _read_skyrl(rows: list[Row]) -> Iterator[Read]:
    for row in rows:
        said, score = row["output_response"], row["score"]
        length = 1 + sum(said.count(header) for header in (*seeds.HEADERS, "<start_of_turn>model\n"))
        yield Read(text_of(row["input_prompt"]), sum(score) if isinstance(score, list) else score, length)


def of_lines(name: str, rows: list[Row], read: Callable[[list[Row]], Iterator[Read]]) -> Format:
    return Format(name, ".jsonl", seeds.lines(rows), [lambda data: [*read(objects(data))]])


def of_table(name: str, rows: list[Row], read: Callable[[list[Row]], Iterator[Read]]) -> Format:
    def second(table: Callable[[bytes], list[Row]]) -> Callable[[bytes], list[Read]]:
        return lambda data: [*read(table(data))]

    return Format(name, ".parquet", seeds.parquet(rows), [second(table) for table in TABLES])


FORMATS = {
    "drift": of_lines("drift", seeds.drift(), _read_drift),
    "table": of_lines("table", seeds.table(), _named),
    "table-parquet": of_table("table", seeds.table(), _named),
    "chat": of_lines("chat", seeds.chat(), _named),
    "chat-parquet": of_table("chat", seeds.chat(), _named),
    "trl": of_table("trl", seeds.trl(), _read_trl),
    "verifiers": of_lines("verifiers", seeds.verifiers(), _read_verifiers),
    "verl": of_lines("verl", seeds.verl(), _read_verl),
    "prime-rl": of_lines("prime-rl", seeds.prime(), _read_prime),
    "tau-bench": Format("tau-bench", ".json", seeds.tau(), [lambda data: [*_read_tau(data)]]),
    "inspect": Format("inspect", ".json", seeds.inspect(), [lambda data: [*_read_inspect(data)]]),
    "lm-eval": of_lines("lm-eval", seeds.lm_eval(), _read_lm_eval),
    "skyrl": of_lines("skyrl", seeds.skyrl(), _read_skyrl),
}
