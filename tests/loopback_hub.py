"""A Hub for tests: real HTTP on 127.0.0.1, for the real `huggingface_hub` and `datasets` clients.

A client reads its HF_ variables when it is imported. So a subprocess gets all of them from `env`, and a
client in this process is given endpoint and token (which `api` does) and a `cache_dir=` or `local_dir=` in
every call, and runs under `patient_clients`, which turns Xet and telemetry off. `load_dataset` belongs into
a subprocess and always names a revision: without one it also looks for a host `datasets-server.127.0.0.1`.

How it differs from the Hub: large files come from the same host instead of by redirect; there are no pull
requests, multi-part uploads, Xet or quotas; of a card's YAML it only wants to see that there is some.

Storage is in loopback_store.py, what an address does in loopback_routes.py, the wire in loopback_http.py.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

from loopback_http import Asked, HubServer
from loopback_routes import is_large
from loopback_store import Blob, Store, User

if TYPE_CHECKING:
    from huggingface_hub import HfApi

OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"
USERS = {
    OWNER: User(name="owner", writes=frozenset({"owner", "org"})),
    READER: User(name="reader", writes=frozenset({"reader"}), reads=frozenset({"org"})),
    STRANGER: User(name="stranger", writes=frozenset({"stranger"})),
}
Kind = Literal[
    "401", "403", "404", "412", "429", "500", "503", "cut", "cut-after", "truncated", "slow", "wrong-hash"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One way in which the Hub misbehaves, from one request on.

    "cut" closes the connection instead of an answer, "cut-after" carries the request out first, "truncated"
    promises the whole body and closes half way, "slow" carries the request out and waits `slow_s` before it
    answers, "wrong-hash" flips the bytes of a downloaded file; the others are statuses.
    """

    kind: Kind
    at: int = 0
    """How many requests pass before, counted from `arm`, among those that `on` speaks about."""
    times: int | None = 1
    """How many requests it strikes; None: all from there on."""
    on: str = ""
    """A regular expression searched in "METHOD /path?query"."""
    retry_after: int | None = 1
    """Seconds, said with a 429; None leaves the header out."""


class LoopbackHub:
    """A Hub that runs; `requests`, `fired` and `errors` say what it saw."""

    def __init__(self, users: Mapping[str, User]) -> None:
        self.users = dict(users)
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.slow_s = 0.5
        self.page_size = 1000
        self.errors: list[str] = []
        self.reset()
        self.server = HubServer(self)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self) -> None:
        """Drop repositories, faults and records."""
        with self.lock:
            self.store = Store()
            self.requests: list[Asked] = []
            self.fired: list[tuple[str, Asked]] = []
            self.arm()

    def arm(self, *faults: Fault) -> None:
        """Plan faults instead of those planned before; without any, behave."""
        with self.lock:
            self.faults = faults
            self.seen = [0] * len(faults)

    def meet(self, asked: Asked) -> Fault | None:
        """Record a request; the first planned fault that strikes it."""
        with self.lock:
            self.requests.append(asked)
            struck: Fault | None = None
            for number, fault in enumerate(self.faults):
                if not re.search(fault.on, f"{asked.method} {asked.path}"):
                    continue
                behind = self.seen[number] - fault.at
                self.seen[number] += 1
                if struck is None and behind >= 0 and (fault.times is None or behind < fault.times):
                    struck = fault
            return struck

    def put(
        self, repo_id: str, files: Mapping[str, bytes], *, kind: str = "dataset", private: bool = False
    ) -> str:
        """Put files into a repository behind the API's back, by any name; the id of the commit."""
        with self.lock:
            there = self.store.repos.get((kind, repo_id))
            repo = there or self.store.create(kind, repo_id, private=private)
            blobs = {path: Blob.of(data, lfs=is_large(path, len(data))) for path, data in files.items()}
            return repo.commit("main", "put", {**repo.at("main").files, **blobs}).sha

    def files(self, repo_id: str, revision: str = "main", *, kind: str = "dataset") -> dict[str, bytes]:
        """What a revision holds, read without a request."""
        with self.lock:
            commit = self.store.repos[kind, repo_id].at(revision)
            return {path: blob.data for path, blob in commit.files.items()}

    def api(self, token: str | None) -> HfApi:
        """A client of this Hub; without a token it is anonymous."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=token or False)

    def env(self, home: Path, token: str | None) -> dict[str, str]:
        """The whole environment of a subprocess that shall know this Hub and no other."""
        kept = {name: value for name, value in os.environ.items() if not _speaks_of_hubs(name)}
        switches = dict.fromkeys(("XET", "TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK"), "1")
        return {
            **kept,
            **{f"HF_HUB_DISABLE_{name}": value for name, value in switches.items()},
            **({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}),
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home / "hf"),
            "HF_DATASETS_CACHE": str(home / "hf" / "datasets"),
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def close(self) -> None:
        """Stop listening and hang up on everybody."""
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.server.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve(users: Mapping[str, User] = USERS) -> Iterator[LoopbackHub]:
    """Run a Hub; at the end, whatever broke inside of it is raised."""
    hub = LoopbackHub(users)
    try:
        yield hub
    finally:
        hub.close()
    if hub.errors:
        raise AssertionError("the loopback Hub broke:\n" + "\n".join(hub.errors))


@contextmanager
def patient_clients(timeout_s: float = 5.0, longest_wait_s: float = 0.001) -> Iterator[list[float]]:
    """Shorten what clients in this process wait for; gives the list of the waits that they asked for."""
    import httpx2
    from huggingface_hub import constants, file_download, set_client_factory
    from huggingface_hub.utils import _http

    waits: list[float] = []

    def client() -> httpx2.Client:
        hooks = {"request": [_http.hf_request_event_hook]}
        return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=timeout_s, trust_env=False)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(min(seconds, longest_wait_s))

    clock = SimpleNamespace(sleep=sleep)
    settings: dict[str, Any] = {
        "HF_HUB_ETAG_TIMEOUT": timeout_s,
        "HF_HUB_DOWNLOAD_TIMEOUT": timeout_s,
        **dict.fromkeys(
            (f"HF_HUB_DISABLE_{name}" for name in ("XET", "TELEMETRY", "IMPLICIT_TOKEN")), True
        ),
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(constants, **settings))
        stack.enter_context(mock.patch.multiple(file_download, time=clock, _ETAG_RETRY_TIMEOUT=timeout_s))
        stack.enter_context(mock.patch.object(_http, "time", clock))
        # Setting a factory closes the session, at the end as well.
        stack.callback(set_client_factory, _http._GLOBAL_CLIENT_FACTORY)
        set_client_factory(client)
        yield waits


def _speaks_of_hubs(variable: str) -> bool:
    return variable.upper().startswith(("HF_", "HUGGING", "HUB_")) or variable.upper().endswith("_PROXY")
