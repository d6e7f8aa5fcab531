"""M1-M3: the dialogue as a state machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_rollout.protocol import FEEDBACK, Dialogue, Protocol, advance, end_for_context
from drift_weights.types import Message, Turn

PROMPT = (Message(role="user", content="q"),)
VERDICTS = st.lists(st.sampled_from(["correct", "wrong", "malformed", "timeout", "error"]), max_size=12)


def judged(number: int, verdict: str) -> Turn:
    answer = str(number) if verdict in ("correct", "wrong") else None
    return Turn(response=f"r{number}", answer=answer, verdict=verdict)


def play(verdicts: list[str], max_turns: int) -> Dialogue:
    dialogue = Dialogue(prompt=PROMPT, protocol=Protocol(max_turns=max_turns))
    for number, verdict in enumerate(verdicts):
        if dialogue.ended is None:
            dialogue = advance(dialogue, judged(number, verdict))
    return dialogue


@given(VERDICTS, st.integers(1, 7))
def test_stops_at_the_first_success_or_at_the_budget(verdicts: list[str], max_turns: int) -> None:
    dialogue = play(verdicts, max_turns)
    seen = [turn.verdict for turn in dialogue.turns]
    # The oracle: cut the script behind its first stopping verdict, and at T.
    stops = [i for i, v in enumerate(verdicts[:max_turns]) if v in ("correct", "timeout", "error")]
    assert seen == verdicts[: stops[0] + 1 if stops else max_turns]
    assert seen.count("correct") <= 1
    assert "correct" not in seen[:-1]
    if stops:
        assert dialogue.ended == ("solved" if verdicts[stops[0]] == "correct" else "error")
    else:
        assert dialogue.ended == ("budget" if len(verdicts) >= max_turns else None)


@given(VERDICTS, st.integers(1, 7))
def test_history_grows_by_response_and_feedback(verdicts: list[str], max_turns: int) -> None:
    dialogue = Dialogue(prompt=PROMPT, protocol=Protocol(max_turns=max_turns))
    for number, verdict in enumerate(verdicts):
        before = dialogue.messages
        dialogue = advance(dialogue, judged(number, verdict))
        if dialogue.ended is not None:
            assert dialogue.turns[-1].feedback is None
            break
        grown = dialogue.messages
        assert grown[: len(before)] == before
        assert [(m.role, m.content) for m in grown[len(before) :]] == [
            ("assistant", f"r{number}"),
            ("user", "Incorrect. Please think again."),
        ]


def test_the_papers_defaults() -> None:
    assert Protocol().max_turns == 5
    assert Protocol().feedback == FEEDBACK == "Incorrect. Please think again."


def test_an_ended_dialogue_takes_no_turn() -> None:
    with pytest.raises(ValueError, match="has ended"):
        advance(play(["correct"], 5), judged(1, "wrong"))


def test_a_turn_brings_no_feedback_of_its_own() -> None:
    turn = Turn(response="r", answer="1", verdict="wrong", feedback="No!")
    with pytest.raises(ValueError, match="must not bring its own"):
        advance(Dialogue(prompt=PROMPT, protocol=Protocol()), turn)


def test_ending_for_context_takes_the_feedback_back() -> None:
    ended = end_for_context(play(["wrong"], 5))
    assert (ended.ended, ended.turns[-1].feedback) == ("context", None)
    with pytest.raises(ValueError, match="at least one turn"):
        end_for_context(Dialogue(prompt=PROMPT, protocol=Protocol()))


@pytest.mark.parametrize("broken", [{"max_turns": 0}, {"feedback": ""}])
def test_bad_rules_are_refused(broken: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        Protocol(**broken)
