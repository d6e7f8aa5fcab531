"""What every engine owes its caller, as checks that run against any of them.

    @pytest.mark.parametrize("check", CONTRACT, ids=names)
    def test_contract(check, subject):
        check(subject)

A check leaves nothing behind in an engine, so that one engine that is slow to open may serve them all
(`Subject(make=lambda: opened, keep=True)`); `check_closing_twice`, the last of them, closes it. Nothing
here needs pytest: vLLM has an environment of its own, and the checks run there.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from drift_rollout import RolloutConfig, Verified, make_problem, sample
from drift_rollout.engine import Completion, Engine, Request, Sampling
from drift_rollout.problems import Problem
from drift_rollout.protocol import Protocol
from drift_rollout.rendering import ChatRenderer
from drift_weights import Message, Trajectory

TOKENS = 8
"""Longest response of most checks."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine to check, and what the checks may expect of it."""

    make: Callable[[], Engine]
    """Opens it. Its policy must end some responses of 8 tokens by a stop token, and not all of them."""
    keep: bool = False
    """`make` gives the same engine every time: leave it open."""
    logprobs: Callable[[tuple[int, ...], tuple[int, ...]], Sequence[float]] | None = None
    """log π of sampled ids behind a prompt's, from whole forward passes of the policy, if it is at hand."""
    tolerance: float = 1e-4
    """Of the log-probabilities."""
    agreement: float = 1.0
    """Share of the responses that must not change with their company: below 1 where rounding tips some."""
    patience: float = 10.0
    """Seconds that a poll with a short timeout may take on a busy machine."""
    instant: bool = False
    """A response takes no time, so that none is ever under way."""
    too_long: str | None = None
    """A message beyond the context of a text engine, if it has a limit; others are asked by ids."""

    @contextmanager
    def opened(self) -> Iterator[Engine]:
        """An engine on which nothing is pending, neither before the check nor after it."""
        engine = self.make()
        assert engine.poll(timeout=0) == []
        yield engine
        assert engine.poll() == [], "the check left requests behind"
        if not self.keep:
            engine.close()


def requests_of(engine: Engine, texts: Iterable[str], *, prefix: str = "r", **how: Any) -> list[Request]:
    """One request a text, greedy unless told otherwise, with ids where the engine has a tokenizer."""
    sampling = Sampling(**({"temperature": 0.0, "max_new_tokens": TOKENS} | how))
    renderer = None if engine.tokenizer is None else ChatRenderer(engine.tokenizer)
    made = []
    for number, text in enumerate(texts):
        messages = (Message(role="user", content=text),)
        made.append(
            Request(
                id=f"{prefix}{number}",
                messages=messages,
                token_ids=None if renderer is None else renderer.prompt_ids(messages),
                sampling=sampling,
                seed=number,
            )
        )
    return made


def drain(engine: Engine) -> list[Completion]:
    """Everything that is pending; a poll without timeout must not come back empty before."""
    got: list[Completion] = []
    while batch := engine.poll():
        got += batch
    return got


def answers(engine: Engine, requests: Sequence[Request]) -> dict[str, Completion]:
    """Ask, wait for exactly one completion of each, and release them."""
    engine.submit(requests)
    got = drain(engine)
    assert Counter(c.id for c in got) == Counter(r.id for r in requests)
    release(engine, requests)
    return {completion.id: completion for completion in got}


def release(engine: Engine, requests: Iterable[Request]) -> None:
    for request in requests:
        engine.release(request.id)


def refusal(engine: Engine, requests: Sequence[Request]) -> str:
    """What an engine says that does not take these requests."""
    try:
        engine.submit(requests)
    except ValueError as error:
        return str(error)
    raise AssertionError("the requests were taken")


def said(completion: Completion) -> Any:
    """What a response consists of, apart from its id and rounding."""
    assert completion.error is None, completion.error
    return completion.text, completion.token_ids, completion.finish_reason


