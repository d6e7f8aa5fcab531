"""The Hub of the tests misbehaves as planned, and the clients wait no longer than they must."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants, file_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import _http

from hub.published import DATA, commit, publish, raw, refused
from loopback_hub import OWNER, READER, Fault, LoopbackHub, patient_clients, serve


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub, empty, and clients that do not wait."""
    with serve() as running, patient_clients():
        yield running


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    """A client that may write to org."""
    return hub.api(OWNER)


@pytest.mark.parametrize("kind", ["401", "403", "404", "412", "429", "500", "503"])
def test_a_status_comes_instead_of_the_answer(hub: LoopbackHub, api: HfApi, kind: str) -> None:
    publish(api)
    before = hub.files(DATA)
    hub.arm(Fault(kind=kind, on="/commit/", retry_after=7))
    with pytest.raises(HfHubHTTPError) as refusal:
        commit(api, {"a.txt": b"a"})
    assert refusal.value.response.status_code == int(kind)
    assert isinstance(refusal.value, RepositoryNotFoundError) == (kind == "404")
    assert refusal.value.response.headers.get("Retry-After") == ("7" if kind == "429" else None)
    assert hub.files(DATA) == before
    assert hub.fired == [(kind, ("POST", f"/api/datasets/{DATA}/commit/main"))]
    commit(api, {"a.txt": b"a"})
    assert hub.files(DATA) == {**before, "a.txt": b"a"}


@pytest.mark.parametrize(("said", "waited"), [(7, 8.0), (None, 1.0)])
def test_clients_ask_to_wait_but_do_not(
    api: HfApi, hub: LoopbackHub, said: int | None, waited: float
) -> None:
    publish(api)
    hub.arm(Fault(kind="429", on="/tree/", retry_after=said))
    with patient_clients() as waits:
        began = time.monotonic()
        assert len(list(api.list_repo_tree(DATA, repo_type="dataset"))) == 4
        assert time.monotonic() - began < 0.9
    assert waits == [waited]


@pytest.mark.parametrize(("kind", "carried_out"), [("cut", False), ("cut-after", True)])
def test_a_lost_answer(hub: LoopbackHub, api: HfApi, kind: str, carried_out: bool) -> None:
    first = publish(api)
    hub.arm(Fault(kind=kind, on="/commit/"))
    with pytest.raises(httpx2.RemoteProtocolError):
        commit(api, {"a.txt": b"a"}, parent_commit=first)
    assert ("a.txt" in hub.files(DATA)) == carried_out
    if carried_out:
        assert refused(commit, api, {"b.txt": b"b"}, parent_commit=first) == 412
    else:
        commit(api, {"b.txt": b"b"}, parent_commit=first)


