"""Text rows → token ids, with a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drift_weights.types import Message

_PROBE = "probe"


class ChatRenderer:
    """Renders prompts and completions so that a BOS never doubles and no end token is invented.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.

    Raises:
        ValueError: no chat template, or no token that ends a turn.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template; give it one, or rows with ids")
        self._tokenizer = tokenizer
        self.turn_end = self._find_turn_end()
        """The id that ends an assistant turn."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt up to where the assistant speaks; the template alone adds special tokens."""
        chat = [{"role": m.role, "content": m.content} for m in messages]
        return self._encode(self._render(chat, generate=True))

    def completion_ids(self, content: str, *, ended: bool) -> list[int]:
        """The completion's own ids, and the turn end if the model `ended` its turn."""
        return self._encode(content) + ([self.turn_end] if ended else [])

    def _find_turn_end(self) -> int:
        chat = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
        tail = self._render(chat, generate=False).rpartition(_PROBE)[2]
        known = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        for token in self._encode(tail):
            if token in known:
                return token
        if self._tokenizer.eos_token_id is None:
            raise ValueError("neither chat template nor tokenizer names a token that ends a turn")
        return int(self._tokenizer.eos_token_id)

    def _render(self, chat: list[dict[str, str]], *, generate: bool) -> str:
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)
        return str(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
