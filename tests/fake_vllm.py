"""A vLLM that answers from a script: the names that the engine imports, and an engine without a model."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class VLLMError(Exception):
    pass


class RefusedError(VLLMError):
    pass


class EngineDeadError(VLLMError):
    pass


@dataclass
class AsyncEngineArgs:
    model: str
    revision: str | None
    tokenizer_revision: str | None
    seed: int
    dtype: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    enforce_eager: bool
    enable_prefix_caching: bool
    logprobs_mode: str
    generation_config: str
    disable_log_stats: bool
    enable_lora: bool
    max_loras: int = 1
    max_lora_rank: int = 16
    max_model_len: int = 64
    max_num_seqs: int = 4
    gpu_memory_utilization: float = 0.9
    quantization: str | None = None
    block_size: int | None = None


@dataclass
class Asked:
    """One call of generate()."""

    ids: list[int]
    sampling: Any
    copy: int | None
    adapter: Any
    answer: asyncio.Future[Any]


@dataclass
class FakeVLLM:
    """What the engine was told, and how it answers: `answer` is called with the prompt's ids.

    It gives the sampled ids and the finish reason, an exception to raise, or None to never answer.
    """

    answer: Callable[[list[int]], Any] = lambda ids: ([7, 3], "stop")
    logprob: float = -0.5
    cpu: bool = False
    cache_tokens: int | None = None
    """Of one copy's key-value cache."""
    end_ids: Any = 3
    started: list[AsyncEngineArgs] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    adapters: list[Any] = field(default_factory=list)
    aborted: int = 0
    shut: int = 0
    dead: bool = False
    refuses: Exception | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeVLLM:
        """Put the fake modules where imports find them."""
        modules: dict[str, dict[str, Any]] = {
            "vllm": {
                "AsyncEngineArgs": AsyncEngineArgs,
                "AsyncLLMEngine": SimpleNamespace(from_engine_args=self._start),
                "SamplingParams": SimpleNamespace,
            },
            "vllm.exceptions": {"VLLMError": VLLMError},
            "vllm.inputs": {"tokens_input": lambda ids: {"type": "token", "prompt_token_ids": ids}},
            "vllm.lora": {},
            "vllm.lora.request": {"LoRARequest": lambda *words: words},
            "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: self.cpu)},
            "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY="final only")},
            "vllm.v1": {},
            "vllm.v1.engine": {},
            "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
        }
        for name, content in modules.items():
            module = ModuleType(name)
            module.__dict__.update(content)
            monkeypatch.setitem(sys.modules, name, module)
        return self

    def _start(self, arguments: AsyncEngineArgs) -> _Engine:
        if self.refuses:
            raise self.refuses
        self.started.append(arguments)
        return _Engine(self, arguments)


class _Engine:
    def __init__(self, fake: FakeVLLM, arguments: AsyncEngineArgs) -> None:
        self._fake = fake
        model_config = SimpleNamespace(
            max_model_len=arguments.max_model_len,
            get_vocab_size=lambda: 512,
            try_get_generation_config=lambda: {"eos_token_id": fake.end_ids},
        )
        scheduler_config = SimpleNamespace(max_num_seqs=arguments.max_num_seqs)
        self.vllm_config = SimpleNamespace(
            model_config=model_config,
            scheduler_config=scheduler_config,
            cache_config=SimpleNamespace(kv_cache_size_tokens=fake.cache_tokens),
        )

    @property
    def errored(self) -> bool:
        return self._fake.dead

    async def get_supported_tasks(self) -> tuple[str]:
        return ("generate",)

    async def add_lora(self, request: Any) -> bool:
        self._fake.adapters.append(request)
        return True

    async def generate(
        self,
        prompt: Any,
        sampling: Any,
        request_id: str,
        *,
        lora_request: Any,
        data_parallel_rank: int | None,
    ) -> AsyncIterator[Any]:
        ids = prompt["prompt_token_ids"]
        future = asyncio.get_running_loop().create_future()
        self._fake.asked.append(Asked(ids, sampling, data_parallel_rank, lora_request, future))
        answer = self._fake.answer(ids)
        if isinstance(answer, Exception):
            raise answer
        try:
            sampled, reason = answer or await future
        except asyncio.CancelledError:
            self._fake.aborted += 1
            raise
        logprobs = SimpleNamespace(
            logprobs=[self._fake.logprob] * len(sampled), start_indices=range(len(sampled))
        )
        found = SimpleNamespace(token_ids=sampled, logprobs=logprobs, finish_reason=reason)
        yield SimpleNamespace(outputs=[found], num_cached_tokens=2)

    def shutdown(self) -> None:
        self._fake.shut += 1
