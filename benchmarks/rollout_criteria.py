"""What an embedded engine has to do for a rollout, each checked by a few requests.

Every check opens an engine of its own, so that one which kills its engine says nothing about the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from drift_rollout.engine import Completion, Engine, EngineError, Request, Sampling

GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
PLAIN = Sampling(max_new_tokens=24)
BENT = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=24)
PROMPT, FEEDBACK = 150, 20
"""Tokens of a first prompt, and of what stands between a response and the next."""
CLOSE = 1e-3
"""Log-probabilities that differ by less are equal: the batches they come from are not."""


class Open(Protocol):
    """Opens an engine for requests of one kind."""

    def __call__(self, sampling: Sampling, *, varied: bool = False, pass_seed: bool = False) -> Engine:
        """`varied`: requests differ in temperature and top-p. `pass_seed`: a seed must be taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a check found."""

    met: bool
    note: str


def check(open_engine: Open, model: Any) -> dict[str, Found]:
    """All criteria of one engine, in the order of the table."""
    found = {}
    for name, criterion in CRITERIA.items():
        try:
            found[name] = criterion(open_engine, model)
        except EngineError as error:
            found[name] = Found(met=False, note=_first_line(error))
    return found


def token_ids(open_engine: Open, model: Any) -> Found:
    """As many ids as asked for, or fewer with a stop at the end; the text is theirs."""
    with _opened(open_engine(PLAIN)) as engine:
        answer = _ask(engine, [_request("a", _prompt(1), PLAIN)])["a"]
        ids = answer.token_ids or ()
        shown = ids[:-1] if answer.finish_reason == "stop" else ids
        whole = len(ids) == PLAIN.max_new_tokens or answer.finish_reason == "stop"
        met = whole and engine.tokenizer.decode(shown) == answer.text
    return Found(met=met, note=f"{len(ids)} ids")


def plain_logprobs(open_engine: Open, model: Any) -> Found:
    """At temperature 1, without top-p."""
    return _logprobs(open_engine, model, PLAIN)


def bent_logprobs(open_engine: Open, model: Any) -> Found:
    """At temperature 0.7, with top-p 0.9: still those of the model as it is."""
    return _logprobs(open_engine, model, BENT)


def seeds(open_engine: Open, model: Any) -> Found:
    """A request's answer is the same alone and among seven others; another seed's is another."""
    request = _request("a", _prompt(1), PLAIN, seed=5)
    others = [_request(f"b{n}", _prompt(2 + n), PLAIN, seed=n) for n in range(7)]
    twin = _request("c", _prompt(1), PLAIN, seed=5)
    different = _request("d", _prompt(1), PLAIN, seed=6)
    with _opened(open_engine(PLAIN)) as engine:
        alone = _ask(engine, [request])["a"]
        engine.release("a")
        company = _ask(engine, [*others, different, request, twin])
    equal = alone.token_ids == company["a"].token_ids == company["c"].token_ids
    apart = alone.token_ids != company["d"].token_ids
    return Found(met=equal and apart, note="answers equal" if equal else "answers differ")


def takes_seed(open_engine: Open, model: Any) -> Found:
    """A seed handed over with a request is taken."""
    with _opened(open_engine(PLAIN, pass_seed=True)) as engine:
        answer = _ask(engine, [_request("a", _prompt(1), PLAIN, seed=5)])["a"]
    return Found(met=answer.error is None, note=_first_line(answer.error or "taken"))


def temperatures(open_engine: Open, model: Any) -> Found:
    """Of two requests in one batch one has a top-p that leaves the likeliest token alone."""
    narrow = Sampling(temperature=0.9, top_p=1e-6, max_new_tokens=24)
    wide = Sampling(temperature=1.5, top_p=0.99, max_new_tokens=24)
    with _opened(open_engine(BENT, varied=True)) as engine:
        answers = _ask(engine, [_request("a", _prompt(1), narrow), _request("b", _prompt(1), wide)])
    likeliest = _generate(model, _prompt(1), 24)
    met = answers["a"].token_ids == likeliest and answers["b"].token_ids != likeliest
    return Found(met=met, note=_first_line(answers["a"].error or "each its own"))


def greedy_beside_sampled(open_engine: Open, model: Any) -> Found:
    """Of two requests in one batch one has temperature 0."""
    with _opened(open_engine(BENT, varied=True)) as engine:
        answers = _ask(engine, [_request("a", _prompt(1), GREEDY), _request("b", _prompt(2), BENT)])
    met = answers["a"].token_ids == _generate(model, _prompt(1), 24) and answers["b"].error is None
    return Found(met=met, note=_first_line(answers["a"].error or "each its own"))


def carried(open_engine: Open, model: Any) -> Found:
    """Of a second turn's history, all that was there before is not computed again, but for a block."""
    with _opened(open_engine(PLAIN)) as engine:
        first = _request("a", _prompt(1), PLAIN)
        said = _ask(engine, [first])["a"].token_ids or ()
        history = (*_prompt(1), *said, *_prompt(9)[:FEEDBACK])
        with _fed(model) as tokens:
            answer = _ask(engine, [_request("b", history, PLAIN, continues="a")])["b"]
    computed = sum(tokens) - (len(answer.token_ids or ()) - 1)
    reusable = len(history) - FEEDBACK - 1
    return _share(len(history) - computed, reusable)


