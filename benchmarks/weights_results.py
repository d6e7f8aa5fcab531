"""What benchmarks/weights.py asks and what it measures; standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

FLOORS = ("pyarrow", "copy")
"""Contenders that make no weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One log and what is to be written of it."""

    name: str
    title: str
    kind: str
    """Of weights_data."""
    rows: int
    form: str
    """Of weights_peers: parquet, side or jsonl."""
    keys: tuple[str, ...]
    contenders: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one process cost."""

    cpu_s: float
    """User and system."""
    wall_s: float
    peak_bytes: float
    """Largest resident set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """All runs of a task."""

    task: Task
    source_bytes: int
    runs: dict[str, list[Run]]

    def median(self, contender: str) -> Run:
        """Each measure's own median over the rounds."""
        runs = self.runs[contender]
        return Run(
            cpu_s=median(run.cpu_s for run in runs),
            wall_s=median(run.wall_s for run in runs),
            peak_bytes=median(run.peak_bytes for run in runs),
        )

    def best_peer(self, measure: str) -> float:
        """The least that any other tool took."""
        peers = set(self.runs) - {"ours", *FLOORS}
        return min(float(getattr(self.median(name), measure)) for name in peers)
