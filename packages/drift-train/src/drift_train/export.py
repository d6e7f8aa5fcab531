"""A trained policy as a Hugging Face folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from drift_train.module import CONFIG, GENERATION, WeightedSFT
from drift_train.state import check_files, load_tensors, newest, read_state
from drift_weights.folder import refuse_existing


def export(
    source: Path | WeightedSFT, out: Path, *, tokenizer: Any = None, overwrite: bool = False
) -> Path:
    """Write a policy that AutoModelForCausalLM and AutoTokenizer open; whole or not at all.

    Args:
        source: a checkpoint of a fit under any strategy (a folder step-N, or the run's folder for its
            newest), or the module itself.
        out: the folder to make; it must not exist, or be empty, unless `overwrite`.
        tokenizer: the policy's; by default that of the model which training started from.
        overwrite: replace the policy in `out`; never anything but a folder with a config.json.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` holds something and `overwrite` is off, or holds no policy.
        FileNotFoundError: no such checkpoint.
        ValueError: a checkpoint that is torn, mixed or not of WeightedSFT, or no tokenizer to be found.
    """
    refuse_existing(out, overwrite=overwrite)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file()):
        raise FileExistsError(f"{out} holds no policy (config.json); remove it yourself or choose another")
    if isinstance(source, WeightedSFT):
        model, hparams = source.policy, dict(source.hparams)
    else:
        model, hparams = load_policy(source)
    if tokenizer is None:
        if not hparams["model"]:
            raise ValueError("the policy was built in memory; say which tokenizer goes with it")
        tokenizer = AutoTokenizer.from_pretrained(hparams["model"], revision=hparams["revision"])
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.writing-{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        _open_to_others(scratch)
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _open_to_others(folder: Path) -> None:
    """Give every file the mode that the user's umask asks for; safetensors writes for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)


def load_policy(checkpoint: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in a checkpoint, and the module's hyperparameters. No code is unpickled.

    Args:
        checkpoint: a state folder of any strategy, or the folder of a run, whose newest is taken.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it is torn, mixed, or not of WeightedSFT.
    """
    found = read_state(newest(checkpoint))
    check_files(found)
    if not isinstance(found.manifest.get(CONFIG), dict):
        raise ValueError(f"{found.folder} is not a checkpoint of WeightedSFT: it names no {CONFIG}")
    settings = dict(found.manifest[CONFIG])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config, dtype=getattr(torch, found.settings["dtype"]))
    module = WeightedSFT.from_model(model, found.settings["learning_rate"])
    load_tensors(found, module, [])
    if GENERATION in found.manifest:
        model.generation_config = GenerationConfig.from_dict(found.manifest[GENERATION])
    return model, found.settings
