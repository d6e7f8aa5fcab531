"""The JSONL that the DRIFT authors' rollout scripts write, one trajectory a line.

A row, shortened:
    {"prompt_id": "sample_17", "gold": "7",
     "messages": [{"role": "system", "content": "You're a helpful assistant. "},
                  {"role": "user", "content": "… What is 3 + 4? …"},
                  {"role": "assistant", "content": "<think>…</think><answer>8</answer>"},
                  {"role": "user", "content": "Incorrect. Please think again."},
                  {"role": "assistant", "content": "<think>…</think><answer>7</answer>"}],
     "verifier": {"t1": 0, "t2": 1, "t3": 0}, "turn_rewards": {"t1": 0.0, "t2": 1.0, "t3": 0.0},
     "reward_details": {"t1": {"actions": ["8"], …}, "t2": {"actions": ["7"], …}},
     "t_star": 2, "answer_norms": ["8", "7"], "format_penalty": 0.0}

Source: 2020-qqtcg/DRIFT, `generate_weighted_data_vllm_metamathqa.py`, and
`generate_math_multiturn_weighted_data_vllm.py`, whose rows have no `gold` and no `format_penalty`, and
whose `reward_details` hold shares of a shaped reward.

- `verifier` and `turn_rewards` are filled up with zeros to the turn budget, so they do not say L.
  The assistant messages do, and `reward_details` must agree.
- The verdict is `verifier` at the last turn: `turn_rewards` is shaped in the second script.
- `prompt_id` is a position after a seeded shuffle: in merged runs one id stands for several questions,
  and questions with one gold are many. So the prompt's text is part of the group.
- `answer_norms` lists answers, not turns: an unreadable turn adds none, and a turn that answers
  "7 || 8" adds two. `reward_details` tells them apart; such a turn is one answer, all parts together.
- The paper has no format penalty. `format_penalty` (−0.1 an unreadable turn) is added only under
  `malformed="skip"`, the released code's rule; they part where no turn is readable, which costs λ here
  and nothing there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from drift_weights.columns import Columns
from drift_weights.logs.exchange import prompt_key, require, terminal_message
from drift_weights.logs.messages import assistant_turns, trailing_note
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row
from drift_weights.types import Malformed

SEVERAL = "a turn with several answers counts as one answer, all of them together"
NEEDED = ("prompt_id", "messages", "verifier", "answer_norms")


def _sniff(row: Row) -> bool:
    return {*NEEDED, "turn_rewards"} <= row.keys()


def _bind(row: Row, columns: Columns, malformed: Malformed) -> LogReader:
    require(row, NEEDED, "drift")
    optional = ("reward_details", "t_star", *(["format_penalty"] if malformed == "skip" else []))
    penalty = "format_penalty is added" if malformed == "skip" else "no format penalty, as in the paper"
    return LogReader(
        fields=(*NEEDED, *(name for name in optional if name in row)),
        outcome=lambda row: _outcome(row, malformed),
        dialogue=_dialogue,
        took={
            "prompt": "messages before the first by the assistant",
            "turns": "assistant messages; their answers from answer_norms",
            "verdict": f"verifier at the last turn; {penalty}",
            "group": "prompt_id and the prompt's text: prompt_id alone is a position in one run",
            "reward": "verifier at the last turn",
        },
    )


def _outcome(row: Row, malformed: Malformed) -> Outcome:
    messages = row["messages"]
    turns = assistant_turns(messages, "messages")
    length = len(turns)
    answers = _answers(row, length)
    readable = [answer for answer in answers if answer is not None]
    unique, counted = len(set(readable)), len(readable)
    if malformed == "count":
        unique, counted = unique + (counted < length), length
    several = SEVERAL if any(isinstance(answer, tuple) for answer in answers) else None
    return Outcome(
        group=(row["prompt_id"], prompt_key(messages[: turns[0]], "messages before the first response")),
        reward=_verdict(row, length),
        length=length,
        unique=unique,
        counted=counted,
        penalty=_penalty(row.get("format_penalty")) if malformed == "skip" else 0.0,
        note="; ".join(filter(None, (trailing_note(messages, turns), several))) or None,
    )


def _penalty(value: Any) -> float:
    if value is None or isinstance(value, int | float):
        return float(value or 0.0)
    raise ValueError(f"'format_penalty' is {value!r}, expected a number; fix or drop its group")


def _verdict(row: Row, length: int) -> Any:
    """The raw verdict on the last turn, where the others do not contradict it."""
    verifier = row["verifier"]
    if not isinstance(verifier, Mapping):
        raise ValueError(f"'verifier' is {verifier!r}, expected an object of t1, t2, …")
    last = f"t{length}"
    if last not in verifier:
        raise ValueError(
            f"'messages' hold {length} turns, but the budget of 'verifier' ends at {len(verifier)}; drop "
            "its group"
        )
    solved = [turn for turn, value in verifier.items() if value]
    if solved and solved != [last]:
        raise ValueError(
            f"'verifier' calls {', '.join(solved)} right, but the last of {length} turns is {last}: a "
            "dialogue ends with its first right turn; drop its group"
        )
    expected = length if solved else None
    if row.get("t_star", expected) != expected:
        raise ValueError(f"'t_star' is {row['t_star']!r}, but 'verifier' says {expected}; drop its group")
    return verifier[last]


def _answers(row: Row, length: int) -> Sequence[Hashable]:
    """The answer of each turn; None where it is unreadable, a tuple where a turn gave several."""
    norms = row["answer_norms"]
    if not isinstance(norms, list) or not all(norm is None or isinstance(norm, str) for norm in norms):
        raise ValueError(f"'answer_norms' is {str(norms)[:60]}, expected a list of answers")
    sizes = _sizes(row["reward_details"], length) if "reward_details" in row else None
    if sizes is not None:
        return _by_turn(norms, sizes)
    unread = length - len(norms)
    if unread < 0 or (unread and "reward_details" in row):
        raise ValueError(
            f"'answer_norms' has {len(norms)} answers for {length} turns, and nothing says which turn gave "
            "them; drop its group"
        )
    return [*(norm or None for norm in norms), *[None] * unread]


def _sizes(details: Any, length: int) -> list[int] | None:
    """How many answers each turn gave; None where `reward_details` is about rewards alone."""
    if not isinstance(details, Mapping):
        raise ValueError(f"'reward_details' is {str(details)[:60]}, expected an object of t1, t2, …")
    # A table writes the turns that were not taken as null.
    taken = [detail for detail in details.values() if isinstance(detail, Mapping)]
    if len(taken) != length:
        raise ValueError(
            f"'reward_details' speaks of {len(taken)} turns, 'messages' hold {length}; drop its group"
        )
    actions = [detail.get("actions", ...) for detail in taken]
    if ... in actions:
        return None
    if not all(action is None or isinstance(action, list) for action in actions):
        raise ValueError("'actions' in 'reward_details' is no list; drop its group")
    return [len(action or ()) for action in actions]


def _by_turn(norms: Sequence[Any], sizes: list[int]) -> list[Hashable]:
    if sum(sizes) != len(norms):
        raise ValueError(
            f"'answer_norms' has {len(norms)} answers, 'reward_details' speaks of {sum(sizes)}; drop its "
            "group"
        )
    start, found = 0, list[Hashable]()
    for size in sizes:
        answers = norms[start : start + size]
        found.append(tuple(answers) if size > 1 else (answers[0] or None) if size else None)
        start += size
    return found


def _dialogue(row: Row) -> Dialogue:
    return terminal_message(row["messages"], "messages")


DRIFT = LogFormat(
    name="drift",
    source="the DRIFT authors' rollout scripts",
    suffixes=(".jsonl",),
    sniff=_sniff,
    bind=_bind,
)
