"""A trained policy as a Hugging Face folder."""

from __future__ import annotations

import copy
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from drift_train.base import check_base
from drift_train.lora import merged, save_adapter
from drift_train.model_card import CARD, load_evaluation, make_model_card
from drift_train.module import BASE, CONFIG, GENERATION, Described, WeightedSFT
from drift_train.state import State, check_files, load_tensors, newest, read_state
from drift_weights.fingerprint import folder_weights, policy_fingerprint
from drift_weights.folder import refuse_existing, swap_folder
from drift_weights.provenance import made_by


def export(
    source: Path | WeightedSFT,
    out: Path,
    *,
    tokenizer: Any = None,
    overwrite: bool = False,
    keep_adapter: bool = False,
    evaluation: Path | None = None,
    license: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write a policy that AutoModelForCausalLM and AutoTokenizer open; whole or not at all.

    With it come its generation settings, its tokenizer with the chat template, and a model card.

    Args:
        source: a checkpoint of a fit under any strategy (a folder step-N, or the run's folder for its
            newest), or the module itself.
        out: the folder to make; it must not exist, or be empty, unless `overwrite`.
        tokenizer: the policy's; by default that of the model which training started from.
        overwrite: replace the policy in `out`; never anything but a policy.
        keep_adapter: write a LoRA adapter for peft, not the policy that it makes of its base.
        evaluation: what drift-eval wrote of this policy, for the card.
        license: of the policy as the Hub names it, such as apache-2.0, for the card.
        trust_remote_code: run code that comes with the model; what a checkpoint says of it does not count.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` holds something and `overwrite` is off, or holds no policy.
        FileNotFoundError: no such checkpoint.
        ValueError: a checkpoint that is torn, mixed or not of WeightedSFT, no tokenizer to be found, no
            adapter to keep, or an evaluation of another policy.
        ModuleNotFoundError: an adapter, and peft is not installed.
    """
    refuse_existing(out, overwrite=overwrite)
    _refuse_others(out)
    read = None if evaluation is None else load_evaluation(evaluation)
    if isinstance(source, WeightedSFT):
        model, about = source.policy, about_module(source)
    else:
        model, about = _read(source, trust_remote_code)
    hparams = about["hyper_parameters"]
    _refuse_base(out, hparams)
    if keep_adapter and not hparams["lora"]:
        raise ValueError("the policy has no adapter to keep: it was not trained with model.lora")
    if tokenizer is None:
        tokenizer = _tokenizer(hparams, trust_remote_code)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.writing-{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        if keep_adapter:
            save_adapter(model, _from_anywhere(hparams["model"]), hparams["revision"], scratch)
        else:
            # A module that goes on training keeps its adapters.
            whole = merged(copy.deepcopy(model)) if hparams["lora"] else model
            whole.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if read is not None and not keep_adapter:
            _refuse_other_scores(read["policy"], scratch)
        card = make_model_card(
            about | {"adapter": keep_adapter}, name=out.name, evaluation=read, license=license
        )
        (scratch / CARD).write_text(card, encoding="utf-8")
        _open_to_others(scratch)
        swap_folder(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def about_module(module: WeightedSFT) -> dict[str, Any]:
    """What a checkpoint of a module would say of it, as far as it is known."""
    about: dict[str, Any] = {"hyper_parameters": dict(module.hparams), "made_by": made_by()}
    about[BASE] = module.base
    # Without a trainer nothing is known of a fit.
    trainer = module._trainer
    if trainer is not None:
        about |= {
            "step": trainer.global_step,
            "strategy": type(trainer.strategy).__name__,
            "world_size": trainer.world_size,
        }
        data = getattr(trainer, "datamodule", None)
        about["data"] = data.about() if isinstance(data, Described) else None
    return about


def _refuse_other_scores(policy: str, folder: Path) -> None:
    """Scores name their policy by its fingerprint, unless somebody gave it a name."""
    if not re.fullmatch(r"[0-9a-f]{64}", policy):
        return
    weights = folder_weights(folder)
    assert weights is not None, "it was written a moment ago"
    found = policy_fingerprint(weights, AutoTokenizer.from_pretrained(folder))
    if found != policy:
        raise ValueError(
            f"--evaluation is of the policy {policy[:12]}…, this one is {found[:12]}…; export it first, "
            "and evaluate that folder"
        )


def _from_anywhere(source: str) -> str:
    """A base as an adapter names it: peft reads a relative path from wherever it runs, or off the Hub."""
    return os.path.abspath(source) if source and Path(source).is_dir() else source


def _refuse_others(out: Path) -> None:
    """Never replace anything but a policy: projects and programs have a config.json, too."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    config = any((out / name).is_file() for name in ("config.json", "adapter_config.json"))
    folders = [path.name for path in out.glob("*") if path.is_dir() and path.name != _TEMPLATES]
    if not config or folders or not any(out.glob("*.safetensors")):
        raise FileExistsError(
            f"{out} holds no policy, or more than one (a config, *.safetensors and no folders); remove it "
            "yourself or choose another"
        )


_TEMPLATES = "additional_chat_templates"
"""The one folder that a tokenizer writes."""


def _refuse_base(out: Path, hparams: dict[str, Any]) -> None:
    source = Path(hparams["model"] or "nowhere")
    if source.exists() and out.exists() and source.samefile(out):
        raise FileExistsError(f"{out} is the model that training started from; choose another")


def _tokenizer(hparams: dict[str, Any], trust_remote_code: bool) -> Any:
    if not hparams["model"]:
        raise ValueError("the policy was built in memory; say which tokenizer goes with it")
    return AutoTokenizer.from_pretrained(
        hparams["model"], revision=hparams["revision"], trust_remote_code=trust_remote_code
    )


def _open_to_others(folder: Path) -> None:
    """Give every file the mode that the user's umask asks for; safetensors writes for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def load_policy(
    checkpoint: Path, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in a checkpoint, and the module's hyperparameters. No code is unpickled.

    Adapters come on their base, which is read from where it was.

    Args:
        checkpoint: a state folder of any strategy, or the folder of a run, whose newest is taken.
        trust_remote_code: run code that comes with the model; what the checkpoint says does not count.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it is torn, mixed, or not of WeightedSFT; or adapters, and their base has changed.
    """
    model, about = _read(checkpoint, trust_remote_code)
    return model, about["hyper_parameters"]


def _read(checkpoint: Path, trust_remote_code: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
    found = read_state(newest(checkpoint))
    check_files(found)
    if not isinstance(found.manifest.get(CONFIG), dict):
        raise ValueError(f"{found.folder} is not a checkpoint of WeightedSFT: it names no {CONFIG}")
    settings = {**found.settings, "trust_remote_code": trust_remote_code}
    module = WeightedSFT(**settings)
    if settings.get("lora"):
        module.configure_model()
        check_base(module.base, found.manifest.get(BASE), settings["model"])
    else:
        module.adopt(_blank(found, trust_remote_code))
    model = module.policy
    load_tensors(found, module, [])
    model.eval()
    if GENERATION in found.manifest:
        model.generation_config = GenerationConfig.from_dict(found.manifest[GENERATION])
    return model, {**found.manifest, "hyper_parameters": dict(module.hparams)}


def _blank(found: State, trust_remote_code: bool) -> PreTrainedModel:
    """The model that a checkpoint's configuration describes; its base is needed for remote code alone."""
    saved = dict(found.manifest[CONFIG])
    kind = saved.pop("model_type")
    if trust_remote_code:
        source, revision = found.settings["model"], found.settings["revision"]
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        config = type(config).from_dict(saved)
    elif kind in CONFIG_MAPPING:
        config = AutoConfig.for_model(kind, **saved)
    else:
        raise ValueError(
            f"{found.folder}: transformers knows no {kind!r}; if its code may run here, pass "
            "trust_remote_code"
        )
    auto: Any = AutoModelForCausalLM
    dtype = getattr(torch, found.settings["dtype"])
    model: PreTrainedModel = auto.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    return model
