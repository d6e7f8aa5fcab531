"""The parts of a card that hold numbers: groups, weights, and what they warn of."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from drift_weights.card.markdown import NOTHING, bar, code, details, fence, html_code, number, table
from drift_weights.card.words import GROUPS, LIMITS

Entries = Mapping[str, Mapping[str, Any]]


def composition(configs: Entries) -> str:
    """The groups of each config, as table 8 has them."""
    rows = []
    for name, entry in configs.items():
        statistics = statistics_of(entry)
        found, groups = statistics.get("composition"), statistics.get("groups")
        if not found or not groups:
            continue
        sizes = statistics.get("group_sizes") or {}
        parts = ("all_correct", "mixed", "all_wrong")
        rows.append(
            [
                code(name),
                " – ".join(dict.fromkeys(number(size) for size in _ends(sizes))) or NOTHING,
                *(f"{number(found[part], ',')} ({found[part] / groups:.1%})" for part in parts),
                number(found["coverage"], ".1%"),
                number(found["accuracy"], ".1%"),
            ]
        )
    if not rows:
        return ""
    header = ("config", "group size", "all right", "mixed", "all wrong", "coverage", "rows right")
    return "\n\n".join(["## Groups", table(header, rows, right=header[1:]), GROUPS])


def _ends(sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The smallest and the largest group."""
    found = sorted(int(size) for size in sizes)
    return (found[0], found[-1]) if found else ()


def histograms(weighted: Entries, default: str) -> str:
    """How weights fall: the default config open, the others folded up."""
    drawn = {name: entry for name, entry in weighted.items() if statistics_of(entry).get("histogram")}
    shown = [name for name, entry in drawn.items() if drifts(entry)]
    shown.sort(key=lambda name: name != default)
    if not shown:
        return ""
    blocks = ["## Weights in this data", f"{code(shown[0])}:", _histogram(drawn[shown[0]])]
    blocks += [details(html_code(name), _histogram(drawn[name])) for name in shown[1:]]
    return "\n\n".join(blocks)


def _histogram(entry: Mapping[str, Any]) -> str:
    found, rows = statistics_of(entry)["histogram"], entry["rows"]
    share = [count / rows for count in found["rows"]]
    most = max(*share, *found["mass"])
    lines = [f"{'weight':>14}  {'rows':>11}  {'share of rows':<27}  share of weight"]
    for (low, high), count, part, mass in zip(
        pairwise(found["edges"]), found["rows"], share, found["mass"], strict=True
    ):
        label = f"≥ {low:g}" if high is None else f"{low:g} – {high:g}"
        bars = f"{part:6.1%} {bar(part / most):<20}  {mass:6.1%} {bar(mass / most)}"
        lines.append(f"{label:>14}  {count:>11,}  {bars}".rstrip())
    return fence("\n".join(lines))


def limits(weighted: Entries) -> str:
    """What the data cannot teach, and where these data show it."""
    rows = []
    for name, entry in weighted.items():
        statistics = statistics_of(entry)
        wrong, found = statistics.get("upweighted_wrong"), statistics.get("composition")
        if not wrong or not found:
            continue
        rows.append(
            [
                code(name),
                f"{number(found['all_wrong'], ',')} of {number(statistics.get('groups'), ',')}",
                f"{number(wrong['rows'], ',')} of {number(wrong['wrong_rows'], ',')}",
                number(wrong["largest"] or None, ".3g"),
                number(wrong["mass"], ".1%"),
                number(statistics.get("ess_mean"), ".2f"),
            ]
        )
    if not rows:
        return LIMITS
    header = (
        "config",
        "groups without success",
        "wrong answers with w > 1",
        "largest of them",
        "weight on wrong answers",
        "mean ESS",
    )
    return "\n\n".join([LIMITS, "In this data:", table(header, rows, right=header[1:])])


def statistics_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was found in the rows; nothing where a manifest does not say."""
    return entry.get("statistics") or {}


def drifts(entry: Mapping[str, Any]) -> bool:
    """Whether weights differ from 1."""
    return str(entry.get("selection", "drift")) == "drift"
