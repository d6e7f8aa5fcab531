"""Small rows made by hand; standard library and drift-weights only."""

from drift_weights import Message, Trajectory, Turn

LOG = {
    "prompt_id": ["a", "b", "a", "b"],
    "correct": [1, 0, 0, 0],
    "length": [1, 5, 5, 5],
    "unique": [1, 5, 3, 1],
}


def trajectory(group: str, sample: int, answers: list[str | None], *, ended: str = "budget") -> Trajectory:
    """Wrong or malformed turns; with ended="solved" or "error" one more turn of that kind."""
    turns = [
        Turn(
            response=f"{group}{sample}{n}",
            answer=answer,
            verdict="malformed" if answer is None else "wrong",
            feedback="again",
        )
        for n, answer in enumerate(answers)
    ]
    if ended == "solved":
        turns.append(Turn(response="yes", answer="gold", verdict="correct"))
    elif ended == "error":
        turns.append(Turn(response="", answer=None, verdict="error", finish_reason="error"))
    else:
        turns[-1] = Turn(response=turns[-1].response, answer=turns[-1].answer, verdict=turns[-1].verdict)
    return Trajectory(
        prompt_id=group,
        sample=sample,
        policy="p",
        prompt=(Message(role="user", content=group),),
        target="gold",
        turns=tuple(turns),
        max_turns=6,
        ended=ended,
    )
