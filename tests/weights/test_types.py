"""The records: what they refuse, and what they say about a dialogue (eq. 11, eq. 12)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.types import Message, Trajectory, Turn, prompt_id
from strategies import FEEDBACK, messages, trajectories

WRONG = Turn(response="<answer> 3 </answer>", answer="3", verdict="wrong", feedback=FEEDBACK)
MALFORMED = Turn(response="hm", answer=None, verdict="malformed", feedback=FEEDBACK)
RIGHT = Turn(response="<answer> 4 </answer>", answer="4", verdict="correct")
LATE = Turn(response="<answer> 4 </answer>", answer=None, verdict="timeout")
FAILED = Turn(response="", answer=None, verdict="error", finish_reason="error")


def trajectory(*turns: Turn, **changes: Any) -> Trajectory:
    """A small valid trajectory with these turns, and one field or another changed."""
    fields: dict[str, Any] = {
        "prompt_id": "p",
        "sample": 3,
        "policy": "π",
        "prompt": (Message(role="user", content="2 + 2?"),),
        "target": "4",
        "turns": (*turns[:-1], *(replace(turn, feedback=None) for turn in turns[-1:])),
        "max_turns": 5,
        "ended": "solved",
    }
    return Trajectory(**(fields | changes))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": "1", "verdict": "right"}, "verdict 'right' is not one of correct, wrong"),
        ({"answer": "1", "verdict": "wrong", "finish_reason": "eos"}, "finish_reason 'eos'"),
        ({"answer": "1", "verdict": "malformed"}, "a malformed turn has no answer, got '1'"),
        ({"answer": None, "verdict": "correct"}, "a correct turn needs an answer"),
        ({"answer": None, "verdict": "wrong"}, "a wrong turn needs an answer"),
    ],
)
def test_a_turn_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Turn(response="", **fields)


SPANS: dict[str, Any] = {"token_ids": (1, 2, 3, 4), "response_spans": ((1, 2), (3, 4))}


@pytest.mark.parametrize(
    ("turns", "changes", "message"),
    [
        ((), {}, "has no turns"),
        ((), {"turns": (WRONG,), "ended": "budget"}, "feedback after the last turn"),
        ((replace(WRONG, feedback=None), RIGHT), {}, "turn 1 has no feedback"),
        ((WRONG, RIGHT), {"max_turns": 1}, "has 2 turns, more than max_turns 1"),
        ((RIGHT, RIGHT), {}, "turn 1 is correct but not the last turn"),
        ((WRONG, LATE, RIGHT), {}, "turn 2 is timeout but not the last turn"),
        ((FAILED, RIGHT), {}, "turn 1 is error but not the last turn"),
        ((WRONG, RIGHT), {"ended": "budget"}, "ended 'budget', but its last verdict is 'correct'"),
        ((WRONG,), {"ended": "solved"}, "ended 'solved', but its last verdict is 'wrong'"),
        ((MALFORMED,), {"ended": "error"}, "ended 'error', but its last verdict is 'malformed'"),
        ((LATE,), {"ended": "context"}, "ended 'context', but its last verdict is 'timeout'"),
        ((FAILED,), {"ended": "budget"}, "ended 'budget', but its last verdict is 'error'"),
        ((WRONG,), {"ended": "tired"}, "ended 'tired'"),
        ((RIGHT,), {"token_ids": (1,)}, "token_ids and response_spans come together"),
        ((RIGHT,), {"response_spans": ((0, 1),)}, "token_ids and response_spans come together"),
        ((RIGHT,), {"logprobs": (-0.5,)}, "logprobs without token_ids"),
        ((RIGHT,), SPANS, "2 spans for 1 turns"),
        ((WRONG, RIGHT), SPANS | {"response_spans": ((1, 3), (2, 4))}, r"span \[2, 4\) is out"),
        ((WRONG, RIGHT), SPANS | {"response_spans": ((2, 1), (3, 4))}, r"span \[2, 1\) is out"),
        ((WRONG, RIGHT), SPANS | {"response_spans": ((-1, 1), (3, 4))}, r"span \[-1, 1\) is out"),
        ((WRONG, RIGHT), SPANS | {"response_spans": ((1, 2), (3, 5))}, r"span \[3, 5\) is out"),
        ((WRONG, RIGHT), SPANS | {"token_ids": (1, 2, 3, 4, 5)}, "go on after the terminal"),
        ((WRONG, RIGHT), SPANS | {"logprobs": (-0.1,)}, "1 logprobs for 2 sampled tokens"),
    ],
)
def test_a_trajectory_refuses_and_names_itself(
    turns: tuple[Turn, ...], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"trajectory \('p', 0, 'π', 3\).*{message}"):
        trajectory(*turns, **changes)


def test_what_fits_together_is_accepted() -> None:
    assert trajectory(WRONG, RIGHT, **SPANS, logprobs=(-0.1, -0.2)).length == 2
    for ended in ("budget", "context"):
        assert not trajectory(MALFORMED, ended=ended).solved
    for last in (LATE, FAILED):
        assert not trajectory(WRONG, last, ended="error").scored


@given(trajectories())
def test_length_solved_and_scored_follow_the_verdicts(found: Trajectory) -> None:
    verdicts = [turn.verdict for turn in found.turns]
    assert found.length == len(verdicts) <= found.max_turns
    assert found.solved == ("correct" in verdicts) == (found.ended == "solved")
    assert found.scored == (not {"timeout", "error"} & set(verdicts))
    assert found.key == (found.prompt_id, found.round, found.policy, found.sample)


@given(trajectories(max_turns=7, scored=True, tokens=False))
def test_unique_and_counted_answers_by_hand(found: Trajectory) -> None:
    """count: an unreadable answer is one value of its own; skip: it never happened."""
    readable: list[str] = []
    distinct: list[str] = []
    unreadable = 0
    for turn in found.turns:
        if turn.verdict == "malformed":
            unreadable += 1
            continue
        readable.append(turn.answer or "")
        if turn.answer not in distinct:
            distinct.append(turn.answer or "")
    assert found.unique_answers("skip") == len(distinct)
    assert found.counted_turns("skip") == len(readable)
    assert found.unique_answers("count") == len(distinct) + (unreadable > 0)
    assert found.counted_turns("count") == len(readable) + unreadable == found.length


@given(trajectories(scored=True, tokens=False))
def test_counting_malformed_turns_is_the_default(found: Trajectory) -> None:
    assert found.unique_answers() == found.unique_answers("count")
    assert found.counted_turns() == found.counted_turns("count")
    assert 1 <= found.unique_answers() <= found.counted_turns() == found.length


def test_two_unreadable_answers_are_one_answer() -> None:
    found = trajectory(MALFORMED, WRONG, MALFORMED, ended="budget")
    assert (found.unique_answers("count"), found.counted_turns("count")) == (2, 3)
    assert (found.unique_answers("skip"), found.counted_turns("skip")) == (1, 1)


@given(trajectories())
def test_the_terminal_prompt_is_the_whole_history_verbatim(found: Trajectory) -> None:
    """x_L: x_{t+1} = concat(x_t, y_t, f), eq. 11."""
    history = found.prompt
    for turn in found.turns[:-1]:
        said = Message(role="assistant", content=turn.response)
        history = (*history, said, Message(role="user", content=str(turn.feedback)))
    assert found.terminal_prompt == history


def test_after_one_turn_the_terminal_prompt_is_the_first() -> None:
    found = trajectory(RIGHT)
    assert found.terminal_prompt == found.prompt


def test_records_are_frozen_and_keyword_only() -> None:
    message = Message(role="user", content="hello")
    for record, name in ((message, "role"), (RIGHT, "verdict"), (trajectory(RIGHT), "turns")):
        dataclass: Any = type(record)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, None)
        with pytest.raises(TypeError, match="positional"):
            dataclass("user", "hello")


def quoted(text: str) -> str:
    """A JSON string in which only what JSON forbids is escaped."""
    return json.dumps(text, ensure_ascii=False)


@given(messages(), st.none() | st.text(max_size=8))
def test_prompt_id_is_the_hash_of_the_json_written_by_hand(
    prompt: tuple[Message, ...], target: str | None
) -> None:
    parts = [f'{{"content":{quoted(m.content)},"role":{quoted(m.role)}}}' for m in prompt]
    gold = "null" if target is None else quoted(target)
    text = f'{{"messages":[{",".join(parts)}],"target":{gold}}}'
    assert prompt_id(prompt, target) == hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_prompt_id_of_one_problem_byte_for_byte() -> None:
    written = '{"messages":[{"content":"π ≈ \\"?\\"","role":"user"}],"target":null}'
    expected = hashlib.sha256(written.encode("utf-8")).hexdigest()
    assert prompt_id([Message(role="user", content='π ≈ "?"')], None) == expected


@given(messages(), messages(), st.none() | st.text(max_size=4), st.none() | st.text(max_size=4))
def test_prompt_ids_agree_only_on_equal_problems(
    a: tuple[Message, ...], b: tuple[Message, ...], gold_a: str | None, gold_b: str | None
) -> None:
    same = a == b and gold_a == gold_b
    assert (prompt_id(a, gold_a) == prompt_id(list(b), gold_b)) == same
