"""Where the policy lies: on one device, on each (ddp), in shards (fsdp2, fsdp); states are folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.plugins.precision import FSDPPrecision, Precision
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import GenerationConfig, PreTrainedModel

from drift_train import state
from drift_weights.provenance import made_by

_KEPT = ("state_dict", "optimizer_states")


class StateFolders(Strategy):
    """Saves and loads a run's state as a folder (`drift_train.state`), whatever the strategy."""

    world_size: int

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """The state is loaded into shards, so they have to be there."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """`load_checkpoint` has done it."""
        return False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: `save_checkpoint` takes tensors from the model itself."""
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Nothing: `save_checkpoint` takes tensors from the optimizer itself."""
        return {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing left to do."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Nothing left to do."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a state folder; all ranks call it.

        Raises:
            FileExistsError: the path is taken.
            OSError: the disk is full or read-only.
        """
        if storage_options is not None:
            raise TypeError("storage_options: a state folder is written by torch.distributed.checkpoint")
        module = self.lightning_module
        assert module is not None
        rest = {name: value for name, value in checkpoint.items() if name not in _KEPT}
        manifest = {
            "step": rest["global_step"],
            "strategy": type(self).__name__,
            "world_size": self.world_size,
            "made_by": made_by(),
            "hyper_parameters": rest.pop("hyper_parameters", {}),
            **rest.pop("manifest", {}),
        }
        path = Path(self.broadcast(str(filepath)))
        # A save of weights alone has no optimizer states.
        optimizers = self.optimizers if "optimizer_states" in checkpoint else []
        state.write_state(path, module, optimizers, rest, manifest)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Check a state folder, fill model and optimizer from it, and return the rest.

        Raises:
            FileNotFoundError: no such state.
            ValueError: it is torn, mixed, of another model, or holds code.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        (found, *_) = state.together(lambda: state.read_state(state.newest(path)))
        state.check_files(found)
        (rest, *_) = state.together(lambda: state.load_trainer(found))
        module = self.lightning_module
        assert module is not None
        fitting = module.trainer.state.fn == TrainerFn.FITTING
        state.load_tensors(found, module, self.optimizers if fitting else [])
        return {**rest, "hyper_parameters": found.settings, "manifest": found.manifest}

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Remove a state folder, its manifest first, so that half of it is never taken for a whole."""
        if self.is_global_zero:
            folder = Path(filepath)
            (folder / state.MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)

    def load(self, blank: Callable[[], PreTrainedModel], read: Callable[[], PreTrainedModel]) -> nn.Module:
        """The policy with its weights, placed; by default every rank reads all of it.

        Args:
            blank: gives the policy without weights, on torch's default device.
            read: gives the policy with its weights, on the host.
        """
        return self.place(read())

    def place(self, policy: PreTrainedModel) -> nn.Module:
        """The policy as this strategy trains it; by default as it is."""
        return policy

    def clip(self, policy: nn.Module, limit: float) -> Tensor:
        """Scale the gradient to an L2 norm of at most `limit`; returns its norm before, over all ranks."""
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), limit)
        full = getattr(norm, "full_tensor", None)
        return norm if full is None else cast(Tensor, full())

    def without_sync(self) -> AbstractContextManager[None]:
        """Where gradients need not meet yet; the last backward of a step is outside."""
        return nullcontext()


class SingleDevice(StateFolders, SingleDeviceStrategy):
    """One process, one device."""

    def __init__(self, device: str | torch.device | None = None) -> None:
        super().__init__(device=device or ("cuda:0" if CUDAAccelerator.is_available() else "cpu"))


class DDP(StateFolders, DDPStrategy):
    """The whole policy on every device; gradients meet once a step."""

    def without_sync(self) -> AbstractContextManager[None]:
        """Sum the micro-batches locally."""
        return cast(AbstractContextManager[None], self.block_backward_sync())


class FSDP2(StateFolders, ModelParallelStrategy):
    """Parameters, gradients and optimizer states in shards, by `fully_shard` on each block.

    Args:
        cpu_offload: keep shards in host memory while they are not computed with.
        process_group_backend: null for the device's own (nccl, gloo).
    """

    def __init__(self, cpu_offload: bool = False, process_group_backend: str | None = None) -> None:
        if cpu_offload and process_group_backend is None and CUDAAccelerator.is_available():
            # Norms of offloaded gradients are summed on the host.
            process_group_backend = "cpu:gloo,cuda:nccl"
        super().__init__(process_group_backend=process_group_backend)
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        """All ranks shard the same model: one data-parallel dimension, no tensor parallelism."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def load(self, blank: Callable[[], PreTrainedModel], read: Callable[[], PreTrainedModel]) -> nn.Module:
        """Only rank 0 reads the weights; the others get their shards from it, and never hold the whole."""
        whole: list[PreTrainedModel] = []
        state.together(lambda: whole.append(read()), only_first=True)
        with torch.device("meta"):
            policy = blank()
        self.place(policy)
        policy.to_empty(device="cpu" if self.cpu_offload else self.root_device)
        policy.tie_weights()
        _fill(policy, whole[0] if whole else None, self)
        return policy

    def place(self, policy: PreTrainedModel) -> nn.Module:
        """Shard every block, then what is left."""
        settings: dict[str, Any] = {
            "mesh": self.device_mesh["data_parallel"],
            "offload_policy": self._offload(),
        }
        if self.precision_plugin.precision == "bf16-mixed":
            settings["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
        for block in blocks(policy):
            fully_shard(block, **settings)
        fully_shard(policy, **settings)
        return policy

    def model_to_device(self) -> None:
        """Shards lie where they belong; offloaded ones stay on the host, buffers do not."""
        assert self.model is not None
        if not self.cpu_offload:
            super().model_to_device()
            return
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self.root_device)

    def _offload(self) -> OffloadPolicy:
        if not self.cpu_offload:
            return OffloadPolicy()
        return CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda")


