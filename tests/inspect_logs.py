"""Inspect logs made by hand; standard library and drift-weights only."""

import json
from pathlib import Path
from typing import Any

from drift_weights.logs.inspect_ai import INSPECT
from drift_weights.logs.reader import Row

ASKED = {"role": "user", "content": "What is 3 + 4?", "source": "input"}
AGAIN = {"role": "user", "content": "Wrong, try again."}


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "source": "generate", **more}


def scored(value: Any, **others: Any) -> dict[str, Any]:
    values = {"match": value, **others}
    return {name: {"value": each, "answer": "7"} for name, each in values.items()}


def sample(*messages: dict[str, Any], value: Any = "C", **changes: Any) -> dict[str, Any]:
    found = {"id": "sum-3", "epoch": 1, "input": "What is 3 + 4?", "target": "7", "scores": scored(value)}
    output = {"choices": [{"stop_reason": "stop"}]}
    return found | {"messages": [ASKED, *(messages or (said("7"),))], "output": output} | changes


def log(*samples: dict[str, Any]) -> dict[str, Any]:
    header = {"version": 2, "status": "success", "eval": {"task": "sums", "model": "mine/model"}}
    return header | {"samples": list(samples)}


def write(path: Path, *samples: dict[str, Any]) -> Path:
    path.write_text(json.dumps(log(*samples), indent=2), encoding="utf-8")
    return path


def rows(path: Path) -> list[Row]:
    assert INSPECT.trajectories is not None
    return list(INSPECT.trajectories(path))
