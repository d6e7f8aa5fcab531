"""Which code made a data set: package versions, and the commit where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path

_OURS = ("drift-weights", "drift-rollout", "drift-train", "drift-eval")
_PATIENCE = 10
"""Seconds that git may take; on a slow network disk the commit is left out rather than waited for."""


def made_by() -> dict[str, str]:
    """Package → version, and `commit` if it is known; `-dirty` behind it says that files had changed."""
    found = {name: version(name) for name in _OURS if find_spec(name.replace("-", "_"))}
    commit = _commit()
    return found if commit is None else {**found, "commit": commit}


@cache
def _commit() -> str | None:
    origin = json.loads(distribution("drift-weights").read_text("direct_url.json") or "{}")
    installed: str | None = origin.get("vcs_info", {}).get("commit_id")
    return installed or _checkout(Path(__file__).parent)


def _checkout(folder: Path) -> str | None:
    """The commit of the working tree that holds this very package; a tree around a venv is none."""
    root = next((parent for parent in folder.parents if (parent / ".git").exists()), None)
    git = shutil.which("git")
    if root is None or git is None or not (root / "packages" / "drift-weights").is_dir():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None
