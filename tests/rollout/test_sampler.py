"""The loop around an engine: order, seeds, token truth, endings."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_rollout import (
    ChoiceVerifier,
    Completion,
    ExactVerifier,
    Journal,
    RolloutConfig,
    ScriptedEngine,
    make_problem,
    sample,
)
from drift_rollout.asking import VerifierError
from drift_rollout.engine import Request, Sampling, turn_seed
from drift_rollout.protocol import FEEDBACK, Protocol
from drift_rollout.rendering import ChatRenderer
from drift_rollout.sampler import sample_to_journal
from drift_rollout.unscored import UnscoredError
from drift_rollout.verify import Verified
from drift_weights import Message
from tiny import bpe_tokenizer

END, OTHER_STOP = "<|im_end|>", "<|endoftext|>"


def problem(text: str = "what is 1 + 2", target: str = "3"):
    return make_problem((Message(role="user", content=text),), target)


def letters(tokenizer, text: str) -> list[int]:
    """One id a character: never what encoding the text at once gives."""
    return [i for character in text for i in tokenizer(character, add_special_tokens=False)["input_ids"]]


def speaking(tokenizer, endings: list[str | None], answers: list[str]) -> Callable[[Request], Completion]:
    """Answers the n-th turn with answers[n], character by character, and an end token or none."""

    def script(request: Request) -> Completion:
        turn = sum(m.role == "assistant" for m in request.messages)
        text = f"so <answer> {answers[turn]} </answer>"
        end = endings[turn]
        ids = letters(tokenizer, text) + ([] if end is None else [tokenizer.convert_tokens_to_ids(end)])
        return Completion(
            id=request.id,
            text=text,
            token_ids=tuple(ids),
            logprobs=tuple(-float(n) for n in range(len(ids))),
            finish_reason="length" if end is None else "stop",
        )

    return script


TOKENIZERS = [bpe_tokenizer(), bpe_tokenizer(pad=False), bpe_tokenizer(bos=True)]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["pad≠eos", "no pad", "bos"])
@given(
    endings=st.lists(st.sampled_from([END, OTHER_STOP, None]), min_size=4, max_size=4),
    wrong=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_stored_ids_are_the_sampled_ids(tokenizer, endings, wrong) -> None:
    answers = [str(10 + n) for n in range(wrong)] + ["3"] * 4
    engine = ScriptedEngine(speaking(tokenizer, endings, answers), tokenizer=tokenizer)
    config = RolloutConfig(samples=1, protocol=Protocol(max_turns=4))
    (trajectory,) = sample([problem()], engine, ExactVerifier(), config)
    ids = trajectory.token_ids

    # The oracle: text pieces encoded one by one, sampled characters one by one, nothing rendered again.
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    first = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is 1 + 2"}], tokenize=False, add_generation_prompt=True
    )
    expected, spans = encode(first), []
    for turn in range(trajectory.length):
        sampled = letters(tokenizer, f"so <answer> {answers[turn]} </answer>")
        sampled += [] if endings[turn] is None else [tokenizer.convert_tokens_to_ids(endings[turn])]
        spans.append((len(expected), len(expected) + len(sampled)))
        expected += sampled
        if turn + 1 < trajectory.length:
            turn_end = [] if endings[turn] == END else [tokenizer.convert_tokens_to_ids(END)]
            opening = f"\n<|im_start|>user\n{FEEDBACK}<|im_end|>\n<|im_start|>assistant\n"
            expected += turn_end + encode(opening)
    assert list(ids) == expected
    assert list(trajectory.response_spans) == spans
    decoded_again = tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"]
    assert decoded_again != list(ids), "the test needs ids that do not survive decoding"


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["pad≠eos", "no pad", "bos"])
def test_each_prompt_is_a_strict_prefix_of_the_next(tokenizer) -> None:
    engine = ScriptedEngine(
        speaking(tokenizer, [END, None, OTHER_STOP, END], list("4567")), tokenizer=tokenizer
    )
    config = RolloutConfig(samples=2, protocol=Protocol(max_turns=4))
    list(sample([problem()], engine, ExactVerifier(), config))
    by_id = {request.id: request for request in engine.requests}
    followed = [r for r in engine.requests if r.continues is not None]
    assert len(followed) == 2 * 3
    for request in followed:
        before = by_id[request.continues]
        answered = engine._script(before).token_ids
        known = (*before.token_ids, *answered)
        assert request.token_ids[: len(known)] == known
        assert len(request.token_ids) > len(known)


def test_one_bos_only() -> None:
    tokenizer = bpe_tokenizer(bos=True)
    ids = ChatRenderer(tokenizer).prompt_ids(problem().messages)
    assert ids.count(tokenizer.bos_token_id) == 1


def test_logprobs_follow_the_spans() -> None:
    tokenizer = bpe_tokenizer()
    engine = ScriptedEngine(speaking(tokenizer, [END] * 4, ["9", "3"]), tokenizer=tokenizer)
    (trajectory,) = sample([problem()], engine, ExactVerifier(), RolloutConfig(samples=1))
    lengths = [end - start for start, end in trajectory.response_spans]
    assert list(trajectory.logprobs) == [-float(n) for length in lengths for n in range(length)]


def test_every_turn_has_a_seed_of_its_own() -> None:
    engine = ScriptedEngine(lambda r: Completion(id=r.id, text="<answer> 9 </answer>"))
    config = RolloutConfig(samples=16, seed=3)
    list(sample([problem(), problem("other")], engine, ExactVerifier(), config))
    seeds = [request.seed for request in engine.requests]
    assert len(set(seeds)) == len(seeds) == 2 * 16 * 5
    assert turn_seed(3, problem().prompt_id, 0, 7, 2) in seeds


def test_k_rows_a_prompt_by_default() -> None:
    engine = ScriptedEngine(lambda r: Completion(id=r.id, text="<answer> 3 </answer>"))
    trajectories = list(sample([problem(), problem("other")], engine, ExactVerifier()))
    assert sorted(t.sample for t in trajectories if t.prompt_id == problem().prompt_id) == list(range(16))
    assert len(trajectories) == 32
    assert {t.policy for t in trajectories} == {"scripted"}


def test_the_papers_sampling_is_the_default() -> None:
    config = RolloutConfig()
    assert (config.samples, config.protocol.max_turns) == (16, 5)
    assert config.sampling == Sampling(temperature=1.0, top_p=1.0, max_new_tokens=512)


def test_no_turn_waits_for_another_trajectory() -> None:
    """While one dialogue's first turn is held back, another may go through all of its turns."""
    held = []

    class Slow(ScriptedEngine):
        def poll(self, timeout: float | None = None) -> list[Completion]:
            slow = [r for r in self._queue if r.messages[0].content == "slow"]
            if len(self._queue) > len(slow):
                for request in slow:
                    self._queue.remove(request)
                held.extend(slow)
            elif held:
                self._queue.extend(held)
                held.clear()
            return super().poll(timeout)

    engine = Slow(lambda r: Completion(id=r.id, text="<answer> 9 </answer>"), batch=1)
    config = RolloutConfig(samples=1)
    finished = list(sample([problem("slow"), problem("fast")], engine, ExactVerifier(), config))
    assert [t.prompt[0].content for t in finished] == ["fast", "slow"]
    assert [t.length for t in finished] == [5, 5]


