"""The YAML block of a data set's card: what the Hub and `load_dataset` read of it."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from typing import Any

_TAGS = ["drift", "self-correction", "multi-turn", "importance-weighting", "sft"]
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda
    cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0
    odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    llama2 llama3 llama3.1 llama3.2 llama3.3 gemma unknown other
"""
"""The identifiers that the Hub takes; any other name would make it refuse the card."""


def front_matter(repo_id: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the card's YAML says of the data, in the order in which it is written."""
    configs, default = manifest["configs"], manifest["default"]
    return {
        **_license([entry.get("license") for entry in configs.values()]),
        "pretty_name": repo_id.rpartition("/")[2],
        "task_categories": ["text-generation"],
        "tags": [*_TAGS],
        "size_categories": [size_category(sum(entry["rows"] for entry in configs.values()))],
        "configs": [_config(name, default=name == default) for name in configs],
        "dataset_info": [_info(name, entry) for name, entry in configs.items()],
    }


def size_category(rows: int) -> str:
    """The Hub's class of a number of rows."""
    if rows < 1000:
        return "n<1K"
    place = min(len(str(rows)) - 4, len(_SIZES) - 1)
    return f"{_SIZES[place]}<n<{_SIZES[place + 1]}" if place + 1 < len(_SIZES) else "n>1T"


def _license(given: Iterable[str | None]) -> dict[str, Any]:
    """Said only if every config's is known: what is said holds for the whole repository."""
    names = list(dict.fromkeys(given))
    if not names or None in names:
        return {}
    known = [str(name).lower() for name in names]
    unknown = [name for name in known if name not in _LICENSES.split()]
    ids = list(dict.fromkeys("other" if name in unknown else name for name in known))
    said: dict[str, Any] = {"license": ids[0] if len(ids) == 1 else ids}
    if unknown:
        said["license_name"] = re.sub(r"[^a-z0-9.+]+", "-", "-and-".join(unknown)).strip("-") or "other"
    return said


def _config(name: str, *, default: bool) -> dict[str, Any]:
    path = f"{glob.escape(name)}/*.parquet"
    entry: dict[str, Any] = {"config_name": name, "data_files": [{"split": "train", "path": path}]}
    return {**entry, "default": True} if default else entry


def _info(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Features and counts: `load_dataset` casts to the first and refuses other counts than the second.

    It reads no count without `num_bytes`, which it holds against nothing: here, the bytes of the files.
    """
    size = sum(shard["bytes"] for shard in entry["shards"])
    return {
        "config_name": name,
        "features": _in_order(entry["features"]),
        "splits": [{"name": "train", "num_bytes": size, "num_examples": entry["rows"]}],
        "download_size": size,
        "dataset_size": size,
    }


def _in_order(value: Any) -> Any:
    """Features with their keys in order: a manifest sorts them, and readers take the first for the type."""
    if isinstance(value, list):
        return [_in_order(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _in_order(value[key]) for key in sorted(value, key=_place)}


def _place(key: str) -> tuple[bool, bool, str]:
    return key != "name", key == "length", key
