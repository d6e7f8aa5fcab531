"""M5: the five prompt templates of D.7, byte for byte, and a user's own."""

from pathlib import Path

import pytest

from drift_rollout.prompts import TEMPLATES, PromptTemplate

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    "name", ["rollout-metamath", "eval-math", "eval-theoremqa", "eval-mmlu", "eval-gpqa"]
)
def test_template_is_the_papers(name: str) -> None:
    messages = TEMPLATES[name].render("What is $1+{2}$?")
    shown = "".join(f"[{m.role}]\n{m.content}\n" for m in messages)
    assert shown == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_there_are_five() -> None:
    assert len(TEMPLATES) == 5


def test_actions_left_is_the_turn_budget() -> None:
    (_, user) = TEMPLATES["rollout-metamath"].render("p", max_turns=3)
    assert "You have 3 actions left." in user.content


def test_a_problem_is_never_interpreted() -> None:
    nasty = "{problem} {max_turns} {0} %s $x$"
    (message,) = PromptTemplate(system=None, user="Q: {problem} ({max_turns})").render(nasty, max_turns=2)
    assert message.content == f"Q: {nasty} (2)"


@pytest.mark.parametrize("user", ["no place", "{problem} twice {problem}"])
def test_a_template_needs_the_problem_once(user: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        PromptTemplate(user=user)
