"""From rollouts over the Hub to an evaluated policy, each step by the command that a user runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loopback_hub import OWNER, LoopbackHub
from tiny import bpe_tokenizer, save_policy, tiny_model

REPO = "org/corrections"
COMMAND = "import sys; from {module}.cli import main; main(sys.argv[1:])"


class User:
    """Somebody with a folder, a token and the commands."""

    def __init__(self, hub: LoopbackHub, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True)
        self.env = {**hub.env(home, OWNER), "OMP_NUM_THREADS": "1"}

    def runs(self, tool: str, *words: str) -> str:
        """What a command prints; it must end well."""
        code = COMMAND.format(module=tool.replace("-", "_"))
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(
            command, cwd=self.home, env=self.env, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{tool} {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


def problems(path: Path) -> None:
    rows = [{"problem": f"what is {n} + 1", "answer": str(n + 1)} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_publish_pull_train_and_evaluate(hub: LoopbackHub, tmp_path: Path) -> None:
    maker, trainer = User(hub, tmp_path / "maker"), User(hub, tmp_path / "trainer")
    for user in (maker, trainer):
        save_policy(user.home / "policy", bpe_tokenizer(), tiny_model(vocab=400))
        problems(user.home / "problems.jsonl")
    sampling = ["--samples", "4", "--sampling.max_new_tokens", "6", "--protocol.max_turns", "2"]
    maker.runs("drift-rollout", "sample", "problems.jsonl", "policy", "run", *sampling)
    maker.runs("drift-weights", "reweight", "run/trajectories", "weighted")
    dry = maker.runs("drift-weights", "publish", "weighted", REPO, "--tag", "v0.1.0", "--dry-run")
    assert "part-00000.parquet" in dry
    assert ("dataset", REPO) not in hub.store.repos
    said = maker.runs("drift-weights", "publish", "weighted", REPO, "--tag", "v0.1.0")
    assert f'load_dataset("{REPO}"' in said
    maker.runs("drift-weights", "publish", "run/trajectories", REPO, "--tag", "v0.2.0")
    assert "nothing to do" in maker.runs("drift-weights", "publish", "weighted", REPO, "--tag", "v0.1.0")

    assert "32 rows" in trainer.runs("drift-weights", "pull", REPO, "pulled", "--revision", "v0.1.0")
    subset = next(name for name in json.loads(hub.files(REPO)["drift.json"])["configs"] if "traj" in name)
    pinned = ["--revision", "v0.2.0", "--subset", subset]
    trainer.runs("drift-weights", "reweight", REPO, "sharper", "--beta", "0.05", *pinned)
    config = {
        "model": {"model": "policy", "learning_rate": 0.01},
        "data": {"path": REPO, "revision": "v0.1.0", "batch_size": 8},
        "trainer": {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (trainer.home / "fit.yaml").write_text(yaml.safe_dump(config))
    said = trainer.runs("drift-train", "fit", "--config", "fit.yaml")
    assert f"took {REPO} from the Hub" in said
    trainer.runs("drift-train", "export", "runs/version_0", "trained")
    evaluation = ["problems.jsonl", "trained", "eval", "--max_new_tokens", "6", "--max_turns", "2"]
    table = trainer.runs("drift-eval", "run", *evaluation)
    assert "multi@2" in table
