"""The embedded engine: our decode loop against transformers' own continuous batching manager.

OMP_NUM_THREADS=1 uv run benchmarks/rollout_embedded.py --out results.json
OMP_NUM_THREADS=1 uv run benchmarks/rollout_embedded.py --quick     small, one round

Both answer the same loop (`drift_rollout.sampler`) about the same tiny model in this process, one after
the other, in an order that rotates from round to round. What is compared is the time of a sampled token, by
the wall clock and by the processor's; prefill is in it, opening is not. The manager runs at two widths, as
its attention mask spans all tokens of a batch. Then each engine is held to what a rollout needs
(benchmarks/rollout_criteria.py).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rollout_criteria import Found, check
from rollout_manager import ManagerEngine

from drift_rollout.engine import Engine, Sampling
from drift_rollout.engines.transformers import TransformersEngine
from drift_rollout.problems import Problem, make_problem
from drift_rollout.protocol import Protocol
from drift_rollout.sampler import RolloutConfig, sample
from drift_weights.types import Message
from rollout import Chance, tiny_policy

TURNS, TOKENS = 5, 48
KINDS = {"sampled": 1.0, "greedy": 0.0}
"""Temperatures."""
Dialogues = dict[tuple[str, int], tuple[str, ...]]
"""(prompt_id, sample) → what was said, turn by turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One rollout of one engine."""

    kind: str
    engine: str
    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all threads."""
    tokens: int
    """That were sampled."""


def main() -> None:
    """Measure, compare, show."""
    options = _options()
    # A request that it refuses is a row of the table, not a traceback on the screen.
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL + 1)
    torch.set_num_threads(1)
    model, tokenizer = tiny_policy()
    prompts, samples, rounds = (1, 2, 1) if options.quick else (options.prompts, 8, options.rounds)
    runs, equal = measure(model, tokenizer, prompts=prompts, samples=samples, rounds=rounds)
    found = criteria(model, tokenizer)
    console = Console()
    _show_runs(console, runs, title=f"{prompts} prompts, K = {samples}, T = {TURNS}, rounds: {rounds}")
    for name, share in equal.items():
        console.print(f"{name}: {share:.0%} of the greedy dialogues are ours")
    _show_criteria(console, found)
    if options.out:
        facts = {
            engine: {name: asdict(row) for name, row in rows.items()} for engine, rows in found.items()
        }
        document = {"runs": [asdict(run) for run in runs], "equal": equal, "criteria": facts}
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def measure(
    model: Any, tokenizer: Any, *, prompts: int, samples: int, rounds: int
) -> tuple[list[Run], dict[str, float]]:
    """Every engine on the same problems, in turns; and which share of the greedy dialogues are ours."""
    contenders = _contenders(model, tokenizer, prompts * samples)
    problems = [_problem(number) for number in range(prompts)]
    names = list(contenders)
    runs: list[Run] = []
    said: dict[str, Dialogues] = {}
    for round_ in range(rounds):
        for kind, temperature in KINDS.items():
            sampling = Sampling(temperature=temperature, max_new_tokens=TOKENS)
            config = RolloutConfig(
                samples=samples, protocol=Protocol(max_turns=TURNS), sampling=sampling, seed=round_
            )
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                run, dialogues = _roll(kind, name, contenders[name], problems, config)
                runs.append(run)
                if kind == "greedy":
                    said[name] = dialogues
    ours = said["ours"]
    equal = {name: _equal(ours, said[name]) for name in names if name != "ours"}
    return runs, equal


def criteria(model: Any, tokenizer: Any) -> dict[str, dict[str, Found]]:
    """What each engine does of what a rollout needs."""

    def ours(sampling: Sampling, *, varied: bool = False, pass_seed: bool = False) -> Engine:
        return TransformersEngine(model, tokenizer=tokenizer)

    def manager(sampling: Sampling, *, varied: bool = False, pass_seed: bool = False) -> Engine:
        return ManagerEngine(
            model, tokenizer=tokenizer, sampling=sampling, width=32, varied=varied, pass_seed=pass_seed
        )

    return {"ours": check(ours, model), "manager": check(manager, model)}


def _contenders(model: Any, tokenizer: Any, dialogues: int) -> dict[str, Callable[[Sampling], Engine]]:
    def ours(sampling: Sampling) -> Engine:
        return TransformersEngine(model, tokenizer=tokenizer, max_slots=dialogues)

    def manager(width: int) -> Callable[[Sampling], Engine]:
        return lambda sampling: ManagerEngine(model, tokenizer=tokenizer, sampling=sampling, width=width)

    widths = sorted({dialogues, max(1, dialogues // 4)})
    return {"ours": ours} | {f"manager, {width} wide": manager(width) for width in widths}


def _roll(
    kind: str,
    name: str,
    open_engine: Callable[[Sampling], Engine],
    problems: list[Problem],
    config: RolloutConfig,
) -> tuple[Run, Dialogues]:
    engine = open_engine(config.sampling)
    wall, cpu = time.perf_counter(), time.process_time()
    rows = list(sample(problems, engine, Chance(), config))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    engine.close()
    if any(row.ended == "error" for row in rows):
        raise ValueError(f"{name} failed in {sum(row.ended == 'error' for row in rows)} dialogues")
    tokens = sum(end - start for row in rows for start, end in row.response_spans or ())
    run = Run(kind=kind, engine=name, wall=wall, cpu=cpu, tokens=tokens)
    return run, {(row.prompt_id, row.sample): tuple(turn.response for turn in row.turns) for row in rows}


def _equal(ours: Dialogues, others: Dialogues) -> float:
    return sum(ours[key] == others.get(key) for key in ours) / len(ours)


def _problem(number: int) -> Problem:
    text = f"Question {number}: " + " ".join(str((number + 3) * n * n) for n in range(1, 40))
    return make_problem((Message(role="user", content=text[:130]),), "right")


def _show_runs(console: Console, runs: list[Run], *, title: str) -> None:
    table = Table(title=f"A sampled token, a tiny Qwen2, one thread, {title}")
    for heading in ("kind", "engine", "tokens", "wall ms", "÷ ours", "CPU ms", "÷ ours"):
        table.add_column(heading, justify="left" if heading in ("kind", "engine") else "right")
    medians = {(run.kind, run.engine): _medians(runs, run) for run in runs}
    for (kind, engine), (tokens, wall, cpu) in sorted(medians.items(), key=lambda item: item[0][0]):
        _, own_wall, own_cpu = medians[kind, "ours"]
        cells = (f"{wall:.2f}", f"{wall / own_wall:.2f}", f"{cpu:.2f}", f"{cpu / own_cpu:.2f}")
        table.add_row(kind, engine, f"{tokens:,}", *cells)
    console.print(table)


def _medians(runs: list[Run], like: Run) -> tuple[int, float, float]:
    """Tokens of a run, and milliseconds a token by both clocks."""
    same = [run for run in runs if (run.kind, run.engine) == (like.kind, like.engine)]
    wall = statistics.median(run.wall / run.tokens for run in same)
    cpu = statistics.median(run.cpu / run.tokens for run in same)
    return round(statistics.median(run.tokens for run in same)), wall * 1e3, cpu * 1e3


def _show_criteria(console: Console, found: dict[str, dict[str, Found]]) -> None:
    table = Table(title="What a rollout needs, as a few requests found it")
    for heading in ("", *found):
        table.add_column(heading, overflow="fold")
    for name in found["ours"]:
        cells = [f"{'yes' if rows[name].met else 'NO'}: {rows[name].note}" for rows in found.values()]
        table.add_row(name, *cells)
    console.print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
