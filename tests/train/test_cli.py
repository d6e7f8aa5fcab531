"""drift-train as a user calls it: fit, validate, export, and mistakes in one line."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from drift_train.cli import main
from drift_weights import write_folder
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import random_rows, weighted_table


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy, weighted turns and a configuration in the working folder."""
    save_policy(tmp_path / "policy", bpe_tokenizer(), tiny_model(vocab=512))
    table = weighted_table(random_rows(40, vocab=512))
    write_folder(tmp_path / "weighted", table, "weighted", {})
    config = {
        "model": {"model": "policy", "learning_rate": 0.01},
        "data": {"path": "weighted", "val_share": 0.3},
        "trainer": {"max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["drift-train"])
    return tmp_path


def test_fit_then_validate_then_export(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "from drift_train.cli import main; main()"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, "fit", "--config", "fit.yaml", "--data.batch_size", "8"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (log,) = project.glob("runs/version_0/metrics.csv")
    rows = list(csv.DictReader(log.open()))
    assert [row["step"] for row in rows if row["loss"]] == ["0", "1", "2"]
    val_loss = float(rows[-1]["val_loss"])

    (checkpoint,) = project.glob("runs/version_0/checkpoints/*.ckpt")
    main(["validate", "--config", "fit.yaml", "--ckpt_path", str(checkpoint)])
    shown = capsys.readouterr().out
    printed = float(re.search(r"val_loss\D+([\d.]+)", shown)[1])
    assert printed == pytest.approx(val_loss), "validating the checkpoint gives what the fit ended with"

    main(["export", str(checkpoint), "trained"])
    model = AutoModelForCausalLM.from_pretrained(project / "trained")
    base = AutoModelForCausalLM.from_pretrained(project / "policy")
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.allclose(model(ids).logits, base(ids).logits)
    assert AutoTokenizer.from_pretrained(project / "trained").chat_template


def test_print_config_shows_the_papers_defaults(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model.model=policy", "--model.learning_rate=1e-3", "--data.path=weighted"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments, "--print_config"])
    assert stopped.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["data"]["batch_size"] == 128
    assert shown["trainer"]["max_steps"] == 200
    assert shown["trainer"]["logger"]["class_path"].endswith("CSVLogger")
    assert shown["data"]["weighting"] == "loss"
    assert shown["model"]["reduction"] == "sum"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--config", "fit.yaml", "--model.learning_rate=-1"], "learning_rate must be > 0"),
        (["fit", "--config", "fit.yaml", "--data.path=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["fit", "--config", "fit.yaml", "--data.max_length=3"], "longer than 3 tokens"),
        (["validate", "--config", "fit.yaml", "--data.val_share=0"], "set data.val_share"),
        (["export", "nowhere.ckpt", "out"], "nowhere.ckpt is no checkpoint file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error: ")]
    assert message in line
    assert not (project / "out").exists()


def test_a_missing_rate_is_asked_for(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--model.model=policy", "--data.path=weighted"])
    assert stopped.value.code == 2
    assert "learning_rate" in capsys.readouterr().err
