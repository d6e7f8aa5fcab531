"""Tokens that were sampled are the tokens that are trained: from the engine to the loss mask."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_rollout import Completion, ExactVerifier, RolloutConfig, ScriptedEngine, make_problem, sample
from drift_rollout.engine import Request
from drift_train import encode, step_batch
from drift_weights import Message, to_table, weighted_turns
from tiny import bpe_tokenizer

TOKENIZERS = {
    "pad≠eos": bpe_tokenizer(),
    "no pad": bpe_tokenizer(pad=False),
    "bos": bpe_tokenizer(bos=True),
}
ENDINGS = st.sampled_from(["<|im_end|>", "<|endoftext|>", None])
PROBLEM = make_problem((Message(role="user", content="what is 1 + 2"),), "3")


def speak(tokenizer, turns: list[tuple[str, str | None]]) -> Callable[[Request], Completion]:
    """Says each text one character at a time, so its ids are not those of the text."""

    def script(request: Request) -> Completion:
        text, end = turns[sum(m.role == "assistant" for m in request.messages)]
        ids = [i for c in text for i in tokenizer(c, add_special_tokens=False)["input_ids"]]
        if end is not None:
            ids.append(tokenizer.convert_tokens_to_ids(end))
        reason = "length" if end is None else "stop"
        return Completion(id=request.id, text=text, token_ids=tuple(ids), finish_reason=reason)

    return script


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    texts=st.lists(st.sampled_from(["9", "no", "so <answer> 7 </answer>"]), max_size=4),
    solved=st.booleans(),
    endings=st.lists(ENDINGS, min_size=5, max_size=5),
)
@settings(max_examples=30, deadline=None)
def test_the_loss_sees_exactly_the_sampled_terminal_turn(name, texts, solved, endings) -> None:
    tokenizer = TOKENIZERS[name]
    texts = [*texts, "<answer> 3 </answer>"] if solved else (texts + ["no"] * 5)[:5]
    engine = ScriptedEngine(speak(tokenizer, list(zip(texts, endings, strict=False))), tokenizer=tokenizer)
    trajectories = list(sample([PROBLEM], engine, ExactVerifier(), RolloutConfig(samples=2)))
    turns, _ = weighted_turns(to_table(trajectories))
    examples = encode(turns, vocab_size=len(tokenizer), source="here").examples
    everyone = np.arange(len(examples))
    (batch,) = step_batch(examples, np.ones(len(examples)), everyone, micro_tokens=10**6).micro_batches
    (row,) = batch.input_ids.tolist()
    last = max((r for r in engine.requests), key=lambda r: len(r.messages))
    spoken = list(engine._script(last).token_ids)
    targets = [batch.target_R[batch.example_R == n].tolist() for n in range(len(examples))]
    sources = [batch.source_R[batch.example_R == n].tolist() for n in range(len(examples))]
    for example, target, source in zip(examples, targets, sources, strict=True):
        (span,) = example.spans
        assert example.input_ids[slice(*span)].tolist() == spoken
        assert example.input_ids[: span[0]].tolist() == list(last.token_ids)
        assert target == spoken
        assert [row[at] for at in source] == [last.token_ids[-1], *spoken[:-1]]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_all_turns_are_supervised_by_a_mask_on_the_same_ids(name) -> None:
    tokenizer = TOKENIZERS[name]
    script = speak(tokenizer, [("no", "<|im_end|>"), ("never", None), ("<answer> 3 </answer>", None)])
    engine = ScriptedEngine(script, tokenizer=tokenizer)
    table = to_table(sample([PROBLEM], engine, ExactVerifier(), RolloutConfig(samples=1)))
    turns, _ = weighted_turns(table)
    (example,) = encode(turns, vocab_size=len(tokenizer), source="here", supervise="all").examples
    spoken = [list(script(request).token_ids) for request in engine.requests]
    assert [example.input_ids[slice(*span)].tolist() for span in example.spans] == spoken
