"""drift-rollout sample | status | export | reverify: the command line; it parses, calls and prints."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentError
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress

from drift_rollout.asking import VerifierError
from drift_rollout.ending import early_end
from drift_rollout.engine import Sampling
from drift_rollout.engines.opening import (
    EngineOptions,
    engine_facts,
    open_engine,
    tokenizer_at_hand,
)
from drift_rollout.journal import JournalReader
from drift_rollout.judging import closing_verifier
from drift_rollout.overlap import OnOverlap, without_overlap
from drift_rollout.plan import (
    print_first_prompt,
    print_golds,
    print_notes,
    print_plan,
)
from drift_rollout.problem_sources import SourceName, row_format
from drift_rollout.problems import OnMistake, ProblemSet, fewer, load_problems
from drift_rollout.progress import duration, findings, print_findings, recent_rate
from drift_rollout.prompts import PromptTemplate, check_grammar, choose_template
from drift_rollout.protocol import Protocol
from drift_rollout.reverify import check_reverify, grammar_note, old_verifier
from drift_rollout.reverify import reverify as reverify_log
from drift_rollout.reverify_report import print_changes
from drift_rollout.run import JOURNAL, check_run, origin_of
from drift_rollout.run import export as export_folder
from drift_rollout.sample_command import Job, print_sampled, sample_all, sample_pilot
from drift_rollout.sampler import RolloutConfig
from drift_rollout.shorthand import check_groups, named_words, spelled_out
from drift_rollout.stored_log import open_log
from drift_rollout.verifiers.opening import VerifierOptions, open_verifier
from drift_weights.command_line import option_words, refuse

_FLAGS = {"dry_run", "check_gold", "partial", "overwrite"}


def main(args: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2.

    An engine that died gives exit code 1, an interrupt 130; either way the same command goes on. A
    verifier that raised is one line, too, with exit code 1.
    """
    words = named_words(option_words(sys.argv[1:] if args is None else args, flags=_FLAGS))
    commands: dict[str, Any] = {"sample": sample, "status": status, "export": export, "reverify": reverify}
    try:
        check_groups(words)
        auto_cli(commands, args=words, as_positional=True, exit_on_error=False)
    except (ValueError, OSError, ArgumentError) as error:
        refuse(spelled_out(error))
    except VerifierError as error:
        refuse(error, code=1)


def sample(
    problems: Path,
    model: str,
    out: Path,
    *,
    prompt: str | PromptTemplate = "rollout-metamath",
    verifier: VerifierOptions = VerifierOptions(),
    source: SourceName = "table",
    question: str | None = None,
    answer: str | None = None,
    drop_ending: str | None = None,
    problems_revision: str | None = None,
    problems_subset: str | None = None,
    problems_split: str = "train",
    on_conflict: OnMistake = "refuse",
    on_no_gold: OnMistake = "refuse",
    overlap_with: Path | None = None,
    overlap_question: str | None = None,
    overlap: OnOverlap = "refuse",
    limit: int | None = None,
    samples: int = 16,
    protocol: Protocol = Protocol(),
    sampling: Sampling = Sampling(),
    seed: int = 0,
    round: int = 0,
    prefill: str = "",
    revision: str | None = None,
    engine: EngineOptions = EngineOptions(),
    pilot: int | None = None,
    price: float | None = None,
    stand_in: str | None = None,
    dry_run: bool = False,
    check_gold: bool = False,
) -> None:
    """Sample K correction dialogues a problem from a frozen policy; a killed run goes on where it was.

    Args:
        problems: a JSONL, JSON, Parquet or CSV file, a folder of such, or org/name on the Hub.
        model: a folder or Hub id of a causal language model with a chat template.
        out: folder for the journal and, when all is sampled, `trajectories/`.
        prompt: a template of D.7 by name, or one of your own with `user` and `system`.
        verifier: how answers are judged, by name or import path, and its options.
        source: table (the gold is a column), metamath-math (MetaMathQA's MATH rows), math or gsm8k.
        question: column with the problem's text; the source's own if not given.
        answer: column with the gold answer, or the text that says it; likewise.
        drop_ending: text at the end of every question that is no part of it.
        problems_revision: a tag or commit of problems on the Hub.
        problems_subset: one of several data sets in a folder or on the Hub.
        problems_split: of a folder or a data set on the Hub.
        on_conflict: equal prompts with different golds are refused, or left out whole (drop).
        on_no_gold: an answer's text that says no gold is refused, or its row left out (drop).
        overlap_with: a file of an evaluation whose questions must not be sampled.
        overlap_question: its column with the question; the one of the problems if not given.
        overlap: what that evaluation asks, too, is refused, left out (drop) or let in (allow).
        limit: take so many of the problems, whatever their order in the file; more may be taken later.
        samples: K, trajectories a problem.
        protocol: turn budget T and feedback f.
        sampling: temperature, top_p and tokens a response.
        seed: of the run; every turn derives its own.
        round: rollout round; groups of different rounds never mix.
        prefill: put into the assistant's mouth at every turn, such as <think>; not part of a response.
        revision: a commit, tag or branch of a Hub id.
        engine: which engine answers, by name or import path, and its settings.
        pilot: sample so many problems first, print what the whole plan would find, take and cost, and stop.
        price: of an hour of the machine, in any currency, for the pilot.
        stand_in: for a dry run, a folder with the tokenizer of a model that is not here.
        dry_run: check problems and prompts, print what would be done, and load no model.
        check_gold: list the golds that fail their own verifier, and load no model.
    """
    console = Console()
    template = choose_template(prompt)
    config = RolloutConfig(
        samples=samples, protocol=protocol, sampling=sampling, seed=seed, round=round, prefill=prefill
    )
    with closing_verifier(open_verifier(verifier)) as judge:
        found = load_problems(
            problems,
            template,
            source=source,
            question=question,
            answer=answer,
            drop_ending=drop_ending,
            revision=problems_revision,
            subset=problems_subset,
            split=problems_split,
            on_conflict=on_conflict,
            on_no_gold=on_no_gold,
            max_turns=protocol.max_turns,
        )
        if overlap_with is not None:
            asked = overlap_question or row_format(source, question=question).question
            found = without_overlap(found, overlap_with, overlap, question=asked, drop_ending=drop_ending)
        found = _taken(console, found, limit)
        chosen = found if pilot is None else fewer(found, pilot)
        if check_gold:
            print_golds(console, found, judge)
            return
        check_grammar(template, judge)
        check_run(found, judge, config, out, about={"prompt": asdict(template)})
        print_plan(console, found, config, engine.name)
        if dry_run:
            tokenizer = tokenizer_at_hand(stand_in or model, None if stand_in else revision)
            print_first_prompt(console, found.problems[0], tokenizer, config)
            return
        job = Job(
            problems=found,
            verifier=judge,
            config=config,
            out=out,
            about={"prompt": asdict(template)},
            origin=origin_of(model, revision, found.origin, engine_facts(engine)),
        )
        with early_end(), closing(open_engine(engine, model, revision=revision)) as opened:
            print_notes(console, opened.tokenizer, config)
            if pilot is not None:
                sample_pilot(console, job, opened, chosen, price)
                return
            folder, unscored = sample_all(console, job, opened)
    print_sampled(console, job, folder, unscored)


