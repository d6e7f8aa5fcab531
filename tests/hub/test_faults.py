"""A share of the fault matrix; `uv run python tests/hub/fault_matrix.py` runs all of it."""

from __future__ import annotations

import sys

import pytest

from hub.fault_matrix import KINDS, WORK, points, run_all
from loopback_hub import LoopbackHub, patient_clients


def test_nothing_half_done_is_seen_and_the_second_try_ends_it(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "slow_s", 0.3)
    with patient_clients(timeout_s=0.15):
        all_points = list(points(hub))
        # A step that shares no factor with 12 kinds × 2 meets every kind at many requests.
        counts, broken = run_all(hub, lambda number: number % 11 == 0)
    assert not broken
    assert {(name, kind) for name, kind, _ in counts} == {(name, kind) for name in WORK for kind in KINDS}
    outcomes = {ended for *_, ended in counts}
    assert outcomes == {"done", "refused"}
    with capsys.disabled():
        sys.stdout.write(f"\n{counts.total()} of {len(all_points)} fault points tried\n")
