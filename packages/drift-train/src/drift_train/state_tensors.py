"""The tensors of a run by names that no strategy, wrapper or world size changes.

`model.` and a parameter's name, or `optimizer.`, a parameter's name and its moment's. Tied parameters are
stored once, under the first of their names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

_WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")
_MODEL, _OPTIMIZER = "model.", "optimizer."


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def named_tensors(model: nn.Module, optimizers: list[Optimizer]) -> tuple[dict[str, Tensor], list[Any]]:
    """All tensors of a run by their parameters' names, and the optimizer's settings.

    Raises:
        ValueError: more than one optimizer.
    """
    if len(optimizers) > 1:
        raise ValueError(f"a run has one optimizer, not {len(optimizers)}")
    tied = _tied_names(model)
    # Adapters go without what they belong to.
    left_out = getattr(model, "hparams", {}).get("lora") is not None
    state = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=left_out))
    tensors: dict[str, Any] = {_MODEL + name: t for name, t in state.items() if name not in tied}
    groups: list[Any] = []
    for optimizer in optimizers:
        found: dict[str, Any] = dict(get_optimizer_state_dict(model, optimizer))
        groups = found["param_groups"]
        for parameter, moments in found["state"].items():
            for name, tensor in moments.items():
                tensors[f"{_OPTIMIZER}{parameter}.{name}"] = tensor
    return tensors, groups


def tensors_to_load(
    folder: Path, saved: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors that a state holds, and the parameters that had had no gradient when it was saved.

    Args:
        folder: the state's, for the errors.
        saved: shapes of what the state holds.
        tensors: all of a run.

    Raises:
        ValueError: the state is of another model.
    """
    moved = {_moved(name) for name in saved} - {None}
    # A state of weights alone has no moments at all, and is none to go on from.
    unmoved = {name for name in map(_moved, tensors) if name is not None and moved and name not in moved}
    wanted = {name: tensor for name, tensor in tensors.items() if _moved(name) not in unmoved}
    lacking = sorted(wanted.keys() - saved.keys())
    if lacking:
        raise ValueError(f"{folder} is of another model: it lacks {lacking[0]} and {len(lacking) - 1} more")
    other = next((name for name, tensor in wanted.items() if tuple(tensor.shape) != saved[name]), None)
    if other is not None:
        raise ValueError(
            f"{folder} is of another model: {other} has shape {saved[other]}, "
            f"this one {tuple(tensors[other].shape)}"
        )
    return wanted, unmoved


def set_tensors(
    model: nn.Module,
    optimizers: list[Optimizer],
    tensors: Mapping[str, Tensor],
    groups: list[Any],
    unmoved: Collection[str],
) -> None:
    """Fill a module and its optimizers.

    Args:
        model: the module.
        optimizers: its optimizers.
        tensors: what `tensors_to_load` names, loaded.
        groups: the optimizer's settings, as JSON has them.
        unmoved: parameters that had had no gradient.
    """
    weights: dict[str, Any] = {
        name.removeprefix(_MODEL): t for name, t in tensors.items() if name.startswith(_MODEL)
    }
    # Tied parameters are stored once.
    set_model_state_dict(model, weights, options=StateDictOptions(strict=False))
    for optimizer in optimizers:
        _set_optimizer(model, optimizer, tensors, groups, unmoved)


def _set_optimizer(
    model: nn.Module,
    optimizer: Optimizer,
    tensors: Mapping[str, Tensor],
    groups: list[Any],
    unmoved: Collection[str],
) -> None:
    found: dict[str, Any] = dict(get_optimizer_state_dict(model, optimizer))
    for parameter, moments in found["state"].items():
        for name in moments if parameter not in unmoved else ():
            moments[name] = tensors[f"{_OPTIMIZER}{parameter}.{name}"]
    # The kernel that steps is a matter of the run that goes on; its moments are the other's.
    kernel = {"fused": found["param_groups"][0].get("fused")}
    found["param_groups"] = [group | kernel for group in _tuples(groups)]
    set_optimizer_state_dict(model, optimizer, found)
    for name, parameter in model.named_parameters():
        if plain_name(name) in unmoved:
            # Their first gradient starts their moments, as it would have in the run that was saved.
            optimizer.state.pop(parameter, None)


def _moved(name: str) -> str | None:
    """The parameter that a moment belongs to."""
    return name.removeprefix(_OPTIMIZER).rpartition(".")[0] if name.startswith(_OPTIMIZER) else None


def _tied_names(model: nn.Module) -> set[str]:
    """Names of parameters that are stored under another name already."""
    seen: set[int] = set()
    tied = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            tied.add(plain_name(name))
        seen.add(id(parameter))
    return tied


def _tuples(groups: list[Any]) -> list[Any]:
    """JSON knows no tuples; AdamW compares betas as one."""
    return [
        {name: tuple(v) if isinstance(v, list) and name != "params" else v for name, v in group.items()}
        for group in groups
    ]
