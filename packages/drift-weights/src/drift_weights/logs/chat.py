"""Plain chat logs: dialogues with the columns that weights need beside them, as JSONL or Parquet.

A row with a whole dialogue, and one with a prompt and a completion:
    {"prompt_id": "q1", "sample": 0, "correct": 1,
     "messages": [{"role": "user", "content": "What is 3 + 4?"}, {"role": "assistant", "content": "8"},
                  {"role": "user", "content": "Incorrect. Please think again."},
                  {"role": "assistant", "content": "7"}]}
    {"prompt_id": "q1", "sample": 1, "correct": 0, "prompt": "What is 3 + 4?", "completion": "9"}

Prompt and completion are a string each, or messages. Source: nobody's in particular; `messages`, and
`prompt` with `completion`, are what trainers and chat APIs call them. The other columns are the
contract's (`prompt_id`, `round`, `policy`, `sample`, `correct`, `length`, `unique`) or named by options.

- With `length` and `unique`, or a return column, no text is read for weights.
- Without them L is the assistant messages of `messages`, or of `completion`. Whether an assistant message
  in `prompt` is an example or an earlier turn, no log says, so that is refused.
- `max_turns`, where it is there, is the budget. A `finish_reason` of `length`, or a true `is_truncated`,
  says that the response was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drift_weights.columns import Columns, Plain
from drift_weights.logs.exchange import Turns, count_turns, last_exchange, terminal_message
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed

ONE = Turns(1, 1, None, None)


def _sniff(row: Row) -> bool:
    # A null or broken dialogue is still one, to be refused as such; a number is none.
    text = "messages" in row and not isinstance(row["messages"], int | float)
    return text or {"prompt", "completion"} <= row.keys()


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    plain = columns.plain(list(row))
    text = _text_fields(row, columns)
    turns, read = _turns(plain, columns, malformed, text)
    budget = ("max_turns",) if read and "max_turns" in row else ()
    return LogReader(
        fields=tuple(dict.fromkeys((*plain.names, *read, *budget))),
        outcome=lambda row: _outcome(row, plain, turns, bool(budget)),
        dialogue=lambda row: _dialogue(row, text),
        took=_took(plain, text, read),
    )


def _text_fields(row: Row, columns: Columns) -> tuple[str, ...]:
    """`messages`, or `prompt` and `completion`, by the names they have in this log."""
    pair = (columns.prompt, columns.completion)
    if columns.messages in row:
        return (columns.messages,)
    if all(name in row for name in pair):
        return pair
    raise ValueError(
        f"no column {columns.messages!r}, nor {pair[0]!r} with {pair[1]!r}; there are {', '.join(row)}; "
        "name the text with --messages, or with --prompt and --completion"
    )


def _turns(
    plain: Plain, columns: Columns, malformed: Malformed, text: tuple[str, ...]
) -> tuple[Callable[[Row], Turns], tuple[str, ...]]:
    """How L and E are found, and the text that it takes."""
    length, unique = plain.length, plain.unique
    if length is not None and unique is not None:
        return (lambda row: Turns(row[length], row[unique], None, None)), ()
    if plain.returns is not None:
        return (lambda row: ONE), ()
    name = text[-1]
    if len(text) == 1:
        return (lambda row: count_turns(row[name], name, columns.answers, malformed)), text

    def of_completion(row: Row) -> Turns:
        _refuse_turns(row[text[0]], text[0])
        if isinstance(row[name], str):
            return ONE
        return count_turns(row[name], name, columns.answers, malformed)

    return of_completion, text


def _refuse_turns(prompt: Any, name: str) -> None:
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return
    for number, message in enumerate(prompt):
        if isinstance(message, Mapping) and message.get("role") == "assistant":
            raise ValueError(
                f"{name}[{number}] is by the assistant: an example, or an earlier turn? Name the turns and "
                "distinct answers (--length, --unique) or the return (--return-column)"
            )


def _outcome(row: Row, plain: Plain, turns: Callable[[Row], Turns], has_budget: bool) -> Outcome:
    length, unique, counted, note = turns(row)
    if has_budget:
        _check_budget(row["max_turns"], length)
    reward = plain.correct or plain.returns
    assert reward is not None
    return Outcome(
        group=tuple(row[name] for name in plain.group),
        reward=row[reward],
        length=length,
        unique=unique,
        counted=counted,
        sample=None if plain.sample is None else row[plain.sample],
        note=note,
    )


def _check_budget(budget: Any, length: Any) -> None:
    if isinstance(budget, int | float) and isinstance(length, int | float) and length > budget:
        raise ValueError(f"{length} turns are more than 'max_turns', which is {budget}; drop its group")


def _dialogue(row: Row, text: tuple[str, ...]) -> Dialogue:
    truncated = row.get("finish_reason") == "length" or row.get("is_truncated") is True
    if len(text) == 1:
        return terminal_message(row[text[0]], text[0], truncated=truncated)
    prompt, completion = text
    return last_exchange(row[prompt], row[completion], (prompt, completion), truncated=truncated)


def _took(plain: Plain, text: tuple[str, ...], read: tuple[str, ...]) -> dict[str, str]:
    whole = len(text) == 1
    if plain.length is not None:
        turns = f"columns {plain.length} and {plain.unique}"
    elif plain.returns is not None:
        turns = "not needed: the return is given"
    else:
        turns = f"assistant messages of {text[-1]}" + ("" if whole else "; a string is one")
    return {
        "prompt": f"{text[0]} before its last assistant message"
        if whole
        else f"{text[0]}; a string is by the user",
        "turns": turns,
        "verdict": plain.correct or "none",
        "group": ", ".join(plain.group),
        "reward": plain.returns or plain.correct or "none",
    }


CHAT = LogFormat(
    name="chat",
    source="chat logs with columns for group and outcome",
    suffixes=(".jsonl", ".ndjson", ".parquet", ".pq"),
    sniff=_sniff,
    bind=_bind,
)
