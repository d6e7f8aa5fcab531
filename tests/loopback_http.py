"""The wire of the loopback Hub: connections, and the ways in which an answer goes wrong."""

from __future__ import annotations

import socket
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from loopback_calls import Answer, Call, decline
from loopback_routes import carry_out
from loopback_store import RefusalError

if TYPE_CHECKING:
    from loopback_hub import Fault, LoopbackHub

MOST_BYTES = 64 * 2**20
STATUS_FAULTS = {
    "401": ("Invalid credentials in Authorization header", ""),
    "403": ("Forbidden: pass a token with write access.", ""),
    "404": ("Repository not found", "RepoNotFound"),
    "412": ("A commit has happened since. Please refresh and try again.", ""),
    "429": ("We had to rate limit you.", ""),
    "500": ("Internal Server Error", ""),
    "503": ("Service Unavailable", ""),
}


class Asked(NamedTuple):
    """A request, as it arrived."""

    method: str
    path: str


class HubServer(ThreadingHTTPServer):
    """Keeps its connections, to hang up at the end, and what broke."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what broke; a client that hangs up is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            self.hub.errors.append(traceback.format_exc())


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    wbufsize = -1
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; `requests` of the Hub has it."""

    def _serve(self) -> None:
        self.hub, self.asked = self.server.hub, Asked(self.command, self.path)
        body = self._read()
        fault = self.hub.meet(self.asked)
        if body is None:
            self._send(decline(RefusalError(413, f"A request may hold {MOST_BYTES} bytes.")))
            self.close_connection = True
        elif fault is None:
            self._send(self._carry_out(body))
        else:
            self._misbehave(fault, body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read(self) -> bytes | None:
        """The body, or None if it is too long to be read."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            return self._exactly(length) if length <= MOST_BYTES else None
        body = bytearray()
        while size := int(self._line(), 16):
            if len(body) + size > MOST_BYTES:
                return None
            body += self._exactly(size)
            self._line()
        self._line()
        return bytes(body)

    def _exactly(self, size: int) -> bytes:
        """As many bytes; a client that hangs up before has asked nothing."""
        read = self.rfile.read(size)
        if len(read) < size:
            raise ConnectionAbortedError
        return read

    def _line(self) -> bytes:
        """A line of a chunked body."""
        read = self.rfile.readline()
        if not read.endswith(b"\n"):
            raise ConnectionAbortedError
        return read

    def _carry_out(self, body: bytes) -> Answer:
        """Do what was asked, one request at a time."""
        hub, address = self.hub, urlsplit(self.path)
        with hub.lock:
            return carry_out(
                Call(
                    method=self.command,
                    path=address.path,
                    query=parse_qs(address.query),
                    headers=self.headers,
                    body=body,
                    store=hub.store,
                    users=hub.users,
                    endpoint=hub.endpoint,
                    page_size=hub.page_size,
                )
            )

    def _misbehave(self, fault: Fault, body: bytes) -> None:
        """Answer in the way that was planned; a fault that finds nothing to spoil counts as not fired."""
        if fault.kind in STATUS_FAULTS:
            answer = decline(
                RefusalError(int(fault.kind), *STATUS_FAULTS[fault.kind], **retry_after(fault))
            )
        else:
            answer = Answer() if fault.kind == "cut" else self._carry_out(body)
        if fault.kind in ("truncated", "wrong-hash") and not self._spoils(fault, answer):
            return self._send(answer)
        self.hub.fired.append((fault.kind, self.asked))
        if fault.kind in ("cut", "cut-after"):
            self.close_connection = True
            return None
        if fault.kind == "slow":
            self.hub.closing.wait(self.hub.slow_s)
        if fault.kind == "wrong-hash":
            answer.body = bytes(byte ^ 0xFF for byte in answer.body)
        return self._send(answer, half=fault.kind == "truncated")

    def _spoils(self, fault: Fault, answer: Answer) -> bool:
        """Whether there is a body to send by halves, or a file to falsify."""
        download = self.command == "GET" and "/resolve/" in self.path and answer.status < 300
        return bool(answer.body) and (download if fault.kind == "wrong-hash" else self.command != "HEAD")

    def _send(self, answer: Answer, *, half: bool = False) -> None:
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if half else answer.body)
        self.close_connection = self.close_connection or half


def retry_after(fault: Fault) -> dict[str, str]:
    """The header of a 429, if it has one."""
    said = fault.kind == "429" and fault.retry_after is not None
    return {"Retry_After": str(fault.retry_after)} if said else {}