def test_a_truncated_body_promises_the_whole(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.put(DATA, {"digits": b"0123456789"})
    address = f"/datasets/{DATA}/resolve/main/digits"
    hub.arm(Fault(kind="truncated"))
    with pytest.raises(http.client.IncompleteRead) as half:
        raw(hub, "GET", address)
    assert (half.value.partial, half.value.expected) == (b"01234", 5)
    hub.arm(Fault(kind="truncated", on="GET .*/resolve/"))
    file = api.hf_hub_download(DATA, "digits", repo_type="dataset", cache_dir=tmp_path)
    assert Path(file).read_bytes() == b"0123456789"
    assert len(hub.fired) == 2
    hub.arm(Fault(kind="truncated"))
    assert raw(hub, "HEAD", address) == (200, b"")
    assert len(hub.fired) == 2


def test_a_wrong_hash_keeps_the_length(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.put(DATA, {"digits": b"0123456789"})
    hub.arm(Fault(kind="wrong-hash", times=None))
    file = api.hf_hub_download(DATA, "digits", repo_type="dataset", cache_dir=tmp_path)
    got = Path(file).read_bytes()
    assert len(got) == 10
    assert not set(got) & set(b"0123456789")
    assert [asked.method for _, asked in hub.fired] == ["GET"]
    assert api.dataset_info(DATA).id == DATA


def test_a_slow_answer_comes_after_the_work(hub: LoopbackHub, api: HfApi) -> None:
    publish(api)
    hub.slow_s = 0.4
    hub.arm(Fault(kind="slow", times=2))
    with pytest.raises(httpx2.TimeoutException):
        api.dataset_info(DATA, timeout=0.05)
    began = time.monotonic()
    api.create_tag(DATA, tag="v2", repo_type="dataset")
    assert time.monotonic() - began >= 0.4
    hub.arm(Fault(kind="slow"))
    with patient_clients(timeout_s=0.1), pytest.raises(httpx2.TimeoutException):
        api.create_tag(DATA, tag="v3", repo_type="dataset")
    assert {tag.name for tag in api.list_repo_refs(DATA, repo_type="dataset").tags} == {"v1", "v2", "v3"}


def statuses(hub: LoopbackHub, number: int) -> list[int]:
    """What as many equal requests bring."""
    return [raw(hub, "GET", f"/api/datasets/{DATA}")[0] for _ in range(number)]


def test_faults_strike_where_they_were_planned(hub: LoopbackHub) -> None:
    hub.put(DATA, {})
    hub.arm(Fault(kind="500", at=2, times=2), Fault(kind="503", at=3, times=None))
    assert statuses(hub, 6) == [200, 200, 500, 500, 503, 503]
    hub.arm(Fault(kind="500", on="/refs", at=1))
    tails = ("/refs", "", "/refs?x=1", "/refs")
    assert [raw(hub, "GET", f"/api/datasets/{DATA}{tail}")[0] for tail in tails] == [200, 200, 500, 200]
    hub.arm()
    assert statuses(hub, 2) == [200, 200]
    assert hub.requests[-4] == ("GET", f"/api/datasets/{DATA}/refs?x=1")
    assert len(hub.fired) == 5
    hub.reset()
    assert (hub.requests, hub.fired) == ([], [])
    assert statuses(hub, 1) == [401]


def test_what_breaks_inside_is_reported() -> None:
    with pytest.raises(AssertionError, match="KeyError: 'content'"), serve() as hub:
        _broken(hub)


def _broken(hub: LoopbackHub) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        raw(hub, "POST", "/api/validate-yaml", b"{}")


@pytest.mark.parametrize(
    "framing", ["Content-Length: 9\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf"]
)
def test_a_client_that_dies_half_way_has_asked_nothing(hub: LoopbackHub, framing: str) -> None:
    port = int(hub.endpoint.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        line.sendall(f"POST /api/validate-yaml HTTP/1.1\r\n{framing}".encode())
        line.shutdown(socket.SHUT_WR)
        assert line.recv(1) == b""
    assert (hub.requests, hub.errors) == ([], [])


def test_a_hub_that_is_over_hangs_up() -> None:
    with serve() as hub:
        idle = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=5)
        idle.request("GET", "/api/whoami-v2")
        assert idle.getresponse().read()
    assert idle.sock.recv(1) == b""
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        raw(hub, "GET", "/api/whoami-v2")


def settings() -> list[object]:
    """What `patient_clients` changes."""
    waits = [constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_DISABLE_XET]
    return [*waits, _http.time, file_download.time, _http._GLOBAL_CLIENT_FACTORY]


def test_clients_are_afterwards_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens there: a client that heeds the variable fails.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    before = settings()
    with serve() as hub, contextlib.suppress(InterruptedError), patient_clients(timeout_s=0.5):
        assert hub.api(OWNER).whoami()["name"] == "owner"
        assert settings()[:3] == [0.5, 0.5, True]
        raise InterruptedError
    assert settings() == before


def test_a_subprocess_knows_this_hub_only(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "https_proxy"):
        monkeypatch.setenv(name, "1")
    own = {
        name: value for name, value in hub.env(tmp_path, None).items() if "HF_" in name or "HUGGING" in name
    }
    assert not {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"} & own.keys()
    assert own["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
    environment = hub.env(tmp_path, READER)
    assert "https_proxy" not in environment
    code = (
        "from huggingface_hub import HfApi, constants as c; print(HfApi().whoami()['name'], c.HF_HUB_CACHE)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["reader", str(tmp_path / "hf" / "hub")], done.stderr
