"""The vLLM engine's front on a fake vLLM: what it tells vLLM, and what it makes of the answers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drift_rollout import ExactVerifier, PromptTemplate, Protocol, RolloutConfig, make_problem, sample
from drift_rollout.cli import main
from drift_rollout.engine import EngineError, Request, Sampling
from drift_rollout.engines.opening import EngineOptions, open_engine
from drift_rollout.engines.options import VLLMOptions
from drift_rollout.engines.transformers import TransformersEngine
from drift_rollout.engines.vllm import VLLMEngine
from fake_vllm import EngineDeadError, FakeVLLM, RefusedError
from tiny import bpe_tokenizer, save_policy, tiny_model

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"), bpe_tokenizer(), tiny_model())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeVLLM:
    return FakeVLLM().install(monkeypatch)


class Opened:
    """Engines that are closed after the test."""

    def __init__(self, policy: Path) -> None:
        self.policy = policy
        self.engines: list[VLLMEngine] = []

    def __call__(self, **options: Any) -> VLLMEngine:
        engine = VLLMEngine(str(self.policy), options=VLLMOptions(**options))
        self.engines.append(engine)
        return engine


@pytest.fixture
def opened(policy: Path, fake: FakeVLLM) -> Iterator[Opened]:
    made = Opened(policy)
    yield made
    for engine in made.engines:
        engine.close()


def ask(
    name: str, ids: tuple[int, ...] | None = (5, 6), *, continues: str | None = None, **how: Any
) -> Request:
    return Request(
        id=name, messages=(), token_ids=ids, sampling=Sampling(**how), seed=2**62, continues=continues
    )


def adapter(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8} | settings))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_says_what_to_install(policy: Path) -> None:
    with pytest.raises(ValueError, match=r"No module named 'vllm'; install drift-rollout\[vllm\]"):
        open_engine(EngineOptions(name="vllm"), str(policy))


def test_a_model_that_is_not_there_is_named(fake: FakeVLLM) -> None:
    with pytest.raises(FileNotFoundError, match="no/such/folder: there is no such folder"):
        open_engine(EngineOptions(name="vllm"), "no/such/folder")
    assert fake.started == []


def test_vllm_is_told_to_leave_the_distribution_alone(opened: Opened, fake: FakeVLLM) -> None:
    engine = opened(max_model_len=48, max_num_seqs=3, extra={"block_size": 32})
    (arguments,) = fake.started
    assert (arguments.logprobs_mode, arguments.generation_config) == ("raw_logprobs", "vllm")
    assert (arguments.enable_prefix_caching, arguments.block_size) == (True, 32)
    assert (engine.context_length, engine.concurrency, engine.seeded) == (48, 3, True)
    engine.submit([ask("a", temperature=0.7, top_p=0.9, max_new_tokens=5)])
    assert [completion.id for completion in engine.poll()] == ["a"]
    sampling = fake.asked[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.7, 0.9, 5)
    assert (sampling.seed, sampling.logprobs, sampling.detokenize) == (2**62, 0, False)
    assert (fake.asked[0].ids, fake.asked[0].adapter, fake.asked[0].copy) == ([5, 6], None, None)


def test_on_a_cpu_no_seed_is_passed_and_each_start_draws_anew(opened: Opened, fake: FakeVLLM) -> None:
    fake.cpu = True
    engine = opened()
    opened(), opened(seed=5)
    engine.submit([ask("a")])
    engine.poll()
    assert (engine.seeded, fake.asked[0].sampling.seed) == (False, None)
    first, second, named = (arguments.seed for arguments in fake.started)
    assert first != second
    assert named == 5


@pytest.mark.parametrize(("ends", "expected"), [(7, {3, 7}), ([7, 9, 512], {3, 7, 9}), (None, {3})])
def test_stops_are_those_of_the_generation_config_and_the_tokenizer(
    opened: Opened, fake: FakeVLLM, ends: Any, expected: set[int]
) -> None:
    """<|im_end|> is 3; what vLLM adds of its own is switched off."""
    fake.end_ids = ends
    engine = opened()
    engine.submit([ask("a")])
    engine.poll()
    assert set(fake.asked[0].sampling.stop_token_ids) == expected
    assert fake.asked[0].sampling.ignore_eos


@pytest.mark.parametrize(
    ("answer", "text_of"),
    [(([80, 3], "stop"), [80]), (([80, 2, 81], "length"), [80, 2, 81]), (([3], "stop"), [])],
)
def test_a_completion_is_what_was_sampled(
    opened: Opened, fake: FakeVLLM, answer: Any, text_of: Any
) -> None:
    fake.answer = lambda ids: answer
    engine = opened()
    engine.submit([ask("a")])
    (got,) = engine.poll()
    assert (got.token_ids, got.finish_reason, got.error) == (tuple(answer[0]), answer[1], None)
    assert got.text == bpe_tokenizer().decode(text_of, skip_special_tokens=False)
    assert got.logprobs == (-0.5,) * len(answer[0])
    assert engine.cached_tokens == 2


@pytest.mark.parametrize(
    ("answer", "logprob", "says"),
    [
        (RefusedError("the prompt is too long"), -0.5, "the prompt is too long"),
        (([7], "abort"), -0.5, "vLLM ended the request with 'abort'"),
        (([7, 8], "length"), float("nan"), "not a number"),
    ],
)
def test_what_fails_one_request_is_its_completion(
    opened: Opened, fake: FakeVLLM, answer: Any, logprob: float, says: str
) -> None:
    fake.answer, fake.logprob = lambda ids: answer, logprob
    engine = opened()
    engine.submit([ask("a")])
    (got,) = engine.poll()
    assert (got.id, got.finish_reason, got.token_ids) == ("a", "error", ())
    assert says in (got.error or "")
    fake.answer, fake.logprob = lambda ids: ([7], "length"), -0.5
    engine.submit([ask("b")])
    assert [completion.error for completion in engine.poll()] == [None]


@pytest.mark.parametrize("error", [EngineDeadError("gone"), AssertionError("a bug")])
def test_what_fails_the_engine_raises(opened: Opened, fake: FakeVLLM, error: Exception) -> None:
    fake.answer = lambda ids: error
    engine = opened()
    engine.submit([ask("a")])
    with pytest.raises(EngineError, match="engine died") as raised:
        engine.poll()
    assert raised.value.__cause__ is error


def test_a_death_that_nobody_reports_is_found(opened: Opened, fake: FakeVLLM) -> None:
    """The request never comes back, and no error does either."""
    fake.answer = lambda ids: None
    engine = opened()
    engine.submit([ask("a")])
    assert engine.poll(timeout=0.01) == []
    fake.dead = True
    with pytest.raises(EngineError, match="engine died"):
        engine.poll()
    with pytest.raises(EngineError, match="engine died"):
        engine.submit([ask("b")])
    engine.release("a")


def test_poll_keeps_its_time_and_an_idle_engine_does_not_block(opened: Opened, fake: FakeVLLM) -> None:
    fake.answer = lambda ids: None
    engine = opened()
    assert engine.poll() == []
    engine.submit([ask("a")])
    started = time.monotonic()
    assert engine.poll(timeout=0.2) == []
    assert 0.2 <= time.monotonic() - started < 5


def test_a_released_request_is_aborted_and_never_completes(opened: Opened, fake: FakeVLLM) -> None:
    """Running, finished but not polled, and polled; the id is free each time."""
    fake.answer = lambda ids: None
    engine = opened()
    engine.submit([ask("a")])
    wait_until(lambda: len(fake.asked) == 1)
    engine.release("a")
    wait_until(lambda: fake.aborted == 1)
    fake.answer = lambda ids: ([ids[0]], "length")
    engine.submit([ask("a", (8,))])
    wait_until(lambda: not engine._outcomes.empty())
    engine.release("a")
    engine.submit([ask("a", (9,))])
    assert [completion.token_ids for completion in engine.poll()] == [(9,)]
    engine.release("a")
    engine.release("unknown")
    engine.submit([ask("a", (10,))])
    assert [completion.token_ids for completion in engine.poll()] == [(10,)]
    assert engine.poll() == []


def test_bad_requests_are_refused_whole(opened: Opened, fake: FakeVLLM) -> None:
    engine = opened()
    for bad, message in [
        (ask("good"), "'good' exists already"),
        (ask("b", None), "'b' has no token_ids"),
        (ask("b", (1, 512)), "'b' has token 512, outside the vocabulary of 512"),
        (ask("b", (-1, 5)), "'b' has token -1, outside"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.submit([ask("good"), bad])
        assert engine.poll() == []
    fake.answer = lambda ids: None
    engine.submit([ask("good")])
    with pytest.raises(ValueError, match="continues 'good', still running"):
        engine.submit([ask("c", continues="good")])


def test_a_finished_request_keeps_its_id_until_it_is_continued(opened: Opened) -> None:
    engine = opened()
    engine.submit([ask("a")])
    engine.poll()
    with pytest.raises(ValueError, match="'a' exists already"):
        engine.submit([ask("a")])
    engine.submit([ask("b", continues="a")])
    engine.submit([ask("a")])


def test_copies_share_the_load_and_keep_their_dialogues(opened: Opened, fake: FakeVLLM) -> None:
    """Samples of one prompt go to one copy of the model, and a next turn to where the last one was."""
    fake.answer = lambda ids: None
    engine = opened(data_parallel_size=2, max_num_seqs=5)
    assert engine.concurrency == 10
    engine.submit([ask(f"a{n}", (5,)) for n in range(3)] + [ask(f"b{n}", (6,)) for n in range(3)])
    wait_until(lambda: len(fake.asked) == 6)
    assert [asked.copy for asked in fake.asked] == [0, 0, 0, 1, 1, 1]
    engine.release("a0")
    fake.answer = lambda ids: ([7], "length")
    engine.submit([ask("c", (9,))])
    engine.submit([ask("d", (8,))])
    names: set[str] = set()
    while names < {"c", "d"}:
        names |= {completion.id for completion in engine.poll()}
    assert [asked.copy for asked in fake.asked[6:]] == [0, fake.asked[7].copy]
    other = fake.asked[7].copy
    engine.release("b0"), engine.release("b1"), engine.release("b2")
    engine.submit([ask("c2", (9, 7, 1), continues="c"), ask("d2", (8, 7, 1), continues="d")])
    wait_until(lambda: len(fake.asked) == 10)
    assert [asked.copy for asked in fake.asked[8:]] == [0, other], "though copy 1 is idle"


@pytest.mark.parametrize(
    ("length", "tokens", "expected"),
    [(64, None, 4), (64, 255, 4), (64, 320, 5), (64, 10**9, 16), (32768, 2048 * 7 + 1, 7)],
)
def test_it_remembers_as_many_dialogues_as_its_cache_holds(
    opened: Opened, fake: FakeVLLM, length: int, tokens: int | None, expected: int
) -> None:
    """Of at most 2,048 tokens each: at least those that it answers at once, at most four times as many."""
    fake.cache_tokens = tokens
    engine = opened(max_model_len=length, max_num_seqs=4)
    assert (engine.concurrency, engine.capacity) == (4, expected)
    copies = opened(max_model_len=length, max_num_seqs=4, data_parallel_size=3)
    assert (copies.concurrency, copies.capacity) == (12, 3 * expected), "vLLM gives the cache of one copy"


def test_every_request_is_answered_with_the_adapter(opened: Opened, fake: FakeVLLM, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", r=12, rank_pattern={"q_proj": 40})
    engine = opened(adapter=str(folder))
    assert (fake.started[0].enable_lora, fake.started[0].max_lora_rank) == (True, 64)
    engine.submit([ask("a")])
    engine.poll()
    assert [fake.asked[0].adapter] == fake.adapters == [("adapter", 1, str(folder))]


def test_the_policy_is_that_of_the_transformers_engine(opened: Opened, policy: Path) -> None:
    assert opened().policy == TransformersEngine(policy, device="cpu").policy


def test_what_makes_another_policy(opened: Opened, tmp_path: Path) -> None:
    """An adapter's weights and settings, and quantization; not where the adapter lies or came from."""

    def name(folder: Path, **options: Any) -> str:
        return opened(adapter=str(folder), **options).policy

    first = adapter(tmp_path / "first")
    moved = Path(shutil.copytree(first, tmp_path / "moved"))
    (moved / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/elsewhere", "lora_alpha": 8, "r": 4})
    )
    louder = adapter(tmp_path / "louder", lora_alpha=16)
    trained = adapter(tmp_path / "trained")
    (trained / "adapter_model.safetensors").write_bytes(b"other weights")
    assert name(first) == name(moved)
    base, quantized = opened().policy, opened(quantization="fp8").policy
    policies = [base, quantized, name(first), name(louder), name(trained), name(first, quantization="fp8")]
    assert len(set(policies)) == len(policies)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"extra": {"logprobs_mode": "raw_logits"}}, "extra names logprobs_mode, which has its own option"),
        ({"extra": {"max_model_len": 5}}, "extra names max_model_len, which has its own option"),
        ({"extra": {"abacus": 5}}, "extra names abacus, which this vLLM does not take"),
        ({"adapter": "no/folder"}, "no/folder holds no adapter_config.json"),
    ],
)
def test_options_that_cannot_be_are_refused(
    opened: Opened, fake: FakeVLLM, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        opened(**options)
    assert fake.started == []


def test_a_rank_beyond_vllms_is_refused(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of rank 1024, and vLLM takes 512 at most"):
        opened(adapter=str(adapter(tmp_path / "adapter", r=1024)))


@pytest.mark.parametrize(
    ("error", "kind"),
    [(RefusedError("no such dtype"), ValueError), (RuntimeError("no memory"), EngineError)],
)
def test_an_engine_that_does_not_start_says_why(
    opened: Opened, fake: FakeVLLM, error: Exception, kind: type[Exception]
) -> None:
    """What vLLM refuses is the user's mistake; what befalls it is not."""
    fake.refuses = error
    with pytest.raises(kind, match=str(error)):
        opened()


def test_a_model_without_weights_ends_the_engine_that_started(
    fake: FakeVLLM, policy: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(policy, tmp_path / "policy"))
    (folder / "model.safetensors").rename(folder / "weights.gguf")
    with pytest.raises(ValueError, match="holds no weights under their usual names"):
        VLLMEngine(str(folder))
    assert fake.shut == 1


def test_close_ends_what_runs_once(opened: Opened, fake: FakeVLLM) -> None:
    fake.answer = lambda ids: None
    engine = opened()
    engine.submit([ask("a")])
    wait_until(lambda: len(fake.asked) == 1)
    engine.close()
    engine.close()
    assert (fake.shut, fake.aborted) == (1, 1)
    engine.release("a")
    assert engine.poll() == []
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.submit([ask("b")])


def test_a_loop_that_is_left_early_leaves_the_engine_as_new(opened: Opened, fake: FakeVLLM) -> None:
    fake.answer = lambda ids: ([7, 3], "stop")
    engine = opened(max_model_len=400)
    template = PromptTemplate(user="{problem}", system=None)
    problems = [make_problem(template.render(text), "7") for text in ("t1", "t2")]
    config = RolloutConfig(samples=3, protocol=Protocol(max_turns=2))
    first = list(sample(problems, engine, ExactVerifier(), config))
    assert [trajectory.ended for trajectory in first] == ["budget"] * 6
    dialogues = sample(problems, engine, ExactVerifier(), replace(config, samples=4))
    next(dialogues)
    dialogues.close()
    assert not engine._pending
    assert not engine._finished


def test_the_command_line_takes_its_options(
    policy: Path, fake: FakeVLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"problem": "t1", "answer": "7"}) + "\n")
    words = ["sample", str(problems), str(policy), str(tmp_path / "run"), "--engine.name", "vllm"]
    words += ["--engine.vllm.max_model_len", "400", "--engine.vllm.extra", '{"block_size": 32}']
    main([*words, "--samples", "2", "--protocol.max_turns", "2"])
    assert "wrote" in capsys.readouterr().out
    assert (fake.started[0].max_model_len, fake.started[0].block_size, fake.shut) == (400, 32, 1)
