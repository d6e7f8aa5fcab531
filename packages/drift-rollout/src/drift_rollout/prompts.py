"""Prompt templates: the five of D.7, and a user's own."""

from __future__ import annotations

from dataclasses import dataclass

from drift_rollout.verify import Verifier
from drift_weights.types import Message

SYSTEM = "You're a helpful assistant."
_FORMAT = (
    "Always output: <think> [Your thoughts] </think> <answer> [your answer] </answer> with no "
    "extra text. Strictly follow this format."
)
_MATH = "You are solving Math problems. Only give the final answer between <answer> and </answer>."


_MARKS = {"answer": "<answer>", "boxed": "\\boxed"}
"""What a prompt names that asks for an answer of each grammar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTemplate:
    """A system and a user message around a problem.

    `{problem}` and `{max_turns}` are replaced once each where they stand in `user`; nothing else is
    interpreted, so braces and dollar signs of a problem pass through.

    Raises:
        ValueError: `user` has no `{problem}`.
    """

    user: str
    system: str | None = SYSTEM
    """None leaves the system message out."""

    def __post_init__(self) -> None:
        if self.user.count("{problem}") != 1:
            raise ValueError("a prompt template needs {problem} exactly once in its user message")

    def render(self, problem: str, *, max_turns: int = 5) -> tuple[Message, ...]:
        """The first prompt x_1 of a problem."""
        before, after = self.user.split("{problem}")
        turns = str(max_turns)
        content = before.replace("{max_turns}", turns) + problem + after.replace("{max_turns}", turns)
        messages = [] if self.system is None else [Message(role="system", content=self.system)]
        return (*messages, Message(role="user", content=content))


ROLLOUT_METAMATH = PromptTemplate(
    user=f"{_MATH}\nTurn 1:\nState: {{problem}}\nYou have {{max_turns}} actions left. {_FORMAT} "
    "Max response length: 400 words (tokens)."
)
EVAL_MATH = PromptTemplate(user=f"{_MATH}\nProblem: {{problem}}\n{_FORMAT}")
EVAL_THEOREMQA = PromptTemplate(user=f"{_MATH}\nProblem: <image>\n{{problem}}\n{_FORMAT}")


def _choice(letters: str) -> PromptTemplate:
    return PromptTemplate(
        user="You are solving multiple-choice questions. Only give the final answer letter "
        f"({letters}) between <answer> and </answer>.\nProblem: {{problem}}\n{_FORMAT}"
    )


EVAL_MMLU = _choice("A-J")
EVAL_GPQA = _choice("A-D")

TEMPLATES: dict[str, PromptTemplate] = {
    "rollout-metamath": ROLLOUT_METAMATH,
    "eval-math": EVAL_MATH,
    "eval-theoremqa": EVAL_THEOREMQA,
    "eval-mmlu": EVAL_MMLU,
    "eval-gpqa": EVAL_GPQA,
}
"""The templates of D.7 by name; MATH and MATH500 share one, MMLU-Redux and MMLU-Pro another."""


def choose_template(prompt: str | PromptTemplate) -> PromptTemplate:
    """A template of D.7 by name, or one that is a template already.

    Raises:
        ValueError: no template has that name.
    """
    if isinstance(prompt, PromptTemplate):
        return prompt
    if prompt not in TEMPLATES:
        raise ValueError(
            f"prompt {prompt!r} is no template; choose {', '.join(TEMPLATES)} or give your own"
        )
    return TEMPLATES[prompt]


def check_grammar(template: PromptTemplate, verifier: Verifier) -> None:
    """Hold a prompt against the grammar of the verifier that will read the answers.

    Raises:
        ValueError: the prompt asks for the marks of another grammar, and not for those that are read.
    """
    grammar = getattr(verifier, "grammar", None)
    if grammar not in _MARKS:
        return
    text = f"{template.system} {template.user}"
    others = [mark for name, mark in _MARKS.items() if name != grammar and mark in text]
    if others and _MARKS[grammar] not in text:
        raise ValueError(
            f"the prompt asks for {others[0]}, and {verifier.name} reads {_MARKS[grammar]}: every answer "
            "that does as it is told would be malformed; give a prompt that asks for what is read, or "
            "another verifier.grammar"
        )
