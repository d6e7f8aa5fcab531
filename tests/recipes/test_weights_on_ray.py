"""One log of many files on a local Ray cluster: the same bits as on one machine, and nothing else read.

Suffix legend: N rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import weights_on_ray
from drift_weights import Columns, WeightConfig, reweight, to_table, weighted_turns, write_folder
from drift_weights.writers import SIDE
from rows import trajectory
from weights_on_ray import FORTH, ray, weigh_on_ray

GROUPS, SIZE = 30, 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # Workers that wait stay, or each stage would start new ones.
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _system_config={"num_workers_soft_limit": 8},
    )
    started = psutil.Process().children(recursive=True)
    heard = {address.laddr.ip for one in started for address in one.net_connections("inet")}
    ray.shutdown()
    psutil.wait_procs(started, timeout=20)


def log_rows(seed: int = 0) -> pa.Table:
    """Groups of four with a success in every other one, in an order that mixes them all."""
    random = np.random.default_rng(seed)
    length_N = random.integers(1, 6, GROUPS * SIZE)
    table = pa.table(
        {
            "prompt_id": [f"question {row // SIZE % 10}" for row in range(GROUPS * SIZE)],
            "policy": [f"policy {row // SIZE // 10}" for row in range(GROUPS * SIZE)],
            "sample": [row % SIZE for row in range(GROUPS * SIZE)],
            "correct": [row % SIZE == 1 and row // SIZE % 2 for row in range(GROUPS * SIZE)],
            "length": length_N,
            "unique": random.integers(1, length_N + 1),
            "messages": ["text " * 50] * (GROUPS * SIZE),
        }
    )
    return table.take(random.permutation(GROUPS * SIZE))
