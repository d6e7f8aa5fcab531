"""The benchmark of the embedded engine runs, and what it says of ours holds."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drift_rollout.engine import Completion, Request
from drift_rollout.engines.transformers import TransformersEngine
from tiny import bpe_tokenizer, tiny_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
criteria = importlib.import_module("rollout_criteria")


def test_ours_meets_every_criterion_and_says_what_the_manager_says_greedily(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    script = BENCHMARKS / "rollout_embedded.py"
    subprocess.run([sys.executable, str(script), "--quick", "--out", str(out)], check=True, timeout=300)
    found = json.loads(out.read_text())
    ours = found["criteria"]["ours"]
    assert list(ours) == list(criteria.CRITERIA)
    assert [name for name, row in ours.items() if not row["met"]] == []
    assert all(run["tokens"] > 0 and run["wall"] > 0 and run["cpu"] > 0 for run in found["runs"])
    assert {run["engine"] for run in found["runs"]} > {"ours"}
    # A tie between two tokens may fall either way; half of the dialogues cannot.
    assert min(found["equal"].values()) > 0.5


class Spoilt(TransformersEngine):
    """An engine that does one thing wrong."""

    def __init__(self, *arguments: Any, spoil: Callable[[Request], Request], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._spoil = spoil

    def submit(self, requests: Any) -> None:
        super().submit([self._spoil(request) for request in requests])


def without_seed(request: Request) -> Request:
    return changed(request, seed=ord(request.id[0]))


def without_cache(request: Request) -> Request:
    return changed(request, continues=None)


def without_top_p(request: Request) -> Request:
    return changed(request, sampling=criteria.PLAIN)


def changed(request: Request, **fields: Any) -> Request:
    names = ("id", "messages", "token_ids", "sampling", "seed", "continues")
    return Request(**({name: getattr(request, name) for name in names} | fields))


@pytest.fixture(scope="module")
def policy() -> tuple[Any, Any]:
    return tiny_model("qwen2", use_cache=True), bpe_tokenizer()


@pytest.mark.parametrize(
    ("criterion", "spoil"),
    [
        ("seeds", without_seed),
        ("carried", without_cache),
        ("temperatures", without_top_p),
        ("greedy_beside_sampled", without_top_p),
        ("greedy", without_top_p),
    ],
)
def test_a_criterion_fails_an_engine_that_does_not_meet_it(
    policy: tuple[Any, Any], criterion: str, spoil: Callable[[Request], Request]
) -> None:
    model, tokenizer = policy

    def spoilt(sampling: Any, **named: bool) -> TransformersEngine:
        return Spoilt(model, tokenizer=tokenizer, spoil=spoil)

    assert not getattr(criteria, criterion)(spoilt, model).met


class Skewed(TransformersEngine):
    """One whose log-probabilities are those of the distribution that it drew from."""

    def poll(self, timeout: float | None = None) -> list[Completion]:
        answers = super().poll(timeout)
        return [
            Completion(
                id=answer.id,
                text=answer.text,
                token_ids=answer.token_ids,
                logprobs=tuple(value / 0.7 for value in answer.logprobs or ()),
                finish_reason=answer.finish_reason,
            )
            for answer in answers
        ]


def test_skewed_log_probabilities_are_seen(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    found = criteria.bent_logprobs(lambda sampling, **named: Skewed(model, tokenizer=tokenizer), model)
    assert not found.met
    assert "off" in found.note
