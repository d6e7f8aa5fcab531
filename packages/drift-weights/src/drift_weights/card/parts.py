"""The parts of a data set's card, each made anew from the manifest and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift_weights.card.markdown import NOTHING, code, escaped, fence, literal, number, shell, table
from drift_weights.card.numbers import Entries, composition, drifts, histograms, limits, statistics_of
from drift_weights.card.origin import origins
from drift_weights.card.words import (
    CITATION,
    COLUMNS,
    FORMULA,
    GROUP_AND_ESS,
    LOGGED,
    SAMPLED,
    SELECTIONS,
    SUMMARY,
    TRUST,
    USE,
)
from drift_weights.names import check_repo_id
from drift_weights.repository import rollout_of
from drift_weights.schema import SCHEMAS


def make_parts(repo_id: str, manifest: Mapping[str, Any], revision: str | None) -> dict[str, str]:
    """Name → Markdown of every part, in the order of the page; nothing in the data can end one."""
    configs: Entries = manifest["configs"]
    default = manifest["default"]
    weighted = {name: entry for name, entry in configs.items() if entry["kind"] == "weighted"}
    found = {
        "title": f"# {escaped(repo_id.rpartition('/')[2])}",
        "summary": _summary(configs),
        "use": _use(repo_id, default, configs[default], revision),
        "configs": _configs(configs, default),
        "columns": _columns(configs),
        "weights": FORMULA if weighted else "",
        "composition": composition(configs),
        "histograms": histograms(weighted, default),
        "origin": origins(configs),
        "limits": limits(weighted),
        "citation": CITATION,
        "trust": _trust(manifest),
    }
    return {name: text for name, text in found.items() if text}


def _summary(configs: Entries) -> str:
    counts = dict.fromkeys(SCHEMAS, 0)
    for entry in configs.values():
        counts[entry["kind"]] += entry["rows"]
    what = {
        "weighted": "final answers of self-correction dialogues, each with a weight",
        "trajectories": "whole self-correction dialogues, to be weighed",
    }
    counted = ", and ".join(f"{counts[kind]:,} {words}" for kind, words in what.items() if counts[kind])
    sampled = any((rollout_of(entry) or {}).get("rollout") for entry in configs.values())
    return SUMMARY.format(what=counted, how=SAMPLED if sampled else LOGGED)


def _use(repo_id: str, default: str, entry: Mapping[str, Any], revision: str | None) -> str:
    pin = "" if revision is None else f"    revision={literal(revision)},\n"
    pinned = "" if revision is None else f" --revision {shell(revision)}"
    load = (
        "from datasets import load_dataset\n\n"
        f"rows = load_dataset(\n    {literal(repo_id)},\n    {literal(default)},\n{pin}"
        '    split="train",\n)'
    )
    pull = f'pip install "drift-weights[hub]"\ndrift-weights pull {shell(repo_id)} my-data{pinned}'
    named = "Name a `revision`, a tag or a commit: it" if revision is None else "The revision"
    advice = f"{named} keeps these very rows, whatever is published later."
    train = {
        "model": literal(_model(entry)),
        "path": literal(repo_id),
        "revision": f"\n  revision: {literal(revision)}" if revision is not None else "",
    }
    kind = entry["kind"] if entry["kind"] != "weighted" or drifts(entry) else "ones"
    return USE[kind].format(load=fence(load, "python"), pull=fence(pull, "sh"), advice=advice, **train)


def _configs(configs: Entries, default: str) -> str:
    header = ("config", "policy, revision, fingerprint", "selection", "β", "γ", "λ", "rows", "groups")
    rows = (_config_cells(name, entry, default=name == default) for name, entry in configs.items())
    told = {_selection(entry) for entry in configs.values()} - {"drift"}
    notes = "\n".join(f"- `{name}`: {says}" for name, says in SELECTIONS.items() if name in told)
    shown = table((*header, "mean ESS"), rows, right=(*header[3:], "mean ESS"))
    return "\n\n".join(filter(None, ["## Configs", shown, GROUP_AND_ESS, notes]))


def _config_cells(name: str, entry: Mapping[str, Any], *, default: bool) -> list[str]:
    made, weighting = rollout_of(entry) or {}, entry.get("weighting") or {}
    origin, statistics = made.get("origin") or {}, statistics_of(entry)
    policy = (made.get("rollout") or {}).get("policy")
    known = (origin.get("model"), origin.get("revision"), policy)
    return [
        f"{code(name)} **default**" if default else code(name),
        "<br>".join(code(_short(value)) for value in known if value) or NOTHING,
        code(_selection(entry)),
        *(number(weighting.get(key)) for key in ("beta", "gamma", "lam")),
        number(entry["rows"], ","),
        number(statistics.get("groups"), ","),
        number(statistics.get("ess_mean"), ".2f"),
    ]


def _selection(entry: Mapping[str, Any]) -> Any:
    return entry.get("selection", "drift") if entry["kind"] == "weighted" else "trajectories"


def _columns(configs: Entries) -> str:
    blocks = ["## Columns"]
    kinds = list(dict.fromkeys(entry["kind"] for entry in configs.values()))
    for kind in sorted(kinds, reverse=True):
        if len(kinds) > 1:
            blocks.append("Weighted turns:" if kind == "weighted" else "Trajectories:")
        rows = ((f"`{name}`", says) for name, says in COLUMNS[kind])
        blocks.append(table(("column", "meaning"), rows))
        entries = [entry for entry in configs.values() if entry["kind"] == kind]
        more = dict.fromkeys(column["name"] for entry in entries for column in entry["features"])
        extra = [code(column) for column in more if column not in SCHEMAS[kind].names]
        blocks += [f"Further columns: {', '.join(extra)}."] if extra else []
    return "\n\n".join(blocks)


def _trust(manifest: Mapping[str, Any]) -> str:
    made = manifest["configs"][manifest["default"]].get("made_by") or {}
    return TRUST.format(version=code(made.get("drift-weights")), format=code(manifest.get("format")))


def _model(entry: Mapping[str, Any]) -> str:
    """The policy where it is a Hub id, else a name to fill in."""
    model = ((rollout_of(entry) or {}).get("origin") or {}).get("model")
    try:
        return check_repo_id(model) if isinstance(model, str) else "your/model"
    except ValueError:
        return "your/model"


def _short(name: Any) -> Any:
    """The head of a hash; a name as it is."""
    is_hash = isinstance(name, str) and len(name) in (40, 64)
    return name[:8] if is_hash else name
