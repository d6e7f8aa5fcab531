"""drift-eval score | run."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import pyarrow as pa
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress

from drift_eval import report
from drift_eval.comparing import compare_all
from drift_eval.outcomes import Unscored
from drift_eval.run import embedded_engine, evaluate, greedy
from drift_eval.scoring import score as score_policies
from drift_eval.source import read_trajectories
from drift_rollout.problems import load_problems
from drift_rollout.prompts import TEMPLATES, PromptTemplate
from drift_rollout.protocol import FEEDBACK
from drift_rollout.verify import ChoiceVerifier, ExactVerifier, Verifier
from drift_weights.cli import option_words, refuse
from drift_weights.folder import file_sha256, refuse_existing, write_folder
from drift_weights.types import Malformed


def main(args: list[str] | None = None) -> None:
    """Entry point of drift-eval; a user's mistake is one line and exit code 2."""
    try:
        words = option_words(sys.argv[1:] if args is None else args, flags={"overwrite"})
        auto_cli([score, run], args=words, prog="drift-eval", exit_on_error=False)
    except (ValueError, OSError, ArgumentError) as error:
        refuse(error)


def score(
    trajectories: Path,
    *,
    out: Path | None = None,
    size: int | None = None,
    unscored: Unscored = "refuse",
    malformed: Malformed = "count",
    overwrite: bool = False,
) -> None:
    """Score a trajectories table, policy by policy, and compare its policies pairwise.

    Args:
        trajectories: a trajectories folder, or a Parquet file with its schema; one dialogue a
            problem and policy.
        out: a folder for scores.json and accuracy.png; without it nothing is written.
        size: N of the benchmark; problems that are missing count as wrong.
        unscored: dialogues that ended in a timeout or an error: refuse them, count them as wrong, or
            omit them.
        malformed: whether unreadable answers are one value among the unique answers (count) or none
            (skip).
        overwrite: write into a folder that holds something.
    """
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    _report(read_trajectories(trajectories), out, size, unscored, malformed)


def run(
    problems: Path,
    model: str,
    out: Path,
    *,
    verifier: Literal["exact", "choice"] | Verifier = "exact",
    template: str | PromptTemplate = "eval-math",
    question: str = "problem",
    answer: str = "answer",
    max_turns: int = 5,
    max_new_tokens: int = 512,
    feedback: str = FEEDBACK,
    revision: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Evaluate a model greedily on a file of problems, and score it.

    Dialogues are kept even if some of them could not be scored; `drift-eval score` says how to go on.

    Args:
        problems: a JSONL or Parquet file.
        model: a Hugging Face folder or Hub id.
        out: a folder for trajectories/, scores.json and accuracy.png.
        verifier: exact, choice, or the import path of another.
        template: one of the paper's prompts by name, or one of your own (user and system message).
        question: the problems' column of questions.
        answer: the problems' column of gold answers.
        max_turns: T ≥ 1.
        max_new_tokens: tokens a response at most, ≥ 1.
        feedback: f, the user message after a wrong answer.
        revision: of a Hub id.
        device: auto takes an accelerator if there is one.
        overwrite: write into a folder that holds something.
    """
    refuse_existing(out, overwrite=overwrite)
    judge, prompt = _verifier(verifier), _template(template)
    config = greedy(max_turns=max_turns, max_new_tokens=max_new_tokens, feedback=feedback)
    loaded = load_problems(problems, prompt, question=question, answer=answer, max_turns=max_turns)
    engine = embedded_engine(model, revision=revision, device=device)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("dialogues", total=len(loaded.problems))
        table = evaluate(
            loaded.problems,
            engine,
            judge,
            max_turns=max_turns,
            max_new_tokens=max_new_tokens,
            feedback=feedback,
            on_progress=lambda finished, _: progress.update(task, completed=finished),
        )
    engine.close()
    made_from = {
        "evaluation": {"model": model, "revision": revision, "policy": engine.policy},
        "problems": {
            "file": problems.name,
            "sha256": file_sha256(problems),
            "rows_repeated": loaded.repeated,
        },
        "prompt": asdict(prompt),
        "protocol": asdict(config.protocol),
        "sampling": asdict(config.sampling),
        "verifier": judge.name,
    }
    write_folder(out / "trajectories", table, "trajectories", made_from, overwrite=overwrite)
    _report(table, out, None, "refuse", "count")


def _report(
    table: pa.Table, out: Path | None, size: int | None, unscored: Unscored, malformed: Malformed
) -> None:
    scores = score_policies(table, size=size, unscored=unscored, malformed=malformed)
    comparisons = compare_all(table, unscored=unscored)
    console = Console()
    console.print(report.score_table(scores))
    if comparisons.pairs:
        console.print(report.comparison_table(comparisons))
    for note in report.notes(scores, comparisons):
        console.print(note, markup=False, highlight=False)
    if out is not None:
        report.write_report(out, scores, comparisons)
        console.print(f"wrote {out}", markup=False, highlight=False)


def _verifier(chosen: Literal["exact", "choice"] | Verifier) -> Verifier:
    if isinstance(chosen, str):
        return ExactVerifier() if chosen == "exact" else ChoiceVerifier()
    return chosen


def _template(chosen: str | PromptTemplate) -> PromptTemplate:
    if isinstance(chosen, PromptTemplate):
        return chosen
    if chosen not in TEMPLATES:
        raise ValueError(f"template {chosen!r} is not one of {', '.join(TEMPLATES)}")
    return TEMPLATES[chosen]
