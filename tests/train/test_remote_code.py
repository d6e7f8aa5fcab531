"""Code that comes with a model runs if the user says so, and never because a checkpoint says so."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from drift_train import newest
from drift_train.cli import main
from drift_weights import write_folder
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import random_rows, weighted_table

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({canary!r}).write_text("ran")


class OddConfig(LlamaConfig):
    model_type = "odd"


class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig
"""
AUTO = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}
FIT = ["fit", "--model.learning_rate=1e-3", "--data.path=weighted", "--data.batch_size=4"]
FIT += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
TRUST = "--model.trust_remote_code=true"


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the model's code sings; a model with code and data lie in the working folder."""
    canary = tmp_path / "canary"
    folder = save_policy(tmp_path / "odd", bpe_tokenizer(), tiny_model(vocab=512))
    (folder / "odd.py").write_text(CODE.format(canary=str(canary)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "odd", "auto_map": AUTO}))
    write_folder(tmp_path / "weighted", weighted_table(random_rows(20, vocab=512)), "weighted", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["drift-train"])
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return canary


def test_it_is_off_and_said_aloud_when_on(
    canary: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*FIT, "--model.model=odd"])
    assert "trust_remote_code" in capsys.readouterr().err
    assert not canary.exists()
    with caplog.at_level(logging.WARNING):
        main([*FIT, "--model.model=odd", "--trainer.max_steps=2", TRUST])
    assert "trust_remote_code is on: code that comes with odd runs" in caplog.text
    assert canary.read_text() == "ran"

    (state,) = Path("runs").glob("*/checkpoints/step-000002")
    canary.unlink()
    with pytest.raises(SystemExit):
        main(["export", str(state), "out"])
    assert "pass trust_remote_code" in capsys.readouterr().err
    assert not canary.exists()
    main(["export", str(state), "out", "--trust-remote-code"])
    trained = AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)
    base = AutoModelForCausalLM.from_pretrained("odd", trust_remote_code=True)
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.equal(trained(ids).logits, base(ids).logits)


@pytest.mark.parametrize("adapter", [{}, {"lora": {"rank": 2}}])
def test_a_checkpoint_cannot_turn_it_on(
    canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], adapter: dict[str, Any]
) -> None:
    """Nor one of adapters, whose base is read."""
    save_policy(tmp_path / "plain", bpe_tokenizer(), tiny_model(vocab=512))
    main([*FIT, "--model.model=plain", "--trainer.max_steps=2"])
    state = newest(tmp_path / "runs/version_0") / "state.json"
    manifest = json.loads(state.read_text())
    manifest["hyper_parameters"] |= {"trust_remote_code": True, "model": "odd", **adapter}
    state.write_text(json.dumps(manifest))
    for words in (
        [*FIT, "--model.model=plain", "--ckpt_path=runs/version_0", "--trainer.max_steps=3"],
        [
            "validate",
            *FIT[1:3],
            "--data.val_share=0.3",
            "--model.model=plain",
            "--ckpt_path=runs/version_0",
        ],
        ["export", "runs/version_0", "out"],
    ):
        try:
            main(words)
        except SystemExit:
            assert "trust_remote_code" in capsys.readouterr().err
        assert not canary.exists(), words[0]
