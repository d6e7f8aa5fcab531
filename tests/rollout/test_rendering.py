"""Histories by the templates of four families: ids that only grow, one BOS, what would be rendered anew."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from drift_rollout import Completion, ExactVerifier, RolloutConfig, ScriptedEngine, make_problem, sample
from drift_rollout.engine import Request
from drift_rollout.protocol import FEEDBACK, Protocol
from drift_rollout.rendering import ChatRenderer
from drift_weights import Message
from tiny import bpe_tokenizer

QWEN25 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, with a system message of its own where there is none."""
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1].lstrip() }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML that drops the thinking of earlier turns."""
THINKING = QWEN3.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
"""The same, opening the thought itself."""
LLAMA3 = (
    "<|bos|>{% for m in messages %}<|header|>{{ m.role }}<|/header|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEMPLATES = {
    "qwen2.5": (QWEN25, "<|im_end|>"),
    "qwen3": (QWEN3, "<|im_end|>"),
    "thinking": (THINKING, "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot|>"),
    "phi": (PHI, "<|end|>"),
}
SPECIAL = ["<|header|>", "<|/header|>", "<|eot|>", "<|user|>", "<|assistant|>", "<|end|>"]


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    template, end = TEMPLATES[name]
    tokenizer = bpe_tokenizer(bos=name == "llama3")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template, tokenizer.eos_token = template, end
    return tokenizer


def dialogue(tokenizer: PreTrainedTokenizerFast, answers: list[str], prefill: str = "") -> ScriptedEngine:
    """One dialogue of these responses, each ended by the turn end; returns the engine with its requests."""
    end = tokenizer.eos_token_id

    def script(request: Request) -> Completion:
        text = answers[sum(m.role == "assistant" for m in request.messages)]
        ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], end)
        return Completion(id=request.id, text=text, token_ids=ids, logprobs=(-1.0,) * len(ids))

    engine = ScriptedEngine(script, tokenizer=tokenizer)
    problem = make_problem((Message(role="user", content="what is 1 + 2"),), "3")
    config = RolloutConfig(samples=1, protocol=Protocol(max_turns=len(answers)), prefill=prefill)
    (engine.made,) = sample([problem], engine, ExactVerifier(), config)
    return engine


@pytest.mark.parametrize("name", TEMPLATES)
def test_histories_only_grow(name: str) -> None:
    """x_{t+1} = x_t + what was sampled + the template's words around f, and never anything else."""
    tokenizer = tokenizer_of(name)
    answers = ["<think> hm </think> <answer> 1 </answer>", "<answer> 2 </answer>", "<answer> 3 </answer>"]
    engine = dialogue(tokenizer, answers)
    prompts = [request.token_ids for request in engine.requests]
    for before, after, answer in zip(prompts, prompts[1:], answers, strict=False):
        sampled = (*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
        assert after[: len(before) + len(sampled)] == (*before, *sampled)
        between = tokenizer.decode(after[len(before) + len(sampled) :])
        assert between.count(FEEDBACK) == 1
        assert not between.startswith(tokenizer.eos_token), "the turn end was sampled, and stands once"
    bos = tokenizer.bos_token_id
    assert all(prompt.count(bos) == (name == "llama3") for prompt in prompts)
    spans = engine.made.response_spans
    found = [tokenizer.decode(engine.made.token_ids[start : end - 1]) for start, end in spans]
    assert found == answers


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("qwen2.5", []),
        ("qwen3", ["earlier thoughts"]),
        ("thinking", ["earlier answers", "earlier thoughts"]),
        ("llama3", []),
        ("phi", []),
    ],
)
def test_what_a_template_would_change_is_said(name: str, wanted: list[str]) -> None:
    found = ChatRenderer(tokenizer_of(name)).deviations(FEEDBACK)
    assert [next(what for what in wanted if what in each) for each in found] == wanted


def test_two_bos_are_refused() -> None:
    tokenizer = tokenizer_of("llama3")
    tokenizer.chat_template = "<|bos|>" + LLAMA3
    with pytest.raises(ValueError, match="puts 2 BOS tokens before a dialogue"):
        ChatRenderer(tokenizer)


def test_a_prefill_is_history_and_not_response() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    answers = ["hm </think> <answer> 1 </answer>", "well </think> <answer> 3 </answer>"]
    engine = dialogue(tokenizer, answers, prefill="<think>\n")
    prompts = [request.token_ids for request in engine.requests]
    assert all(tokenizer.decode(prompt).endswith("assistant\n<think>\n") for prompt in prompts)
    made = engine.made
    assert made.solved
    found = [tokenizer.decode(made.token_ids[start : end - 1]) for start, end in made.response_spans]
    assert found == answers
    assert tuple(made.token_ids[: made.response_spans[-1][0]]) == prompts[1]


@pytest.mark.parametrize(("name", "prefill"), [("qwen2.5", "<think>\n"), ("thinking", "")])
def test_a_thought_that_is_opened_for_the_policy_has_to_be_closed(name: str, prefill: str) -> None:
    """An answer inside it is no answer, though the response itself holds no <think>."""
    engine = dialogue(tokenizer_of(name), ["perhaps <answer> 3 </answer>"], prefill)
    assert [turn.verdict for turn in engine.made.turns] == ["malformed"]


def test_a_prefill_needs_tokens() -> None:
    engine = ScriptedEngine(lambda request: Completion(id=request.id, text=""))
    problem = make_problem((Message(role="user", content="q"),), "3")
    with pytest.raises(ValueError, match="a prefill needs an engine with a tokenizer"):
        next(sample([problem], engine, ExactVerifier(), RolloutConfig(prefill="<think>")))
