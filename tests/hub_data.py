"""Small data sets to publish, and where clients in this process keep what they fetch."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq

from drift_weights import to_table, write_folder
from drift_weights.manifest import read_manifest
from drift_weights.outputs import reweight_file
from drift_weights.weighing import WeightConfig
from loopback_hub import LoopbackHub
from rows import trajectory

POLICY = "3fa9c1d2" * 8
ROLLOUT = {
    "rollout": {
        "policy": POLICY,
        "verifier": "exact-1",
        "protocol": {"max_turns": 6, "feedback": "again"},
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64},
        "seed": 7,
        "round": 0,
        "samples": 3,
    },
    "problems": {"count": 2, "repeated": 0},
    "origin": {
        "model": "org/tiny-policy",
        "revision": "v1",
        "problems": {"name": "problems.jsonl", "sha256": "0" * 64},
    },
}


def trajectories(path: Path, groups: Sequence[str] = "ab") -> Path:
    """A rollout set: in every group one dialogue is solved."""
    rows = [
        trajectory(group, sample, [str(turn) for turn in range(sample + 1)], ended=ended)
        for group in groups
        for sample, ended in enumerate(["budget", "solved", "budget"])
    ]
    return write_folder(path, to_table(rows), "trajectories", ROLLOUT)


def weighted(path: Path, groups: Sequence[str] = "ab", beta: float = 0.1) -> Path:
    """Weighted turns of such a rollout set, made as a user makes them."""
    rollouts = trajectories(path.with_name(f"{path.name}-rollouts"), groups)
    reweight_file(rollouts, path, WeightConfig(beta=beta))
    return path


def rows_of(folder: Path) -> list[dict[str, object]]:
    """All rows of a folder, in order."""
    shards = [folder / shard["file"] for shard in read_manifest(folder)["shards"]]
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


def downloads(hub: LoopbackHub) -> list[str]:
    """The files whose bytes were sent so far."""
    asked = (found for found in hub.requests if found.method == "GET" and "/resolve/" in found.path)
    return [found.path.partition("/resolve/")[2].partition("/")[2] for found in asked]


@contextmanager
def private_caches(home: Path) -> Iterator[None]:
    """Keep what clients in this process fetch below `home`, and do not wait between their tries."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub")))
        assets = str(home / "assets")
        stack.enter_context(mock.patch("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", assets))
        stack.enter_context(mock.patch("drift_weights.hub.sleep"))
        yield
