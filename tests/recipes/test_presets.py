"""The presets say what the paper and the authors' script say, and their first lines are real commands."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from drift_train.cli import main
from drift_weights import write_folder
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import random_rows, weighted_table

ROOT = Path(__file__).parents[2]
PAPER = {
    "recipes/paper/train-qwen2.5-3b-fsdp2.yaml": "Qwen/Qwen2.5-3B-Instruct",
    "recipes/paper/train-llama3.1-8b-fsdp2.yaml": "meta-llama/Llama-3.1-8B-Instruct",
}
SMOKE = "recipes/cpu-smoke.yaml"
ROLLOUT = "recipes/paper/rollout-qwen2.5-3b.yaml"
"""Of another command: test_rollout_preset.py."""
STATED = {
    "data.batch_size": 128,
    "trainer.max_steps": 200,
    "model.reduction": "sum",
    "data.weighting": "loss",
    "data.supervise": "terminal",
}
"""In the paper: D.2, eq. 15, eq. 14, sec. 4.2."""
SCRIPT = {
    "model.learning_rate": 5e-6,
    "model.schedule": "constant_with_warmup",
    "model.warmup_share": 0.1,
    "model.weight_decay": 0.1,
    "model.gradient_clip": 1.0,
    "trainer.precision": "bf16-mixed",
    "data.val_share": 0.05,
}
"""In the authors' script alone."""


def first_line(preset: str) -> list[str]:
    """The words of the command that a preset opens with."""
    line = (ROOT / preset).read_text().splitlines()[0]
    program, *words = shlex.split(line.removeprefix("# "))
    assert program == "drift-train"
    return words


def resolved(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """The configuration that a command's parser ends up with."""
    monkeypatch.setattr(sys, "argv", ["drift-train"])
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--print_config"])
    shown = capsys.readouterr()
    assert stopped.value.code == 0, shown.err
    return yaml.safe_load(shown.out)


def at(config: dict[str, Any], name: str) -> Any:
    """A value by its dotted name."""
    section, key = name.split(".")
    return config[section][key]


@pytest.mark.parametrize("preset", [*PAPER, SMOKE])
def test_every_preset_is_listed_here_and_opens_with_its_own_command(preset: str) -> None:
    words = first_line(preset)
    assert words[:3] == ["fit", "--config", preset]
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")}
    assert found == {*PAPER, SMOKE, ROLLOUT}


@pytest.mark.parametrize("preset", PAPER)
def test_the_first_line_gives_the_papers_values_and_the_scripts(
    preset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    config = resolved(first_line(preset), monkeypatch, capsys)
    for name, value in {**STATED, **SCRIPT}.items():
        assert at(config, name) == value, name
    assert config["model"]["model"] == PAPER[preset]
    assert config["trainer"]["strategy"] == "fsdp2"
    assert config["data"]["path"] == "runs/math/weighted"


@pytest.mark.parametrize("preset", PAPER)
def test_each_value_is_in_the_file_and_says_where_it_is_from(preset: str) -> None:
    """Defaults may change; a preset may not."""
    text = (ROOT / preset).read_text()
    config = yaml.safe_load(text)
    for names, source in ((STATED, "# paper, "), (SCRIPT, "# authors' script")):
        for name, value in names.items():
            assert at(config, name) == value, f"{name}, as YAML alone reads it"
            (line,) = [row for row in text.splitlines() if row.strip().startswith(name.split(".")[1] + ":")]
            assert source in line, name
    marked = [row.split(":")[0].strip() for row in text.splitlines() if "# authors' script" in row]
    assert sorted(marked) == sorted(name.split(".")[1] for name in SCRIPT)


def test_a_preset_without_data_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", next(iter(PAPER))])
    assert stopped.value.code == 2
    assert "path" in capsys.readouterr().err


def test_a_setting_that_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the tests above prove that every key of a preset is a real one."""
    text = (ROOT / SMOKE).read_text().replace("warmup_share", "warmup_part")
    (tmp_path / "preset.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(tmp_path / "preset.yaml"), "--model.model=m", "--data.path=d"])
    assert stopped.value.code == 2
    assert "warmup_part" in capsys.readouterr().err


def test_the_smoke_run_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tmp_path / "policy", bpe_tokenizer(), tiny_model(vocab=512))
    write_folder(tmp_path / "weighted", weighted_table(random_rows(12, vocab=512)), "weighted", {})
    places = {"MODEL": "policy", "WEIGHTED": "weighted", SMOKE: str(ROOT / SMOKE)}
    words = [places.get(word, word) for word in first_line(SMOKE)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["drift-train"])
    main(words)
    assert "step-000005" in capsys.readouterr().out
    assert len(list(tmp_path.glob("runs/version_0/checkpoints/step-000005/*.safetensors"))) >= 1