def agree(subject: Subject, first: Iterable[Any], second: Iterable[Any]) -> None:
    """As many pairs are equal as must be."""
    pairs = list(zip(first, second, strict=True))
    different = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(different) <= (1 - subject.agreement) * len(pairs), different[:3]


def texts(count: int) -> list[str]:
    return [f"what is {number} + {number * 7 % 5}" + " and" * (number % 4) for number in range(count)]


def check_description(subject: Subject) -> None:
    """What an engine says of itself has the right form, and equal engines say the same."""
    with subject.opened() as engine:
        assert isinstance(engine.policy, str)
        assert engine.policy
        assert engine.context_length >= 1
        assert engine.concurrency >= 1
        assert getattr(engine, "capacity", engine.concurrency) >= engine.concurrency
        assert isinstance(engine.seeded, bool)
        policy = engine.policy
    with subject.opened() as again:
        assert again.policy == policy


def check_every_id_comes_back_once(subject: Subject) -> None:
    """300 at once, in any order, in one call and in many."""
    with subject.opened() as engine:
        requests = requests_of(engine, texts(300), max_new_tokens=2)
        engine.submit(requests[:200])
        for request in requests[200:]:
            engine.submit([request])
        engine.submit([])
        got = drain(engine)
        assert Counter(c.id for c in got) == Counter(r.id for r in requests)
        assert [c.error for c in got if c.error] == []
        release(engine, requests)


def check_polls_keep_their_time(subject: Subject) -> None:
    """With a timeout a poll returns in bounded time; without work it returns at once, and empty."""
    with subject.opened() as engine:
        start = time.monotonic()
        assert engine.poll() == []
        assert engine.poll(timeout=0.01) == []
        requests = requests_of(engine, texts(60), max_new_tokens=24)
        engine.submit(requests)
        got: list[Completion] = []
        slowest, end = 0.0, time.monotonic()
        assert end - start < subject.patience
        while len(got) < len(requests):
            got += engine.poll(timeout=0.02)
            slowest, end = max(slowest, time.monotonic() - end), time.monotonic()
        assert slowest < subject.patience
        assert Counter(c.id for c in got) == Counter(r.id for r in requests)
        release(engine, requests)
        if not subject.instant:
            longest = max(got, key=lambda c: (c.finish_reason == "length", len(c.text)))
            requests = [request for request in requests if request.id == longest.id]
            engine.submit(requests)
            assert engine.poll(timeout=0) == [], "a poll waited for the whole response"
            assert [c.id for c in engine.poll()] == [longest.id]
            release(engine, requests)


def check_released_requests_never_come(subject: Subject) -> None:
    """Queued, running and finished ones; those beside them come, once."""
    with subject.opened() as engine:
        requests = requests_of(engine, texts(40), max_new_tokens=16)
        engine.submit(requests)
        release(engine, requests[:10])
        got = engine.poll(timeout=0)
        release(engine, requests[10:20])
        early = {c.id for c in got}
        assert early.isdisjoint(r.id for r in requests[:10])
        got += engine.poll()
        # Whatever has finished and was not read yet is cancelled too.
        release(engine, requests[20:30])
        engine.release("never seen")
        seen = {c.id for c in got}
        late = drain(engine)
        assert seen.isdisjoint(c.id for c in late)
        assert {c.id for c in late}.isdisjoint(r.id for r in requests[:30])
        assert {r.id for r in requests[30:]} <= seen | {c.id for c in late}
        assert len(got) + len(late) == len(seen | {c.id for c in late})
        release(engine, requests)
        engine.release(requests[0].id)
        assert engine.poll() == []


