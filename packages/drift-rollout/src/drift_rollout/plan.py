"""What a run is going to do, said before it does it: counts, the first prompt, what a template changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from drift_rollout.problems import Problem, ProblemSet
from drift_rollout.rendering import ChatRenderer
from drift_rollout.sampler import RolloutConfig
from drift_weights.names import check_model

_SHOWN = 48
"""Tokens of the first prompt that a dry run shows."""


def print_plan(console: Console, found: ProblemSet, config: RolloutConfig, engine: str) -> None:
    """Print how many dialogues it will be, and of what size."""
    count = len(found.problems)
    repeated = f" ({found.repeated} repeated rows are left out)" if found.repeated else ""
    turns, tokens = config.protocol.max_turns, config.sampling.max_new_tokens
    console.print(
        f"{count:,} problems{repeated} × {config.samples} samples = {count * config.samples:,} "
        f"trajectories, at most {turns} turns of {tokens} tokens each, by {engine}",
        highlight=False,
    )


def print_first_prompt(console: Console, problem: Problem, tokenizer: Any, config: RolloutConfig) -> None:
    """Print the first problem's prompt as the policy will see it, and its first tokens."""
    renderer = ChatRenderer(tokenizer, config.prefill)
    ids = renderer.prompt_ids(problem.messages)
    console.print("first prompt:", highlight=False)
    console.print(tokenizer.decode(ids), markup=False, highlight=False, soft_wrap=True)
    words = tokenizer.convert_ids_to_tokens(list(ids[:_SHOWN]))
    more = f" … ({len(ids)} in all)" if len(ids) > _SHOWN else ""
    shown = " ".join(f"{number}:{word!r}" for number, word in zip(ids, words, strict=False))
    console.print(f"tokens: {shown}{more}", markup=False, highlight=False, soft_wrap=True)
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


def load_tokenizer(name: str, revision: str | None) -> Any:
    """A model's tokenizer, for a run that loads no model.

    Raises:
        ValueError: transformers is not installed.
        OSError: it is not there; a stand-in may be named.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install drift-rollout[transformers]") from error
    try:
        return AutoTokenizer.from_pretrained(check_model(name), revision=revision)
    except OSError as error:
        raise OSError(
            f"{error} A dry run needs the model's tokenizer alone: a folder that holds it does, by "
            "--stand_in"
        ) from error


def pilot_problems(problems: Sequence[Problem], count: int) -> tuple[Problem, ...]:
    """So many problems, whatever the order of the file: those whose ids, which are hashes, come first.

    Raises:
        ValueError: count below 1.
    """
    if count < 1:
        raise ValueError(f"pilot must be at least 1, got {count}")
    return tuple(sorted(problems, key=lambda problem: problem.prompt_id)[:count])
