"""A benchmark as a value: which problems, how many there must be, and who judges."""

from __future__ import annotations

from dataclasses import dataclass

from drift_rollout.problems import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Problems to evaluate on, held against the size that the benchmark is known to have.

    Raises:
        ValueError: no problems, one that appears twice or has no target, or another number of them
            than `size` (fewer pass with `allow_subset`).
    """

    name: str
    problems: tuple[Problem, ...]
    size: int
    """N, the number of problems of the whole benchmark (table 2)."""
    verifier: str
    """Name of the verifier that its numbers are defined with."""
    allow_subset: bool = False
    """Whether fewer problems than `size` are meant; scores then speak about these only."""

    def __post_init__(self) -> None:
        count = len(self.problems)
        if count == 0:
            raise ValueError(f"benchmark {self.name} has no problems")
        if len({problem.prompt_id for problem in self.problems}) < count:
            raise ValueError(f"benchmark {self.name} holds a problem twice; keep it once")
        for number, problem in enumerate(self.problems):
            if problem.target is None:
                raise ValueError(f"benchmark {self.name}: problem {number} has no target")
        if count > self.size or (count < self.size and not self.allow_subset):
            raise ValueError(
                f"benchmark {self.name} has {self.size} problems, got {count}; load all of them"
                + ("" if count > self.size else ", or say allow_subset=True")
            )
