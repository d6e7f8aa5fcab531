"""A trained policy as a Hugging Face folder."""

from __future__ import annotations

import json
import os
import pickle
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

from drift_train.module import CONFIG_KEY, GENERATION_KEY, WeightedSFT
from drift_weights.folder import refuse_existing

_PREFIX = "model."


def export(
    source: Path | WeightedSFT, out: Path, *, tokenizer: Any = None, overwrite: bool = False
) -> Path:
    """Write a policy that AutoModelForCausalLM and AutoTokenizer open; whole or not at all.

    Args:
        source: a Lightning checkpoint file of WeightedSFT, or the module itself.
        out: the folder to make; it must not exist, or be empty, unless `overwrite`.
        tokenizer: the policy's; by default that of the model which training started from.
        overwrite: replace the policy in `out`; never anything but a folder with a config.json.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` holds something and `overwrite` is off, or holds no policy.
        FileNotFoundError: no such checkpoint.
        ValueError: not a checkpoint of WeightedSFT, or no tokenizer to be found.
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
    """The model in a Lightning checkpoint, and the module's hyperparameters. No code is unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of WeightedSFT.
    """
    content = open_checkpoint(checkpoint)
    settings = json.loads(content[CONFIG_KEY])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    dtype = getattr(torch, content["hyper_parameters"]["dtype"])
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config, dtype=dtype)
    state = content["state_dict"]
    model.load_state_dict({name.removeprefix(_PREFIX): tensor for name, tensor in state.items()})
    if GENERATION_KEY in content:
        model.generation_config = GenerationConfig.from_dict(json.loads(content[GENERATION_KEY]))
    return model, content["hyper_parameters"]


def open_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint file holds, tensors mapped and not read. No code is unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of WeightedSFT.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint} is no checkpoint file")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{checkpoint} does not load as weights alone: {error}") from error
    if not isinstance(content, dict) or CONFIG_KEY not in content:
        raise ValueError(f"{checkpoint} is not a checkpoint of WeightedSFT")
    return content
