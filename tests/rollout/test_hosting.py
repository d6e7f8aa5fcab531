"""An engine in a thread of its own: order of commands, what comes back, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from drift_rollout import ScriptedEngine
from drift_rollout.engines.hosting import Command, Host, Refusal
from opened_engines import failing, guess
from rollout.engine_contract import requests_of, texts

ENGINE = ScriptedEngine(guess, batch=2)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host(lambda: failing("model"))
    host.open()
    yield host
    host.close()


def collected(host: Host, count: int) -> list[str]:
    got: list[str] = []
    while len(got) < count:
        got += [item.id for item in host.collect() if not isinstance(item, Refusal)]
    return got


def test_commands_are_followed_in_their_order_whichever_comes_first(host: Host) -> None:
    """The release of command 1 is of what command 0 asks for, and 2 asks for it again."""
    first, second = requests_of(ENGINE, texts(2))
    again = Command(requests=(first,))
    host.command(2, again)
    host.command(1, Command(releases=(first.id,)))
    host.command(0, Command(requests=(first, second)))
    assert sorted(collected(host, 2)) == [first.id, second.id]


def test_a_refusal_comes_back_and_the_engine_goes_on(host: Host) -> None:
    good, bad = requests_of(ENGINE, ["one", "refuse me"])
    host.command(0, Command(requests=(bad, good)))
    assert host.collect() == [Refusal(ids=(bad.id, good.id), error="refused, as asked")]
    host.command(1, Command(requests=(good,)))
    assert collected(host, 1) == [good.id]


def test_what_the_engine_raises_comes_after_what_it_finished(host: Host) -> None:
    good, bad = requests_of(ENGINE, ["one", "break it"])
    host.command(0, Command(requests=(good,)))
    while not host._outbox:
        threading.Event().wait(0.01)
    host.command(1, Command(requests=(bad,)))
    assert collected(host, 1) == [good.id]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken, as asked"):
            host.collect()


def test_who_waits_is_woken_when_it_closes(host: Host) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(host.collect)
        assert not waiting.done()
        host.close()
        assert waiting.result(timeout=30) == []


def test_it_works_on_while_nobody_collects(host: Host) -> None:
    """Everything is done before anybody asks for it."""
    requests = requests_of(ENGINE, texts(9))
    host.command(0, Command(requests=tuple(requests)))
    while len(host._outbox) < len(requests):
        threading.Event().wait(0.01)
    assert {item.id for item in host.collect() if not isinstance(item, Refusal)} == {r.id for r in requests}


def test_an_engine_that_cannot_be_opened_says_so() -> None:
    def opener() -> ScriptedEngine:
        raise OSError("no such model")

    host = Host(opener)
    with pytest.raises(OSError, match="no such model"):
        host.open()
    host.close()
