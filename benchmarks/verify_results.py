"""What benchmarks/verify.py measured of one log."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from verify_peers import Graded


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """Answers of one log, and what its data say of them."""

    name: str
    pairs: list[tuple[str, str]]
    """Gold and answer."""
    grades: list[bool]
    unanswered: int = 0
    """Solutions without an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What all contenders said of one log, and their times by round."""

    log: Log
    peer: str
    """The way of handing math-verify a text that agreed best."""
    agreed: dict[str, int]
    """Answers on which each way agreed with the data's grades."""
    runs: dict[str, list[Graded]]

    def rate(self, name: str, *, start: bool) -> float:
        """Answers per second, the median over rounds; the time before the first answer counted or not."""
        return len(self.log.pairs) / statistics.median(self._seconds(name, start=start))

    def ratios(self, name: str, *, start: bool) -> list[float]:
        """How many times math-verify's rate it was, by round."""
        found = zip(self._seconds(self.peer, start=start), self._seconds(name, start=start), strict=True)
        return [peer / own for peer, own in found]

    def verdicts(self, name: str) -> list[bool]:
        """Whether each answer was accepted; the same in all rounds."""
        return self.runs[name][0].verdicts

    def _seconds(self, name: str, *, start: bool) -> list[float]:
        return [run.seconds + (run.start if start else 0) for run in self.runs[name]]
