"""drift-eval score | run."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress

from drift_eval import report
from drift_eval.comparing import compare_all, refuse_same_policy
from drift_eval.outcomes import Unscored
from drift_eval.run import greedy
from drift_eval.scoring import score as score_policies
from drift_eval.source import read_trajectories
from drift_rollout.asking import VerifierError
from drift_rollout.ending import early_end
from drift_rollout.engines.opening import EngineOptions, engine_facts, open_engine
from drift_rollout.finished import Finished
from drift_rollout.judging import closing_verifier
from drift_rollout.plan import print_golds
from drift_rollout.problems import load_problems
from drift_rollout.prompts import PromptTemplate, check_grammar, choose_template
from drift_rollout.protocol import FEEDBACK
from drift_rollout.run import JOURNAL, check_run, origin_of, rollout
from drift_rollout.shorthand import check_groups, named_words, spelled_out
from drift_rollout.verifiers.opening import VerifierOptions, open_verifier
from drift_weights.command_line import option_words, refuse
from drift_weights.folder import refuse_existing
from drift_weights.schema import TRAJECTORIES
from drift_weights.types import Malformed

_FLAGS = {"overwrite", "check_gold"}


def main(args: list[str] | None = None) -> None:
    """Entry point of drift-eval; a user's mistake is one line and exit code 2, a verifier that raised 1."""
    try:
        words = named_words(option_words(sys.argv[1:] if args is None else args, flags=_FLAGS))
        check_groups(words)
        auto_cli([score, run], args=words, prog="drift-eval", exit_on_error=False)
    except (ValueError, OSError, ArgumentError) as error:
        refuse(spelled_out(error))
    except VerifierError as error:
        refuse(error, code=1)


def score(
    trajectories: Path,
    *,
    against: Path | None = None,
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
        against: another such table, of another policy on the same problems, to compare with.
        out: a folder for scores.json and accuracy.png; without it nothing is written.
        size: N of the benchmark; problems that are missing count as wrong, in the comparisons too.
        unscored: dialogues that ended in a timeout or an error: refuse them, count them as wrong, or
            omit them.
        malformed: whether unreadable answers are one value among the unique answers (count) or none
            (skip).
        overwrite: write into a folder that holds something.
    """
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    table = read_trajectories(trajectories)
    if against is not None:
        names, other = TRAJECTORIES.names, read_trajectories(against)
        refuse_same_policy(table, other)
        table = pa.concat_tables([table.select(names), other.select(names)])
    _report(table, out, size, unscored, malformed)


def run(
    problems: Path,
    model: str,
    out: Path,
    *,
    verifier: VerifierOptions = VerifierOptions(),
    prompt: str | PromptTemplate = "eval-math",
    question: str = "problem",
    answer: str = "answer",
    max_turns: int = 5,
    max_new_tokens: int = 512,
    feedback: str = FEEDBACK,
    revision: str | None = None,
    engine: EngineOptions = EngineOptions(),
    check_gold: bool = False,
) -> None:
    """Evaluate a model greedily on a file of problems, and score it; a killed run goes on where it was.

    Dialogues are kept even if some of them could not be scored: run again to verify or sample those again.

    Args:
        problems: a JSONL, JSON, Parquet or CSV file with a question and an answer column.
        model: a folder or Hub id of a causal language model with a chat template.
        out: folder for the journal, trajectories/, scores.json and accuracy.png.
        verifier: how answers are judged, by name or import path, and its options.
        prompt: a template of D.7 by name, or one of your own with `user` and `system`.
        question: column with the problem's text.
        answer: column with the gold answer.
        max_turns: T ≥ 1.
        max_new_tokens: tokens a response at most, ≥ 1.
        feedback: f, the user message after a wrong answer.
        revision: a commit, tag or branch of a Hub id.
        engine: which engine answers, by name or import path, and its settings.
        check_gold: list the golds that fail their own verifier, and load no model.
    """
    template = choose_template(prompt)
    config = greedy(max_turns=max_turns, max_new_tokens=max_new_tokens, feedback=feedback)
    unscored = 0
    with ExitStack() as stack:
        judge = stack.enter_context(closing_verifier(open_verifier(verifier)))
        found = load_problems(problems, template, question=question, answer=answer, max_turns=max_turns)
        if check_gold:
            print_golds(Console(), found, judge)
            return
        _refuse_scores(out)
        check_grammar(template, judge)
        check_run(found, judge, config, out, about={"prompt": asdict(template)})
        about, origin = (
            {"prompt": asdict(template)},
            origin_of(model, revision, found.origin, engine_facts(engine)),
        )
        stack.enter_context(early_end())
        opened = stack.enter_context(closing(open_engine(engine, model, revision=revision)))
        progress = stack.enter_context(Progress(console=Console(stderr=True)))
        task = progress.add_task("dialogues", total=len(found.problems))

        def on_finished(batch: Sequence[Finished]) -> None:
            nonlocal unscored
            unscored += sum(not trajectory.scored for trajectory in batch)
            progress.advance(task, len(batch))

        folder = rollout(
            found, opened, judge, config, out, about=about, origin=origin, on_finished=on_finished
        )
    if unscored:
        raise ValueError(
            f"{unscored} of {len(found.problems)} dialogues ended unscored; run again to verify or sample "
            f"them again, or score what is there: drift-eval score {folder} --unscored wrong (or omit)"
        )
    _report(read_trajectories(folder), out, None, "refuse", "count")


def _refuse_scores(out: Path) -> None:
    if (out / report.SCORES_FILE).exists() and not (out / JOURNAL).is_file():
        raise ValueError(f"{out} holds {report.SCORES_FILE} of no run of ours; choose another output")


def _report(
    table: pa.Table, out: Path | None, size: int | None, unscored: Unscored, malformed: Malformed
) -> None:
    scores = score_policies(table, size=size, unscored=unscored, malformed=malformed)
    comparisons = compare_all(table, size=size, unscored=unscored)
    console = Console()
    console.print(report.score_table(scores))
    if comparisons.pairs:
        console.print(report.comparison_table(comparisons))
    for note in report.notes(scores, comparisons):
        console.print(note, markup=False, highlight=False)
    if out is not None:
        report.write_report(out, scores, comparisons)
        console.print(f"wrote {out}", markup=False, highlight=False)
