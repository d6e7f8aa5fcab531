"""Weighted supervised fine-tuning on terminal turns (DRIFT)."""

from drift_train.checkpoint import LastCheckpoint
from drift_train.data import WeightedDataModule
from drift_train.encode import Encoded, Example, encode
from drift_train.export import export, load_policy
from drift_train.held_out import split
from drift_train.layout import MicroBatch, StepBatch, step_batch
from drift_train.lora import LoRA
from drift_train.loss import token_nll, weighted_nll, weighted_nll_from_logits
from drift_train.module import WeightedSFT
from drift_train.pack import BatchPlan
from drift_train.rows import read_rows
from drift_train.state import State, newest, read_state
from drift_train.strategies import DDP, FSDP, FSDP2, SingleDevice

__all__ = [
    "DDP",
    "FSDP",
    "FSDP2",
    "BatchPlan",
    "Encoded",
    "Example",
    "LastCheckpoint",
    "LoRA",
    "MicroBatch",
    "SingleDevice",
    "State",
    "StepBatch",
    "WeightedDataModule",
    "WeightedSFT",
    "encode",
    "export",
    "load_policy",
    "newest",
    "read_rows",
    "read_state",
    "split",
    "step_batch",
    "token_nll",
    "weighted_nll",
    "weighted_nll_from_logits",
]
