"""The paper's metrics as array functions. Suffixes: N problems, M turns in all, T turn budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from drift_eval.turns import Turns, flatten_turns
from drift_weights.types import Malformed

MATH = ("MATH", "MATH500", "TheoremQA")
GENERAL = ("MMLU-Redux", "MMLU-Pro", "GPQA")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkAverages:
    """Unweighted means over benchmarks; None where one of them is missing."""

    math: float | None
    """Over MATH, MATH500 and TheoremQA."""
    general: float | None
    """Over MMLU-Redux, MMLU-Pro and GPQA."""
    all: float | None
    """Over the six."""


def first_success(table: pa.Table) -> NDArray[np.int64]:
    """The turn of the first correct verdict of each trajectory: 1-based, 0 for never.

    Args:
        table: a TRAJECTORIES table; only its `turns` column is read.

    Returns:
        first_success, shape [N], in the order of the table.

    Raises:
        ValueError: a trajectory without turns, or an unknown verdict.
    """
    return first_success_of(flatten_turns(table))


def first_success_of(turns: Turns) -> NDArray[np.int64]:
    """As `first_success`, from turns that are flat already."""
    never = np.iinfo(np.int64).max
    first_N = np.full(len(turns.lengths), never)
    np.minimum.at(first_N, turns.rows[turns.correct], turns.numbers[turns.correct])
    return np.where(first_N == never, 0, first_N)


def multi_at_k(first_success_N: ArrayLike, k: int, *, max_turns: int, size: int | None = None) -> float:
    """The share of problems that are solved within k turns.

    multi@k = 1/N · Σ_i max_{t≤k} V(y_{i,t}) (eq. 21); multi@1 is acc@1.

    Args:
        first_success_N: 1-based turn of the first success, 0 for never.
        k: in 1…max_turns; more turns than were allowed cannot be claimed.
        max_turns: T, the turn budget of the dialogues.
        size: N of the benchmark, at least the number of rows; problems that are missing count as
            wrong. The number of rows by default.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: a value out of its range, naming the first such row.

    Source: arXiv 2605.31455, eq. 21.
    """
    if not 1 <= k <= max_turns:
        raise ValueError(f"k must lie in 1…max_turns = {max_turns}, got {k}")
    return float(cumulative_accuracy(first_success_N, max_turns=max_turns, size=size)[k - 1])


def cumulative_accuracy(
    first_success_N: ArrayLike, *, max_turns: int, size: int | None = None
) -> NDArray[np.float64]:
    """multi@k for k = 1…T (eq. 21).

    Args and errors as in `multi_at_k`.

    Returns:
        Shares, shape [T], never falling.
    """
    solved_T, problems = solved_within(first_success_N, max_turns=max_turns, size=size)
    return solved_T / problems


def solved_within(
    first_success_N: ArrayLike, *, max_turns: int, size: int | None = None
) -> tuple[NDArray[np.int64], int]:
    """How many problems are solved within k turns, for k = 1…T, and N: the counts behind eq. 21.

    Args and errors as in `multi_at_k`.

    Returns:
        Counts, shape [T], and the number of problems.
    """
    first_N = _first_success(first_success_N, max_turns)
    problems = len(first_N) if size is None else size
    if problems < max(len(first_N), 1):
        raise ValueError(f"size must be at least 1 and cover all {len(first_N)} rows, got {problems}")
    return np.cumsum(np.bincount(first_N, minlength=max_turns + 1)[1:]), problems


def correction_rates(
    first_success_N: ArrayLike, *, max_turns: int, size: int | None = None
) -> tuple[float | None, ...]:
    """Of the problems still wrong after turn t − 1, the share that turn t solves.

    c_t = # correct at t / # wrong at t − 1 (sec. 5.4), with c_1 = acc@1.
    So multi@k = 1 − Π_{t≤k} (1 − c_t).
    A dialogue that ended early (context full) stays among the wrong ones.

    Args and errors as in `multi_at_k`.

    Returns:
        T rates in [0, 1]; None where nothing was wrong any more.
    """
    solved_T, problems = solved_within(first_success_N, max_turns=max_turns, size=size)
    before_T = np.concatenate(([0], solved_T[:-1]))
    pairs = zip((solved_T - before_T).tolist(), (problems - before_T).tolist(), strict=True)
    return tuple(_ratio(corrected, wrong) for corrected, wrong in pairs)


def total_correction(first: float, final: float) -> float | None:
    """The share of first-turn failures that later turns repair.

    (Acc@T − Acc@1) / (1 − Acc@1) (table 6).

    Args:
        first: Acc@1 in [0, 1].
        final: Acc@T in [Acc@1, 1].

    Returns:
        A share in [0, 1], or None where the first turn left nothing to repair.

    Raises:
        ValueError: a share out of its range (percentages are refused).
    """
    if not 0 <= first <= final <= 1:
        raise ValueError(f"0 ≤ acc@1 ≤ acc@T ≤ 1 must hold, got acc@1 = {first} and acc@T = {final}")
    return None if first == 1 else (final - first) / (1 - first)


def solved_rates(first_success_N: ArrayLike, *, max_turns: int) -> tuple[float, ...] | None:
    """How much of the final success is reached by turn t: multi@t / multi@T (sec. 5.5).

    Args and errors as in `multi_at_k`; N cancels.

    Returns:
        T shares in [0, 1], the last one 1; None where nothing is ever solved.
    """
    solved_T, _ = solved_within(first_success_N, max_turns=max_turns)
    return None if solved_T[-1] == 0 else tuple((solved_T / solved_T[-1]).tolist())


def unique_answers(turns: Turns, *, malformed: Malformed = "count") -> NDArray[np.int64]:
    """E, the distinct answers of each trajectory.

    Args:
        turns: flat turns.
        malformed: `count` takes all turns without an answer as one answer value; `skip` leaves
            them out, so that E is 0 where nothing was readable.

    Returns:
        E, shape [N].

    Raises:
        ValueError: another rule than these two.
    """
    if malformed not in ("count", "skip"):
        raise ValueError(f"malformed must be count or skip, got {malformed!r}")
    kept_M = turns.answers >= (0 if malformed == "skip" else -1)
    pairs = np.stack([turns.rows[kept_M], turns.answers[kept_M]])
    return np.bincount(np.unique(pairs, axis=1)[0], minlength=len(turns.lengths))


def mean_unique_answers(unique_N: ArrayLike, solved_N: ArrayLike) -> tuple[float | None, float]:
    """Mean E over the trajectories that were never solved, and over all (table 6).

    Args:
        unique_N: E of each trajectory.
        solved_N: whether it was solved.

    Returns:
        The two means; the first is None where every trajectory was solved.

    Raises:
        ValueError: no rows, or columns of different length.
    """
    unique, solved = np.asarray(unique_N), np.asarray(solved_N, dtype=bool)
    if unique.ndim != 1 or unique.shape != solved.shape or len(unique) == 0:
        raise ValueError(f"unique {unique.shape} and solved {solved.shape} must be equal columns with rows")
    return _ratio(unique[~solved].sum(), (~solved).sum()), float(unique.mean())


def malformed_shares(turns: Turns, *, max_turns: int) -> tuple[float | None, ...]:
    """Of the responses given at turn t, the share without a readable answer.

    Args:
        turns: flat turns.
        max_turns: T.

    Returns:
        T shares in [0, 1]; None at turns that no dialogue reached.

    Raises:
        ValueError: a trajectory has more than `max_turns` turns.
    """
    if turns.lengths.max() > max_turns:
        row = int(turns.lengths.argmax())
        raise ValueError(f"row {row}: {turns.lengths[row]} turns, more than max_turns {max_turns}")
    given_T = np.bincount(turns.numbers, minlength=max_turns + 1)[1:]
    malformed_T = np.bincount(turns.numbers[turns.malformed], minlength=max_turns + 1)[1:]
    return tuple(_ratio(bad, all_) for bad, all_ in zip(malformed_T, given_T, strict=True))


def benchmark_averages(score_by_benchmark: Mapping[str, float]) -> BenchmarkAverages:
    """Average one metric over the paper's benchmarks, unweighted by their sizes (table 2).

    Args:
        score_by_benchmark: keys among MATH, MATH500, TheoremQA, MMLU-Redux, MMLU-Pro, GPQA.

    Raises:
        ValueError: another benchmark, which belongs to none of the averages.
    """
    unknown = sorted(set(score_by_benchmark) - {*MATH, *GENERAL})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: the averages are over {', '.join(MATH + GENERAL)}")
    return BenchmarkAverages(
        math=_mean(score_by_benchmark, MATH),
        general=_mean(score_by_benchmark, GENERAL),
        all=_mean(score_by_benchmark, MATH + GENERAL),
    )


def _mean(scores: Mapping[str, float], names: tuple[str, ...]) -> float | None:
    if not set(names) <= set(scores):
        return None
    return sum(scores[name] for name in names) / len(names)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _first_success(first_success_N: ArrayLike, max_turns: int) -> NDArray[np.int64]:
    first_N = np.asarray(first_success_N)
    if max_turns < 1:
        raise ValueError(f"max_turns must be at least 1, got {max_turns}")
    if first_N.ndim != 1 or (first_N.dtype.kind not in "iu" and len(first_N) > 0):
        raise ValueError(
            f"first_success must be a column of whole numbers, got {first_N.dtype} {first_N.shape}"
        )
    bad_N = (first_N < 0) | (first_N > max_turns)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(
            f"row {row}: first_success must lie in 0…max_turns = {max_turns}, got {first_N[row]}"
        )
    return first_N.astype(np.int64)