def test_in_flight_stays_near_the_engines_wish() -> None:
    running = [0, 0]

    class Counting(ScriptedEngine):
        def submit(self, requests) -> None:
            running[0] += len(requests)
            running[1] = max(running)
            super().submit(requests)

        def poll(self, timeout: float | None = None) -> list[Completion]:
            finished = super().poll(timeout)
            running[0] -= len(finished)
            return finished

    engine = Counting(lambda r: Completion(id=r.id, text="<answer> 9 </answer>"), concurrency=8)
    list(sample([problem(str(n)) for n in range(40)], engine, ExactVerifier(), RolloutConfig(samples=4)))
    assert running[1] < 8 + 4


def test_every_request_is_continued_or_released() -> None:
    engine = ScriptedEngine(lambda r: Completion(id=r.id, text=f"<answer> {r.seed % 4} </answer>"))
    list(sample([problem(str(n)) for n in range(9)], engine, ExactVerifier(), RolloutConfig(samples=3)))
    continued = {r.continues for r in engine.requests if r.continues}
    assert continued | set(engine.released) == {r.id for r in engine.requests}
    assert continued.isdisjoint(engine.released)


def test_a_failed_request_is_an_unscored_turn() -> None:
    engine = ScriptedEngine(
        lambda r: Completion(id=r.id, text="", finish_reason="error", error="lost"), tokenizer=TOKENIZERS[0]
    )
    (trajectory,) = sample([problem()], engine, ExactVerifier(), RolloutConfig(samples=1))
    (turn,) = trajectory.turns
    assert (turn.response, turn.verdict, turn.finish_reason) == ("", "error", "error")
    assert (trajectory.ended, trajectory.scored) == ("error", False)


