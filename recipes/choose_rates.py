"""Choose each method's learning rate on the validation split of a world that quickstart never shows.

    uv run recipes/choose_rates.py

Prints multi@5 on validation for every method and rate, and the best rate of each.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from drift_eval import outcomes
from drift_eval.scoring import score_outcomes
from quickstart import (
    METHODS,
    Scale,
    Stage,
    evaluate_policy,
    hush,
    reference_policy,
    rollouts,
    train_method,
    world_stage,
)

WORLD = 1000
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def main() -> None:
    """Train every method at every rate and print how it does on validation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/rates"))
    options = parser.parse_args()
    hush()
    console = Console()
    with world_stage(WORLD, Scale(), options.out / f"world-{WORLD}", console) as stage:
        rates = validation_rates(stage)
    table = Table(title=f"multi@5 in % on the validation split of world {WORLD}")
    table.add_column("method")
    for rate in RATES:
        table.add_column(f"{rate:g}", justify="right")
    table.add_column("best", justify="right")
    for name, found in rates.items():
        best = max(found, key=found.__getitem__)
        table.add_row(name, *(f"{found[rate] * 100:.1f}" for rate in RATES), f"{best:g}")
    console.print(table)


def validation_rates(stage: Stage) -> dict[str, dict[float, float]]:
    """multi@5 on validation, by method and learning rate."""
    reference = reference_policy(stage)
    turns = rollouts(stage, reference)
    found: dict[str, dict[float, float]] = {}
    for method in METHODS:
        for rate in RATES:
            tried = replace(method, learning_rate=rate)
            folder = train_method(stage, tried, turns, reference)
            table = evaluate_policy(stage, f"{method.name}, {rate:g}", folder, stage.splits.validation)
            scores = score_outcomes(outcomes(table)[0])
            found.setdefault(method.name, {})[rate] = scores.multi_at_max.value
    return found


if __name__ == "__main__":
    main()
