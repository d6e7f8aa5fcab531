"""What goes to a server that speaks OpenAI's protocol, and what of its answers is a completion."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from drift_rollout.engine import Completion, Request
from drift_weights.types import FinishReason

_NO_ROOM = re.compile(r"leave no room|context[ _](?:length|size|window)", re.IGNORECASE)
"""How vLLM, SGLang, llama.cpp and OpenAI say that a prompt is too long, in a message or a code."""
REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}

UNMODIFIED: dict[str, dict[str, Any]] = {
    "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "llamacpp": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
}
"""By `owned_by` of /v1/models: what keeps a server from cutting or bending the distribution by defaults of
its own, or of the model's generation_config.json (Qwen2.5's has top_k 20 and a repetition penalty)."""


class AnswerError(ValueError):
    """One answer that is no completion."""


class UnfitServerError(ValueError):
    """A server whose answers never will be what the engine was set to."""


def chat_body(request: Request, model: str) -> dict[str, Any]:
    """A request of /v1/chat/completions: x_t as messages."""
    messages = [{"role": m.role, "content": m.content} for m in request.messages]
    return {"messages": messages, **_common(request, model, request.sampling.max_new_tokens)}


def token_body(request: Request, model: str, *, room: int) -> dict[str, Any]:
    """A request of /v1/completions: x_t as ids, and ids wanted back.

    Args:
        room: tokens that the context leaves for the response, ≥ 1.
    """
    assert request.token_ids is not None
    tokens = min(request.sampling.max_new_tokens, room)
    return {"prompt": list(request.token_ids), "logprobs": 1, **_common(request, model, tokens)}


def chat_completion(request: Request, body: str) -> Completion:
    """The completion in an answer of /v1/chat/completions; text alone.

    Raises:
        AnswerError: malformed, or ended by anything but a stop token or the limit.
        UnfitServerError: the server cuts the thinking out of the response.
    """
    choice = _choice(_object(body))
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise AnswerError("the server's answer has no message")
    if message.get("reasoning_content") or message.get("reasoning"):
        raise UnfitServerError(
            "the server cuts the thinking out of the response, which is then not what the policy wrote; "
            "start it without a reasoning parser, or set engine.openai.tokenizer"
        )
    reason = _reason(choice)
    return Completion(id=request.id, text=_text(message, "content"), finish_reason=reason)


def token_completion(request: Request, body: str, tokenizer: Any, *, logprobs: bool) -> Completion:
    """The completion in an answer of /v1/completions with ids; the text is decoded from them.

    Args:
        logprobs: whether the server's log-probabilities are the unmodified model's.

    Raises:
        AnswerError: malformed, not of the ids that were sent, or ended by anything but a stop token or
            the limit.
        UnfitServerError: there are no ids in it.
    """
    answer = _object(body)
    choice = _choice(answer)
    sampled = choice.get("token_ids")
    if sampled is None:
        raise UnfitServerError(
            "the server gives no token ids (vLLM does, by return_token_ids); "
            "leave engine.openai.tokenizer out to keep text alone"
        )
    if not isinstance(sampled, list) or not all(type(token) is int for token in sampled):
        raise AnswerError("token_ids in the server's answer are no list of integers")
    read = choice.get("prompt_token_ids", answer.get("prompt_token_ids"))
    if read is not None and read != list(request.token_ids or ()):
        raise AnswerError("the server changed the prompt's token ids")
    reason = _reason(choice)
    if reason == "stop" and (not sampled or isinstance(choice.get("stop_reason"), str)):
        raise AnswerError("the response was ended by a stop string of the server's own, not by a token")
    shown = sampled[:-1] if reason == "stop" else sampled
    return Completion(
        id=request.id,
        text=tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False),
        token_ids=tuple(sampled),
        logprobs=_logprobs(choice, len(sampled)) if logprobs else None,
        finish_reason=reason,
    )


def as_sent(extra_body: Mapping[str, Any]) -> dict[str, Any]:
    """A user's further fields; `transformers serve` takes its `generation_config` as text that is JSON."""
    sent = dict(extra_body)
    if isinstance(sent.get("generation_config"), Mapping):
        sent["generation_config"] = json.dumps(sent["generation_config"])
    return sent


def failed(request: Request, error: str) -> Completion:
    """A request that got no response."""
    no_room = _NO_ROOM.search(error) is not None
    return Completion(id=request.id, text="", finish_reason="error", error=error, no_room=no_room)


def _common(request: Request, model: str, max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "max_tokens": max_tokens,
        "seed": request.seed,
    }


def _object(body: str) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except json.JSONDecodeError as error:
        raise AnswerError(f"the server's answer is not JSON: {error}") from error
    if not isinstance(answer, Mapping):
        raise AnswerError(f"the server's answer is a {type(answer).__name__}, not an object")
    return answer


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, Sequence) or not choices or not isinstance(choices[0], Mapping):
        raise AnswerError("the server's answer has no choices")
    return choices[0]


def _reason(choice: Mapping[str, Any]) -> FinishReason:
    reason = choice.get("finish_reason")
    if reason is None:
        raise AnswerError("the server's answer has no finish_reason")
    if not isinstance(reason, str) or reason not in REASONS:
        raise AnswerError(f"the server ended the response with finish_reason {reason!r}")
    return REASONS[reason]


def _text(holder: Mapping[str, Any], name: str) -> str:
    text = holder.get(name)
    if not isinstance(text, str):
        raise AnswerError(f"the server's answer has no {name}")
    return text


def _logprobs(choice: Mapping[str, Any], count: int) -> tuple[float, ...] | None:
    given = choice.get("logprobs")
    values = given.get("token_logprobs") if isinstance(given, Mapping) else None
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count or not all(_is_logprob(v) for v in values):
        raise AnswerError(f"the server's answer has no log-probability for each of its {count} tokens")
    return tuple(float(value) for value in values)


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
