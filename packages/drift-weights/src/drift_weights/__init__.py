"""Turn logs of multi-turn correction into importance-weighted terminal turns."""

from drift_weights.checking import check_trajectories
from drift_weights.columns import Columns
from drift_weights.diagnostics import (
    GroupComposition,
    UpweightedWrong,
    group_composition,
    hoeffding_epsilon,
    hoeffding_probability,
    hoeffding_samples,
    partition_relative_error,
    upweighted_wrong,
    weight_error_bound,
)
from drift_weights.folder import read_folder, write_folder
from drift_weights.returns import trajectory_return
from drift_weights.reweighting import reweight, weighted_turns
from drift_weights.schema import TRAJECTORIES, WEIGHTED, check, from_table, to_table
from drift_weights.selections import select
from drift_weights.types import Message, Trajectory, Turn, prompt_id
from drift_weights.weighing import WeightConfig
from drift_weights.weights import effective_sample_size, group_weights, resample

__all__ = [
    "TRAJECTORIES",
    "WEIGHTED",
    "Columns",
    "GroupComposition",
    "Message",
    "Trajectory",
    "Turn",
    "UpweightedWrong",
    "WeightConfig",
    "check",
    "check_trajectories",
    "effective_sample_size",
    "from_table",
    "group_composition",
    "group_weights",
    "hoeffding_epsilon",
    "hoeffding_probability",
    "hoeffding_samples",
    "partition_relative_error",
    "prompt_id",
    "read_folder",
    "resample",
    "reweight",
    "select",
    "to_table",
    "trajectory_return",
    "upweighted_wrong",
    "weight_error_bound",
    "weighted_turns",
    "write_folder",
]
