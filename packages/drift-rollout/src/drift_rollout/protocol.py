"""The correction dialogue as a pure state machine: no engine, no clock, no randomness."""

from __future__ import annotations

from dataclasses import dataclass, replace

from drift_weights.types import UNSCORED, Ended, Message, Turn

FEEDBACK = "Incorrect. Please think again."


# No slots: jsonargparse reads the fields of a default from its __dict__.
@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules of a dialogue.

    Raises:
        ValueError: a budget below one turn, or no feedback.

    Source: sec. 2 and D.2 (T = 5); the feedback of D.8's examples, M3.
    """

    max_turns: int = 5
    """T ≥ 1."""
    feedback: str = FEEDBACK
    """f, the fixed user message after every wrong turn but the last."""

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {self.max_turns}")
        if not self.feedback:
            raise ValueError("feedback must not be empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """The state of one dialogue: x_1 and the turns so far. Advance it with `advance`."""

    prompt: tuple[Message, ...]
    protocol: Protocol
    turns: tuple[Turn, ...] = ()
    ended: Ended | None = None
    """Why it is over; None while a response is wanted."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """x_t, the history that the next response answers: x_{t+1} = concat(x_t, y_t, f) (eq. 11)."""
        messages = list(self.prompt)
        for turn in self.turns:
            messages.append(Message(role="assistant", content=turn.response))
            messages.append(Message(role="user", content=turn.feedback or ""))
        return tuple(messages)


def advance(dialogue: Dialogue, turn: Turn) -> Dialogue:
    """Add one judged turn: stop at the first correct answer or at t = T, else give feedback (M2, M3).

    A timeout or error verdict ends the dialogue unscored.

    Args:
        dialogue: one that has not ended.
        turn: its next turn, without feedback.

    Returns:
        The next state; the turn carries the feedback if the dialogue goes on.

    Raises:
        ValueError: the dialogue has ended, or the turn brings feedback of its own.
    """
    if dialogue.ended is not None:
        raise ValueError(f"the dialogue has ended ({dialogue.ended}); no further turn is possible")
    if turn.feedback is not None:
        raise ValueError("the protocol gives the feedback, a turn must not bring its own")
    ended = _ending(turn, number=len(dialogue.turns) + 1, max_turns=dialogue.protocol.max_turns)
    if ended is None:
        turn = replace(turn, feedback=dialogue.protocol.feedback)
    return replace(dialogue, turns=(*dialogue.turns, turn), ended=ended)


def end_for_context(dialogue: Dialogue) -> Dialogue:
    """End a dialogue whose next prompt leaves no room for a response; its feedback is taken back.

    Raises:
        ValueError: no turn was taken yet (such a problem must be refused), or it has ended.
    """
    if dialogue.ended is not None or not dialogue.turns:
        raise ValueError("only a running dialogue with at least one turn can end for its context")
    last = replace(dialogue.turns[-1], feedback=None)
    return replace(dialogue, turns=(*dialogue.turns[:-1], last), ended="context")


def _ending(turn: Turn, *, number: int, max_turns: int) -> Ended | None:
    if turn.verdict == "correct":
        return "solved"
    if turn.verdict in UNSCORED:
        return "error"
    return "budget" if number == max_turns else None
