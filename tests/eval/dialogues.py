"""Dialogues for the evaluation's tests, spelled as verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
from hypothesis import strategies as st

from drift_weights.schema import to_table
from drift_weights.types import Ended, Message, Trajectory, Turn, Verdict

LETTERS: dict[str, Verdict] = {
    "c": "correct",
    "w": "wrong",
    "m": "malformed",
    "t": "timeout",
    "e": "error",
}


def dialogue(
    verdicts: str,
    *,
    prompt_id: str = "p0",
    policy: str = "π",
    max_turns: int = 5,
    answers: Sequence[str | None] | None = None,
    sample: int = 0,
) -> Trajectory:
    """A dialogue from letters, such as "wmc"; each answer is its own unless given."""
    turns = []
    for number, letter in enumerate(verdicts):
        answer = f"answer {number}" if answers is None else answers[number]
        turns.append(
            Turn(
                response=f"response {number}",
                answer=answer if letter in "cw" else None,
                verdict=LETTERS[letter],
                feedback="again" if number < len(verdicts) - 1 else None,
            )
        )
    endings: dict[str, Ended] = {"c": "solved", "t": "error", "e": "error"}
    return Trajectory(
        prompt_id=prompt_id,
        sample=sample,
        policy=policy,
        prompt=(Message(role="user", content=prompt_id),),
        target="gold",
        turns=tuple(turns),
        max_turns=max_turns,
        ended=endings.get(verdicts[-1], "budget"),
    )


def policy_rows(policy: str, verdicts: Iterable[str], *, max_turns: int = 5) -> list[Trajectory]:
    """One dialogue a problem, on problems p0, p1, …"""
    return [
        dialogue(letters, prompt_id=f"p{number}", policy=policy, max_turns=max_turns)
        for number, letters in enumerate(verdicts)
    ]


def policy_table(policy: str, verdicts: Iterable[str], *, max_turns: int = 5) -> pa.Table:
    """The same as a table."""
    return to_table(policy_rows(policy, verdicts, max_turns=max_turns))


def stopped(raw: Sequence[bool]) -> str:
    """The letters of a dialogue that stops at the first True of a verdict list of length T."""
    turns = raw.index(True) + 1 if True in raw else len(raw)
    return "".join("c" if verdict else "w" for verdict in raw[:turns])


@st.composite
def raw_verdicts(draw: st.DrawFn, max_problems: int = 12) -> list[list[bool]]:
    """V(y_{i,t}) for every problem and all T turns, as if no dialogue ever stopped."""
    max_turns = draw(st.integers(1, 6))
    row = st.lists(st.booleans(), min_size=max_turns, max_size=max_turns)
    return draw(st.lists(row, min_size=1, max_size=max_problems))
