"""Manifests and cards made by hand; needs drift-weights and PyYAML."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from hypothesis import strategies as st

from drift_weights.card import Card, make_card
from drift_weights.features import features_yaml
from drift_weights.schema import SCHEMAS

HOSTILE = (
    "a|b",
    "a\\|b",
    "``` code",
    "`",
    "</code></details><script>alert(1)</script>",
    "<!-- /drift: configs -->",
    "x\n<!-- /drift: configs -->\n# heading",
    "x\n---\ny: 1",
    "\n\n# heading\n\n[a](http://b)",
    "[a](javascript:alert(1)) ![p](http://b/c.png)",
    "**bold** _it_ ~~no~~ $x$ :smile: @user &lt;b&gt; &#124;",
    "- item: {a: [b], c: 'd'} # e",
    "no",
    "1e5",
    "\u202eevil\u2066\u200b\u2028x\x00\x1b[31m\r\ny",
    '"); import os; ("',
    "$(reboot) `reboot` '; reboot",
    "\ud800",
    "   ",
    "x" * 1000,
)
hostile = st.sampled_from(HOSTILE) | st.text(max_size=30)


POLICY = "3fa9c1d2" + "0" * 56


def trajectories_entry(**changes: Any) -> dict[str, Any]:
    """A config of trajectories, as a repository's manifest holds it."""
    return {
        "format": "1.1",
        "kind": "trajectories",
        "made_by": {"drift-weights": "0.1.0", "commit": "c" * 40},
        "rows": 32,
        "shards": [{"file": "T/part-00000.parquet", "rows": 32, "bytes": 999, "sha256": "a" * 64}],
        "rollout": {
            "policy": POLICY,
            "verifier": "math/1",
            "protocol": {"max_turns": 5, "feedback": "Wrong, again."},
            "sampling": {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 512},
            "seed": 7,
            "round": 0,
            "samples": 16,
            "seeded": True,
            "prompt": {"system": "Be brief.", "user": "Problem: {problem}"},
        },
        "problems": {"count": 2, "repeated": 0},
        "origin": {
            "model": "Qwen/Qwen2.5-3B-Instruct",
            "revision": "d" * 40,
            "problems": {"name": "math.jsonl", "sha256": "b" * 64},
        },
        "statistics": {"rows": 32, "groups": 2, "group_sizes": {"16": 2}, "composition": COMPOSITION},
        **changes,
    }


COMPOSITION = {"all_correct": 1, "all_wrong": 0, "mixed": 1, "accuracy": 0.75, "coverage": 1.0}


def weighted_entry(**changes: Any) -> dict[str, Any]:
    """A config of weighted turns, as a repository's manifest holds it."""
    return {
        "format": "1.1",
        "kind": "weighted",
        "made_by": {"drift-weights": "0.1.0"},
        "rows": 32,
        "shards": [{"file": "W/part-00000.parquet", "rows": 32, "bytes": 1234, "sha256": "a" * 64}],
        "weighting": {"beta": 0.1, "gamma": 0.9, "lam": 0.5, "malformed": "count"},
        "selection": "drift",
        "omitted_groups": [],
        "source": {"path": "trajectories", "manifest": trajectories_entry()},
        "statistics": {
            "rows": 32,
            "groups": 2,
            "group_sizes": {"16": 2},
            "composition": COMPOSITION,
            "ess_mean": 3.25,
            "ess_median": 3.25,
            "largest_weight": 8.5,
            "upweighted_wrong": {"rows": 3, "wrong_rows": 8, "largest": 4.75, "mass": 0.125},
            "histogram": {"edges": [0.0, 0.5, 1.0, None], "rows": [16, 8, 8], "mass": [0.0, 0.25, 0.75]},
        },
        **changes,
    }


def repository(**configs: dict[str, Any]) -> dict[str, Any]:
    """A repository's manifest; its first config is the default."""
    found = configs or {"W": weighted_entry()}
    return {"format": "1.1", "default": next(iter(found)), "configs": found}


def card(manifest: dict[str, Any] | None = None, repo_id: str = "org/data", **settings: Any) -> Card:
    """A card of the manifest, whose features are those of its kind if it does not say."""
    found = manifest or repository()
    for entry in found["configs"].values():
        entry.setdefault("features", features_yaml(SCHEMAS[entry["kind"]]))
    return make_card(repo_id, found, **{"revision": "v0.1.0"} | settings)


def again(made: Card, text: str | None = None, manifest: dict[str, Any] | None = None) -> Card:
    """The card published once more, over what a user made of it."""
    before = made.text if text is None else text
    return card(manifest, before=before, recorded=made.recorded)


def front(text: str) -> dict[str, Any]:
    """The YAML of a card."""
    return yaml.safe_load(text.split("\n---\n")[0])


def body(text: str) -> str:
    """What stands behind the YAML of a card."""
    return text.split("\n---\n", 1)[1]


def part(text: str, name: str) -> str:
    """What stands between the two comments of a part."""
    return re.search(rf"<!-- drift: {name} -->\r?\n(.*?)\r?\n<!-- /drift: {name} -->", text, re.DOTALL)[1]


def names(text: str) -> list[str]:
    """The parts of a card in order."""
    return re.findall(r"^<!-- drift: ([a-z-]+) -->", text, re.MULTILINE)


def other() -> dict[str, Any]:
    """The same data with other numbers everywhere."""
    changed = json.loads(json.dumps(weighted_entry()).replace("32", "64").replace("0.1.0", "0.2.0"))
    changed["statistics"]["composition"] |= {"mixed": 0, "all_wrong": 1, "coverage": 0.5}
    return repository(W=changed | {"weighting": {"beta": 0.3, "gamma": 0.8, "lam": 0.2}})


PARTS = names(card().text)
