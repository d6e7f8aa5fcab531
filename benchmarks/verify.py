r"""Grading real answers: our `math` verifier against calling math-verify for each answer.

uv run benchmarks/verify.py DATA --out results.json     DATA is the folder of the logs; or set DRIFT_DATA
uv run benchmarks/verify.py DATA --quick                a part of each log, one round

The logs are Qwen2.5-Math's samples on MATH (qwen_math_cot/adjudicated.jsonl) and four models' solutions of
GSM8K (gsm8k/example_model_solutions.jsonl, the answer behind `A:` in the last line; a solution without one
is counted, and no answer). Every run is a fresh process and grades the whole log in its main thread, one
answer after the other; contenders take turns within a round and the order rotates. math-verify is called as
`verify(parse(gold), parse(answer))`, defaults and all; how it is handed the texts ($…$, \boxed{…}, bare) is
tried first, and the way that agrees best with the data's grades competes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from verify_peers import PEERS, Graded
from verify_report import show
from verify_results import Log, Result

PEERS_SCRIPT = Path(__file__).with_name("verify_peers.py")
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
QUICK = 60
"""Problems of a log in a quick run; with Qwen's, samples."""


def main() -> None:
    """Read, measure, show."""
    options = _options()
    logs = read_logs(options.data, problems=QUICK if options.quick else None)
    results = [measure(log, 1 if options.quick else options.rounds) for log in logs]
    show(Console(highlight=False), results)
    if options.out:
        options.out.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


def read_logs(data: Path, *, problems: int | None = None) -> list[Log]:
    """Both logs, or the first so many problems of each.

    Raises:
        ValueError: a file or a field is missing, or a gold has no answer.
    """
    return [
        qwen(_rows(data / "qwen_math_cot" / "adjudicated.jsonl", problems)),
        gsm8k(_rows(data / "gsm8k" / "example_model_solutions.jsonl", problems)),
    ]


def qwen(rows: list[tuple[str, dict[str, Any]]]) -> Log:
    """Extracted answers with corrected grades."""
    pairs, grades = [], []
    for place, row in rows:
        pairs.append((_field(row, "gold", str, place), _field(row, "answer", str, place)))
        grades.append(_field(row, "adjudicated", bool, place))
    return Log(name="Qwen2.5-Math on MATH", pairs=pairs, grades=grades)


def gsm8k(rows: list[tuple[str, dict[str, Any]]]) -> Log:
    """The text behind `A:` in the last line of each solution."""
    pairs, grades, unanswered = [], [], 0
    for place, row in rows:
        gold = _last_answer(_field(row, "ground_truth", str, place))
        if gold is None:
            raise ValueError(f"{place}: the last line of 'ground_truth' does not start with A:")
        for model in MODELS:
            solution = _field(row, model, dict, place)
            answer = _last_answer(_field(solution, "solution", str, f"{place}, {model}"))
            if answer is None:
                unanswered += 1
                continue
            pairs.append((gold, answer))
            grades.append(_field(solution, "is_correct", bool, f"{place}, {model}"))
    return Log(name="four models on GSM8K", pairs=pairs, grades=grades, unanswered=unanswered)


def measure(log: Log, rounds: int) -> Result:
    """All rounds of one log.

    Raises:
        RuntimeError: a contender failed, or gave other verdicts in another round.
    """
    agreed = {}
    for name in PEERS:
        graded = run(name, log)
        agreed[name] = sum(said == grade for said, grade in zip(graded.verdicts, log.grades, strict=True))
    peer = max(agreed, key=lambda name: agreed[name])
    names = ["ours", "ours, process up", "ours, guards off", peer]
    runs: dict[str, list[Graded]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            runs[name].append(run(name, log))
            print(f"{log.name}, round {number + 1}: {name}", file=sys.stderr, flush=True)
    for name, found in runs.items():
        if any(one.verdicts != found[0].verdicts for one in found):
            raise RuntimeError(f"{name} gave other verdicts in another round of {log.name}")
    return Result(log=log, peer=peer, agreed=agreed, runs=runs)


def run(name: str, log: Log) -> Graded:
    """One contender on one log, in a process of its own.

    Raises:
        RuntimeError: it failed; its last words are in the message.
    """
    command = [sys.executable, str(PEERS_SCRIPT), name]
    done = subprocess.run(command, input=json.dumps(log.pairs), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Graded(**json.loads(done.stdout))


def _last_answer(solution: str) -> str | None:
    last = solution.rstrip("\n").rpartition("\n")[2]
    return last[2:].strip() if last.startswith("A:") else None


def _rows(path: Path, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"there is no {path}; give the folder that holds it, or name it by DRIFT_DATA")
    with path.open(encoding="utf-8") as file:
        lines = list(file)[:limit]
    return [(f"{path.name}, line {number}", json.loads(line)) for number, line in enumerate(lines, 1)]


def _field(row: dict[str, Any], name: str, kind: type, place: str) -> Any:
    if not isinstance(row.get(name), kind):
        raise ValueError(f"{place}: field {name!r} must be a {kind.__name__}, got {row.get(name)!r}")
    return row[name]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="the folder of the logs; DRIFT_DATA by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a part of each log, one round")
    parser.add_argument("--out", type=Path, help="a JSON file for everything measured")
    options = parser.parse_args()
    if options.data is None and not os.environ.get("DRIFT_DATA"):
        parser.error("give the folder of the logs, or name it by DRIFT_DATA")
    options.data = options.data or Path(os.environ["DRIFT_DATA"])
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    return options


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"verify.py: {error}") from error
