"""torch.compile of each block: the same step, with fewer and larger kernels."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any, cast

import torch
from transformers import AttentionInterface, PreTrainedModel

from drift_train.attention import SEGMENTS, attend
from drift_train.strategies import blocks


def compile_blocks(policy: PreTrainedModel) -> None:
    """Have each block compiled when it is first called, in place: parameters keep their names.

    Call it before blocks are sharded or computed again, so that both stay outside of what is compiled.

    Raises:
        ValueError: the model names no blocks.
    """
    found = blocks(policy)
    # Its segments are numbers of Python's, other ones in each micro-batch: traced, it would be compiled
    # anew for each. It stays as it is, between the two parts of a block.
    AttentionInterface.register(SEGMENTS, cast(Any, torch.compiler).disable(attend))
    for block in found:
        # Micro-batches differ in length; dropout draws what it would draw uncompiled.
        block.compile(dynamic=True, options={"fallback_random": True})


def check_compiler() -> None:
    """Look for what compiles the code that torch.compile writes.

    Raises:
        ValueError: it is not there.
    """
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise ValueError(
            f"model.compile needs a C++ compiler, and there is no {name}: install one, name another in the "
            "environment variable CXX, or leave model.compile off"
        )
