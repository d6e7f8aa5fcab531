"""The remote engine by token ids, against the contract; by messages it is in test_openai_serve.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drift_rollout.engine import Request, Sampling
from drift_rollout.engines.openai import OpenAIEngine
from drift_rollout.engines.options import OpenAIOptions
from loopback_openai import Call, LoopbackOpenAI, Reply, spoken
from opened_engines import babble, tokenizer
from rollout.engine_contract import CONTRACT, Check, Subject, names

CONTEXT = 640
VLLM = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": CONTEXT}]}


def answer(call: Call) -> Reply:
    """Letters at random that end one time in ten, by prompt and seed, a few milliseconds later."""
    body = call.body
    request = Request(
        id="",
        messages=(),
        token_ids=tuple(body["prompt"]),
        sampling=Sampling(
            temperature=body["temperature"], top_p=body["top_p"], max_new_tokens=body["max_tokens"]
        ),
        seed=body["seed"],
    )
    said = babble(request)
    assert said.token_ids is not None
    return spoken(call, said.token_ids, said.finish_reason, after=0.005)


def logprobs(ids: tuple[int, ...], sampled: tuple[int, ...]) -> list[float]:
    """What the server says."""
    return [-0.5 - n for n in range(len(sampled))]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """Every check opens an engine of its own on one server."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch, LoopbackOpenAI(answer, models=VLLM) as server:
        patch.delenv("OPENAI_API_KEY", raising=False)
        options = OpenAIOptions(
            base_url=server.base_url, tokenizer=str(folder), seeded=True, concurrency=16, retries=0
        )
        yield Subject(make=lambda: OpenAIEngine("m", options=options), logprobs=logprobs, tolerance=0.0)


@pytest.mark.parametrize("check", CONTRACT, ids=names)
def test_by_token_ids_it_keeps_the_contract(check: Check, subject: Subject) -> None:
    check(subject)
