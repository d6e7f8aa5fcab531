"""The weight histogram as a picture; needs the extra `drift-weights[plot]`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from drift_weights.inspection import HISTOGRAM_EDGES, Inspection


def write_histogram(path: Path, inspection: Inspection) -> None:
    """Draw, for each setting, the share of rows and of all weight in every bin of the histogram.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a picture needs matplotlib: pip install 'drift-weights[plot]'"
        ) from error
    labels = [f"≥ {a:g}" if b == float("inf") else f"{a:g} – {b:g}" for a, b in pairwise(HISTOGRAM_EDGES)]
    places = np.arange(len(labels))
    count = len(inspection.settings)
    figure = Figure(figsize=(7.0, 2.6 * count), layout="constrained")
    for number, setting in enumerate(inspection.settings):
        axes = figure.add_subplot(count, 1, number + 1)
        rows = np.asarray(setting.histogram) / inspection.rows
        axes.bar(places - 0.2, rows, 0.4, label="share of rows")
        axes.bar(places + 0.2, setting.mass, 0.4, label="share of weight")
        axes.set_xticks(places, labels, rotation=30, ha="right")
        axes.set_title(
            f"β {setting.beta:g}, γ {setting.gamma:g}, λ {setting.lam:g}: mean ESS {setting.ess_mean:.2f}"
        )
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
