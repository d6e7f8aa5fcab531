"""Token truth: histories grow by appending ids; nothing that was sampled is ever rendered again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drift_weights.types import Message

_MARK = "\u2063drift\u2063"
"""Stands for a response while the text around it is found; invisible separators occur in no template."""


class ChatRenderer:
    """A tokenizer's chat template, used for the first prompt and for the feedback turn alone.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError("the tokenizer has no chat template; set one before rolling out")
        self._tokenizer = tokenizer
        self._feedback_ids: dict[str, tuple[int, ...]] = {}

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """x_1 as ids, up to where the assistant begins; special tokens come from the template only."""
        return self._encode(self._render(messages))

    def feedback_ids(self, feedback: str) -> tuple[int, ...]:
        """What the template puts between one response and the next: turn end, f, and the new opening.

        Raises:
            ValueError: the template does not show a response verbatim, or shows it twice.
        """
        if feedback not in self._feedback_ids:
            text = self._render(
                [
                    Message(role="user", content="x"),
                    Message(role="assistant", content=_MARK),
                    Message(role="user", content=feedback),
                ]
            )
            if text.count(_MARK) != 1:
                raise ValueError("the chat template does not show an assistant message exactly once")
            self._feedback_ids[feedback] = self._encode(text.split(_MARK)[1])
        return self._feedback_ids[feedback]

    def next_ids(
        self, history: Sequence[int], sampled: Sequence[int], feedback: str, *, stopped: bool
    ) -> tuple[int, ...]:
        """x_{t+1} = x_t + y_t + f as ids (eq. 11).

        The template's turn end is appended only if the policy did not sample it itself. Another stop
        token stays where it was sampled, and the turn end follows it.

        Args:
            history: x_t.
            sampled: y_t with its stop token, if one was sampled.
            feedback: f.
            stopped: whether the last sampled token is a stop token (finish_reason "stop").
        """
        between = self.feedback_ids(feedback)
        if stopped and sampled and between and sampled[-1] == between[0]:
            between = between[1:]
        return (*history, *sampled, *between)

    def _render(self, messages: Sequence[Message]) -> str:
        listed = [{"role": m.role, "content": m.content} for m in messages]
        text = self._tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=True)
        return str(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
