"""drift-train fit | validate | export | push."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from argparse import ArgumentError
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.console import Console

from drift_train.checkpoint import LastCheckpoint
from drift_train.data import WeightedDataModule
from drift_train.export import export
from drift_train.module import WeightedSFT
from drift_train.planning import check_length, dry_run, print_plan
from drift_train.progress import StepMetrics, StepProgressBar
from drift_train.pushing import prepare_push, print_push, push
from drift_train.state import newest, read_state
from drift_train.strategies import strategy_named
from drift_weights.command_line import ask, option_words, refuse
from drift_weights.models import commit_of

COMMANDS = {
    "fit": "train a policy on weighted turns",
    "validate": "weighted loss and token accuracy on the held-out prompts",
    "export": "write a checkpoint as a Hugging Face folder",
    "push": "send such a folder to the Hub, private",
}
MAX_STEPS = 200
"""Optimizer steps of a run (D.2)."""
_FLAGS = {"overwrite", "keep_adapter", "trust_remote_code", "public", "dry_run", "yes"}
_MISTAKES = (ValueError, OSError, ArgumentError, MisconfigurationException, ModuleNotFoundError)
_LOGGER = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": ".", "name": "runs"},
}


class KeepConfig(SaveConfigCallback):
    """Writes the configuration beside the logs of a run that starts.

    Without a logger it would land in the working folder; before the data and the model are read, a mistake
    in them would leave a run's folder behind.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, once."""
        if trainer.loggers:
            super().setup(trainer, pl_module, "fit")


