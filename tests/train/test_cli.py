"""drift-train as a user calls it: fit, validate, export, and mistakes in one line."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from drift_train import load_policy, newest, read_state
from drift_train.cli import main
from drift_weights import write_folder
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import random_rows, weighted_table

CONFIG = ["--config", "fit.yaml"]


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

    (checkpoint,) = project.glob("runs/version_0/checkpoints/*")
    assert checkpoint.name == "step-000003"
    path = checkpoint.relative_to(project)
    assert f"wrote {path}; next: drift-train export {path} OUT" in ran.stdout
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
        (["fit", *CONFIG, "--model.learning_rate=-1"], "learning_rate must be > 0"),
        (["fit", *CONFIG, "--model.model=no/such/policy"], "no/such/policy: there is no such folder"),
        (["fit", *CONFIG, "--data.path=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["fit", *CONFIG, "--data.max_length=3"], "longer than 3 tokens"),
        (["fit", *CONFIG, "--nonsense=3"], "--nonsense"),
        (["fit", *CONFIG, "--trainer.max_steps=many"], "trainer.max_steps"),
        (["fit", *CONFIG, "--model.schedule=warmup_stable_decay"], "constant_with_warmup"),
        (["fit", *CONFIG, "--trainer.accelerator=tpu"], "torch_xla"),
        (["fit", *CONFIG, "--ckpt_path=fit.yaml"], "fit.yaml is a file; a checkpoint is a folder"),
        (["fit", *CONFIG, "--ckpt_path=nowhere"], "nowhere holds no checkpoint"),
        (["fit", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--model.model=policy", "--data.path=weighted"], "learning_rate"),
        (["fit", *CONFIG, "--trainer.max_epochs=2"], "add --trainer.max_steps=-1 to count epochs"),
        (["fit", *CONFIG, "--trainer.max_steps=-1"], "a run needs a length"),
        (["fit", *CONFIG, "--dry-run", "--trainer.max_steps=-1"], "a run needs a length"),
        (["fit", *CONFIG, "--dry-run", "--trainer.precision=16-mixed"], "use bf16-mixed"),
        (["fit", *CONFIG, "--model.lora.rank=0"], "rank must be"),
        (["validate", *CONFIG, "--dry-run"], "--dry_run belongs to fit"),
        (["validate", *CONFIG, "--data.val_share=0"], "set data.val_share"),
        (["export", "nowhere", "out"], "nowhere holds no checkpoint"),
        (["export", "nowhere"], "out"),
        (["export", "nowhere", "out", "--force"], "--force"),
        (["train"], "there is no command 'train': fit, validate, export"),
        ([], "a command is needed: fit, validate, export"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    line = refused(capsys, arguments)
    assert message in line
    assert not (project / "out").exists()
    assert not (project / "runs").exists(), "a run that did not start leaves no folder"


def test_an_interrupt_says_how_to_go_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(every: int, at: int) -> str:
        keep = {"class_path": "drift_train.LastCheckpoint", "init_args": {"every_n_train_steps": every}}
        stop = {"class_path": "train.weighted_rows.InterruptAt", "init_args": {"step": at}}
        settings = yaml.safe_load((project / "fit.yaml").read_text())
        settings["trainer"]["callbacks"] = [keep, stop]
        (project / "stopped.yaml").write_text(yaml.safe_dump(settings))
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit):
                main(["fit", "--config", "stopped.yaml"])
        finally:
            signal.signal(signal.SIGINT, handler)
        return capsys.readouterr().err

    assert "before the first state of runs/version_0" in interrupted(every=9, at=2)
    assert "that of step 2; go on with the same command and --ckpt_path runs/version_1" in interrupted(2, 3)


def test_help_lists_the_four_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert re.findall(r"^  (\w+) ", shown, re.MULTILINE) == ["fit", "validate", "export", "push"]


def test_a_stopped_fit_goes_on_from_its_folder(project: Path) -> None:
    fit = ["fit", *CONFIG, "--trainer.max_steps=5"]
    keep = ["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps=2"]
    stop = ["--trainer.callbacks+=train.weighted_rows.StopAfter", "--trainer.callbacks.step=3"]
    main(fit)
    with pytest.raises(RuntimeError, match="stopped"):
        main([*fit, *keep, *stop])
    assert newest(project / "runs/version_1").name == "step-000002"
    main([*fit, "--ckpt_path", "runs/version_1"])
    assert read_state(newest(project / "runs/version_2")).step == 5
    whole, resumed = (load_policy(project / f"runs/version_{n}")[0].state_dict() for n in (0, 2))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_ones_own_checkpoints_or_none_take_the_place_of_the_default(project: Path) -> None:
    main(["fit", *CONFIG, "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=mine"])
    main(["fit", *CONFIG, "--trainer.enable_checkpointing=false"])
    main(["fit", *CONFIG, "--trainer.fast_dev_run=true"])
    assert [path.name for path in project.rglob("*.ckpt")] == ["mine.ckpt"]


def test_without_a_logger_nothing_is_written_over(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = [*CONFIG, "--trainer.logger=false"]
    (project / "config.yaml").write_text("mine")
    main(["fit", *bare])
    for _ in range(2):
        main(["validate", *bare])
        main(["fit", *bare, "--trainer.enable_checkpointing=false"])
    assert "checkpoints is of another fit" in refused(capsys, ["fit", *bare])
    main(["fit", *bare, "--ckpt_path=checkpoints", "--trainer.max_steps=4"])
    assert (project / "config.yaml").read_text() == "mine"
    assert not (project / "runs").exists()


def test_logs_of_another_run_are_left_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = ["fit", *CONFIG, "--trainer.logger.init_args.version=0"]
    main(same)
    before = (project / "runs/version_0/metrics.csv").read_text()
    assert "version_0/config.yaml is of another run" in refused(capsys, same)
    assert (project / "runs/version_0/metrics.csv").read_text() == before


def test_export_replaces_a_policy_only_when_told_to(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", *CONFIG])
    export = ["export", "runs/version_0"]
    main([*export, "trained"])
    assert "pass --overwrite" in refused(capsys, [*export, "trained"])
    main([*export, "trained", "--overwrite"])
    assert "holds no policy" in refused(capsys, [*export, "weighted", "--overwrite"])
    assert (project / "weighted" / "drift.json").is_file()


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line of a refusal; a progress bar may stand before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "usage:" not in shown
    (line,) = [row for row in shown.splitlines() if row.startswith("error: ")]
    assert shown.splitlines()[-1] == line
    return line


@pytest.mark.parametrize(
    ("length", "steps"),
    [(["--trainer.max_steps=7"], 7), (["--trainer.max_steps=-1", "--trainer.max_epochs=2"], None)],
)
def test_a_dry_run_reads_no_weights_and_leaves_nothing(
    project: Path, capsys: pytest.CaptureFixture[str], length: list[str], steps: int | None
) -> None:
    """For devices that are not here, and the same number of steps that a fit makes."""
    (project / "policy/model.safetensors").write_bytes(b"no weights")
    before = sorted(project.rglob("*"))
    asked = ["--trainer.devices=4", "--trainer.num_nodes=2", "--data.batch_size=8", *length]
    main(["fit", *CONFIG, "--dry-run", *asked])
    shown = capsys.readouterr().out
    assert sorted(project.rglob("*")) == before
    examples = int(re.search(r"examples +(\d+) of", shown)[1])
    assert f"{steps or -(-2 * examples // 8)} of 8 examples" in shown
    assert "fsdp2, 8 devices, 32-true" in shown
    assert re.search(r"about \d+:\d\d:\d\d on 8 × NVIDIA H100 80GB HBM3", shown)


def test_a_run_counted_in_epochs(project: Path) -> None:
    main(["fit", *CONFIG, "--trainer.max_steps=-1", "--trainer.max_epochs=2", "--data.batch_size=8"])
    state = read_state(newest(project / "runs/version_0"))
    assert state.step == -(-2 * state.manifest["data"]["examples"] // 8)


def test_a_run_stops_where_the_held_out_loss_no_longer_falls(project: Path) -> None:
    """At a rate that makes it worse at once; what was reached by then is kept."""
    early = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val_loss"},
    }
    early["init_args"] |= {"patience": 1, "check_on_train_epoch_end": False}
    config = yaml.safe_load((project / "fit.yaml").read_text())
    config["trainer"] |= {"callbacks": [early], "val_check_interval": 2, "max_steps": 40}
    config["model"]["learning_rate"] = 3.0
    (project / "early.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "early.yaml"])
    (log,) = project.glob("runs/version_0/metrics.csv")
    losses = [float(row["val_loss"]) for row in csv.DictReader(log.open()) if row["val_loss"]]
    # The first check that is better than none, and one that is not better than it.
    assert all(later >= min(losses) for later in losses[-1:])
    assert read_state(newest(project / "runs/version_0")).step == 2 * len(losses) < 40


def test_adapters_from_the_command_line(project: Path) -> None:
    main(["fit", *CONFIG, "--model.lora.rank=2", "--trainer.max_steps=2"])
    run = project / "runs/version_0"
    assert read_state(newest(run)).settings["lora"]["rank"] == 2
    main(["fit", *CONFIG, "--ckpt_path=runs/version_0"])
    resumed = read_state(newest(project / "runs/version_1"))
    assert (resumed.step, resumed.settings["lora"]["rank"]) == (3, 2)
    main(["export", "runs/version_1", "adapter", "--keep-adapter"])
    assert (project / "adapter/adapter_config.json").is_file()
    main(["export", "runs/version_1", "whole"])
    assert AutoModelForCausalLM.from_pretrained(project / "whole").num_parameters()


def test_other_loggers(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard and W&B (offline) get the same figures as the CSV file."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    here = {"save_dir": "."}
    config = yaml.safe_load((project / "fit.yaml").read_text())
    names = ("CSVLogger", "TensorBoardLogger", "WandbLogger")
    config["trainer"]["logger"] = [
        {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": here} for name in names
    ]
    (project / "loggers.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "loggers.yaml"])
    wandb.teardown()
    (log,) = project.rglob("metrics.csv")
    (events,) = project.rglob("events.out.tfevents*")
    board = EventAccumulator(str(events)).Reload()
    rows = [row for row in csv.DictReader(log.open()) if row["loss"]]
    for name in ("loss", "batch_ess", "weight_mass"):
        assert [e.value for e in board.Scalars(name)] == pytest.approx([float(row[name]) for row in rows])
    assert list(project.rglob("run-*.wandb"))