class _AsItIs(FSDPPrecision):
    """Lightning's casts the policy and every float of a batch to float32; ours stay what they are."""

    def convert_input(self, data: Any) -> Any:
        """Nothing: token ids need no precision, and weights are float64."""
        return data

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Nothing: `model.dtype` says what the policy is in."""
        return module


class FSDP(StateFolders, FSDPStrategy):
    """The older FullyShardedDataParallel (FSDP1), for those who have to stay with it.

    Args:
        cpu_offload: keep shards in host memory while they are not computed with.
    """

    def __init__(self, cpu_offload: bool = False) -> None:
        super().__init__(cpu_offload=cpu_offload, state_dict_type="sharded")

    @property
    def precision_plugin(self) -> FSDPPrecision:
        """What trainer.precision asked for."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        self._precision_plugin = plugin and _AsItIs(cast(Any, plugin.precision))

    def place(self, policy: PreTrainedModel) -> nn.Module:
        """Wrap every block, then what is left."""
        kinds = {type(block) for block in blocks(policy)}
        # The mesh makes its shards DTensors, which every world size can read.
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        mixed = None
        if self.precision_plugin.precision == "bf16-mixed":
            mixed = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        return FullyShardedDataParallel(
            policy,
            auto_wrap_policy=ModuleWrapPolicy(kinds),
            use_orig_params=True,
            device_id=self.root_device,
            device_mesh=mesh,
            mixed_precision=mixed,
            cpu_offload=self.cpu_offload,
        )

    def clip(self, policy: nn.Module, limit: float) -> Tensor:
        """As every strategy; FSDP1's own takes norms in float32, whatever the gradient is in."""
        trained = [parameter for parameter in policy.parameters() if parameter.grad is not None]
        own = torch.nn.utils.get_total_norm([cast(Tensor, parameter.grad) for parameter in trained])
        # Offloaded shards lie on the host, for which the group may not speak.
        squares = own.to(self.root_device, torch.float64) ** 2
        torch.distributed.all_reduce(squares)
        norm = squares.sqrt()
        torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
        return norm


def _fill(policy: PreTrainedModel, whole: PreTrainedModel | None, strategy: Strategy) -> None:
    """Send rank 0's parameters and buffers to every rank's shards."""
    weights = {} if whole is None else whole.state_dict()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(policy, weights, options=options)
    # Buffers such as rotary frequencies are in no state dict, and empty until here.
    sources = {} if whole is None else dict(whole.named_buffers())
    for name, buffer in policy.named_buffers():
        if whole is not None:
            buffer.copy_(sources[name])
        # Offloaded ones too: the devices' own backend may be the only one there is.
        sent = buffer.to(strategy.root_device)
        torch.distributed.broadcast(sent, src=0)
        buffer.copy_(sent)
    generation = None if whole is None else whole.generation_config
    policy.generation_config = cast(GenerationConfig, strategy.broadcast(generation))


STRATEGIES: dict[str, type[StateFolders]] = {
    "fsdp2": FSDP2,
    "fsdp": FSDP,
    "ddp": DDP,
    "single": SingleDevice,
}


def strategy_named(name: str, *, accelerator: str, devices: Any, num_nodes: int) -> StateFolders:
    """A strategy by its name; `auto` is fsdp2 on several devices, and single on one.

    Raises:
        ValueError: there is no strategy of that name.
    """
    on_cuda = uses_cuda(accelerator)
    if name == "auto":
        name = "fsdp2" if num_nodes * count_devices(devices, on_cuda) > 1 else "single"
    if name not in STRATEGIES:
        raise ValueError(f"trainer.strategy {name!r} is not one of auto, {', '.join(STRATEGIES)}")
    if name == "single":
        return SingleDevice("cuda:0" if on_cuda else "cpu")
    return STRATEGIES[name]()


def uses_cuda(accelerator: Any) -> bool:
    """Whether trainer.accelerator means the CUDA devices of this machine."""
    return accelerator in ("auto", "gpu", "cuda") and CUDAAccelerator.is_available()


def count_devices(devices: Any, on_cuda: bool) -> int:
    """The number of devices of a node that trainer.devices asks for, in any of Lightning's ways."""
    if devices in ("auto", -1, "-1"):
        return CUDAAccelerator.auto_device_count() if on_cuda else 1
    if isinstance(devices, str):
        devices = [part for part in devices.split(",") if part] if "," in devices else int(devices)
    return len(devices) if isinstance(devices, list) else int(devices)


def blocks(policy: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks of a model, which transformers says must not be split.

    Raises:
        ValueError: the model names none.
    """
    kinds = set(policy._no_split_modules or ())
    found = [module for module in policy.modules() if type(module).__name__ in kinds]
    if not found:
        raise ValueError(
            f"{type(policy).__name__} names no blocks to shard or to compile; use trainer.strategy ddp, "
            "and leave model.compile off"
        )
    return found
