"""Token truth: histories grow by appending ids; nothing that was sampled is ever rendered again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drift_weights.types import Message

_MARK = "\u2063drift\u2063"
"""Stands for a response while the text around it is found; invisible separators occur in no template."""
_THOUGHT = "<think>"


class ChatRenderer:
    """A tokenizer's chat template, used for the first prompt and for the feedback turn alone.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        prefill: put into the assistant's mouth at every turn, such as `<think>`; it is part of the
            history and not of the response.

    Raises:
        ValueError: the tokenizer has no chat template, or the template begins a dialogue with two BOS.
    """

    def __init__(self, tokenizer: Any, prefill: str = "") -> None:
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError("the tokenizer has no chat template; set one before rolling out")
        self._tokenizer = tokenizer
        self._prefill = prefill
        self._feedback_ids: dict[str, tuple[int, ...]] = {}
        self._opening = self._render([Message(role="user", content="x")])
        bos = getattr(tokenizer, "bos_token_id", None)
        count = (
            self._encode(self._opening).count(bos)
            if bos is not None and bos != tokenizer.eos_token_id
            else 0
        )
        if count > 1:
            raise ValueError(
                f"the chat template puts {count} BOS tokens before a dialogue; mend the template"
            )

    @property
    def opened(self) -> str:
        """What the assistant has said before its first token: the prefill, or a thought that is opened."""
        if self._prefill:
            return self._prefill
        return _THOUGHT if self._opening.rstrip().endswith(_THOUGHT) else ""

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """x_1 as ids, up to where the assistant begins; special tokens come from the template only."""
        return self._encode(self._render(messages))

    def deviations(self, feedback: str) -> list[str]:
        """What the template, asked to render a dialogue again, would make of it that was not so.

        Histories grow by appending, so what is sampled and trained is right whatever the template does.
        But who renders the dialogue anew at deployment shows the policy another history.
        """
        found = []
        prompt = [Message(role="user", content="x")]
        answers = {"earlier answers": f"{_MARK} 4", "earlier thoughts": f"<think> {_MARK} </think> 4"}
        for what, answer in answers.items():
            # The thought that the prompt opens is part of the answer.
            said = answer.removeprefix(_THOUGHT) if self.opened.startswith(_THOUGHT) else answer
            again = self._render(
                [*prompt, Message(role="assistant", content=answer), Message(role="user", content=feedback)]
            )
            if not again.startswith(self._render(prompt) + said):
                found.append(f"the chat template renders {what} otherwise than they were sampled")
        return found

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
        return f"{text}{self._prefill}"

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
