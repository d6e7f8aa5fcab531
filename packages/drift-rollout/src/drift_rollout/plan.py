"""What a run is going to do, said before it does it: counts, the first prompt, what a template changes."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from drift_rollout.problems import Problem, ProblemSet, golds_that_fail
from drift_rollout.rendering import ChatRenderer
from drift_rollout.sampler import RolloutConfig
from drift_rollout.verify import Verifier

_SHOWN = 48
"""Tokens of the first prompt that a dry run shows."""


def print_plan(console: Console, found: ProblemSet, config: RolloutConfig, engine: str) -> None:
    """Print how many dialogues it will be, and of what size."""
    count = len(found.problems)
    turns, tokens = config.protocol.max_turns, config.sampling.max_new_tokens
    console.print(
        f"{found} × {config.samples} samples = {count * config.samples:,} "
        f"trajectories, at most {turns} turns of {tokens} tokens each, by {engine}",
        highlight=False,
        soft_wrap=True,
    )


def print_golds(console: Console, found: ProblemSet, judge: Verifier) -> None:
    """List the golds that fail their own verifier.

    Raises:
        ValueError: there are any.
    """
    failed = golds_that_fail(found.problems, judge)
    for gold in failed:
        console.print(str(gold), markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(found.problems)} golds fail {judge.name}; mend or remove them, or "
            "choose another verifier"
        )
    console.print(f"{found}; every gold passes {judge.name}", highlight=False, soft_wrap=True)


def print_first_prompt(console: Console, problem: Problem, tokenizer: Any, config: RolloutConfig) -> None:
    """Print the first problem's prompt as the policy will see it, and its first tokens.

    Args:
        tokenizer: None if it is not known; then the messages are printed.
    """
    if tokenizer is None:
        for message in problem.messages:
            _print(console, f"[{message.role}]\n{message.content}")
        _print(console, "tokens: the model's tokenizer is not on this machine; --stand_in FOLDER names one")
        return
    renderer = ChatRenderer(tokenizer, config.prefill)
    ids = renderer.prompt_ids(problem.messages)
    _print(console, f"first prompt:\n{tokenizer.decode(ids)}")
    words = tokenizer.convert_ids_to_tokens(list(ids[:_SHOWN]))
    more = f" … ({len(ids)} in all)" if len(ids) > _SHOWN else ""
    shown = " ".join(f"{number}:{word!r}" for number, word in zip(ids, words, strict=False))
    _print(console, f"tokens: {shown}{more}")
    print_notes(console, tokenizer, config)


def print_notes(console: Console, tokenizer: Any, config: RolloutConfig) -> None:
    """Print what a user should know of the chat template; nothing for an engine that takes messages."""
    if tokenizer is None:
        return
    for note in ChatRenderer(tokenizer, config.prefill).deviations(config.protocol.feedback):
        console.print(
            f"[bold yellow]Note:[/] {note}; what is sampled and trained is appended and stays as it was, "
            "but whoever renders the dialogue anew shows the policy another history",
            highlight=False,
        )


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
