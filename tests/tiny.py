"""Tiny tokenizers and models, built in milliseconds; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Incorrect. Please think again. You are a helpful assistant.",
    "<think> one plus two is three </think> <answer> 3 </answer>",
    "<answer> X1 </answer> <answer> X2 </answer> <answer> X3 </answer>",
    "Problem: which item has the traits t1 t2 t3 t4? Turn 1: State: 12 + 30 = 42",
] * 4

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def bpe_tokenizer(*, pad: bool = True, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with ChatML; decode then encode does not give sampled ids back.

    Args:
        pad: a pad token of its own (pad ≠ eos), or none at all.
        bos: the tokenizer adds a BOS of its own when it encodes, as Llama's does; the template too.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(CORPUS, trainer)
    named: dict[str, Any] = {"eos_token": "<|im_end|>"}
    if pad:
        named["pad_token"] = "<|pad|>"
    if bos:
        from tokenizers.processors import TemplateProcessing

        named["bos_token"] = "<|bos|>"
        core.post_processor = TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", core.token_to_id("<|bos|>"))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|endoftext|>"]})
    tokenizer.chat_template = ("<|bos|>" if bos else "") + CHATML
    return tokenizer


def tiny_model(family: str = "llama", *, vocab: int = 512, seed: int = 0, **changes: Any) -> Any:
    """A random causal LM of two layers, about 0.1M parameters, of one of transformers' families."""
    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family in ("gemma2", "gemma3_text", "qwen3"):
        shape["head_dim"] = 8
    config = transformers.AutoConfig.for_model(family, **(shape | changes))
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def tiny_gemma3(vocab: int) -> Any:
    """A random multimodal model: AutoModelForCausalLM opens it with its vision tower."""
    heads = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text = {**heads, "vocab_size": vocab, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8}
    vision = {**heads, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, initializer_range=0.2
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def save_policy(folder: Path, tokenizer: PreTrainedTokenizerFast, model: Any) -> Path:
    """Save model and tokenizer as a folder that from_pretrained opens, stopping at the turn end."""
    model.generation_config.eos_token_id = [
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
        tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    ]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