def status(out: Path) -> None:
    """Show how far a rollout is, and what it has found; it may be running.

    Args:
        out: the folder of a rollout.
    """
    with JournalReader(out / JOURNAL) as journal:
        plan, rows, live = journal.plan, journal.finished(), journal.live
    if plan is None:
        raise ValueError(f"{out / JOURNAL} holds nothing yet")
    total, now = plan.samples * plan.problems, time.time()
    found = findings(rows, plan.samples)
    left = max(0, total - found.trajectories)
    word = "running" if live else "not running" if left else "complete"
    done = min(found.trajectories, total)
    more = found.trajectories - done
    besides = f", and {more:,} of problems of an earlier plan" if more else ""
    lines = [
        ("state", word),
        ("trajectories", f"{done:,} of {total:,} ({done / total:.1%}){besides}"),
    ]
    if live and left:
        rate = recent_rate(rows, now)
        seconds = rate.seconds(left)
        eta = "" if seconds is None else f"; about {duration(seconds)} left"
        per_minute = f"{60 * rate.trajectories:,.0f} trajectories a minute, {rate.tokens:,.0f} tokens/s"
        lines.append(("rate", per_minute + eta))
    print_findings(Console(), found, plan.samples, lines)


def export(out: Path, folder: Path, *, partial: bool = False, overwrite: bool = False) -> None:
    """Write the complete groups that a rollout has by now as a trajectories folder; it may be running.

    Args:
        out: the folder of a rollout.
        folder: the folder to make.
        partial: take groups, too, of which trajectories are missing or unscored; K is not declared then.
        overwrite: replace a folder of ours.
    """
    done = export_folder(out, folder, partial=partial, overwrite=overwrite)
    taken = f"{done.incomplete} of them incomplete" if partial else f"{done.incomplete} incomplete left out"
    sys.stdout.write(
        f"wrote {done.folder}: {done.trajectories} trajectories in {done.groups} groups, {taken}\n"
    )


def reverify(
    old: Path,
    new: Path,
    *,
    verifier: VerifierOptions | None = None,
    prefill: str | None = None,
    examples: int = 5,
    dry_run: bool = False,
    overwrite: bool = False,
) -> None:
    """Judge a log again by another verifier, keep both verdicts, and say what changed; nothing is sampled.

    Args:
        old: a trajectories folder, the folder of a rollout, or a Parquet file of trajectories.
        new: the trajectories folder to make.
        verifier: how answers are judged now, by name or import path, and its options.
        prefill: what the assistant had said before each response; as the manifest says if not given.
        examples: so many of each change are shown.
        dry_run: say what would be judged, hold the golds against the verifier, and write nothing.
        overwrite: replace a folder of ours.
    """
    if verifier is None:
        raise ValueError("say by --verifier who is to judge now, such as --verifier choice")
    console, log = Console(), open_log(old)
    with ExitStack() as stack:
        judge = open_verifier(verifier)
        stack.callback(getattr(judge, "close", lambda: None))
        problems = check_reverify(log, new, judge, overwrite=overwrite)
        before = old_verifier(log)
        lines = [
            f"took {log.path}: {log.rows:,} dialogues of {problems:,} problems, judged by "
            f"{before or 'an unknown verifier'}, now by {judge.name}",
            *(f"Note: {note}" for note in (*log.notes, grammar_note(before, judge)) if note),
        ]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if dry_run:
            console.print(f"dry run: {judge.name} would judge; nothing is written", highlight=False)
            return
        errors = Console(stderr=True)
        bar = stack.enter_context(Progress(console=errors, transient=True, disable=not errors.is_terminal))
        task = bar.add_task("verifying", total=log.rows)
        changes = reverify_log(
            log,
            new,
            judge,
            prefill=prefill,
            examples=examples,
            overwrite=overwrite,
            advance=lambda dialogues: bar.advance(task, dialogues),
        )
    print_changes(console, changes, before, judge.name)
    console.print(f"wrote {new}; next: drift-weights inspect {new}", highlight=False, soft_wrap=True)


def _taken(console: Console, found: ProblemSet, limit: int | None) -> ProblemSet:
    """Say what was left out of the problems, and take so many of the rest."""
    for note in found.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return found if limit is None else fewer(found, limit)
