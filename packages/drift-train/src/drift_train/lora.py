"""LoRA: small matrices beside the frozen ones (Hu et al. 2021), by peft (the extra `drift-train[lora]`)."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from drift_train.unread import unread_modules


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """W + (alpha/rank)·B·A in the place of W; A and B are trained, all else is frozen.

    Args:
        rank: of B·A, ≥ 1.
        alpha: > 0.
        dropout: on what A gets, in [0, 1).
        targets: names of linear layers, such as q_proj; null for all but the output head.

    Raises:
        ValueError: a value out of its range.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"model.lora: rank must be ≥ 1, alpha > 0, dropout in [0, 1), got {self.rank}, "
                f"{self.alpha} and {self.dropout}"
            )


def add_lora(policy: PreTrainedModel, settings: LoRA) -> None:
    """Freeze a policy and put adapters, in float32 at least, into its linear layers.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: `targets` names no layer of the policy, or a head that is the input embedding, too.
    """
    policy.add_adapter(_config(settings, unread_modules(policy)))
    _refuse_tied(policy)
    for parameter in policy.parameters():
        # Steps of a small rate vanish in half precision.
        if parameter.requires_grad and parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()


def save_adapter(policy: PreTrainedModel, base: str, revision: str | None, folder: Path) -> None:
    """Write the adapters alone, as peft reads them, with the name of what they belong to."""
    config: Any = policy.peft_config["default"]
    config.base_model_name_or_path, config.revision = base, revision
    # peft keeps them in a set, whose order differs from process to process.
    config.target_modules = sorted(config.target_modules)
    policy.save_pretrained(folder)


def merged(policy: PreTrainedModel) -> PreTrainedModel:
    """The same policy with B·A added to each W, and no adapters; `policy` is used up."""
    from peft.tuners.lora import LoraLayer

    layers = {name: m for name, m in policy.named_modules() if isinstance(m, LoraLayer)}
    for module in layers.values():
        module.merge(safe_merge=True)
    for name, module in layers.items():
        # Fused experts are wrapped twice; the base of the outer wrap is that of the inner.
        if not any(name.startswith(f"{outer}.") for outer in layers):
            policy.set_submodule(name, module.get_base_layer())
    # Else save_pretrained looks for adapters.
    policy._hf_peft_config_loaded = False
    del policy.peft_config
    return policy


def _refuse_tied(policy: PreTrainedModel) -> None:
    """An adapter on a tied head would be merged into the embedding, where it was not trained."""
    head, table = policy.get_output_embeddings(), policy.get_input_embeddings()
    base = getattr(head, "base_layer", None)
    if base is not None and base.weight is getattr(table, "base_layer", table).weight:
        raise ValueError("model.lora.targets: the head is the input embedding as well (tied); leave it out")


def _config(settings: LoRA, unread: list[str]) -> Any:
    try:
        from peft import LoraConfig
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("model.lora needs peft: pip install 'drift-train[lora]'") from error
    chosen = asdict(settings)
    return LoraConfig(
        r=chosen["rank"],
        lora_alpha=chosen["alpha"],
        lora_dropout=chosen["dropout"],
        target_modules=chosen["targets"] or "all-linear",
        exclude_modules="|".join(rf"{re.escape(name)}(\..*)?" for name in unread) or None,
        task_type="CAUSAL_LM",
    )