def test_a_full_context_ends_the_dialogue() -> None:
    tokenizer = bpe_tokenizer()
    first = len(ChatRenderer(tokenizer).prompt_ids(problem().messages))
    engine = ScriptedEngine(
        speaking(tokenizer, [END] * 5, list("45678")), tokenizer=tokenizer, context_length=first + 60
    )
    (trajectory,) = sample([problem()], engine, ExactVerifier(), RolloutConfig(samples=1))
    assert trajectory.ended == "context"
    assert 1 <= trajectory.length < 5
    assert trajectory.turns[-1].feedback is None
    assert trajectory.response_spans[-1][1] == len(trajectory.token_ids)


def test_problems_that_cannot_be_sampled_are_refused() -> None:
    tokenizer = bpe_tokenizer()
    engine = ScriptedEngine(speaking(tokenizer, [END], ["3"]), tokenizer=tokenizer, context_length=5)
    with pytest.raises(ValueError, match="leave no room"):
        list(sample([problem()], engine, ExactVerifier()))
    with pytest.raises(ValueError, match="appears twice"):
        list(sample([problem(), problem()], ScriptedEngine(engine._script), ExactVerifier()))
    with pytest.raises(ValueError, match="no target"):
        list(
            sample(
                [make_problem(problem().messages, None)], ScriptedEngine(engine._script), ExactVerifier()
            )
        )


def test_every_problem_is_checked_before_the_first_request() -> None:
    """The bad one comes last, far behind what the engine would take at once."""
    tokenizer = bpe_tokenizer()
    good = [problem(str(n)) for n in range(30)]
    for bad, verifier, says in [
        (problem("x" * 500), ExactVerifier(), "1 prompts leave no room"),
        (problem("what", " "), ExactVerifier(), "must not be blank"),
        (problem("0", "B"), ChoiceVerifier(), "30 problems cannot be judged by choice/2"),
        (good[0], ExactVerifier(), "appears twice"),
    ]:
        engine = ScriptedEngine(
            speaking(tokenizer, [END], ["3"]), tokenizer=tokenizer, context_length=300, concurrency=2
        )
        with pytest.raises(ValueError, match=says):
            list(sample([*good, bad], engine, verifier))
        assert engine.requests == []


def test_what_is_done_needs_no_room() -> None:
    """A journal's problems are not sampled again, so a smaller context does not stop the others."""
    tokenizer = bpe_tokenizer()
    long = problem("x" * 500)
    engine = ScriptedEngine(speaking(tokenizer, [END], ["3"]), tokenizer=tokenizer, context_length=300)
    config = RolloutConfig(samples=1)
    done = {(long.prompt_id, 0, "scripted", 0)}
    assert len(list(sample([long, problem()], engine, ExactVerifier(), config, done=done))) == 1


def test_an_engine_that_goes_idle_is_an_error() -> None:
    class Forgetful(ScriptedEngine):
        def poll(self, timeout: float | None = None) -> list[Completion]:
            self._queue.clear()
            return []

    engine = Forgetful(lambda r: Completion(id=r.id, text=""))
    with pytest.raises(RuntimeError, match="returned nothing while 16 requests are pending"):
        list(sample([problem()], engine, ExactVerifier()))


def test_a_template_is_needed() -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat template"):
        ChatRenderer(tokenizer)


