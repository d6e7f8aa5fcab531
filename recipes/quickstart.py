"""DRIFT from end to end in minutes: a world, its policy, rollouts, weights, training, evaluation.

uv run recipes/quickstart.py                 one world, all methods
uv run recipes/quickstart.py --seeds 3       three worlds, each shown
uv run recipes/quickstart.py --quick         a small one, in about a minute
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import pyarrow as pa
import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerFast

from drift_eval import Comparison, compare_outcomes, evaluate, outcomes
from drift_eval.report import write_report
from drift_eval.scoring import score_outcomes
from drift_rollout import ExactVerifier, Problem, Protocol, RolloutConfig, Sampling, sample
from drift_rollout.engines.transformers import TransformersEngine
from drift_rollout.problems import problem_set
from drift_rollout.run import rollout
from drift_train import WeightedDataModule, WeightedSFT, export
from drift_weights import Trajectory, read_folder, select, to_table, weighted_turns, write_folder
from drift_weights.folder import write_json
from drift_weights.inspection import inspect_ledger
from drift_weights.outcomes import outcomes_of_weighted
from drift_weights.reweighting import ledger_of
from drift_weights.selections import Selection
from drift_weights.tables import print_inspection
from drift_weights.weighing import WeightConfig
from quickstart_report import Bar, Cost, WorldResult, print_world, result_numbers, seeds_table, timed
from toy_world import Splits, World, WorldConfig, make_model, make_tokenizer

BATCH = 96
MICRO_TOKENS = 2048
"""Padding costs more than a few small passes do, on a CPU."""
RESPONSE_TOKENS = 16
REFERENCE = "reference"
SETTINGS = "quickstart.json"
DRIFT = "DRIFT, weighted (paper)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How much of everything."""

    reference_problems: int = 4800
    reference_steps: int = 200
    prompts: int = 1200
    samples: int = 16
    steps: int = 200
    validation: int = 400
    heldout: int = 1000