def check_ids_can_be_used_again(subject: Subject) -> None:
    """After a release, whatever the state: the answer is the new request's, not the old one's."""
    with subject.opened() as engine:
        requests = requests_of(engine, texts(24))
        alone = answers(engine, requests)
        moved = [replace(requests[n], id=requests[-1 - n].id) for n in range(len(requests))]
        for wait, unread in ((None, 0.0), (None, 0.2), (0.0, 0.0), (0.05, 0.0)):
            engine.submit(requests)
            if wait is not None:
                engine.poll(timeout=wait)
            # An engine that works by itself finishes some that nobody asks for.
            time.sleep(unread)
            release(engine, requests)
            got = answers(engine, moved)
            expected = [said(alone[request.id]) for request in requests]
            agree(subject, (said(got[request.id]) for request in moved), expected)


def check_duplicates_are_refused(subject: Subject) -> None:
    """An id that is in flight, or twice in one call; nothing of such a call is queued."""
    with subject.opened() as engine:
        first, second, third = requests_of(engine, texts(3))
        engine.submit([first])
        assert first.id in refusal(engine, [second, first])
        assert third.id in refusal(engine, [third, third])
        assert [c.id for c in drain(engine)] == [first.id]
        release(engine, [first, second, third])


def check_greedy_is_deterministic(subject: Subject) -> None:
    """Whatever the seed and the company, one by one or together, before and after a release."""
    with subject.opened() as engine:
        requests = requests_of(engine, texts(20))
        together = answers(engine, requests)
        reseeded = [replace(r, seed=r.seed + 1000) for r in reversed(requests)]
        again = answers(engine, reseeded)
        alone = {r.id: answers(engine, [r])[r.id] for r in requests[:5]}
        assert len({c.text for c in together.values()}) > 1, "every prompt has the same answer"
        agree(subject, map(said, together.values()), (said(again[name]) for name in together))
        agree(subject, map(said, alone.values()), (said(together[name]) for name in alone))


def check_seeds(subject: Subject) -> None:
    """Different seeds differ; equal ones agree, in any company, if the engine says that it is seeded."""
    with subject.opened() as engine:
        same = requests_of(engine, ["what is 1 + 2"] * 16, temperature=1.0)
        got = answers(engine, same)
        assert len({said(c) for c in got.values()}) > 1, "sixteen seeds gave one response"
        if not engine.seeded:
            return
        renamed = [replace(r, id=f"again{r.id}") for r in reversed(same)]
        company = requests_of(engine, texts(12), prefix="other", temperature=1.0)
        again = answers(engine, [*company, *renamed])
        alone = answers(engine, [same[3]])[same[3].id]
        agree(subject, (said(got[r.id]) for r in same), (said(again[f"again{r.id}"]) for r in same))
        agree(subject, [said(alone)], [said(got[same[3].id])])


