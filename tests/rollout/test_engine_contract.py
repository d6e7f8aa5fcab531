"""The engines that come with torch alone, against the contract of all engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from drift_rollout import ScriptedEngine
from opened_engines import babble, stopping, stopping_logprobs
from rollout.engine_contract import CONTRACT, Check, Subject, names
from tiny import bpe_tokenizer


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine take longer than these models need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TOKENIZER = bpe_tokenizer()

SUBJECTS = {
    "scripted text": Subject(make=lambda: ScriptedEngine(babble), instant=True),
    "scripted tokens": Subject(
        make=lambda: ScriptedEngine(babble, tokenizer=TOKENIZER, context_length=400, batch=5),
        instant=True,
    ),
    "transformers": Subject(make=stopping, logprobs=stopping_logprobs, tolerance=1e-8),
    "transformers, few slots": Subject(
        make=lambda: stopping(max_slots=3, context_length=128), logprobs=stopping_logprobs
    ),
}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
@pytest.mark.parametrize("check", CONTRACT, ids=names)
def test_it_keeps_the_contract(check: Check, subject: Subject) -> None:
    check(subject)
