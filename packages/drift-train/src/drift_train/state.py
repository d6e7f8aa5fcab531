"""The state of a run as a folder: safetensors shards, trainer.pt, and state.json, which vouches for them.

Every strategy and world size writes the same names, so any of them reads what another wrote. Nothing in it
is unpickled: tensors are safetensors, settings are JSON, and trainer.pt opens with weights_only=True.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from drift_train.state_tensors import named_tensors, set_tensors, tensors_to_load
from drift_weights.folder import write_json

FORMAT = 1
MANIFEST = "state.json"
TRAINER = "trainer.pt"
STEP_FOLDER = re.compile(r"step-(\d+)(?:-v\d+)?")
_FILE_BYTES = 2 << 30
"""Tensors of one shard file, about: the writer holds a file twice in memory."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A state folder that is whole: what its manifest says."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that were done."""
        return int(self.manifest["step"])

    @property
    def settings(self) -> dict[str, Any]:
        """The hyperparameters of the module that was trained."""
        return dict(self.manifest["hyper_parameters"])


def write_state(
    folder: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    trainer: dict[str, Any],
    manifest: dict[str, Any],
) -> None:
    """Write a whole state under a name that is free; all ranks call it.

    The shards are hashed by the ranks that wrote them, and the folder takes its name last: whenever a
    process dies, what stands under the name is whole or not there.

    Args:
        folder: its parent is a folder that all ranks see.
        model: the module that was trained, sharded or not.
        optimizers: its optimizers, at most one.
        trainer: the rest that a resume needs; only rank 0's counts.
        manifest: what state.json says besides; JSON.

    Raises:
        FileExistsError: the name is taken.
        ValueError: `trainer` holds what weights_only=True does not load.
        OSError: the disk is full or read-only.
    """
    scratch = folder.with_name(f".{folder.name}.writing")
    together(lambda: _begin(folder, scratch), only_first=True)
    tensors, groups = named_tensors(model, optimizers)
    with _quiet():
        writer = HuggingFaceStorageWriter(
            str(scratch), fqn_to_index_mapping=_files_of(tensors), save_distributed=True
        )
        save(tensors, storage_writer=writer, no_dist=not _distributed())
    mine = together(lambda: {f.name: _entry(f) for f in sorted(scratch.glob(_shards_of(_rank())))})
    files = {name: entry for part in mine for name, entry in part.items()}
    about = {"format": FORMAT, **manifest, "param_groups": groups}
    together(lambda: _end(folder, scratch, trainer, about, files), only_first=True)


def read_state(folder: Path) -> State:
    """Look whether a state folder is whole and its own; reads no tensors.

    Raises:
        FileNotFoundError: no such folder, or none with a state.json.
        ValueError: files are missing, foreign, cut or of another save; the manifest is not ours.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    wanted = {"format": int, "step": int, "hyper_parameters": dict, "files": dict, "param_groups": list}
    for name, kind in wanted.items():
        if not isinstance(manifest, dict) or type(manifest.get(name)) is not kind:
            raise ValueError(f"{path} is no manifest of a checkpoint: {name!r} must be {kind.__name__}")
    if manifest["format"] != FORMAT:
        raise ValueError(f"{path}: format {manifest['format']}, this version reads {FORMAT}")
    code = sorted(name for name in manifest["hyper_parameters"] if name.startswith("_"))
    if code:
        raise ValueError(
            f"{path}: hyper_parameters holds {', '.join(code)}, which Lightning would import and call"
        )
    _check_names(folder, manifest["files"])
    return State(folder=folder, manifest=manifest)


def check_files(state: State) -> None:
    """Hold every file against the manifest's size and sha256; ranks share the work.

    Raises:
        ValueError: a file is cut, changed, or of another save.
    """
    together(lambda: _check_each(state, sorted(state.manifest["files"])[_rank() :: _world()]))


def load_tensors(state: State, model: nn.Module, optimizers: list[Optimizer]) -> None:
    """Fill a module and its optimizers from a state, whatever shards either has; all ranks call it.

    Raises:
        ValueError: the state is of another model.
    """
    tensors, _ = named_tensors(model, optimizers)
    wanted, unmoved = tensors_to_load(state.folder, _saved_shapes(state.folder), tensors)
    with _quiet():
        reader = HuggingFaceStorageReader(str(state.folder))
        load(wanted, storage_reader=reader, no_dist=not _distributed())
    set_tensors(model, optimizers, wanted, state.manifest["param_groups"], unmoved)