class Slow(ExactVerifier):
    """Judges in threads, and not before it is allowed to."""

    concurrency = 4
    allowed = threading.Event()

    def verify(self, response: str, target: str) -> Verified:
        assert Slow.allowed.wait(30)
        return ExactVerifier().verify(response, target)


def test_the_engine_does_not_wait_for_verdicts() -> None:
    """While no verdict comes, every first turn is answered; the dialogues are those of a quick verifier."""
    problems = [problem(f"q{n}", str(n % 3)) for n in range(6)]
    config = RolloutConfig(samples=2, protocol=Protocol(max_turns=3))

    def script(request: Request) -> Completion:
        asked.append(request.id)
        if len(asked) == 12:
            Slow.allowed.set()
        return Completion(id=request.id, text=f"<answer> {request.seed % 3} </answer>")

    asked: list[str] = []
    engine = ScriptedEngine(script, concurrency=4, batch=2)
    watch = threading.Timer(20, Slow.allowed.set)
    watch.start()
    found = sorted(sample(problems, engine, Slow(), config), key=lambda t: t.key)
    watch.cancel()
    assert all(name.endswith("/1") for name in asked[:12])
    quick = ScriptedEngine(script)
    assert found == sorted(sample(problems, quick, ExactVerifier(), config), key=lambda t: t.key)


def test_a_verifier_that_breaks_in_a_thread_ends_the_run() -> None:
    class Broken(ExactVerifier):
        concurrency = 1

        def verify(self, response: str, target: str) -> Verified:
            raise ZeroDivisionError("broken")

    engine = ScriptedEngine(lambda request: Completion(id=request.id, text="x"))
    with pytest.raises(VerifierError, match="ZeroDivisionError: broken") as raised:
        list(sample([problem()], engine, Broken(), RolloutConfig(samples=1)))
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_errors_that_do_not_end_stop_the_run(tmp_path: Path) -> None:
    """One engine for all is broken: better to say so than to fill a journal with errors."""

    def script(request: Request) -> Completion:
        if request.id.startswith(problems[0].prompt_id):
            return Completion(id=request.id, text="<answer> 3 </answer>")
        return Completion(id=request.id, text="", finish_reason="error", error="no such model")

    problems = [problem(f"q{n}") for n in range(40)]
    config = RolloutConfig(samples=16)
    with Journal(tmp_path / "j", {}) as journal:
        with pytest.raises(
            UnscoredError,
            match=r"10\d of the last 1[12]\d dia.*: 10\d by an error of the engine; .* no such model; what",
        ):
            sample_to_journal(journal, problems, ScriptedEngine(script), ExactVerifier(), config)
        assert len(journal.scored_keys()) == 16


@pytest.mark.parametrize("tokenizer", [None, TOKENIZERS[0]], ids=["text", "ids"])
def test_a_dialogue_that_the_engine_finds_too_long_ends_for_its_context(tokenizer) -> None:
    """Only the engine could tell; the turns before are judged, and are not sampled again for ever."""
    wrong = speaking(TOKENIZERS[0], [END] * 4, ["1", "2", "3", "3"])

    def script(request: Request) -> Completion:
        if request.id.endswith("/3"):
            return Completion(
                id=request.id, text="", finish_reason="error", error="HTTP 400: too long", no_room=True
            )
        if tokenizer is None:
            return Completion(id=request.id, text="<answer> 1 </answer>")
        return wrong(request)

    engine = ScriptedEngine(script, tokenizer=tokenizer)
    (found,) = sample([problem()], engine, ExactVerifier(), RolloutConfig(samples=1))
    assert (found.ended, found.length, found.scored) == ("context", 2, True)
    assert found.turns[-1].feedback is None
    if tokenizer is not None:
        assert found.response_spans[-1][1] == len(found.token_ids)


def test_a_first_prompt_that_is_too_long_is_an_error() -> None:
    def script(request: Request) -> Completion:
        return Completion(id=request.id, text="", finish_reason="error", error="too long", no_room=True)

    (found,) = sample([problem()], ScriptedEngine(script), ExactVerifier(), RolloutConfig(samples=1))
    assert found.ended == "error"
