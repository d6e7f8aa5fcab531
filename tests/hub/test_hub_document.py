"""The commands and code of docs/hub.md run as they stand, against a Hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from contract.test_documents import HUB, blocks, squeeze
from loopback_hub import OWNER, LoopbackHub
from tiny import bpe_tokenizer, save_policy, tiny_model

MODEL = "Qwen/Qwen2.5-3B-Instruct"


@pytest.mark.timeout(600)
def test_docs_hub_runs(hub: LoopbackHub, tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", bpe_tokenizer(), tiny_model(vocab=400))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**hub.env(tmp_path, OWNER), "PATH": path, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}

    def run(command: list[str] | str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, shell=isinstance(command, str)
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    printed, shells = "", 0
    for kind, code in blocks(HUB):
        if kind == "sh":
            shells += 1
            for line in code.strip().splitlines():
                run(line)
        elif kind == "python":
            printed = run([sys.executable, "-c", code])
        elif kind == "text":
            assert squeeze(printed) == squeeze(code)
        elif kind in ("jsonl", "yaml"):
            first, _, rest = code.partition("\n")
            (tmp_path / first.removeprefix("# ").strip()).write_text(rest.replace(MODEL, "policy"))
    assert shells == 3
    assert (tmp_path / "policies" / "corrected" / "config.json").is_file()