def load_trainer(state: State) -> dict[str, Any]:
    """What trainer.pt holds. No code is unpickled.

    Raises:
        ValueError: it holds code, or is no such file.
    """
    path = state.folder / TRAINER
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} does not load as data alone: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no state of a trainer")
    return content


def newest(path: Path) -> Path:
    """The state folder that a path means: itself, or the newest whole one of a run's folder.

    Raises:
        FileNotFoundError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    for folder in (path, path / "checkpoints"):
        found = [(int(m[1]), sub.name, sub) for sub, m in _steps(folder) if (sub / MANIFEST).is_file()]
        if found:
            return max(found)[2]
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file; a checkpoint is a folder with a {MANIFEST}")
    raise FileNotFoundError(f"{path} holds no checkpoint (a folder step-N with a {MANIFEST})")


def free_name(folder: Path) -> Path:
    """`folder`, or the first of `folder`-v1, -v2 … that is not taken: a path is never used twice."""
    found, number = folder, 0
    while found.exists():
        number += 1
        found = folder.with_name(f"{folder.name}-v{number}")
    return found


def together(work: Callable[[], T], *, only_first: bool = False) -> list[T]:
    """Do something on every rank, or on rank 0 alone; if one fails, all fail with its error.

    Else a rank that raises leaves the others waiting in their next collective. Returns every rank's result.
    """
    result: Any = None
    failure: tuple[str, str] | None = None
    if not only_first or _rank() == 0:
        try:
            result = work()
        except (OSError, ValueError) as error:
            if not _distributed():
                raise
            failure = (type(error).__name__, str(error))
    if not _distributed():
        return [result]
    gathered: list[Any] = [None] * _world()
    dist.all_gather_object(gathered, (result, failure))
    for rank, (_, problem) in enumerate(gathered):
        if problem is not None:
            kind = {"FileExistsError": FileExistsError, "FileNotFoundError": FileNotFoundError}
            fallback = ValueError if problem[0] == "ValueError" else OSError
            raise kind.get(problem[0], fallback)(f"rank {rank}: {problem[1]}" if rank else problem[1])
    return [part for part, _ in gathered]


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Tensor → number of its file, from 1; the same on every rank."""
    files, used, number = {}, 0, 1
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() // _world()
        if used and used + size > _FILE_BYTES:
            used, number = 0, number + 1
        files[name], used = number, used + size
    return files


def _begin(folder: Path, scratch: Path) -> None:
    if folder.exists():
        raise FileExistsError(f"{folder} exists; a checkpoint never takes another's place")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)


def _end(
    folder: Path, scratch: Path, trainer: dict[str, Any], about: dict[str, Any], files: dict[str, Any]
) -> None:
    path = scratch / TRAINER
    torch.save(trainer, path)
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"the run's state holds more than data, so no resume would load it: {error}"
        ) from error
    _sync(path)
    files[TRAINER] = _entry(path)
    write_json(scratch / MANIFEST, {**about, "files": files})
    _sync(scratch / MANIFEST)
    _sync(scratch)
    scratch.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _check_names(folder: Path, files: Mapping[str, Any]) -> None:
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    missing, foreign = sorted(set(files) - present), sorted(present - set(files))
    if missing:
        raise ValueError(
            f"{folder} is torn: {', '.join(missing)} missing; resume from an earlier checkpoint"
        )
    if foreign:
        raise ValueError(f"{folder} is mixed: {', '.join(foreign)} not its own; take them away")
    if TRAINER not in files:
        raise ValueError(f"{folder / MANIFEST} names no {TRAINER}")


def _check_each(state: State, names: list[str]) -> None:
    for name in names:
        wanted, path = state.manifest["files"][name], state.folder / name
        size = path.stat().st_size
        if size != wanted["bytes"]:
            raise ValueError(f"{path} is torn: {size} bytes, the manifest says {wanted['bytes']}")
        if _entry(path) != wanted:
            raise ValueError(f"{path} is not the file that was saved: its sha256 is not the manifest's")


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except SafetensorError as error:
        shards = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
        raise ValueError(f"{folder}: one of {shards} is no safetensors file: {error}") from error
    return {n: tuple(m.size) for n, m in found.items() if isinstance(m, TensorStorageMetadata)}


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _steps(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for sub in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = STEP_FOLDER.fullmatch(sub.name)
        if match:
            yield sub, match


def _shards_of(rank: int) -> str:
    return f"shard-{rank + 1:05d}-*.safetensors"


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0


def _world() -> int:
    return dist.get_world_size() if _distributed() else 1


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns that one process saves alone, and logs each tensor that is stored under a tied name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
