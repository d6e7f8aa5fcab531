"""A share of the fault matrix; `uv run python tests/hub/fault_matrix.py` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_matrix import KINDS, WORK, points, run_all

from loopback_hub import LoopbackHub, patient_clients


def test_nothing_half_done_is_seen_and_the_second_try_ends_it(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "slow_s", 0.3)
    with patient_clients(timeout_s=0.15):
        all_points = list(points(hub))
        # 12 kinds × 2 × the requests: a step that shares no factor with 24 meets every kind at many requests.
        counts, broken = run_all(hub, lambda number: number % 11 == 0)
    assert not broken
    assert {(name, kind) for name, kind, _ in counts} == {(name, kind) for name in WORK for kind in KINDS}
    outcomes = {ended for *_, ended in counts}
    assert outcomes == {"done", "refused"}
    print(f"{counts.total()} of {len(all_points)} fault points tried")
