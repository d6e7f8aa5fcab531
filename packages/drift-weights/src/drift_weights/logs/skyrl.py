"""SkyRL's dumped evaluation generations, one JSONL file a data source.

A row, shortened:
    {"input_prompt": "<|im_start|>user\\nWhat is 3 + 4?<|im_end|>\\n<|im_start|>assistant\\n",
     "output_response": "It is 7.<|im_end|>", "score": 1.0, "stop_reason": "stop", "env_class": "gsm8k",
     "env_extras": {"reward_spec": {"ground_truth": "7"}, "max_turns": 3}, "data_source": "openai/gsm8k"}

Source: SkyRL, `trainer_utils.py`, `dump_per_dataset_eval_results`.

- Both texts are decoded with their special tokens, and the response of a multi-turn environment holds all
  the rest of the dialogue. Its turns are found by the assistant headers of ChatML, Llama 3 and Gemma;
  with another template a response counts as one turn.
- Prompt: both texts taken apart by those headers; without any, `input_prompt` is one user message.
- Verdict and reward: `score`, summed where each token has one, as SkyRL does.
- A group is `input_prompt`. The training step stands in the folder's name alone: keep steps apart.
- The samples of a prompt are not numbered, so a repeated line cannot be told from an equal sample.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from drift_weights.columns import Columns
from drift_weights.logs.exchange import Turns, count_responses, prompt_key, require, terminal_message
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed

NEEDED = ("input_prompt", "output_response", "score")


class _Template(NamedTuple):
    """How a family of chat templates writes a message."""

    opening: str
    """Marks the start of any message."""
    assistant: str
    """Marks the start of an assistant message."""
    begin: str
    """May stand once before the first message."""
    message: re.Pattern[str]
    """One message: role and content."""


_TEMPLATES = (
    _Template(
        "<|im_start|>",
        "<|im_start|>assistant\n",
        "",
        re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n?|\Z)", re.DOTALL),
    ),
    _Template(
        "<|start_header_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|>",
        re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)(?:<\|eot_id\|>|\Z)", re.DOTALL),
    ),
    _Template(
        "<start_of_turn>",
        "<start_of_turn>model\n",
        "<bos>",
        re.compile(r"<start_of_turn>(\w+)\n(.*?)(?:<end_of_turn>\n?|\Z)", re.DOTALL),
    ),
)


def rendered_messages(text: str) -> list[dict[str, str]] | None:
    """The messages of a text rendered by a ChatML, Llama 3 or Gemma template; None where it has no header.

    Raises:
        ValueError: such headers, but not messages from end to end.
    """
    template = next((each for each in _TEMPLATES if each.opening in text), None)
    if template is None:
        return None
    messages: list[dict[str, str]] = []
    at = len(template.begin) if text.startswith(template.begin) else 0
    while at < len(text):
        found = template.message.match(text, at)
        if found is None or template.opening in found[2]:
            raise ValueError(
                f"the text at character {at} is no message of its chat template; write the log with its "
                "weight, or a side file"
            )
        messages.append({"role": "assistant" if found[1] == "model" else found[1], "content": found[2]})
        at = found.end()
    return messages


def _sniff(row: Row) -> bool:
    return row.keys() >= set(NEEDED)


def _text(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        shown = "null" if value is None else repr(value)[:60]
        raise ValueError(f"{name!r} is {shown}, expected text; drop its group")
    return value


def _score(score: Any) -> Any:
    if not isinstance(score, list):
        return score
    if not all(isinstance(each, int | float) for each in score):
        raise ValueError("'score' is a list with values that are no numbers; drop its group")
    return sum(score)


def _messages(row: Row) -> list[dict[str, str]]:
    prompt, response = _text(row, "input_prompt"), _text(row, "output_response")
    plain = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return rendered_messages(prompt + response) or plain


def _dialogue(row: Row) -> Dialogue:
    truncated = row.get("stop_reason") == "length"
    return terminal_message(_messages(row), "output_response", truncated=truncated)


def _check_budget(extras: Any, length: int) -> None:
    budget = extras.get("max_turns") if isinstance(extras, Mapping) else None
    if isinstance(budget, int) and length > budget:
        raise ValueError(
            f"env_extras.max_turns is {budget}, but 'output_response' holds {length} turns; drop its group"
        )


def _turns(row: Row, columns: Columns, malformed: Malformed) -> Turns:
    response = _text(row, "output_response")
    length = 1 + sum(response.count(template.assistant) for template in _TEMPLATES)
    if length == 1 or columns.answers is None:
        return Turns(length, 1 if length == 1 else None, None, None)
    said = [message for message in _messages(row) if message["role"] == "assistant"]
    if len(said) < length:
        raise ValueError(
            "the chat headers of 'input_prompt' and 'output_response' do not fit together; name the turns "
            "(--length, --unique)"
        )
    return count_responses(said[-length:], columns.answers, malformed, None)


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    require(row, NEEDED, "skyrl")
    extras = row.get("env_extras")
    budgeted = isinstance(extras, Mapping) and "max_turns" in extras

    def outcome(row: Row) -> Outcome:
        turns = _turns(row, columns, malformed)
        if budgeted:
            _check_budget(row["env_extras"], turns.length)
        group = None if columns.group is not None else prompt_key(row["input_prompt"], "input_prompt")
        return Outcome(group, _score(row["score"]), *turns[:3])

    return LogReader(
        fields=(*NEEDED, *(("env_extras",) if budgeted else ())),
        outcome=outcome,
        dialogue=_dialogue,
        took={
            "prompt": "input_prompt, taken apart by its chat headers; without any, by the user",
            "turns": "output_response, and one more for each assistant header in it",
            "verdict": "score",
            "group": "input_prompt",
            "reward": "score",
        },
    )


SKYRL = LogFormat(
    name="skyrl",
    source="SkyRL, dumped evaluation generations",
    suffixes=(".jsonl",),
    sniff=_sniff,
    bind=_bind,
)