def shared(open_engine: Open, model: Any) -> Found:
    """Eight samples compute their prompt once, but for its last block."""
    requests = [_request(str(n), _prompt(1), PLAIN, seed=n) for n in range(8)]
    with _opened(open_engine(PLAIN)) as engine, _fed(model) as tokens:
        answers = _ask(engine, requests)
    computed = sum(tokens) - sum(len(answer.token_ids or ()) - 1 for answer in answers.values())
    return _share(8 * PROMPT - computed, 7 * (PROMPT - 1))


def on_cpu(open_engine: Open, model: Any) -> Found:
    """Thirty-two requests of many lengths on a CPU."""
    requests = [_request(str(n), _prompt(n)[: 20 + 4 * n], PLAIN, seed=n) for n in range(32)]
    with _opened(open_engine(PLAIN)) as engine:
        answers = _ask(engine, requests)
    failures = [answer.error for answer in answers.values() if answer.error is not None]
    met = model.device.type == "cpu" and not failures and len(answers) == 32
    return Found(met=met, note=_first_line(failures[0]) if failures else f"{len(answers)} answers")


def greedy(open_engine: Open, model: Any) -> Found:
    """Sixteen prompts of many lengths, in one batch and by `generate` one at a time."""
    prompts = [_prompt(n)[: 30 + 7 * n] for n in range(16)]
    with _opened(open_engine(GREEDY)) as engine:
        answers = _ask(engine, [_request(str(n), ids, GREEDY) for n, ids in enumerate(prompts)])
    equal = [answers[str(n)].token_ids == _generate(model, ids, 24) for n, ids in enumerate(prompts)]
    return Found(met=all(equal), note=f"{sum(equal)} of {len(equal)}")


CRITERIA: dict[str, Callable[[Open, Any], Found]] = {
    "token ids out": token_ids,
    "the model's log-probabilities": plain_logprobs,
    "… also at temperature 0.7, top-p 0.9": bent_logprobs,
    "takes a seed with a request": takes_seed,
    "equal seeds, equal answers in any batch": seeds,
    "temperature and top-p of each request": temperatures,
    "greedy beside sampled requests": greedy_beside_sampled,
    "cache carried over turns": carried,
    "samples share the prompt": shared,
    "works on CPU": on_cpu,
    "greedy tokens of `generate`": greedy,
}


@contextmanager
def _opened(engine: Engine) -> Iterator[Engine]:
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def _fed(model: Any) -> Iterator[list[int]]:
    """Tokens of each pass through the model."""
    sizes: list[int] = []

    def note(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        sizes.append(named["input_ids"].numel())

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


def _ask(engine: Engine, requests: Sequence[Request]) -> dict[str, Completion]:
    engine.submit(requests)
    answers: dict[str, Completion] = {}
    while len(answers) < len(requests):
        answers |= {completion.id: completion for completion in engine.poll()}
    return answers


def _request(
    name: str, ids: Sequence[int], sampling: Sampling, *, seed: int = 0, continues: str | None = None
) -> Request:
    return Request(
        id=name, messages=(), token_ids=tuple(ids), sampling=sampling, seed=seed, continues=continues
    )


def _prompt(number: int) -> tuple[int, ...]:
    """Bytes of noise, different from the first one on."""
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(0, 256, (PROMPT,), generator=generator).tolist())


def _logprobs(open_engine: Open, model: Any, sampling: Sampling) -> Found:
    with _opened(open_engine(sampling)) as engine:
        answer = _ask(engine, [_request("a", _prompt(1), sampling)])["a"]
    ids = torch.tensor([[*_prompt(1), *(answer.token_ids or ())]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, PROMPT - 1 : -1].float()
    wanted = logits.log_softmax(-1).gather(1, ids[0, PROMPT:, None])[:, 0]
    given = torch.tensor(answer.logprobs or ())
    if given.shape != wanted.shape:
        return Found(met=False, note=f"{len(given)} for {len(wanted)} tokens")
    off = float((given - wanted).abs().max())
    return Found(met=off < CLOSE, note="equal" if off < CLOSE else f"up to {off:.2g} off")


@torch.inference_mode()
def _generate(model: Any, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, pad_token_id=0
    )
    return tuple(out[0, len(prompt) :].tolist())


def _share(saved: int, reusable: int) -> Found:
    # A last block of 16 tokens that is not full is not shared, and is no reason to call it absent.
    return Found(met=saved >= 0.85 * reusable, note=f"{saved / reusable:.0%} of reusable prefill")


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]
