"""A process that asks math-verify; run by path, so that nothing else of ours is imported in it.

Reads a line of JSON for each pair, [gold, answer, strip units, seconds], and answers with true or
false. It may be killed at any time.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys


def main() -> None:
    """Answer until standard input ends."""
    if sys.platform == "linux":
        import resource

        limit = int(sys.argv[1]) << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answers = os.fdopen(os.dup(1), "w")
    # Parsers print; what they print is no answer.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    logging.disable()
    _equal("1", "1", False)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        gold, answer, strip_units, seconds = json.loads(line)
        # Whoever asked kills this process at its limit; if he died meanwhile, the alarm does.
        signal.setitimer(signal.ITIMER_REAL, seconds + 5)
        print(json.dumps(_equal(gold, answer, strip_units)), file=answers, flush=True)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _equal(gold: str, answer: str, strip_units: bool) -> bool:
    from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify

    config = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=LatexNormalizationConfig(
            basic_latex=True, units=strip_units, malformed_operators=True, nits=True, boxed="last"
        ),
    )
    # No timeout of its own: that is an alarm, which code in C does not hear.
    parsed = [parse(f"\\boxed{{{text}}}", [config], parsing_timeout=None) for text in (gold, answer)]
    return bool(verify(*parsed, timeout_seconds=None))


if __name__ == "__main__":
    main()
