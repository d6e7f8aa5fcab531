"""The key of a server: sent where it belongs, and in nothing that anybody reads."""

from __future__ import annotations

import base64
import logging
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from drift_rollout import ExactVerifier, RolloutConfig, make_problem, problem_set
from drift_rollout.cli import main
from drift_rollout.engine import EngineError
from drift_rollout.engines.openai import OpenAIEngine
from drift_rollout.engines.options import OpenAIOptions
from drift_rollout.run import rollout
from drift_weights import Message
from loopback_openai import Call, LoopbackOpenAI, Reply, chat
from remote import answered, ask, opened

CANARY = "canary+key/0123456789=="
WRITTEN = (CANARY, quote(CANARY, safe=""), base64.b64encode(CANARY.encode()).decode())
SOUGHT = (*WRITTEN, CANARY[:8], WRITTEN[2][:8])
"""The beginnings too, of a key that was cut."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)


def echo(status: int, *, plain: bool = False, pad: int = 0) -> Any:
    """A server that repeats the header it was sent, at some depth of its message."""

    def script(call: Call) -> Reply:
        said = "." * pad + f"bad header Authorization: {call.headers['authorization']} {WRITTEN[1:]}"
        return Reply(status=status, body=said.encode() if plain else {"error": {"message": said}})

    return script


def all_of(error: BaseException) -> list[str]:
    """What a traceback, a log or a console could show of an error."""
    seen = [str(error), repr(error), repr(vars(error)), "".join(traceback.format_exception(error))]
    for linked in (error.__cause__, error.__context__):
        if linked is not None:
            seen += all_of(linked)
    return seen


def assert_clean(seen: list[str]) -> None:
    for text in seen:
        for form in SOUGHT:
            assert form not in text


def test_the_search_for_the_key_finds_it() -> None:
    for form in WRITTEN:
        with pytest.raises(AssertionError):
            assert_clean([f"Bearer {form}"])


def test_the_key_is_sent_and_nothing_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", " other-key\n")
    monkeypatch.setenv("EMPTY", "")
    expected = {"OPENAI_API_KEY": f"Bearer {CANARY}", "MINE": "Bearer other-key", "EMPTY": None, "NO": None}
    for name, header in expected.items():
        with opened(api_key_env=name) as (server, engine):
            answered(engine, ask())
            assert server.calls[0].headers.get("authorization") == header


@pytest.mark.parametrize("pad", [0, 245])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_a_server_that_repeats_the_key_cannot_make_us_repeat_it(
    status: int, plain: bool, pad: int, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with opened(echo(status, plain=plain, pad=pad)) as (server, engine):
        seen = [repr(engine), repr(engine.policy)]
        if status in (401, 403, 404):
            engine.submit([ask()])
            with pytest.raises((OSError, ValueError)) as caught:
                engine.poll(timeout=5)
            seen += all_of(caught.value)
        else:
            seen.append(repr(answered(engine, ask())))
            assert str(status) in seen[-1]
        assert CANARY in server.calls[0].headers["authorization"]
    records = [repr(record.__dict__) for record in caplog.records]
    assert_clean([*seen, caplog.text, *records, *capsys.readouterr()])


def test_the_run_that_is_given_up_does_not_show_it() -> None:
    with opened(echo(503), max_failures=1) as (_, engine):
        engine.submit([ask()])
        with pytest.raises(EngineError, match=r"\*\*\*") as caught:
            engine.poll(timeout=5)
    assert_clean(all_of(caught.value))


def test_a_reason_that_holds_the_key_does_not_show_it() -> None:
    with opened(lambda call: chat(reason=call.headers["authorization"])) as (_, engine):
        got = answered(engine, ask())
    assert "finish_reason 'Bearer ***'" in (got.error or "")


@pytest.mark.parametrize("value", ["canary\nkey", "canary-ké", "canary\x7fkey"])
def test_a_key_that_no_header_holds_is_refused_unseen(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", value)
    with LoopbackOpenAI() as server, pytest.raises(ValueError, match="no HTTP header") as caught:
        OpenAIEngine("m", options=OpenAIOptions(base_url=server.base_url, api_key_env="MINE"))
    assert "canary" not in "".join(str(part) for part in all_of(caught.value)[:3])


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key_env": "sk-canary"},
        {"base_url": "http://user:sk-canary@127.0.0.1/v1"},
        {"base_url": "http://127.0.0.1/v1?key=sk-canary"},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_unseen(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="api_key_env") as caught:
        OpenAIOptions(**wrong)
    assert "canary" not in str(caught.value)


def test_nothing_on_disk_holds_it(tmp_path: Path) -> None:
    """Journal, trajectories and manifest, of a run in which a request fails with the key in its error."""

    def script(call: Call) -> Reply:
        return echo(400)(call) if call.number == 1 else chat()

    made = [make_problem((Message(role="user", content=str(n)),), "3") for n in range(4)]
    problems = problem_set(made, source="made")
    with opened(script, concurrency=1) as (_, engine):
        rollout(problems, engine, ExactVerifier(), RolloutConfig(samples=1), tmp_path)
    found = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert sum("openai:m" in text for text in found) >= 2
    assert_clean([*found, repr(asdict(OpenAIOptions()))])


def test_the_command_line_says_whose_key_was_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"problem": "1 + 2", "answer": "3"}\n')
    words = [
        "sample",
        str(problems),
        "m",
        str(tmp_path / "out"),
        "--samples",
        "1",
        "--engine.name",
        "openai",
    ]
    with LoopbackOpenAI(echo(401)) as server, pytest.raises(SystemExit) as caught:
        main([*words, "--engine.openai.base_url", server.base_url])
    assert caught.value.code == 2
    out = capsys.readouterr()
    assert "refused the key in OPENAI_API_KEY" in out.err
    assert "Traceback" not in out.err
    assert_clean([out.out, out.err])
