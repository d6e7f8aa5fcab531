"""The rollout preset says what the paper says, and its dry run shows what the policy would see."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from drift_rollout.cli import main
from tiny import bpe_tokenizer

ROOT = Path(__file__).parents[2]
PRESET = ROOT / "recipes/paper/rollout-qwen2.5-3b.yaml"
STATED = {
    "samples": 16,
    "protocol.max_turns": 5,
    "sampling.temperature": 1.0,
    "sampling.max_new_tokens": 512,
}
"""In the paper: D.2."""


@pytest.fixture
def metamath(tmp_path: Path) -> Path:
    """Rows of MetaMathQA's shape: two thousand of MATH, one of them twice, and some of GSM8K."""
    rows = [
        {"type": "MATH_AnsAug", "query": f"What is {n} + {n}?", "response": f"So.\nThe answer is: {2 * n}"}
        for n in range(2000)
    ]
    rows += [rows[0], {"type": "GSM_SV", "query": "How many?", "response": "The answer is: 1"}]
    path = tmp_path / "metamath.json"
    path.write_text(json.dumps(rows))
    return path


def value(config: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def test_it_opens_with_its_own_command() -> None:
    program, *words = shlex.split(PRESET.read_text().splitlines()[0].removeprefix("# "))
    assert (program, words) == (
        "drift-rollout",
        ["sample", "--config", str(PRESET.relative_to(ROOT))],
    )


def test_it_says_what_the_paper_says() -> None:
    text = PRESET.read_text()
    config = yaml.safe_load(text)
    assert {name: value(config, name) for name in STATED} == STATED
    for name in STATED:
        (line,) = [line for line in text.splitlines() if line.strip().startswith(name.split(".")[-1] + ":")]
        assert "# paper, D.2" in line
    assert (config["source"], config["prompt"]) == ("metamath-math", "rollout-metamath")
    assert config["limit"] == 1800
    assert "authors' script" in next(line for line in text.splitlines() if line.startswith("limit:"))
    assert config["model"] == "Qwen/Qwen2.5-3B-Instruct"
    assert config["engine"]["name"] == "vllm"


def test_its_dry_run_shows_plan_prompt_and_tokens(
    metamath: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bpe_tokenizer().save_pretrained(tmp_path / "stand-in")
    main(["sample", "--config", str(PRESET), str(metamath), "--dry-run", "--stand_in", "stand-in"])
    shown = capsys.readouterr().out
    assert "1800 problems (1 repeated rows are left out) × 16 samples = 28,800 trajectories" in shown
    assert "at most 5 turns of 512 tokens each, by vllm" in shown
    assert "<|im_start|>system\nYou're a helpful assistant.<|im_end|>" in shown
    assert "You are solving Math problems." in shown
    assert "tokens: " in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metamath.json", "stand-in"]
