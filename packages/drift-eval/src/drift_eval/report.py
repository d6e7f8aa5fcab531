"""Scores and comparisons for people (rich tables, a picture) and for programs (plain JSON)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from drift_eval.comparing import Comparison, Comparisons
from drift_eval.intervals import Rate
from drift_eval.scoring import Scores
from drift_weights.folder import write_json

SCORES_FILE = "scores.json"
PICTURE_FILE = "accuracy.png"
# Okabe and Ito's palette, without its yellow (too pale for lines); marks tell lines apart in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")

_NAME_WIDTH = 8
_WIDE_NAME = 35

Labels = Mapping[str, str]


def score_table(
    scores: Sequence[Scores],
    *,
    labels: Labels | None = None,
    extra: Mapping[str, Mapping[str, str]] | None = None,
    title: str | None = None,
) -> Table:
    """One row a policy, in %: acc@1, multi@T with its interval, total correction, malformed turns.

    Between them, mean unique answers on wrong dialogues; N is the number of problems.

    Args:
        scores: at least one.
        labels: names to print in place of policies, by policy.
        extra: more columns: heading → policy → cell.
        title: printed above.
    """
    budgets = {one.max_turns for one in scores}
    rate = _multi_heading(budgets)
    confidence = scores[0].multi_at_max.confidence
    table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("policy", overflow="fold", min_width=_NAME_WIDTH)
    table.add_column("N", justify="right", no_wrap=True)
    table.add_column("acc@1", justify="right", no_wrap=True)
    table.add_column(escape(f"{rate} [{confidence:.0%}]"), justify="right", no_wrap=True)
    for heading in ("total\ncorrection", "answers\non wrong", "malformed\na turn"):
        longest = max(map(len, heading.split()))
        table.add_column(heading, justify="right", min_width=longest)
    for heading in extra or {}:
        table.add_column(escape(heading), justify="right")
    for one in scores:
        cells = [column.get(one.policy, "–") for column in (extra or {}).values()]
        row = [_label(one.policy, labels), *_score_cells(one, len(budgets) > 1), *cells]
        table.add_row(*map(escape, row))
    return table


def comparison_table(comparisons: Comparisons, *, labels: Labels | None = None) -> Table:
    """One row a pair: both rates, their paired difference with its interval, McNemar's exact p.

    `alone` counts the problems that only the first and only the second solved.

    Args:
        comparisons: the pairs; the refused ones are not in the table.
        labels: names to print in place of policies, by policy.
    """
    budgets = {pair.k for pair in comparisons.pairs}
    rate = _multi_heading(budgets)
    table = Table(
        title="first − second, paired by problem", box=SIMPLE, pad_edge=False, collapse_padding=True
    )
    table.add_column("first", overflow="fold", min_width=_NAME_WIDTH)
    table.add_column("second", overflow="fold", min_width=_NAME_WIDTH)
    for heading in (rate, "difference\n[bootstrap]", "alone", "McNemar\np"):
        table.add_column(escape(heading), justify="right", no_wrap=heading == rate)
    for pair in comparisons.pairs:
        names = [_label(pair.first, labels), _label(pair.second, labels)]
        table.add_row(*map(escape, [*names, *_pair_cells(pair, len(budgets) > 1)]))
    return table


def notes(scores: Sequence[Scores], comparisons: Comparisons | None = None) -> list[str]:
    """What a reader of the numbers must know: missing and unscored problems, pairs left out."""
    lines = []
    for one in scores:
        if one.missing:
            lines.append(f"{_label(one.policy, None)}: {one.missing} problems missing, counted as wrong")
        if one.unscored:
            how = "left out" if one.unscored_as == "omit" else "counted as wrong"
            lines.append(f"{_label(one.policy, None)}: {one.unscored} dialogues unscored, {how}")
    lines += [f"not compared: {reason}" for reason in (comparisons.refused if comparisons else ())]
    return lines


def accuracy_figure(
    scores: Sequence[Scores], *, labels: Labels | None = None, title: str | None = None
) -> Figure:
    """Cumulative accuracy (multi@k) by turn, a line a policy with its Wilson band.

    Args:
        scores: at least one.
        labels: names to print in place of policies, by policy.
        title: printed above.
    """
    figure = Figure(figsize=(7.0, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, one in enumerate(scores):
        _draw(axes, one, _label(one.policy, labels), number)
    confidence = scores[0].multi_at_max.confidence
    axes.set_xlabel("turns allowed, k")
    axes.set_ylabel(f"solved within k turns (bands: {confidence:.0%} Wilson)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title)
    widest = max(len(_label(one.policy, labels)) for one in scores)
    columns = 1 if widest > _WIDE_NAME else 2
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    return figure


def numbers(scores: Iterable[Scores], comparisons: Comparisons | None = None) -> dict[str, Any]:
    """Every number as plain JSON types; what is undefined is null, never NaN."""
    content: dict[str, Any] = {"policies": [asdict(one) for one in scores]}
    if comparisons is not None:
        content["comparisons"] = [asdict(pair) for pair in comparisons.pairs]
        content["not_compared"] = list(comparisons.refused)
    return content


def write_report(
    folder: Path,
    scores: Sequence[Scores],
    comparisons: Comparisons | None = None,
    *,
    labels: Labels | None = None,
    title: str | None = None,
) -> None:
    """Write `scores.json` and `accuracy.png` into a folder, which is made if it is not there."""
    picture = BytesIO()
    accuracy_figure(scores, labels=labels, title=title).savefig(picture, format="png")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SCORES_FILE, numbers(scores, comparisons))
    (folder / PICTURE_FILE).write_bytes(picture.getvalue())


def _multi_heading(budgets: set[int]) -> str:
    return f"multi@{min(budgets)}" if len(budgets) == 1 else "multi@k"


def _score_cells(one: Scores, mixed: bool) -> list[str]:
    multi = one.multi_at_max
    budget = f"@{one.max_turns} " if mixed else ""
    return [
        str(one.problems),
        _percent(one.acc_at_1.value),
        f"{budget}{_percent(multi.value)} [{_percent(multi.low)}, {_percent(multi.high)}]",
        _percent(one.total_correction),
        "–" if one.unique_answers_wrong is None else f"{one.unique_answers_wrong:.2f}",
        " ".join(_percent(share) for share in one.malformed_shares),
    ]


def _pair_cells(pair: Comparison, mixed: bool) -> list[str]:
    gap, test = pair.difference, pair.mcnemar
    budget = f"@{pair.k} " if mixed else ""
    return [
        f"{budget}{_percent(pair.first_rate.value)} : {_percent(pair.second_rate.value)}",
        f"{gap.value * 100:+.1f} [{gap.low * 100:+.1f}, {gap.high * 100:+.1f}]",
        f"{test.only_first} : {test.only_second}",
        f"{test.p_value:.2g}",
    ]


def _draw(axes: Any, one: Scores, label: str, number: int) -> None:
    turns = np.arange(1, one.max_turns + 1)
    colour = _COLOURS[number % len(_COLOURS)]
    mark = _MARKS[number % len(_MARKS)]
    dashes = "-" if number < len(_COLOURS) else "--"
    axes.plot(turns, _ends(one.multi_at, "value"), dashes, marker=mark, color=colour, label=label)
    low, high = _ends(one.multi_at, "low"), _ends(one.multi_at, "high")
    axes.fill_between(turns, low, high, color=colour, alpha=0.1, linewidth=0)


def _ends(rates: Iterable[Rate], end: str) -> list[float]:
    return [getattr(rate, end) for rate in rates]


def _label(policy: str, labels: Labels | None) -> str:
    named = (labels or {}).get(policy, policy)
    is_hash = len(named) == 64 and all(letter in "0123456789abcdef" for letter in named)
    return named[:_NAME_WIDTH] if is_hash else named


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.1f}"
