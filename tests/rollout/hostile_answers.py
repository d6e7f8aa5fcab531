"""500 answers made to hang, crash or swell a verifier: uv run tests/rollout/hostile_answers.py."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
from rich.console import Console
from rich.table import Table

from drift_rollout.verifiers.math import MathOptions, MathVerifier

GOLDS = ("17", "x+1", r"\frac{\pi}{3}", "(1,2)", r"\{1,2\}", r"\text{Evelyn}", r"25\%", "x^2-1", "[0,1)")


def hostile_answers(seed: int) -> Iterator[tuple[str, str]]:
    """Family and answer, without end; the same for the same seed."""
    draw = random.Random(seed)
    while True:
        size = draw.randint(2, 9)
        huge = draw.choice([300, 900, 5_000, 1_000_000])
        deep = draw.choice([20, 60, 300])
        letters = "".join(draw.choices("abcxyz", k=draw.choice([20, 200, 5_000])))
        yield (
            "tower of powers",
            "^".join(["9", *(f"{{{draw.randint(2, 9)}" for _ in range(size))]) + "}" * size,
        )
        yield "power", f"(x+{size})^{{{draw.choice([60, 500, 5_000])}}}"
        yield "large power", f"{draw.randint(2, 99)}^{{{draw.randint(10**5, 10**9)}}}+1"
        yield "factorials", f"{draw.randint(10**4, 10**7)}!" + draw.choice(["", "!", "+1"])
        yield "parentheses", "(" * deep + "x" + ")" * deep
        yield "open parentheses", "(" * deep + "x"
        yield "nested fractions", r"\frac{1}{1+" * deep + "x" + "}" * deep
        yield "nested roots", r"\sqrt{1+" * deep + "x" + "}" * deep
        yield "letters", letters
        yield "digits", "".join(draw.choices("0123456789", k=huge))
        yield "exponent", f"1e{'9' * draw.choice([3, 9, 90])}"
        yield "sum", "+".join(f"x^{{{i}}}" for i in range(draw.choice([20, 120, 2_000])))
        yield "list", ",".join(str(draw.randint(0, 9)) for _ in range(draw.choice([15, 19, 400])))
        yield "formulas in a list", ",".join(f"x^{{{i}}}" for i in range(draw.choice([5, 15, 100])))
        yield "integral", rf"\int_0^{{{size}}} e^{{-x^{{{size}}}}} \sin(x^{{{size}}}) dx"
        yield "series", rf"\sum_{{n=1}}^{{{10 ** draw.randint(3, 9)}}} \frac{{1}}{{n^{{{size}}}}}"
        yield "product", rf"\prod_{{n=1}}^{{{10 ** draw.randint(3, 7)}}} n"
        yield "equation", f"x^{{{size + 5}}}+{size}x=\\sin(x^{{{size}}})"
        yield "matrix", rf"\begin{{pmatrix}}{'&'.join('x' * draw.choice([5, 40, 300]))}\end{{pmatrix}}"
        yield "control characters", "".join(chr(draw.randint(0, 31)) for _ in range(50)) + "71"
        yield "directions", "\u202e\u2066" * size + "71" + "\u2069"
        yield "surrogates", "\ud800" * size + "71"
        yield "line ends", '17"]\n["17", "17", false, 9]\n' * size
        yield "megabyte", draw.choice(["9", "{", "(", "\\frac", "$", " ", "\u200b", "x+", "1,"]) * (1 << 20)
        yield "combining marks", "1" + "\u0301" * huge


def judge_all(verifier: MathVerifier, count: int, seed: int) -> list[tuple[str, str, str, float]]:
    """Family, the start of the answer, verdict and seconds of so many hostile answers, several at once."""

    def judged(number: int, family: str, answer: str) -> tuple[str, str, str, float]:
        gold = GOLDS[number % len(GOLDS)]
        started = time.perf_counter()
        verdict = verifier.verify(f"<answer>{answer}</answer>", gold).verdict
        return family, answer[:60], verdict, time.perf_counter() - started

    answers = hostile_answers(seed)
    with ThreadPoolExecutor(verifier.concurrency) as threads:
        asked = [threads.submit(judged, number, *next(answers)) for number in range(count)]
        return [future.result() for future in asked]


def main() -> None:
    """Judge hostile answers and show what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=1.0)
    options = parser.parse_args()
    verifier = MathVerifier(options=MathOptions(timeout=options.timeout))
    process = psutil.Process()
    half = options.count // 2
    judged = judge_all(verifier, half, options.seed)
    before = process.memory_info().rss
    judged += judge_all(verifier, options.count - half, options.seed + 1)
    grown = (process.memory_info().rss - before) / 2**20
    verifier.close()
    families: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)
    for family, _, verdict, seconds in judged:
        families[family].append((verdict, seconds))
    table = Table("family", "answers", "verdicts", "slowest, s")
    for family, found in families.items():
        verdicts = Counter(verdict for verdict, _ in found)
        said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
        table.add_row(family, str(len(found)), said, f"{max(seconds for _, seconds in found):.2f}")
    console = Console()
    console.print(table)
    console.print(f"{len(judged)} answers at {options.timeout:g} s each at most")
    console.print(f"in the second half this process grew by {grown:.0f} MiB")
    accepted = [(family, answer) for family, answer, verdict, _ in judged if verdict == "correct"]
    if accepted:
        console.print(f"accepted: {accepted[:10]}")
        sys.exit(1)


if __name__ == "__main__":
    main()