def check_ends(subject: Subject) -> None:
    """finish_reason is length at the last allowed token and stop otherwise; text ends before the stop."""
    with subject.opened() as engine:
        requests = requests_of(engine, texts(64), temperature=1.0)
        got = answers(engine, requests)
        assert [c.error for c in got.values() if c.error is not None] == []
        assert {c.finish_reason for c in got.values()} == {"length", "stop"}
        for completion in got.values():
            if completion.token_ids is None:
                continue
            count, stopped = len(completion.token_ids), completion.finish_reason == "stop"
            assert 1 <= count <= TOKENS
            assert stopped or count == TOKENS
            if engine.tokenizer is not None:
                shown = completion.token_ids[:-1] if stopped else completion.token_ids
                decoded = engine.tokenizer.decode(
                    shown, skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
                assert completion.text == decoded
        one = answers(engine, [replace(requests[0], sampling=Sampling(max_new_tokens=1))])[requests[0].id]
        assert one.token_ids is None or len(one.token_ids) == 1


def check_logprobs(subject: Subject) -> None:
    """One a token, none above 0, and those of the unmodified model, however it was sampled."""
    with subject.opened() as engine:
        requests = requests_of(engine, texts(10), temperature=0.7, top_p=0.9)
        for request in requests:
            completion = answers(engine, [request])[request.id]
            if completion.logprobs is None:
                continue
            assert completion.token_ids is not None
            assert len(completion.logprobs) == len(completion.token_ids)
            assert max(completion.logprobs) <= 1e-6
            if subject.logprobs is not None:
                assert request.token_ids is not None
                expected = subject.logprobs(request.token_ids, completion.token_ids)
                pairs = zip(completion.logprobs, expected, strict=True)
                assert max(abs(got - true) for got, true in pairs) <= subject.tolerance


def check_bad_prompts_fail_alone(subject: Subject) -> None:
    """A prompt that is empty or leaves no room is a completion with an error, beside good ones."""
    with subject.opened() as engine:
        good = requests_of(engine, texts(4))
        expected = answers(engine, good)
        bad: list[Request] = []
        if good[0].token_ids is not None:
            longest = (good[0].token_ids * engine.context_length)[: engine.context_length]
            bad.append(replace(good[0], id="empty", messages=(), token_ids=()))
            bad.append(replace(good[0], id="full", token_ids=longest))
        elif subject.too_long is not None:
            bad.append(
                replace(good[0], id="full", messages=(Message(role="user", content=subject.too_long),))
            )
        got = answers(engine, [*good[:2], *bad, *good[2:]])
        for request in bad:
            completion = got[request.id]
            assert completion.error
            assert (completion.text, completion.finish_reason) == ("", "error")
            assert not completion.token_ids
        agree(subject, (said(got[r.id]) for r in good), (said(expected[r.id]) for r in good))
        engine.submit(bad)
        release(engine, bad)
        assert engine.poll() == [], "what failed at once was released, and still comes"


def check_continuations(subject: Subject) -> None:
    """Three turns: continued, what is said is what a new request with the same ids gets."""
    with subject.opened() as engine:
        renderer = None if engine.tokenizer is None else ChatRenderer(engine.tokenizer)
        current = requests_of(engine, texts(6))
        for turn in range(3):
            engine.submit(current)
            got = {c.id: c for c in drain(engine)}
            assert got.keys() == {r.id for r in current}
            fresh = [replace(r, id=f"fresh {r.id}", continues=None) for r in current]
            anew = answers(engine, fresh)
            agree(subject, (said(got[r.id]) for r in current), (said(anew[r.id]) for r in fresh))
            current = [_next_turn(r, got[r.id], renderer, turn) for r in current]
            # One dialogue in two goes on where it was, the other starts over.
            for request in current[1::2]:
                assert request.continues is not None
                engine.release(request.continues)
        for request in current[::2]:
            assert request.continues is not None
            engine.release(request.continues)


def _next_turn(request: Request, got: Completion, renderer: ChatRenderer | None, turn: int) -> Request:
    said_by = (Message(role="assistant", content=got.text), Message(role="user", content="again"))
    ids = None
    if renderer is not None and request.token_ids is not None and got.token_ids is not None:
        stopped = got.finish_reason == "stop"
        ids = renderer.next_ids(request.token_ids, got.token_ids, "again", stopped=stopped)
        assert ids[: len(request.token_ids) + len(got.token_ids)] == (*request.token_ids, *got.token_ids)
    name = f"{request.id.partition('/')[0]}/{turn + 2}"
    return replace(
        request, id=name, messages=(*request.messages, *said_by), token_ids=ids, continues=request.id
    )


def check_dialogues_are_those_of_a_serial_run(subject: Subject) -> None:
    """Greedy ones always, sampled ones if the engine is seeded, with the ids that were sampled in them."""
    problems = [make_problem((Message(role="user", content=text),), text) for text in texts(8)]
    temperatures = [0.0]
    with subject.opened() as engine:
        temperatures += [1.0] if engine.seeded else []
        for temperature in temperatures:
            together, serial = Recorder(engine), Serial(engine)
            first = dialogues(problems, together, temperature)
            second = dialogues(problems, serial, temperature)
            assert serial.most == 1
            assert len(first) == len(problems) * 2
            assert len({t.length for t in first}) > 1, "every dialogue is equally long"
            agree(subject, map(content, first), map(content, second))
            for trajectory in first:
                check_token_truth(together, trajectory)


def dialogues(problems: Sequence[Problem], engine: Engine, temperature: float) -> list[Trajectory]:
    config = RolloutConfig(
        samples=2,
        protocol=Protocol(max_turns=3),
        sampling=Sampling(temperature=temperature, max_new_tokens=TOKENS),
        seed=3,
    )
    return sorted(sample(problems, engine, HashVerifier(), config), key=lambda t: t.key)


def content(trajectory: Trajectory) -> Any:
    return trajectory.key, trajectory.turns, trajectory.token_ids, trajectory.ended


def check_token_truth(recorder: Recorder, trajectory: Trajectory) -> None:
    """The trajectory's ids begin with those of every request of it and of every response, as sampled."""
    if trajectory.token_ids is None:
        return
    assert trajectory.response_spans is not None
    for turn, (start, end) in enumerate(trajectory.response_spans, 1):
        name = f"{trajectory.prompt_id}/{trajectory.round}/{trajectory.sample}/{turn}"
        assert recorder.asked[name].token_ids == trajectory.token_ids[:start]
        assert recorder.got[name].token_ids == trajectory.token_ids[start:end]


class HashVerifier:
    """Judges by a hash of the response: about one in four is right, so dialogues differ in length."""

    name = "hash/1"

    def check_target(self, target: str) -> None:
        """Any target will do."""

    def verify(self, response: str, target: str) -> Verified:
        """Right for a quarter of all pairs of response and target."""
        digest = hashlib.sha256(f"{response}/{target}".encode()).digest()
        return Verified(answer=response, verdict="correct" if digest[0] % 4 == 0 else "wrong")


class Recorder:
    """An engine that passes everything on and notes requests and completions."""

    def __init__(self, engine: Engine) -> None:
        self.asked: dict[str, Request] = {}
        self.got: dict[str, Completion] = {}
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, requests: Sequence[Request]) -> None:
        """Note and pass on."""
        self.asked |= {request.id: request for request in requests}
        self._engine.submit(requests)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Pass on and note."""
        batch = self._engine.poll(timeout)
        self.got |= {completion.id: completion for completion in batch}
        return batch


class Serial:
    """An engine that is asked one request at a time."""

    def __init__(self, engine: Engine) -> None:
        self.most = 0
        self._engine = engine
        self._waiting: list[Request] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, requests: Sequence[Request]) -> None:
        """Hold them back."""
        self._waiting += requests

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Ask for the next one and wait for it."""
        if not self._waiting:
            return []
        self._engine.submit([self._waiting.pop(0)])
        batch = self._engine.poll()
        self.most = max(self.most, len(batch))
        return batch

    def release(self, request_id: str) -> None:
        """Pass on, or forget what is held back."""
        self._waiting = [request for request in self._waiting if request.id != request_id]
        self._engine.release(request_id)


def check_closing_twice(subject: Subject) -> None:
    """With requests in flight, too."""
    engine = subject.make()
    with closing(engine):
        engine.submit(requests_of(engine, texts(5)))
    engine.close()


Check = Callable[[Subject], None]

CONTRACT: tuple[Check, ...] = (
    check_description,
    check_every_id_comes_back_once,
    check_polls_keep_their_time,
    check_released_requests_never_come,
    check_ids_can_be_used_again,
    check_duplicates_are_refused,
    check_greedy_is_deterministic,
    check_seeds,
    check_ends,
    check_logprobs,
    check_bad_prompts_fail_alone,
    check_continuations,
    check_dialogues_are_those_of_a_serial_run,
    check_closing_twice,
)

names = [check.__name__.removeprefix("check_") for check in CONTRACT]
