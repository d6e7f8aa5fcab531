"""Which weights a policy began with: a commit of the Hub, or the hash of a folder's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def base_of(source: str, commit: str | None, *, hashed: bool) -> dict[str, Any] | None:
    """A commit of the Hub, or sha256 over the weights of a folder.

    Args:
        source: folder or Hub id that the policy is read from.
        commit: of a Hub id.
        hashed: read the weights of a folder for their hash; else a folder gives None.
    """
    if commit is not None:
        return {"commit": commit}
    if not hashed:
        return None
    folder = Path(source)
    digest = hashlib.sha256()
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"sha256": digest.hexdigest()}


def check_base(found: dict[str, Any] | None, wanted: dict[str, Any] | None, source: str) -> None:
    """Hold the weights that adapters are put on against those that they were trained on.

    Raises:
        ValueError: they are others.
    """
    # Some older states had no commit to name.
    known = wanted is not None and None not in wanted.values()
    if known and found is not None and found != wanted:
        raise ValueError(
            f"{source} holds {found}, the checkpoint's adapters were trained on {wanted}; give model.model "
            "(and model.revision) as they were"
        )


def resumed_base(checkpoint: dict[str, Any], key: str, source: str) -> dict[str, Any] | None:
    """What a whole policy that goes on from a state began with: its weights are the state's.

    Args:
        checkpoint: manifest and hyperparameters of the state.
        key: of the base in the manifest; older states of whole policies have none.
        source: what this run calls its model; a commit of another name is no commit of it.
    """
    same = checkpoint["hyper_parameters"].get("model") == source
    found: dict[str, Any] | None = checkpoint["manifest"].get(key)
    return found if same else None
