"""Requests to the loopback Hub and its answers, without their connection."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import urlencode

from loopback_store import RefusalError, Store, User


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A request that arrived whole, and the Hub that it reached."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    store: Store
    users: Mapping[str, User]
    endpoint: str
    page_size: int

    @property
    def json(self) -> Any:
        """What the body says."""
        return json.loads(self.body or b"{}")

    @property
    def user(self) -> User | None:
        """Whose token came along; None for nobody's."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.users:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return self.users.get(token)

    @property
    def somebody(self) -> User:
        """The user, who must be somebody."""
        if self.user is None:
            raise RefusalError(401, "Invalid username or password.")
        return self.user


@dataclass(kw_only=True, slots=True)
class Answer:
    """What goes back."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def say(content: object, status: int = 200, **headers: str) -> Answer:
    """An answer in JSON."""
    return Answer(
        status=status,
        headers={"Content-Type": "application/json", **headers},
        body=json.dumps(content).encode(),
    )


def decline(refusal: RefusalError) -> Answer:
    """A refusal, with the headers that the client makes its exceptions of."""
    # What was asked for stands in the message, and must not end the header.
    headers = {"X-Error-Message": refusal.message.encode("unicode_escape").decode(), **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return say({"error": refusal.message}, refusal.status, **headers)


def page(call: Call, entries: list[dict[str, Any]]) -> Answer:
    """One page of a list, with a link to the next."""
    start, size = int(call.query.get("cursor", ["0"])[0]), call.page_size
    if start + size >= len(entries):
        return say(entries[start:])
    query = urlencode({**call.query, "cursor": start + size}, doseq=True)
    link = f'<{call.endpoint}{call.path}?{query}>; rel="next"'
    return say(entries[start : start + size], Link=link)


def ranged(answer: Answer, wish: str | None) -> Answer:
    """The part of an answer that a Range header asks for."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wish or "")
    if not found or found.groups() == ("", ""):
        return answer
    size, (first, last) = len(answer.body), found.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        return Answer(status=416, headers={**answer.headers, "Content-Range": f"bytes */{size}"})
    headers = {**answer.headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Answer(status=206, headers=headers, body=answer.body[start:stop])
