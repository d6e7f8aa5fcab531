"""A model by its name: which commit it is, and how soon a wrong name is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from drift_rollout.engines.opening import EngineOptions, open_engine
from drift_rollout.engines.options import OpenAIOptions
from drift_train.cli import main
from drift_weights.hub import Api, HubError
from drift_weights.models import commit_of
from loopback_hub import Fault, LoopbackHub, patient_clients

MODEL = "org/base"


@pytest.fixture(autouse=True)
def ours(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drift_weights.hub.hub_api", lambda: api)


def test_a_branch_is_the_commit_that_it_is_by_now(hub: LoopbackHub) -> None:
    first = hub.put(MODEL, {"config.json": b"{}"}, kind="model")
    assert commit_of(MODEL, None) == first
    second = hub.put(MODEL, {"config.json": b"{ }"}, kind="model")
    assert second != first
    assert commit_of(MODEL, None) == commit_of(MODEL, "main") == second


def test_a_commit_and_a_folder_need_no_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    assert commit_of(MODEL, "ab" * 20) == "ab" * 20
    assert commit_of(str(tmp_path), "main") is None
    assert not hub.requests


def test_without_the_hub_it_is_the_commit_that_was_fetched_last(hub: LoopbackHub) -> None:
    commit = hub.put(MODEL, {"config.json": b"{}"}, kind="model")
    assert commit_of(MODEL, None) == commit
    hub.arm(Fault(kind="cut", times=None))
    assert commit_of(MODEL, None) == commit


def test_a_name_that_is_nowhere_costs_one_question(hub: LoopbackHub) -> None:
    said = "^org/typo is no folder here, and was asked of the Hub: .* the Hub has no such repository"
    with pytest.raises(HubError, match=said) as refused:
        commit_of("org/typo", None)
    assert refused.value.missing
    assert len(hub.requests) == 1


@pytest.mark.parametrize("name", ["transformers", "openai"])
def test_no_engine_waits_for_a_hub_that_is_out_of_reach(hub: LoopbackHub, name: str) -> None:
    hub.arm(Fault(kind="cut", times=None))
    options = EngineOptions(name=name, openai=OpenAIOptions(tokenizer="no-such-folder"))
    with (
        patient_clients() as waits,
        pytest.raises(HubError, match=r"no-such-folder is no folder here, .* no good answer from the Hub"),
    ):
        open_engine(options, "no-such-folder")
    assert len(hub.requests) == 1
    assert not waits


def test_training_does_not_either(hub: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.arm(Fault(kind="cut", times=None))
    settings = ["--model.model=no-such-folder", "--model.learning_rate=1e-3", "--data.path=rows"]
    for more in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as end:
            main(["fit", *settings, *more])
        assert end.value.code == 2
        assert "no-such-folder is no folder here, and was asked of the Hub" in capsys.readouterr().err
    assert len(hub.requests) == 2
