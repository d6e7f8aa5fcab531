"""The histogram as a picture."""

import json
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from drift_weights.cli import main


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    rows = [{"prompt_id": "q", "correct": n % 2} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_sweep_is_drawn(log: Path, tmp_path: Path) -> None:
    main(["inspect", str(log), "--plot", str(tmp_path / "one.png")])
    main(["inspect", str(log), "--plot", str(tmp_path / "two.png"), "--beta", "[0.1, 1]"])
    one, two = imread(tmp_path / "one.png"), imread(tmp_path / "two.png")
    assert two.shape[0] == 2 * one.shape[0]
    assert one.std() > 0.05


def test_without_the_extra_it_says_what_to_install(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        main(["inspect", str(log), "--plot", str(tmp_path / "w.png")])
    assert "pip install 'drift-weights[plot]'" in capsys.readouterr().err