class TrainCLI(LightningCLI):
    """LightningCLI with the two commands that make sense here, and one place for the model."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data follow the model: vocabulary, context length, tokenizer."""
        parser.link_arguments("model.model", "data.model")
        parser.link_arguments("model.revision", "data.model_revision")
        parser.link_arguments("model.trust_remote_code", "data.trust_remote_code")
        says = "print what a fit would take: memory, steps, tokens, time; no weights are read"
        parser.add_argument("--dry_run", action="store_true", help=says)

    def after_fit(self) -> None:
        """Say where the policy is, and what comes next."""
        last = next((c for c in self.trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
        if last is not None and last.last_model_path and self.trainer.is_global_zero:
            path = os.path.relpath(last.last_model_path)
            sys.stdout.write(f"wrote {path}; next: drift-train export {path} OUT\n")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Take the model's settings from the checkpoint that is resumed."""
        super().parse_arguments(parser, args)
        command = self.config.subcommand
        checkpoint = self.config[command].ckpt_path
        if checkpoint is None:
            return
        found = read_state(newest(Path(checkpoint)))
        known = {
            name: value
            for name, value in found.settings.items()
            # A checkpoint must not decide that code runs here.
            if name in self.config[command].model and name != "trust_remote_code"
        }
        self.config = parser.parse_object({command: {"model": known}}, self.config)
        self.config[command].ckpt_path = str(found.folder)

    def instantiate_classes(self) -> None:
        """All that the command needs; a dry run needs no trainer, nor the devices that it asks for."""
        model = self.config[self.config.subcommand].model
        # Else the first who reads of it tries for a minute to reach the Hub.
        commit_of(model.model, model.revision)
        if not self.config[self.config.subcommand].dry_run:
            super().instantiate_classes()
            return
        if self.config.subcommand != "fit":
            raise ValueError("--dry_run belongs to fit")
        chosen = self.parser.instantiate(self.config)["fit"]
        print_plan(dry_run(chosen.model, chosen.data, chosen.trainer), Console())

    def _run_subcommand(self, subcommand: str) -> None:
        if self.config[subcommand].dry_run:
            return
        try:
            super()._run_subcommand(subcommand)
        except _MISTAKES:
            _remove_empty_logs(self.trainer)
            raise
        except SystemExit:
            # Lightning's answer to an interrupt.
            self._say_how_to_go_on()
            raise

    def _say_how_to_go_on(self) -> None:
        if self.subcommand != "fit" or not self.trainer.is_global_zero or not self.trainer.log_dir:
            return
        run = Path(self.trainer.log_dir)
        try:
            step = read_state(newest(run)).step
        except FileNotFoundError:
            sys.stderr.write(f"stopped before the first state of {os.path.relpath(run)} was kept\n")
            return
        sys.stderr.write(
            f"stopped; the newest state is that of step {step}; go on with the same command and "
            f"--ckpt_path {os.path.relpath(run)}\n"
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with our strategies, our bar in the place of Lightning's own, and checkpoints."""
        settings = self.config_init[self.subcommand].trainer
        check_length(settings.max_steps, settings.max_epochs)
        if isinstance(settings.strategy, str):
            kwargs["strategy"] = strategy_named(
                settings.strategy,
                accelerator=settings.accelerator,
                devices=settings.devices,
                num_nodes=settings.num_nodes,
            )
        callbacks: list[Any] = settings.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        keeps = any(isinstance(callback, Checkpoint) for callback in callbacks)
        if self.subcommand == "fit" and settings.enable_checkpointing is not False and not keeps:
            callbacks = [*callbacks, LastCheckpoint()]
        shows = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if settings.enable_progress_bar is not False and not shows:
            callbacks = [*callbacks, StepProgressBar()]
        # A bar shows what was logged before its turn.
        metrics = [StepMetrics()] if self.subcommand == "fit" else []
        trainer = super().instantiate_trainer(callbacks=[*metrics, *callbacks], **kwargs)
        _refuse_old_logs(trainer)
        return trainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """fit and validate."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
        }


def main(args: list[str] | None = None) -> None:
    """Entry point of drift-train; a user's mistake is one line and exit code 2."""
    words = sys.argv[1:] if args is None else args
    try:
        match words:
            case ["-h" | "--help", *_]:
                sys.stdout.write(_help())
            case ["export" | "push" as word, *rest]:
                auto_cli(
                    export_command if word == "export" else push_command,
                    args=option_words(rest, flags=_FLAGS),
                    as_positional=True,
                    prog=f"drift-train {word}",
                    exit_on_error=False,
                )
            case [word, *rest] if word in COMMANDS or word.startswith("-"):
                words = [word, *("--dry_run" if it == "--dry-run" else it for it in rest)]
                if args is None:
                    # Lightning wants to find them there, and warns where both are given.
                    sys.argv[1:] = words
                run_lightning(None if args is None else words)
            case _:
                found = f"there is no command {words[0]!r}" if words else "a command is needed"
                raise ValueError(f"{found}: {', '.join(COMMANDS)}; see drift-train --help")
    except _MISTAKES as error:
        refuse(error)


def run_lightning(args: list[str] | None) -> TrainCLI:
    """fit or validate, with the paper's number of steps by default."""
    _hush()
    return TrainCLI(
        WeightedSFT,
        WeightedDataModule,
        args=args,
        save_config_callback=KeepConfig,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        trainer_defaults={"max_steps": MAX_STEPS, "logger": _LOGGER, "log_every_n_steps": 1},
        parser_kwargs={"prog": "drift-train", "exit_on_error": False},
    )


def export_command(
    checkpoint: Path,
    out: Path,
    *,
    overwrite: bool = False,
    keep_adapter: bool = False,
    evaluation: Path | None = None,
    license: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder.

    Args:
        checkpoint: a checkpoint of a fit (a folder step-N), or the run's folder for its newest.
        out: the folder to make; it must not exist, or be empty, unless --overwrite.
        overwrite: replace the policy in `out`; never anything but a policy.
        keep_adapter: write a LoRA adapter for peft, not the policy that it makes of its base.
        evaluation: what drift-eval wrote of this policy, for the model card.
        license: of the policy as the Hub names it, such as apache-2.0, for the model card.
        trust_remote_code: run code that comes with the model.
    """
    written = export(
        checkpoint,
        out,
        overwrite=overwrite,
        keep_adapter=keep_adapter,
        evaluation=evaluation,
        license=license,
        trust_remote_code=trust_remote_code,
    )
    step = read_state(newest(checkpoint)).step
    sys.stdout.write(f"wrote {written}, the policy after step {step}\n")


def push_command(
    policy: Path,
    repo_id: str,
    *,
    tag: str | None = None,
    public: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Send an exported policy to the Hub, private, as one commit.

    Args:
        policy: the folder that `drift-train export` wrote.
        repo_id: org/name on the Hub; it is made if it is not there.
        tag: a name for this version, such as v0.1.0; tags are never moved.
        public: let everybody see it; asked once.
        dry_run: print files, sizes and the model card; change nothing.
        yes: do not ask before making it public.
    """
    plan = prepare_push(policy, repo_id, public=public, tag=tag)
    console = Console()
    print_push(plan, console, card=dry_run)
    if dry_run:
        return
    if plan.public and plan.private and not yes:
        ask(f"Let everybody see {repo_id}?")
    done = push(plan)
    state = "pushed" if done.fresh else "pushed before, nothing to do:"
    revision = tag or done.commit
    # transformers would look for an adapter's revision in its base's repository, too.
    adapter = (policy / "adapter_config.json").is_file()
    opens = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    sys.stdout.write(
        f"{state} {repo_id} (commit {done.commit})\n"
        f'next: {opens}.from_pretrained("{repo_id}", revision="{revision}")\n'
    )


def _hush() -> None:
    """Leave out Lightning's advertisements, and a warning about torch that only Lightning can heed."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_tip)
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")


def _is_no_tip(record: logging.LogRecord) -> bool:
    words = record.getMessage()
    return "Tip:" not in words and "TPU available" not in words


def _remove_empty_logs(trainer: Trainer) -> None:
    """Loggers make a run's folder before there is a run."""
    if trainer.is_global_zero and trainer.loggers and trainer.log_dir:
        with suppress(OSError):
            Path(trainer.log_dir).rmdir()
            Path(trainer.log_dir).parent.rmdir()


def _help() -> str:
    lines = [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: drift-train COMMAND ...",
            "",
            "Weighted supervised fine-tuning on terminal turns.",
            "",
            *lines,
            "",
            "drift-train COMMAND --help lists what a command takes.",
            "",
        ]
    )


def _refuse_old_logs(trainer: Trainer) -> None:
    """Two runs in one folder would leave logs of the one and a configuration of the other."""
    if trainer.is_global_zero and trainer.loggers and trainer.log_dir:
        config = Path(trainer.log_dir) / "config.yaml"
        if config.is_file():
            raise FileExistsError(f"{config} is of another run; choose another version for trainer.logger")
