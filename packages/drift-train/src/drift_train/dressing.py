"""What a policy wears under training: adapters, our attention and loss, checkpointing, compiling."""

from __future__ import annotations

from transformers import PreTrainedModel

from drift_train.attention import SEGMENTS, check_causal, why_not_packed
from drift_train.compiled import compile_blocks
from drift_train.head import from_transformers, score_inside
from drift_train.lora import LoRA, add_lora
from drift_train.unread import freeze_unread


def dress(
    policy: PreTrainedModel, *, lora: LoRA | None, gradient_checkpointing: bool, compile: bool
) -> None:
    """Make a policy, in place, one that `WeightedSFT` can train; what no text reaches is frozen.

    Args:
        policy: as it was read, or without weights.
        lora: train adapters alone; None for all parameters.
        gradient_checkpointing: of each block.
        compile: each block.

    Raises:
        ValueError: a policy that looks ahead, adapters that do not fit, or no blocks to compile.
    """
    check_causal(policy)
    if lora is not None:
        add_lora(policy, lora)
    freeze_unread(policy)
    if why_not_packed(policy.config) is None and from_transformers(policy):
        policy.set_attn_implementation(SEGMENTS)
    score_inside(policy)
    if gradient_checkpointing:
        # The other kind gives no gradient where a block's input needs none, as under LoRA.
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    if compile:
        compile_blocks(policy)
