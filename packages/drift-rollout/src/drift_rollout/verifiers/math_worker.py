"""A process that asks math-verify; run by path, so that nothing else of ours is imported in it.

Reads a line of JSON for each pair, [gold, answer, question, seconds, bytes], and answers with one: true,
false, "timeout" or "died". Each pair has a fork of its own, which can be killed and leaves nothing behind:
a verdict does not depend on what was asked before.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import sys
from typing import Any


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    # Parsers print; what they print is no answer.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    logging.disable()
    # Once before the first fork: sympy imports much of itself late.
    _equal(r"\sqrt{2}+1", r"1+\sqrt{2}", "same")
    gc.freeze()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_forked(*json.loads(line))), file=answers, flush=True)


def _forked(gold: str, answer: str, question: str, seconds: float, memory: int) -> Any:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _limit_memory(memory)
        found = _rounds(gold, answer) if question == "rounds" else _equal(gold, answer, question)
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    in_time, _, _ = select.select([reading], [], [], seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = os.read(reading, 100)
    os.close(reading)
    if not in_time:
        return "timeout"
    return json.loads(said) if said else "died"


def _limit_memory(size: int) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _equal(gold: str, answer: str, question: str) -> bool:
    from math_verify import verify

    parsed = [_parsed(text, strip_units=question == "same without units") for text in (gold, answer)]
    # No timeouts of its own: they are alarms, which code in C does not hear.
    return bool(verify(*parsed, timeout_seconds=None))


def _rounds(value: str, decimal: str) -> bool:
    from sympy import Float, N

    parsed = _parsed(value, strip_units=False)
    if not parsed or isinstance(parsed[0], str) or parsed[0].free_symbols:
        return False
    places = len(decimal.partition(".")[2])
    return bool(abs(N(parsed[0], 50) - Float(decimal, 50)) <= Float(10) ** -places)


def _parsed(text: str, *, strip_units: bool) -> list[Any]:
    from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse

    config = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=LatexNormalizationConfig(
            basic_latex=True, units=strip_units, malformed_operators=True, nits=True, boxed="last"
        ),
    )
    found: list[Any] = parse(f"\\boxed{{{text}}}", [config], parsing_timeout=None)
    return found


if __name__ == "__main__":
    main()
