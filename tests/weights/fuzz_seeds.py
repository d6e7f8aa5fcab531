"""A small valid file of each log format, written by hand."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


def lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
    return sink.getvalue()


def dialogue(*answers: str | None) -> list[Row]:
    messages: list[Row] = [{"role": "user", "content": "What is 3 + 4?"}]
    for answer in answers:
        messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": "Wrong, try again."})
    return messages[:-1]


ANSWERS = [("8", "7"), ("7",), ("8", "8", "9"), ("7",), ("8", None), ("sieben", "7")]
RIGHT = [1, 1, 0, 1, 0, 1]


def drift() -> list[Row]:
    rows = []
    for number, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True)):
        turns = {f"t{turn}": int(right and turn == len(given)) for turn in range(1, 4)}
        details = {f"t{turn}": {"actions": [a] if a else []} for turn, a in enumerate(given, start=1)}
        rows.append(
            {
                "prompt_id": f"sample_{number // 3}",
                "gold": "7",
                "messages": dialogue(*(f"<answer>{answer}</answer>" for answer in given)),
                "verifier": turns,
                "turn_rewards": {name: float(value) for name, value in turns.items()},
                "reward_details": details,
                "t_star": len(given) if right else None,
                "answer_norms": [answer for answer in given if answer],
                "format_penalty": 0.0,
            }
        )
    return rows


def table() -> list[Row]:
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


def chat() -> list[Row]:
    return [
        {"prompt_id": f"q{n // 3}", "sample": n, "correct": right, "messages": dialogue(*given)}
        for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True))
    ]


def trl() -> list[Row]:
    return [
        {
            "step": 12 + n // 4,
            "prompt": [{"role": "user", "content": f"question {n // 2}"}],
            "completion": dialogue(*given)[1:],
            "accuracy_reward": float(right),
            "advantage": 0.7,
        }
        for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True))
    ]


def verifiers() -> list[Row]:
    rows: list[Row] = []
    for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True)):
        row = {"example_id": n // 3, "prompt": dialogue("")[:1], "completion": dialogue(*given)[1:]}
        more = {"task": "arith", "answer": "7", "reward": float(right), "error": None, "correct": 1.0}
        rows.append(row | more)
    broken = {"example_id": 9, "completion": [], "reward": 0.0, "error": {"error": "Timeout"}}
    return [*rows, rows[0] | broken]


def verl() -> list[Row]:
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


def prime() -> list[Row]:
    rows = []
    for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True)):
        nodes = [
            {"message": message, "sampled": place % 2 == 1}
            for place, message in enumerate(dialogue(*given))
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


def tau() -> bytes:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "f"}}]}
    runs = [
        {
            "task_id": n // 3,
            "trial": n,
            "reward": float(right),
            "traj": [*dialogue(*given), call, dialogue("")[0]],
        }
        for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True))
    ]
    return json.dumps([*runs, {"task_id": 9, "trial": 0, "reward": 0.0, "traj": []}], indent=1).encode()


def inspect() -> bytes:
    samples = []
    for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True)):
        messages = [message | {"source": "generate"} for message in dialogue(*given)]
        scores = {"match": {"value": "C" if right else "I", "answer": "7"}}
        samples.append({"id": f"sum-{n // 3}", "epoch": n, "messages": messages, "scores": scores})
    samples.append(samples[0] | {"id": "sum-9", "scores": None})
    return json.dumps({"version": 2, "eval": {"task": "arithmetic"}, "samples": samples}).encode()


def lm_eval() -> list[Row]:
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


HEADERS = ("<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n")


def skyrl() -> list[Row]:
    rows = []
    for n, (given, right) in enumerate(zip(ANSWERS, RIGHT, strict=True)):
        turns = [f"{answer}<|im_end|>\n" for answer in given]
        joined = f"<|im_start|>user\nWrong.<|im_end|>\n{HEADERS[0]}".join(turns)
        prompt = f"<|im_start|>user\nquestion {n // 3}<|im_end|>\n{HEADERS[0]}"
        row = {"input_prompt": prompt, "output_response": joined, "score": float(right)}
        rows.append(row | {"env_extras": {"max_turns": 3}})
    return rows
