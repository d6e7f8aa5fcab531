"""State folders that are torn, mixed, foreign or malicious are refused, and nothing in them is run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from drift_train import (
    LastCheckpoint,
    SingleDevice,
    WeightedDataModule,
    WeightedSFT,
    load_policy,
    newest,
    read_state,
)
from drift_train.cli import main
from drift_train.state import check_files, load_trainer
from tiny import bpe_tokenizer, save_policy, tiny_model
from train.weighted_rows import random_rows, weighted_table

SHARD = "shard-00001-model-00001-of-00001.safetensors"


def fit(policy: Path, folder: Path | None, *, steps: int = 4, resume: Path | None = None) -> WeightedSFT:
    module = WeightedSFT(str(policy), 5e-3)
    table = weighted_table(random_rows(12, vocab=64))
    Trainer(
        max_steps=steps,
        accelerator="cpu",
        strategy=SingleDevice("cpu"),
        callbacks=[LastCheckpoint(2, keep=9, dirpath=str(folder))] if folder else [],
        enable_checkpointing=folder is not None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(
        module,
        datamodule=WeightedDataModule.from_table(table, str(policy), batch_size=4),
        ckpt_path=resume,
    )
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("made")
    policy = save_policy(folder / "policy", bpe_tokenizer(), tiny_model(vocab=64))
    fit(policy, folder / "run")
    return policy, folder / "run"


@pytest.fixture
def state(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of a whole state, to be spoilt."""
    shutil.copytree(made[1], tmp_path / "run")
    return tmp_path / "run" / "step-000004"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "state.json").read_text())
    change(manifest)
    (folder / "state.json").write_text(json.dumps(manifest))


def vouch(folder: Path, name: str) -> None:
    """Make the manifest agree with a file, as somebody with bad intentions would."""
    content = (folder / name).read_bytes()
    entry = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    rewrite(folder, lambda manifest: manifest["files"].update({name: entry}))


def cut(folder: Path) -> None:
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1])


def flip(folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[-1] ^= 1
    (folder / SHARD).write_bytes(content)


def mix(folder: Path) -> None:
    shutil.copy(folder.with_name("step-000002") / SHARD, folder / SHARD)


def mix_trainer(folder: Path) -> None:
    shutil.copy(folder.with_name("step-000002") / "trainer.pt", folder)


def another_shard(folder: Path) -> None:
    shutil.copy(folder / SHARD, folder / SHARD.replace("shard-00001", "shard-00002"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "is torn: .* bytes, the manifest says"),
        (flip, "is not the file that was saved"),
        (mix, "is not the file that was saved"),
        (mix_trainer, "is not the file that was saved|is torn"),
        (another_shard, "is mixed: shard-00002.* not its own"),
        (lambda folder: (folder / SHARD).unlink(), "is torn: shard-00001.* missing"),
        (lambda folder: (folder / "trainer.pt").unlink(), "is torn: trainer.pt missing"),
        (lambda folder: (folder / "state.json").write_text('{"format": 1'), "is not JSON"),
        (lambda folder: (folder / "state.json").write_text("[]"), "is no manifest of a checkpoint"),
        (lambda folder: rewrite(folder, lambda m: m.update(format=2)), "format 2, this version reads 1"),
        (lambda folder: rewrite(folder, lambda m: m.pop("step")), "'step' must be int"),
    ],
)
def test_a_spoilt_state_is_refused_by_resume_and_export(
    made: tuple[Path, Path], state: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(state)
    with pytest.raises(ValueError, match=message):
        fit(made[0], None, steps=6, resume=state)
    with pytest.raises(ValueError, match=message):
        load_policy(state)


def test_a_state_without_its_manifest_is_none(state: Path) -> None:
    (state / "state.json").unlink()
    assert newest(state.parent).name == "step-000002"
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        newest(state)


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_in_a_state_never_runs(made: tuple[Path, Path], state: Path, tmp_path: Path) -> None:
    song = tmp_path / "song"
    pickle.loads(pickle.dumps(Canary(song)))
    assert song.exists(), "the canary sings where it is unpickled"
    song.unlink()
    for spoil in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        spoil({"loops": Canary(song)}, state / "trainer.pt")
        vouch(state, "trainer.pt")
        with pytest.raises(ValueError, match=r"trainer\.pt does not load as data alone"):
            fit(made[0], None, steps=6, resume=state)
    (state / "trainer.pt").write_bytes((state.with_name("step-000002") / "trainer.pt").read_bytes())
    vouch(state, "trainer.pt")
    (state / SHARD).write_bytes(pickle.dumps(Canary(song)))
    vouch(state, SHARD)
    with pytest.raises(ValueError, match="shard-00001"):
        fit(made[0], None, steps=6, resume=state)
    with pytest.raises(ValueError, match="shard-00001"):
        load_policy(state)
    assert not song.exists()


def test_an_instantiator_in_the_settings_is_refused(
    made: tuple[Path, Path], state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning imports and calls what `_instantiator` names, where it is asked to."""
    (tmp_path / "canary.py").write_text("def sing(*args, **settings):\n    raise SystemExit('sang')\n")
    rewrite(state, lambda m: m["hyper_parameters"].update(_instantiator="canary.sing"))
    with pytest.raises(ValueError, match="_instantiator"):
        read_state(state)
    words = ["--model.model", str(made[0]), "--model.learning_rate=1", "--data.path=x"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words, "--ckpt_path", str(state)])
    assert stopped.value.code == 2
    assert "_instantiator" in capsys.readouterr().err


def test_another_models_state_is_refused(made: tuple[Path, Path], state: Path, tmp_path: Path) -> None:
    wide = save_policy(tmp_path / "wide", bpe_tokenizer(), tiny_model(vocab=64, hidden_size=64))
    with pytest.raises(ValueError, match=r"is of another model: model\.model.* has shape"):
        fit(wide, None, steps=6, resume=state)
    deep = save_policy(tmp_path / "deep", bpe_tokenizer(), tiny_model(vocab=64, num_hidden_layers=3))
    with pytest.raises(ValueError, match=r"is of another model: it lacks model\.model"):
        fit(deep, None, steps=6, resume=state)


def test_what_is_stored_is_the_policy_and_the_moments_of_adamw(
    made: tuple[Path, Path], state: Path
) -> None:
    module = fit(made[0], None)
    (optimizer,) = module.trainer.optimizers
    stored = load_file(state / SHARD)
    names = dict(module.named_parameters())
    for name, parameter in names.items():
        assert torch.equal(stored.pop(f"model.{name}"), parameter)
        for moment, tensor in optimizer.state[parameter].items():
            assert torch.equal(stored.pop(f"optimizer.{name}.{moment}"), tensor)
    assert not stored, "and nothing else"


def test_a_whole_state_is_taken(state: Path) -> None:
    found = read_state(state)
    check_files(found)
    assert found.step == 4
    assert found.settings["learning_rate"] == 5e-3
    assert load_trainer(found)["global_step"] == 4
