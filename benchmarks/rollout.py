"""Schedules of a rollout: ours, a turn barrier, and the authors' barrier with sub-batches of 256 requests.

uv run benchmarks/rollout.py --out results.json      simulated, and a tiny model on the real engine
uv run benchmarks/rollout.py --quick                 32 prompts alone

The simulated engine (benchmarks/rollout_simulated.py) has a clock of its own, so its figures are exact and
the same everywhere. On the real one the schedules take turns, three rounds by default, and the medians of
their wall times are compared. Before anything is printed, the simulated dialogues of all schedules are held
against each other, and what each says greedily against one request at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from rollout_schedules import SCHEDULES, serial
from rollout_simulated import PER_SLOT, SLOTS, STEP, SimulatedEngine
from tokenizers import Tokenizer, models, pre_tokenizers

from drift_rollout import ExactVerifier, Verified
from drift_rollout.engine import Sampling
from drift_rollout.engines.transformers import TransformersEngine
from drift_rollout.problems import Problem, make_problem
from drift_rollout.protocol import Protocol
from drift_rollout.sampler import RolloutConfig
from drift_weights.types import Message

PROMPTS = (32, 256, 1800)
SAMPLES, TURNS = 16, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """One schedule on the simulated engine."""

    schedule: str
    prompts: int
    seconds: float
    decoded: int
    reuse: float
    """Share of the reusable prefill that was reused."""
    full: float
    """Its speed against slots that are always full, in (0, 1]."""


def main() -> None:
    """Measure, compare, show."""
    options = _options()
    console = Console()
    simulated = [
        row for prompts in (PROMPTS[:1] if options.quick else PROMPTS) for row in simulate(prompts)
    ]
    _show_simulated(console, simulated)
    real = measure(prompts=4 if options.quick else 32, rounds=1 if options.quick else options.rounds)
    _show_real(console, real)
    if options.out:
        rows = [{name: getattr(row, name) for name in row.__slots__} for row in simulated]
        options.out.write_text(json.dumps({"simulated": rows, "real": real}, indent=2) + "\n")


def simulate(prompts: int) -> list[Simulated]:
    """Every schedule on the same dialogues.

    Raises:
        ValueError: two schedules did not have the same dialogues.
    """
    problems = [_problem(f"question {n}", "right") for n in range(prompts)]
    config = RolloutConfig(samples=SAMPLES, protocol=Protocol(max_turns=TURNS))
    rows, said = [], {}
    for name, schedule in SCHEDULES.items():
        engine = SimulatedEngine()
        said[name] = schedule(problems, engine, ExactVerifier(), config)
        ideal = engine.decoded / SLOTS * (STEP + PER_SLOT * SLOTS)
        rows.append(
            Simulated(
                schedule=name,
                prompts=prompts,
                seconds=engine.seconds,
                decoded=engine.decoded,
                reuse=engine.reused / engine.reusable,
                full=ideal / engine.seconds,
            )
        )
    _same(said)
    return rows


def measure(prompts: int, rounds: int) -> dict[str, Any]:
    """Every schedule on a tiny model, in turns: wall seconds; then their greedy dialogues.

    Raises:
        ValueError: a schedule said greedily what one request at a time does not say.
    """
    torch.set_num_threads(1)
    model, tokenizer = tiny_policy()
    problems = [_problem(f"question {n} of {n * n}", "right") for n in range(prompts)]
    config = RolloutConfig(
        samples=SAMPLES, protocol=Protocol(max_turns=TURNS), sampling=Sampling(max_new_tokens=48)
    )
    seconds: dict[str, list[float]] = {name: [] for name in SCHEDULES}
    names = list(SCHEDULES)
    for round_ in range(rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            engine = TransformersEngine(model, tokenizer=tokenizer, max_slots=512)
            start = time.perf_counter()
            SCHEDULES[name](problems, engine, Chance(), config)
            seconds[name].append(time.perf_counter() - start)
            engine.close()
    greedy = RolloutConfig(
        samples=1,
        protocol=config.protocol,
        sampling=Sampling(temperature=0.0, max_new_tokens=16),
    )
    said = {}
    for name in names:
        engine = TransformersEngine(model, tokenizer=tokenizer)
        said[name] = SCHEDULES[name](problems, engine, Chance(), greedy)
    engine = TransformersEngine(model, tokenizer=tokenizer)
    said["serial"] = serial(problems, engine, Chance(), greedy)
    _same(said)
    return {"prompts": prompts, "seconds": seconds, "greedy_dialogues": len(said["serial"])}


class Chance:
    """Right for about a third of all texts, by their hash: a model of noise solves nothing."""

    name = "chance/1"

    def check_target(self, target: str) -> None:
        """Any target will do."""

    def verify(self, response: str, target: str) -> Verified:
        """By the bytes of the response."""
        right = sum(response.encode()) % 20 < 7
        return Verified(answer=response[:8], verdict="correct" if right else "wrong")


def tiny_policy() -> tuple[Any, Any]:
    """A Qwen2 of noise, and a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*alphabet, "<|im_start|>", "<|im_end|>"])}
    core = Tokenizer(models.BPE(vocab=words, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval(), tokenizer


def _problem(text: str, target: str) -> Problem:
    return make_problem((Message(role="user", content=text),), target)


def _same(said: dict[str, Any]) -> None:
    first, *others = said
    for name in others:
        if said[name] != said[first]:
            raise ValueError(f"{name} and {first} did not have the same dialogues")


def _show_simulated(console: Console, rows: list[Simulated]) -> None:
    table = Table(title=f"Simulated engine, {SLOTS} slots, K = {SAMPLES}, T = {TURNS}")
    for heading in ("prompts", "schedule", "s", "÷ ours", "of full slots", "prefill reused"):
        table.add_column(heading, justify="left" if heading == "schedule" else "right")
    for row in rows:
        own = next(r for r in rows if r.prompts == row.prompts and r.schedule == "ours")
        cells = (f"{row.seconds:,.1f}", f"{row.seconds / own.seconds:.2f}", f"{row.full:.1%}")
        table.add_row(str(row.prompts), row.schedule, *cells, f"{row.reuse:.1%}")
    console.print(table)


def _show_real(console: Console, real: dict[str, Any]) -> None:
    medians = {name: statistics.median(values) for name, values in real["seconds"].items()}
    rounds = len(real["seconds"]["ours"])
    table = Table(
        title=f"The transformers engine, a tiny Qwen2, {real['prompts']} prompts, rounds: {rounds}"
    )
    for heading in ("schedule", "s", "÷ ours"):
        table.add_column(heading, justify="left" if heading == "schedule" else "right")
    for name, value in medians.items():
        table.add_row(name, f"{value:.1f}", f"{value / medians['ours']:.2f}")
    console.print(table)
    console.print(
        f"{real['greedy_dialogues']} greedy dialogues: every schedule said what a serial run says."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