QUICK = Scale(
    reference_problems=2400, reference_steps=100, prompts=240, steps=40, validation=100, heldout=300
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to fine-tune on the same rollouts."""

    name: str
    selection: Selection
    weighting: str
    learning_rate: float
    """Chosen beforehand on the validation split of a world that is not shown: docs/results.md."""

    @property
    def folder(self) -> str:
        """A name for files."""
        return f"{self.selection}-{self.weighting}"


METHODS = (
    Method(name="SFT-5turn", selection="sft-5turn", weighting="none", learning_rate=4e-3),
    Method(name="STaR-2turn", selection="star-2turn", weighting="none", learning_rate=1e-3),
    Method(name="RFT", selection="rft", weighting="none", learning_rate=2e-3),
    Method(name=DRIFT, selection="drift", weighting="loss", learning_rate=2e-3),
    Method(name="DRIFT, resampled (ours)", selection="drift", weighting="resample", learning_rate=1e-3),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A world on disk: where it lies, its problems, and the tools that every step needs."""

    folder: Path
    world: World
    splits: Splits
    tokenizer: PreTrainedTokenizerFast
    scale: Scale
    progress: Progress

    @property
    def seed(self) -> int:
        """The world's seed, which seeds training and rollouts too."""
        return self.world.config.seed

    def say(self, words: str) -> None:
        """Tell the reader what happens, above the bars."""
        self.progress.console.print(words, highlight=False)


def main() -> None:
    """Run the worlds asked for, print what came out, and leave every file in --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="worlds to run, each with its own everything")
    parser.add_argument("--quick", action="store_true", help="a small world, in about a minute")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    options = parser.parse_args()
    hush()
    console = Console()
    out = options.out.with_name(options.out.name + "-quick") if options.quick else options.out
    results = []
    for seed in range(options.seeds):
        folder = out / f"world-{seed}"
        with world_stage(seed, QUICK if options.quick else Scale(), folder, console) as stage:
            result = run_world(stage, console)
        print_world(console, result)
        results.append(result)
    if len(results) > 1:
        console.print(seeds_table(results))
    write_json(out / "results.json", {"worlds": [result_numbers(result) for result in results]})
    console.print(f"Every file is in {out}: trajectories, weighted turns, policies, pictures, results.json")


def hush() -> None:
    """One thread (two are slower on models this small), and no chatter of libraries between our lines."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def world_stage(seed: int, scale: Scale, folder: Path, console: Console) -> Iterator[Stage]:
    """Build a world and its splits, with a progress display around what is done in it."""
    console.rule(f"World {seed}")
    world = World(WorldConfig(seed=seed))
    splits = world.splits(
        reference=scale.reference_problems,
        rollout=scale.prompts,
        validation=scale.validation,
        heldout=scale.heldout,
    )
    columns = (
        TextColumn("{task.description:<42}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Stage(
            folder=folder,
            world=world,
            splits=splits,
            tokenizer=make_tokenizer(world.config),
            scale=scale,
            progress=progress,
        )


def run_world(stage: Stage, console: Console) -> WorldResult:
    """Reference, rollouts, weights, five methods, and greedy evaluation of all six policies."""
    costs: dict[str, Cost | None] = {}
    stage.say(
        "A riddle names four traits; the answer is the most probable of 24 items. The reference policy, a "
        "small Llama, learns from a player who is wrong about one trait of each item and stubborn."
    )
    with timed(costs, REFERENCE, cached=has_reference(stage)):
        reference = reference_policy(stage)
    stage.say(
        f"It is frozen now. It answers {stage.scale.prompts} riddles {stage.scale.samples} times each, and "
        'hears "Incorrect. Please think again." after a wrong answer, up to 5 turns.'
    )
    with timed(costs, "rollout", cached=(stage.folder / "rollout" / "trajectories").is_dir()):
        turns = rollouts(stage, reference)
    stage.say("Each dialogue's return, over its riddle's mean, weighs its last turn:")
    inspection = inspect_ledger(ledger_of(lambda: [outcomes_of_weighted(turns)]), [WeightConfig()])
    print_inspection(console, inspection)
    stage.say("Five methods fine-tune from the reference on the same dialogues, for the same steps.")
    policies = {REFERENCE: reference}
    for method in METHODS:
        with timed(costs, method.name):
            policies[method.name] = train_method(stage, method, turns, reference)
    stage.say("All six policies answer riddles that none has seen, greedily.")
    write_problems(stage.folder / "heldout.jsonl", stage.splits.heldout)
    answered = {
        name: outcomes(evaluate_policy(stage, name, folder, stage.splits.heldout))[0]
        for name, folder in policies.items()
    }
    scores = tuple(score_outcomes(found) for found in answered.values())

    def against(other: str) -> tuple[Comparison | None, ...]:
        base = answered[other]
        return tuple(
            None if found is base else compare_outcomes(found, base) for found in answered.values()
        )

    labels = {one.policy: name for one, name in zip(scores, policies, strict=True)}
    write_report(stage.folder, scores, labels=labels, title=f"World {stage.seed}: solved within k turns")
    return WorldResult(
        seed=stage.seed,
        names=tuple(policies),
        scores=scores,
        with_reference=against(REFERENCE),
        with_drift=against(DRIFT),
        costs=costs,
        weights=asdict(inspection),
    )


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Problems as drift-rollout and drift-eval read them, to try the commands on."""
    rows = [{"problem": problem.messages[0].content, "answer": problem.target} for problem in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def reference_policy(stage: Stage) -> Path:
    """Train the reference from scratch on the imperfect player's transcripts; a second run finds it."""
    folder = stage.folder / "policies" / REFERENCE
    if has_reference(stage):
        stage.say(f"The reference policy is there already: {folder}")
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    player = stage.world.player(stage.tokenizer)
    trajectories: list[Trajectory] = []
    for round_, max_turns in enumerate((1, 5)):
        config = RolloutConfig(
            samples=2, protocol=Protocol(max_turns=max_turns), seed=stage.seed, round=round_
        )
        total = 2 * len(stage.splits.reference)
        stream = sample(stage.splits.reference, player, ExactVerifier(), config)
        label = f"Transcripts of a player, up to {max_turns} turns"
        trajectories += stage.progress.track(stream, total=total, description=label)
    transcripts, _ = weighted_turns(to_table(trajectories))
    torch.manual_seed(stage.seed)
    model = make_model(stage.tokenizer)
    module = WeightedSFT.from_model(model, 6e-3, schedule="cosine", gradient_clip=1.0)
    # Vocabulary, context length and tokenizer are read from a folder.
    blank = stage.folder / "untrained"
    model.save_pretrained(blank)
    stage.tokenizer.save_pretrained(blank)
    data = WeightedDataModule.from_table(
        transcripts,
        str(blank),
        batch_size=BATCH,
        micro_tokens=MICRO_TOKENS,
        weighting="none",
        supervise="all",
        seed=stage.seed,
    )
    fit(stage, module, data, stage.scale.reference_steps, "Reference policy, from scratch")
    export(module, folder, tokenizer=stage.tokenizer)
    write_json(folder / SETTINGS, reference_settings(stage))
    return folder


def reference_settings(stage: Stage) -> dict[str, Any]:
    """What a reference policy was made from."""
    scale = {"problems": stage.scale.reference_problems, "steps": stage.scale.reference_steps}
    return {"world": asdict(stage.world.config), **scale}


def has_reference(stage: Stage) -> bool:
    """Whether an earlier run left a reference policy made from the same settings."""
    file = stage.folder / "policies" / REFERENCE / SETTINGS
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")) == reference_settings(stage)


def rollouts(stage: Stage, reference: Path) -> pa.Table:
    """K correction dialogues a prompt from the frozen reference, and their weighted terminal turns."""
    engine = small_engine(reference)
    config = RolloutConfig(
        samples=stage.scale.samples,
        sampling=Sampling(max_new_tokens=RESPONSE_TOKENS),
        seed=stage.seed,
    )
    total = stage.scale.samples * stage.scale.prompts
    task = stage.progress.add_task(f"Rollout, {stage.scale.samples} dialogues a prompt", total=total)
    folder = rollout(
        problem_set(stage.splits.rollout, source="the world"),
        engine,
        ExactVerifier(),
        config,
        stage.folder / "rollout",
        on_finished=lambda batch: stage.progress.advance(task, len(batch)),
    )
    engine.close()
    trajectories, manifest = read_folder(folder, "trajectories")
    turns, made = weighted_turns(trajectories)
    origin = {"path": folder.name, "manifest": manifest}
    write_folder(stage.folder / "weighted", turns, "weighted", {**made, "source": origin}, overwrite=True)
    return turns


def train_method(stage: Stage, method: Method, turns: pa.Table, reference: Path) -> Path:
    """Fine-tune from the reference by one method; returns the policy's folder."""
    folder = stage.folder / "policies" / method.folder
    module = WeightedSFT(str(reference), method.learning_rate, gradient_clip=1.0)
    data = WeightedDataModule.from_table(
        select(turns, method.selection),
        str(reference),
        batch_size=BATCH,
        micro_tokens=MICRO_TOKENS,
        weighting=method.weighting,
        seed=stage.seed,
    )
    fit(stage, module, data, stage.scale.steps, method.name)
    # Of an earlier run; only the reference is kept from run to run.
    shutil.rmtree(folder, ignore_errors=True)
    return export(module, folder)


def fit(stage: Stage, module: WeightedSFT, data: WeightedDataModule, steps: int, label: str) -> None:
    """Run Lightning for so many optimizer steps on the CPU."""
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Bar(stage.progress, label)],
    )
    trainer.fit(module, datamodule=data)


def small_engine(folder: Path) -> TransformersEngine:
    """The embedded engine, set for a model so small that a pass costs the same whatever its width."""
    return TransformersEngine(folder, device="cpu", attention="eager", max_slots=1024)


def evaluate_policy(stage: Stage, name: str, folder: Path, problems: Sequence[Problem]) -> pa.Table:
    """Greedy answers of one policy to the problems."""
    engine = small_engine(folder)
    task = stage.progress.add_task(f"Evaluation: {name}", total=len(problems))
    table = evaluate(
        problems,
        engine,
        ExactVerifier(),
        max_new_tokens=RESPONSE_TOKENS,
        on_progress=lambda done, _: stage.progress.update(task, completed=done),
    )
    engine.close()
    return table


if __name__ == "__main__":
    main()
