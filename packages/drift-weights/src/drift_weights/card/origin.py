"""The part of a card that says how the data were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drift_weights.card.markdown import code, number, table
from drift_weights.repository import rollout_of


def origins(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """One table for all configs that were made alike."""
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, entry in configs.items():
        alike.setdefault(tuple(_facts(entry)), []).append(name)
    blocks = ["## How it was made"]
    for facts, names in alike.items():
        if len(alike) > 1:
            blocks.append(", ".join(map(code, names)) + ":")
        blocks.append(table(("what", "in this data"), facts))
    return "\n\n".join(blocks)


def _facts(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    made = rollout_of(entry) or {}
    yield from _rollout_facts(made)
    source = entry.get("source") or {}
    if "format_of_log" in entry:
        yield "Log", f"{code(source.get('path'))}, sha256 {code(source.get('sha256'))}"
        yield "Read as", code(entry["format_of_log"])
    weighting = entry.get("weighting") or {}
    if weighting.get("malformed") == "skip":
        yield "Unreadable answers", "left out of E and of L's penalty (`skip`)"
    if weighting.get("all_wrong") == "drop":
        yield "Groups without a success", "left out"
    omitted = entry.get("omitted_groups") or []
    if omitted:
        yield "Left out", f"{len(omitted):,} groups with an answer that could not be judged"
    yield "Licence of the data", code(entry.get("license"))
    yield "Licence of the problems", code(entry.get("problems_license"))
    versions = dict(made.get("made_by") or {}) | dict(entry.get("made_by") or {})
    yield "Made by", ", ".join(code(f"{name} {version}") for name, version in versions.items())


def _rollout_facts(made: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    rollout, origin, problems = (made.get(key) or {} for key in ("rollout", "origin", "problems"))
    if not rollout:
        return
    file = origin.get("problems") or {}
    counted = f"{number(problems.get('count'), ',')} problems"
    named = f" of {code(file['name'])}, sha256 {code(file.get('sha256'))}" if "name" in file else ""
    protocol, sampling = rollout.get("protocol") or {}, rollout.get("sampling") or {}
    policy = origin.get("model") or rollout.get("policy")
    at = f" at {code(origin['revision'])}" if origin.get("revision") else ""
    yield "Policy", f"{code(policy)}{at}, fingerprint {code(rollout.get('policy'))}"
    yield "Problems", counted + named
    yield "Verifier", code(rollout.get("verifier"))
    yield (
        "Dialogue",
        f"at most {number(protocol.get('max_turns'))} turns; feedback {code(protocol.get('feedback'))}",
    )
    drawn = ", ".join(code(f"{key}={value}") for key, value in sampling.items())
    yield "Sampling", f"{number(rollout.get('samples'))} dialogues a problem; {drawn}"
    seeded = "" if rollout.get("seeded", True) else "; the engine takes no seed, so it cannot be repeated"
    yield "Seed, round", f"{number(rollout.get('seed'))}, {number(rollout.get('round'))}{seeded}"
    prompt = rollout.get("prompt") or {}
    if isinstance(prompt, Mapping) and prompt.get("user"):
        yield "Prompt", code(prompt["user"])
        yield "System message", code(prompt.get("system"))
