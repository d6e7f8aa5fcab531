"""drift.json: what a data set is made of, read and held to its word before a file of it is opened."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from drift_weights.names import check_shard
from drift_weights.schema import FORMAT_VERSION, SCHEMAS

MANIFEST = "drift.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORMAT = re.compile(r"\d{1,4}\.\d{1,4}")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        FileNotFoundError: no drift.json there.
        ValueError: not a manifest, or of a major format that this version cannot read.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {MANIFEST}; it is no folder of drift data")
    manifest = parse_json(file.read_bytes(), str(file))
    if "configs" in manifest:
        raise ValueError(
            f"{path} is a whole Hub repository ({', '.join(map(str, manifest['configs']))}); take one data "
            "set out of it with drift-weights pull"
        )
    return check_manifest(manifest, str(file))


def parse_json(content: bytes, place: str) -> dict[str, Any]:
    """A JSON object of a format that this version reads.

    Raises:
        ValueError: none, or of another major format.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not valid JSON: {error}; fetch or write the folder again") from error
    if not isinstance(found, dict) or "format" not in found:
        raise ValueError(f"{place} is no manifest: it names no format")
    check_format(found["format"], place)
    return found


def check_format(found: object, place: str) -> None:
    """Refuse another major format; another minor is read.

    Raises:
        ValueError: what cannot be read, and what to do.
    """
    if not isinstance(found, str) or not _FORMAT.fullmatch(found):
        raise ValueError(f"{place}: format {found!r} is no version such as {FORMAT_VERSION}")
    ours, theirs = (int(version.partition(".")[0]) for version in (FORMAT_VERSION, found))
    if ours != theirs:
        do = "upgrade drift-weights" if theirs > ours else "fetch it with an older drift-weights"
        raise ValueError(f"{place} has format {found}; this drift-weights reads {FORMAT_VERSION}: {do}")


def check_manifest(manifest: dict[str, Any], place: str) -> dict[str, Any]:
    """One data set's manifest, as it came, with shards that can be looked for.

    Raises:
        ValueError: what is missing or cannot be true, and in which field.
    """
    check_format(manifest.get("format"), place)
    if manifest.get("kind") not in SCHEMAS:
        raise ValueError(f"{place}: kind {manifest.get('kind')!r} is not one of {', '.join(SCHEMAS)}")
    shards = manifest.get("shards")
    if not isinstance(shards, list) or not shards:
        raise ValueError(f"{place} is no manifest: it lists no shards")
    for number, shard in enumerate(shards):
        _check_shard(shard, f"{place}, shards[{number}]")
    files = [shard["file"] for shard in shards]
    if len({file.lower() for file in files}) < len(files):
        raise ValueError(f"{place} lists a shard twice; fetch or write the folder again")
    rows = sum(shard["rows"] for shard in shards)
    if manifest.get("rows") != rows:
        raise ValueError(f"{place} says {manifest.get('rows')} rows, and {rows} in its shards")
    return manifest


def _check_shard(shard: Any, place: str) -> None:
    if not isinstance(shard, dict) or not {"file", "rows", "sha256"} <= shard.keys():
        raise ValueError(f"{place}: a shard needs file, rows and sha256; fetch or write it again")
    try:
        check_shard(shard["file"])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if not isinstance(shard["sha256"], str) or not _SHA256.fullmatch(shard["sha256"]):
        raise ValueError(f"{place}: sha256 {shard['sha256']!r} is no hash")
    for name in ("rows", "bytes"):
        count = shard.get(name, 1)
        if type(count) is not int or count < 1:
            raise ValueError(f"{place}: {name} is {count!r}, expected a number from 1 on")
