"""Evaluation over turns: multi@k and its company, with intervals and paired tests."""

from drift_eval.benchmark import Benchmark
from drift_eval.comparing import Comparison, Comparisons, compare, compare_all, compare_outcomes
from drift_eval.intervals import (
    Estimate,
    McNemar,
    Rate,
    bootstrap_mean,
    mcnemar,
    paired_bootstrap,
    wilson,
)
from drift_eval.metrics import (
    benchmark_averages,
    correction_rates,
    cumulative_accuracy,
    first_success,
    malformed_shares,
    mean_unique_answers,
    multi_at_k,
    solved_rates,
    total_correction,
    unique_answers,
)
from drift_eval.outcomes import Outcomes, outcomes
from drift_eval.run import evaluate
from drift_eval.scoring import Scores, score
from drift_eval.source import read_trajectories

__all__ = [
    "Benchmark",
    "Comparison",
    "Comparisons",
    "Estimate",
    "McNemar",
    "Outcomes",
    "Rate",
    "Scores",
    "benchmark_averages",
    "bootstrap_mean",
    "compare",
    "compare_all",
    "compare_outcomes",
    "correction_rates",
    "cumulative_accuracy",
    "evaluate",
    "first_success",
    "malformed_shares",
    "mcnemar",
    "mean_unique_answers",
    "multi_at_k",
    "outcomes",
    "paired_bootstrap",
    "read_trajectories",
    "score",
    "solved_rates",
    "total_correction",
    "unique_answers",
    "wilson",
]
