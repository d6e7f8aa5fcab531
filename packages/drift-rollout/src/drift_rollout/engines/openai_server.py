"""A server that speaks OpenAI's protocol, as one coroutine a request; no error holds the key."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import openai

from drift_rollout.engine import Completion, EngineError, Request, no_room
from drift_rollout.engines.openai_answers import (
    UNMODIFIED,
    AnswerError,
    UnfitServerError,
    as_sent,
    chat_body,
    chat_completion,
    failed,
    token_body,
    token_completion,
)
from drift_rollout.engines.options import OpenAIOptions

_CONNECT_S = 10.0
_OPENING_RETRIES = 2
"""Of the question what is served: whoever starts a run should hear soon that nobody listens."""
_SHOWN = 300
"""Characters of a server's message that an error repeats."""
_UNAVAILABLE = frozenset({408, 409, 429})


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What /v1/models says."""

    names: tuple[str, ...] = ()
    software: str | None = None
    """`owned_by`: vllm, sglang, llamacpp …"""
    context_length: int | None = None


class Server:
    """Answers requests by a server, retried by OpenAI's own client.

    Every failure comes back as a value: a Completion with its error, or an exception that ends the run.
    All coroutines belong to one event loop.

    Args:
        model: the name served.
        options: where, how many at once, how patiently.
        tokenizer: of the served model, to ask by token ids, or None to ask by messages.
    """

    def __init__(self, model: str, options: OpenAIOptions, tokenizer: Any) -> None:
        self._model = model
        self._options = options
        self._tokenizer = tokenizer
        self._key = _key(options.api_key_env)
        self._client = openai.AsyncOpenAI(
            base_url=options.base_url,
            # The client wants some key; without one of ours, no request carries it.
            api_key=self._key or "none",
            max_retries=options.retries,
            timeout=openai.Timeout(options.timeout, connect=min(_CONNECT_S, options.timeout)),
        )
        self._headers: dict[str, Any] = {} if self._key else {"Authorization": openai.Omit()}
        self._gate = asyncio.Semaphore(options.concurrency)
        self._first = asyncio.Lock()
        self._unknown: ValueError | None = None
        self._failures = 0
        self._answered = False
        self.served = Served()
        self.context_length = options.context_length or 1 << 20

    async def describe(self) -> Exception | None:
        """Ask what is served; a server that does not say so is taken as it is."""
        client = self._client.with_options(max_retries=min(_OPENING_RETRIES, self._options.retries))
        try:
            raw = await client.models.with_raw_response.list(extra_headers=self._headers)
        except openai.APIStatusError as error:
            return self._key_refused(error.status_code) if error.status_code in (401, 403) else None
        except openai.APIConnectionError:
            return self._dead()
        self.served = _served(raw.text, self._model)
        self.context_length = self._options.context_length or self.served.context_length or 1 << 20
        return None

    async def answer(self, request: Request) -> Completion | Exception:
        """One request, through the gate, with its retries."""
        prompt = request.token_ids or ()
        error = None if self._tokenizer is None else no_room(prompt, self.context_length)
        if error is not None:
            return failed(request, error)
        room = self.context_length - len(prompt)
        async with self._gate:
            async with self._first:
                # Alone, so that a wrong name costs one request and not as many as go at once.
                if self._doubtful:
                    return self._unknown or await self._ask(request, room)
            return await self._ask(request, room)

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()

    @property
    def _doubtful(self) -> bool:
        """Whether the name may be wrong: not answered yet, nor listed, which aliases are not."""
        listed = not self.served.names or self._model in self.served.names
        return not listed and not self._answered

    async def _ask(self, request: Request, room: int) -> Completion | Exception:
        try:
            body = await self._send(request, room)
            completion = self._read(request, body)
        except openai.APIStatusError as error:
            return self._refused(request, error)
        except openai.APIConnectionError as error:
            return await self._lost(request, error)
        except AnswerError as error:
            return self._failed(request, str(error))
        except UnfitServerError as error:
            return ValueError(f"{self._options.base_url}: {error}")
        self._failures, self._answered = 0, True
        return completion

    async def _send(self, request: Request, room: int) -> str:
        extra = {**UNMODIFIED.get(self.served.software or "", {}), **as_sent(self._options.extra_body)}
        # The client types every field; what they hold is decided elsewhere.
        create: Any
        if self._tokenizer is None:
            create = self._client.chat.completions.with_raw_response.create
            body = chat_body(request, self._model)
        else:
            create = self._client.completions.with_raw_response.create
            body = token_body(request, self._model, room=room)
            extra = {**extra, "return_token_ids": True}
        raw = await create(**body, extra_headers=self._headers, extra_body=extra)
        return str(raw.text)

    def _read(self, request: Request, body: str) -> Completion:
        if self._tokenizer is None:
            return chat_completion(request, body)
        trusted = self._options.logprobs
        if trusted is None:
            trusted = self.served.software == "vllm"
        return token_completion(request, body, self._tokenizer, logprobs=trusted)

    def _refused(self, request: Request, error: openai.APIStatusError) -> Completion | Exception:
        status = error.status_code
        if status in (401, 403):
            return self._key_refused(status)
        said = _message(error.response.text)
        unavailable = status >= 500 or status in _UNAVAILABLE
        if status == 404 or (self._doubtful and not unavailable and not failed(request, said).no_room):
            self._unknown = self._no_model(status, said)
            return self._unknown
        return self._failed(request, f"HTTP {status}: {said}", unavailable=unavailable)

    def _no_model(self, status: int, said: str) -> ValueError:
        known = ", ".join(self.served.names) or "nothing that it lists"
        return ValueError(
            f"{self._options.base_url} has no model {self._model!r} (HTTP {status}); it serves {known}. "
            "Name one of these, and give base_url with the /v1. It said: "
            f"{self._without_key(said)[:_SHOWN]}"
        )

    async def _lost(self, request: Request, error: openai.APIConnectionError) -> Completion | Exception:
        if not await self._listens():
            return self._dead()
        late = isinstance(error, openai.APITimeoutError)
        what = f"no answer within {self._options.timeout:g} s" if late else "the connection was lost"
        return self._failed(request, f"{what}, {self._options.retries + 1} times", unavailable=True)

    def _failed(self, request: Request, what: str, *, unavailable: bool = False) -> Completion | Exception:
        """One failure, or the one too many: of a server that is not there, or that never answered well."""
        self._failures += unavailable or not self._answered
        # Cut after the key is gone, so that no half of it stays.
        what = self._without_key(what)[:_SHOWN]
        if self._failures < self._options.max_failures:
            return failed(request, what)
        return EngineError(
            f"{self._failures} requests to {self._options.base_url} failed one after another; the last: "
            f"{what}. Look at the server, then run again: what is done is kept"
        )

    async def _listens(self) -> bool:
        """Whether anybody still takes connections there."""
        parts = urlsplit(self._options.base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(parts.hostname, port)
        except OSError:
            return False
        writer.close()
        return True

    def _dead(self) -> Exception:
        return EngineError(
            f"no server answers at {self._options.base_url}; start it (or mend engine.openai.base_url), "
            "and run again: what is done is kept"
        )

    def _key_refused(self, status: int) -> Exception:
        # What the server says of it is left out: it may repeat the key.
        name = self._options.api_key_env
        what = f"the key in {name}" if self._key else f"a request without key; set {name}"
        return PermissionError(
            f"{self._options.base_url} refused {what} (HTTP {status}); engine.openai.api_key_env names "
            "the variable that holds the key"
        )

    def _without_key(self, text: str) -> str:
        encoded = base64.b64encode(self._key.encode()).decode()
        for form in (self._key, quote(self._key, safe=""), encoded):
            text = text.replace(form, "***") if form else text
        return text


def _key(variable: str) -> str:
    """The key, or an empty string.

    Raises:
        ValueError: characters that no header can hold; they are not repeated.
    """
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not (key.isprintable() or not key):
        raise ValueError(f"the key in {variable} holds characters that no HTTP header can; set it again")
    return key


def _message(body: str) -> str:
    """What a refusal says, in the forms of OpenAI, of FastAPI and of old vLLM, or else all of it."""
    try:
        said = json.loads(body)
    except json.JSONDecodeError:
        return body.strip()
    for name in ("error", "detail", "message"):
        said = said.get(name, said) if isinstance(said, Mapping) else said
    return said if isinstance(said, str) else json.dumps(said)


def _served(body: str, model: str) -> Served:
    try:
        listed = json.loads(body)
    except json.JSONDecodeError:
        return Served()
    data = listed.get("data") if isinstance(listed, Mapping) else None
    entries = [entry for entry in data if isinstance(entry, Mapping)] if isinstance(data, list) else []
    if not entries:
        return Served()
    # llama.cpp answers to any name.
    ours = next((entry for entry in entries if entry.get("id") == model), entries[0])
    length = ours.get("max_model_len")
    return Served(
        names=tuple(str(entry.get("id")) for entry in entries),
        software=str(ours.get("owned_by", "")).lower() or None,
        context_length=length if isinstance(length, int) and length > 0 else None,
    )
