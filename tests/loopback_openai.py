"""A small server on loopback that speaks OpenAI's protocol and errs as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Call:
    """A POST, as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    at: float
    number: int
    """Of all POSTs, from 0."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What comes back; `cut` closes the connection instead, `hang` never answers."""

    status: int = 200
    body: Any = b""
    """Bytes go out as they are, anything else as JSON."""
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None
    after: float = 0.0
    """Seconds to wait before."""


Script = Callable[[Call], Reply]


def chat(text: str = "<answer> 3 </answer>", reason: str = "stop", **message: Any) -> Reply:
    """An answer of /v1/chat/completions."""
    said = {"role": "assistant", "content": text, **message}
    return Reply(body={"choices": [{"index": 0, "message": said, "finish_reason": reason}]})


def spoken(
    call: Call, ids: Sequence[int], reason: str = "stop", *, after: float = 0.0, **changes: Any
) -> Reply:
    """An answer of vLLM's /v1/completions, whose text is not what the ids say."""
    choice = {
        "index": 0,
        "text": "what the server's own decoding made of it",
        "token_ids": list(ids),
        "prompt_token_ids": call.body["prompt"],
        "logprobs": {"token_logprobs": [-0.5 - n for n in range(len(ids))]},
        "finish_reason": reason,
        "stop_reason": None,
        **changes,
    }
    return Reply(body={"choices": [choice]}, after=after)


class LoopbackOpenAI:
    """Serves `script` on a free port while the `with` block lasts.

    Args:
        script: the reply to each POST.
        models: what GET /v1/models says; a status alone makes it fail.
    """

    def __init__(self, script: Script = lambda call: chat(), *, models: Any = 404) -> None:
        self.script = script
        self.models = models
        self.calls: list[Call] = []
        self.most_at_once = 0
        self.hung_up = threading.Event()
        """Whether a client left while its request hung."""
        self._at_once = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> LoopbackOpenAI:
        self._server = _Listener(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """As a client is told."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def closed(self) -> bool:
        """Whether it has stopped; what still comes over an old connection is cut."""
        return self._closing.is_set()

    def stop(self) -> None:
        """Stop listening; the next connection is refused."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, handler: BaseHTTPRequestHandler) -> Reply:
        """Note a POST and look up its reply."""
        length = int(handler.headers.get("Content-Length") or 0)
        read = handler.rfile.read(length)
        if len(read) < length:
            # Who hangs up before has asked nothing.
            return Reply(fault="cut")
        body = json.loads(read)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            call = Call(
                path=handler.path,
                headers=headers,
                body=body,
                at=time.monotonic(),
                number=len(self.calls),
            )
            self.calls.append(call)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        reply = self.script(call)
        self._closing.wait(reply.after)
        with self._lock:
            self._at_once -= 1
        return reply

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        """Say nothing until the client hangs up or the test is over."""
        handler.connection.settimeout(0.02)
        while not self._closing.is_set():
            try:
                if handler.connection.recv(1) == b"":
                    self.hung_up.set()
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                self.hung_up.set()
                return


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    # Beyond it the kernel resets connections that a client takes for made.
    request_queue_size = 128


def _handler(server: LoopbackOpenAI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30
        # Else the client acknowledges the headers late, and the body waits for that.
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            models = server.models
            self._send(Reply(status=models) if isinstance(models, int) else Reply(body=models))

        def do_POST(self) -> None:
            reply = server.take(self)
            if server.closed:
                reply = Reply(fault="cut")
            if reply.fault is not None:
                self.close_connection = True
                if reply.fault == "hang":
                    server.hang(self)
                return
            self._send(reply)

        def _send(self, reply: Reply) -> None:
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
