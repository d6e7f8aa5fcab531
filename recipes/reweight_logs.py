"""Real logs of other projects as trajectories of this one, and their weights.

    uv run recipes/reweight_logs.py gsm8k example_model_solutions.jsonl runs/gsm8k
    uv run recipes/reweight_logs.py qwen math_cot_100.jsonl runs/qwen
    uv run recipes/reweight_logs.py reflexion hotpot_no_context.jsonl runs/reflexion

Each writes OUT/trajectories and OUT/weighted and prints what `drift-weights inspect` prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from drift_weights import WeightConfig, to_table, weighted_turns, write_folder
from drift_weights.command_line import refuse
from drift_weights.files import read_rows
from drift_weights.folder import file_sha256, refuse_existing
from drift_weights.inspection import inspect_ledger
from drift_weights.outcomes import outcomes_of_weighted
from drift_weights.reweighting import ledger_of
from drift_weights.tables import print_inspection
from drift_weights.types import Message, Trajectory, Turn, Verdict, prompt_id

GSM8K_POLICY = "gsm8k-example-models"
QWEN_POLICY = "qwen2.5-math"


def main() -> None:
    """Convert one log, weigh it, and print its groups."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", choices=sorted(CONVERTERS))
    parser.add_argument("path", type=Path, help="the log, as its project publishes it")
    parser.add_argument("out", type=Path, help="folder for trajectories and weighted turns")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    try:
        reweight_log(options.log, options.path, options.out, overwrite=options.overwrite)
    except (ValueError, OSError) as error:
        refuse(error)


