"""lm-evaluation-harness's `samples_<task>_<date>.jsonl`, which `--log_samples` writes.

A row, shortened:
    {"doc_id": 3, "doc": {"question": "What is 3 + 4?", "answer": "#### 7"}, "target": "7",
     "arguments": {"gen_args_0": {"arg_0": "Question: What is 3 + 4?\\nAnswer:",
                                  "arg_1": {"until": ["\\n\\n"]}}},
     "resps": [["It is 7."]], "filtered_resps": ["7"], "filter": "strict-match",
     "metrics": ["exact_match"], "doc_hash": "b1c2", "prompt_hash": "d3e4", "target_hash": "f5a6",
     "exact_match": 1.0}

Source: lm-evaluation-harness, `evaluator.py`, `evaluate`, and `evaluation_tracker.py`,
`save_results_samples`. Older versions write no `filter`, `metrics` and hashes, and `arguments` as lists.

- Prompt: the first argument, as one user message unless a chat template of ChatML, Llama 3 or Gemma
  rendered it, or a chat API was sent messages.
- Turns: one, `resps`. Verdict and reward: the metric, if there is one alone.
- A group is `doc_id`, with `doc_hash` where it is written, so that two tasks in one file stay apart. A run
  answers each problem once: groups come of runs of one model, under several seeds, put into one file.
- Every filter of a task judges the same responses again, in rows of its own: more than one is refused.
- Rows with several responses and one verdict (`repeats`), and log-likelihood tasks, which sample nothing,
  are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from drift_weights.columns import Columns
from drift_weights.logs.exchange import require, terminal_message
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.logs.skyrl import rendered_messages
from drift_weights.types import Malformed

NEEDED = ("doc_id", "arguments", "resps", "filtered_resps")
_OTHER = {
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
    *("doc_hash", "prompt_hash", "target_hash"),
}
"""Fields that are no metric, for the versions that do not list them."""


def _sniff(row: Row) -> bool:
    return row.keys() >= set(NEEDED)


def _metric(row: Row, columns: Columns) -> str:
    named = columns.return_column or columns.correct
    if named is not None:
        return named
    listed = row.get("metrics")
    numbers = [
        name for name, value in row.items() if name not in _OTHER and isinstance(value, (int, float))
    ]
    metrics = listed if isinstance(listed, list) else numbers
    if len(metrics) == 1 and isinstance(metrics[0], str):
        return metrics[0]
    if not metrics:
        raise ValueError("the row has no metric; name the column that holds the verdict (--correct)")
    raise ValueError(
        f"there are several metrics: {', '.join(map(str, metrics))}; name the one that says correct "
        "(--correct), or the return itself (--return-column)"
    )


def _response(row: Row) -> str:
    resps = row["resps"]
    if not isinstance(resps, list) or not resps or not isinstance(resps[0], list) or not resps[0]:
        raise ValueError("'resps' holds no response; drop its group")
    first = resps[0][0]
    if len(resps) > 1 or not isinstance(first, str):
        raise ValueError(
            "'resps' holds log-likelihoods of choices: nothing was sampled, so nothing is weighed"
        )
    if len(resps[0]) > 1:
        raise ValueError(
            f"'resps' holds {len(resps[0])} responses, for which the row's one verdict cannot speak; "
            "evaluate with repeats: 1 under several seeds, and put the files into one"
        )
    return first


def _prompt(arguments: Any) -> Any:
    if isinstance(arguments, Mapping):
        first = arguments.get("gen_args_0")
        return first.get("arg_0") if isinstance(first, Mapping) else None
    if isinstance(arguments, list) and arguments and isinstance(arguments[0], list) and arguments[0]:
        return arguments[0][0]
    return None


def _sent(encoded: str) -> list[Any]:
    """The messages that a chat API was sent: JSON text in a list of one."""
    try:
        return msgspec.json.decode(encoded, type=list[Any])
    except msgspec.DecodeError as error:
        raise ValueError(f"'arguments' holds a list that is no JSON messages ({error})") from error


def _dialogue(row: Row) -> Dialogue:
    prompt, response = _prompt(row.get("arguments")), _response(row)
    said = {"role": "assistant", "content": response}
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        return terminal_message([*_sent(prompt[0]), said], "arguments + resps")
    if not isinstance(prompt, str):
        raise ValueError("'arguments' holds no prompt: gen_args_0.arg_0 is no text")
    plain = [{"role": "user", "content": prompt}, said]
    return terminal_message(rendered_messages(prompt + response) or plain, "arguments + resps")


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    require(row, NEEDED, "lm-eval")
    metric = _metric(row, columns)
    optional = tuple(name for name in ("doc_hash", "filter") if name in row)

    def outcome(this: Row) -> Outcome:
        _response(this)
        if "filter" in optional and this["filter"] != row["filter"]:
            raise ValueError(
                f"'filter' is {this['filter']!r}, in the first row {row['filter']!r}; every filter judges "
                "the same responses again, so keep the rows of one"
            )
        group = (this["doc_id"], this["doc_hash"]) if "doc_hash" in optional else this["doc_id"]
        return Outcome(group, this[metric])

    return LogReader(
        fields=("doc_id", "resps", metric, *optional),
        outcome=outcome,
        dialogue=_dialogue,
        took={
            "prompt": "the first argument; by the user, unless a chat template rendered it",
            "turns": "one: resps",
            "verdict": metric,
            "group": "doc_id and doc_hash" if "doc_hash" in optional else "doc_id",
            "reward": metric,
        },
    )


LM_EVAL = LogFormat(
    name="lm-eval",
    source="lm-evaluation-harness, --log_samples",
    suffixes=(".jsonl",),
    sniff=_sniff,
    bind=_bind,
)
