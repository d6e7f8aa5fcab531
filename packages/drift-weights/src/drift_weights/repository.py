"""A Hub repository's drift.json: several data sets, each under a name, and one of them the default.

A repository is a folder for each data set, with its shards, and one manifest at the root. Here it is only
read, put together and compared; `hub` fetches it and `publishing` uploads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from drift_weights.audit import Audited
from drift_weights.features import features_yaml
from drift_weights.manifest import check_manifest, parse_json
from drift_weights.names import check_subset, check_tag
from drift_weights.schema import FORMAT_VERSION

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_STRANGE = re.compile(r"[^A-Za-z0-9._-]+")
_SHOWN = 80
_PASSING = ("hub", "made_by")
"""What is said of a data set and is no part of it: where this copy came from, and with which versions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishConfig:
    """How a data set is published."""

    tag: str
    """Name of this version, such as v0.1.0; a tag is never moved."""
    subset: str | None = None
    """Name of the data set in its repository; made of policy, β, γ, λ if not given."""
    default: bool = False
    """Make it what a reader gets who names no subset; the first one is anyway."""
    license: str | None = None
    """Licence of the data set as the Hub names it, such as cc-by-4.0; keeps what is there if not given."""
    problems_license: str | None = None
    """Licence of the problems that were rolled out."""
    public: bool = False
    """Let everybody see it; asked once."""
    overwrite: bool = False
    """Replace a data set of the same name and other content; tags keep the old one."""

    def __post_init__(self) -> None:
        check_tag(self.tag)
        if self.subset is not None:
            check_subset(self.subset)
        if self.public and self.license is None:
            raise ValueError("what everybody sees needs a licence; pass --license, such as cc-by-4.0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """What the drift.json of a repository says."""

    default: str
    configs: Mapping[str, dict[str, Any]]
    """Name → the manifest of that data set, its shards named from the root."""
    card: Mapping[str, str]
    """Part of the card → sha256 of what was written there, so that an edit is known as one."""

    def manifest(self) -> dict[str, Any]:
        """The content of drift.json."""
        return {
            "format": FORMAT_VERSION,
            "default": self.default,
            "configs": dict(self.configs),
            "card": dict(self.card),
        }


def read_repository(content: bytes, place: str) -> Repository:
    """A repository's manifest, every shard of which can be looked for.

    Raises:
        ValueError: no manifest of a repository, of another major format, or with names that lead
            elsewhere; the field is named.
    """
    found = parse_json(content, place)
    configs = found.get("configs")
    if not isinstance(configs, dict) or not configs:
        raise ValueError(f"{place} lists no configs; it is no manifest of a published data set")
    for name, manifest in configs.items():
        check_subset(name)
        if not isinstance(manifest, dict):
            raise ValueError(f"{place}, {name}: expected an object, got {type(manifest).__name__}")
        check_manifest(manifest, f"{place}, {name}")
        _check_folder(name, manifest, f"{place}, {name}")
    if found.get("default") not in configs:
        raise ValueError(f"{place}: the default {found.get('default')!r} is none of {', '.join(configs)}")
    card = found.get("card", {})
    if not isinstance(card, dict) or not all(isinstance(value, str) for value in card.values()):
        raise ValueError(f"{place}: card must map parts to hashes")
    return Repository(default=found["default"], configs=configs, card=card)


def _check_folder(name: str, manifest: Mapping[str, Any], place: str) -> None:
    for shard in manifest["shards"]:
        if PurePosixPath(shard["file"]).parent.name != name:
            raise ValueError(f"{place}: shard {shard['file']} lies outside of the folder {name}")


def chosen(repository: Repository, subset: str | None, place: str) -> str:
    """The name of the data set that is meant.

    Raises:
        ValueError: no such data set; those that are there are named.
    """
    name = repository.default if subset is None else subset
    if name not in repository.configs:
        raise ValueError(f"{place} has no subset {name!r}; it has {', '.join(repository.configs)}")
    return name


def entry_of(
    audited: Audited, name: str, *, license: str | None, problems_license: str | None
) -> dict[str, Any]:
    """The manifest of a data set as a repository holds it: shards under its name, features, statistics.

    Raises:
        ValueError: a column of a type that the Hub's datasets library cannot name.
    """
    said = {key: value for key, value in audited.manifest.items() if key != "hub"}
    shards = [
        {**shard, "file": f"{name}/{PurePosixPath(shard['file']).name}", "bytes": file.stat().st_size}
        for shard, file in zip(said["shards"], audited.files, strict=True)
    ]
    given = {"license": license, "problems_license": problems_license}
    known = {key: value for key, value in given.items() if value is not None}
    found = {"features": features_yaml(audited.schema), "statistics": audited.statistics}
    return {**said, **known, **found, "shards": shards}


def pulled(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The same manifest for a folder of its own."""
    shards = [{**shard, "file": f"data/{PurePosixPath(shard['file']).name}"} for shard in entry["shards"]]
    return {**entry, "shards": shards}


def added(before: Repository | None, name: str, entry: dict[str, Any], *, default: bool) -> Repository:
    """A repository with one data set more, or with another one in its place; the first is the default."""
    configs = dict(before.configs) if before is not None else {}
    configs[name] = entry
    first = name if before is None or default else before.default
    # In the order in which they are read again, so that a card made of them is the same.
    configs = dict(sorted(configs.items()))
    return Repository(default=first, configs=configs, card={} if before is None else before.card)


def config_name(manifest: Mapping[str, Any]) -> str:
    """A name that tells policy, β, γ, λ and selection: Qwen2.5-3B-3fa9c1d2_beta0.1_gamma0.9_lambda0.5."""
    policy = _policy(manifest)
    if manifest["kind"] == "trajectories":
        return check_subset(f"{policy}_trajectories")
    weighting = manifest.get("weighting") or {}
    settings = [
        f"{word}{weighting[name]:g}"
        for word, name in (("beta", "beta"), ("gamma", "gamma"), ("lambda", "lam"))
        if isinstance(weighting.get(name), int | float)
    ]
    selection = manifest.get("selection", "drift")
    return check_subset("_".join([policy, *settings, *([selection] if selection != "drift" else [])]))


def rollout_of(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The manifest of the trajectories that a data set was made of, however often it was weighed since."""
    while manifest.get("kind") != "trajectories":
        source = manifest.get("source")
        inner = source.get("manifest") if isinstance(source, dict) else None
        if not isinstance(inner, dict):
            return None
        manifest = inner
    return manifest


def _policy(manifest: Mapping[str, Any]) -> str:
    """The model's name and the head of its fingerprint, of what is known."""
    rollout = rollout_of(manifest) or {}
    model = (rollout.get("origin") or {}).get("model")
    policy = (rollout.get("rollout") or {}).get("policy")
    parts = [PurePosixPath(model).name] if isinstance(model, str) else []
    if isinstance(policy, str):
        parts.append(policy[:8] if _FINGERPRINT.fullmatch(policy) else policy)
    if not parts:
        source = manifest.get("source")
        path = source.get("path") if isinstance(source, dict) else None
        parts = [PurePosixPath(path).stem if isinstance(path, str) else "log"]
    return _STRANGE.sub("-", "-".join(parts)).strip("-._")[:60] or "log"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two manifests of a data set say otherwise, one line a field."""
    found = []
    flat_before, flat_now = (dict(_flat(_kept(manifest))) for manifest in (before, now))
    for field in sorted(flat_before.keys() | flat_now.keys()):
        there, here = flat_before.get(field, "nothing"), flat_now.get(field, "nothing")
        if there != here:
            found.append(f"{field}: {there} there, {here} here")
    return found


def _kept(manifest: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in manifest.items() if key not in _PASSING}
    kept["features"] = {feature["name"]: feature for feature in manifest.get("features", [])}
    kept["shards"] = {
        shard["file"]: f"{shard['rows']} rows, sha256 {shard['sha256'][:12]}"
        for shard in manifest["shards"]
    }
    return kept


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        yield name, text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({_short_hash(text)})"


def _short_hash(text: str) -> str:
    """What tells two long values apart whose beginnings are equal."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