def reweight_log(log: str, path: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write OUT/trajectories and OUT/weighted of one log, and print its groups and weights."""
    console = Console()
    convert, remark = CONVERTERS[log]
    for name in ("trajectories", "weighted"):
        refuse_existing(out / name, overwrite=overwrite)
    table = to_table(convert(path))
    turns, made = weighted_turns(table, WeightConfig())
    source = {"path": path.name, "sha256": file_sha256(path)}
    write_folder(
        out / "trajectories",
        table,
        "trajectories",
        {"source": source, "remark": remark},
        overwrite=overwrite,
    )
    write_folder(
        out / "weighted",
        turns,
        "weighted",
        {**made, "source": source, "remark": remark},
        overwrite=overwrite,
    )
    console.print(f"{path.name}: {remark}", highlight=False)
    inspection = inspect_ledger(ledger_of(lambda: [outcomes_of_weighted(turns)]), [WeightConfig()])
    print_inspection(console, inspection)


def gsm8k_trajectories(path: Path) -> Iterator[Trajectory]:
    """The four graded solutions of each question, as four samples of one policy label.

    They come from four models, so a group is not i.i.d. from one reference policy; the label is given
    on purpose. The answer is the text of the last line that begins with "A:"; a solution without one
    is malformed.

    Args:
        path: a JSONL file; rows hold question, ground_truth and, for each model, an object
            {is_correct, solution}.

    Raises:
        ValueError: a missing field, or a correct solution without an answer; file and line are named.
    """
    for line, row in enumerate(read_rows(path), start=1):
        try:
            gold = _last_answer(_text(row, "ground_truth"))
            models = sorted(name for name, value in row.items() if isinstance(value, dict))
            solutions = [(name, _text(row[name], "solution"), row[name]["is_correct"]) for name in models]
            answered = [(text, _last_answer(text), right) for _, text, right in solutions]
            made = list(_single_turns(GSM8K_POLICY, _text(row, "question"), gold, answered))
        except KeyError as error:
            raise ValueError(f"{path}, line {line}: field {error} is missing") from error
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        yield from made


def qwen_trajectories(path: Path) -> Iterator[Trajectory]:
    """The eight graded responses to each problem, as eight samples of one policy.

    Args:
        path: a JSONL file; rows hold question, gt and lists response, pred, score of equal length.

    Raises:
        ValueError: a missing field or lists of different lengths; file and line are named.
    """
    for line, row in enumerate(read_rows(path), start=1):
        try:
            answered = list(zip(row["response"], row["pred"], row["score"], strict=True))
            made = list(_single_turns(QWEN_POLICY, _text(row, "question"), _text(row, "gt"), answered))
        except KeyError as error:
            raise ValueError(f"{path}, line {line}: field {error} is missing") from error
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        yield from made


def _single_turns(
    policy: str, question: str, gold: str | None, answered: list[tuple[str, str | None, bool]]
) -> Iterator[Trajectory]:
    prompt = (Message(role="user", content=question),)
    for sample, (response, answer, right) in enumerate(answered):
        if not isinstance(right, bool):
            raise ValueError(f"sample {sample}: the grade must be true or false, got {right!r}")
        if right and answer is None:
            raise ValueError(f"sample {sample} is graded correct but has no answer")
        verdict: Verdict = "correct" if right else "malformed" if answer is None else "wrong"
        yield Trajectory(
            prompt_id=prompt_id(prompt, gold),
            sample=sample,
            policy=policy,
            prompt=prompt,
            target=gold,
            turns=(Turn(response=response, answer=answer, verdict=verdict),),
            max_turns=1,
            ended="solved" if right else "budget",
        )


def _last_answer(solution: str) -> str | None:
    lines = [line for line in solution.splitlines() if line.startswith("A:")]
    return lines[-1].removeprefix("A:").strip() if lines else None


def reflexion_trajectories(path: Path) -> Iterator[Trajectory]:
    """The dialogues of a parsed Reflexion log: one a question and condition, retried until correct.

    The condition is the policy and `trial_budget` is `max_turns`, whatever number the condition's
    name says. `answer` stays as logged, a missing one is malformed. Copies of a correct turn behind
    it (a solved question printed again by later trials) are cut. The log does not hold what the
    agent saw between trials (its earlier answers or reflections, by condition), so `terminal_prompt`
    is the plain dialogue, not the agent's input.

    Args:
        path: a JSONL file; rows hold condition, question, context, gold, trial_budget, success and
            turns [{response, answer, feedback, correct}].

    Raises:
        ValueError: a field that is missing or of another type; more turns than the budget; an
            unsolved dialogue that stops before it; turns that go on after a correct one; `success`
            against the turns; a question that a condition holds twice. File and line are named.
    """
    seen: dict[tuple[str, str], int] = {}
    for line, row in enumerate(read_rows(path), start=1):
        try:
            trajectory = _reflexion(row)
        except KeyError as error:
            raise ValueError(f"{path}, line {line}: field {error} is missing") from error
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        first_line = seen.setdefault((trajectory.prompt_id, trajectory.policy), line)
        if first_line != line:
            raise ValueError(
                f"{path}, line {line}: condition {trajectory.policy!r} held this question on line "
                f"{first_line} already; keep one of them"
            )
        yield trajectory


def _reflexion(row: Mapping[str, Any]) -> Trajectory:
    budget = row["trial_budget"]
    if type(budget) is not int:
        raise ValueError(f"trial_budget must be a whole number, got {budget!r}")
    turns = _reflexion_turns(row["turns"])
    solved = bool(turns) and turns[-1].verdict == "correct"
    if row["success"] is not solved:
        last = "correct" if solved else "not correct"
        raise ValueError(f"success is {row['success']}, but the last turn is {last}")
    if 0 < len(turns) < budget and not solved:
        raise ValueError(f"unsolved after {len(turns)} of {budget} trials; the log is cut short")
    question, gold = _text(row, "question"), _text(row, "gold")
    context = _text(row, "context")
    prompt = (Message(role="user", content=f"{context}\n\n{question}" if context else question),)
    return Trajectory(
        prompt_id=prompt_id(prompt, gold),
        sample=0,
        policy=_text(row, "condition"),
        prompt=prompt,
        target=gold,
        turns=turns,
        max_turns=budget,
        ended="solved" if solved else "budget",
    )


def _reflexion_turns(logged: Any) -> tuple[Turn, ...]:
    if not isinstance(logged, list):
        raise ValueError(f"turns must be a list, got {type(logged).__name__}")
    for turn in logged:
        if not isinstance(turn["correct"], bool):
            raise ValueError(f"correct must be true or false, got {turn['correct']!r}")
    solved_at = next((at for at, turn in enumerate(logged) if turn["correct"]), len(logged))
    if any(turn != logged[solved_at] for turn in logged[solved_at + 1 :]):
        raise ValueError(f"the turns go on after a correct one, turn {solved_at + 1}")
    kept = logged[: solved_at + 1]
    return tuple(
        _reflexion_turn(turn, last=number == len(kept)) for number, turn in enumerate(kept, start=1)
    )


def _reflexion_turn(turn: Mapping[str, Any], *, last: bool) -> Turn:
    answer, correct = turn["answer"], turn["correct"]
    if answer is None and correct:
        raise ValueError("a turn is correct but has no answer")
    return Turn(
        response=_text(turn, "response"),
        answer=answer,
        verdict="correct" if correct else "malformed" if answer is None else "wrong",
        feedback=None if last else _text(turn, "feedback"),
    )


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    return value


CONVERTERS: dict[str, tuple[Callable[[Path], Iterator[Trajectory]], str]] = {
    "gsm8k": (
        gsm8k_trajectories,
        "four models under one policy label: a deliberate mixture, not i.i.d. samples of one π_ref",
    ),
    "qwen": (qwen_trajectories, "eight samples a problem of one policy"),
    "reflexion": (
        reflexion_trajectories,
        "a condition is a policy; one dialogue a question and condition, so every group has one row",
    ),
}


if __name__ == "__main__":
    main()
