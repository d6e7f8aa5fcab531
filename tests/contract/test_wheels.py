"""The four wheels, built and installed outside the workspace; only there are the version bounds real."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.wheels, pytest.mark.timeout(1500)]


def run(*command: object, cwd: Path) -> str:
    """Run a command without this workspace's environment; its output comes with a failure."""
    clean = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean | {"NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    run("uv", "build", "--all-packages", "--wheel", "--out-dir", folder, cwd=ROOT)
    assert len(list(folder.glob("*.whl"))) == 4
    return folder


def environment(folder: Path, *packages: object) -> Path:
    run("uv", "venv", "--python", sys.executable, folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    run("uv", "pip", "install", "--python", python, *packages, cwd=folder)
    return python


def wheel(wheels: Path, package: str) -> Path:
    (found,) = wheels.glob(f"{package}-*.whl")
    return found


def test_drift_weights_alone_runs_its_own_tests(wheels: Path, tmp_path: Path) -> None:
    tools = ("pytest>=8.4,<10", "hypothesis>=6.140,<7", "mpmath>=1.3,<2")
    python = environment(tmp_path, wheel(wheels, "drift_weights"), *tools)
    installed = run("uv", "pip", "list", "--python", python, cwd=tmp_path)
    for heavy in ("torch", "datasets", "pandas", "transformers", "huggingface"):
        assert heavy not in installed
    shutil.copytree(ROOT / "tests" / "weights", tmp_path / "tests" / "weights")
    for module in (
        "conftest.py",
        "strategies.py",
        "rows.py",
        "inspect_logs.py",
        "cards.py",
        "made_up_secrets.py",
    ):
        shutil.copy(ROOT / "tests" / module, tmp_path / "tests")
    settings = "[pytest]\npythonpath = tests\naddopts = --import-mode=importlib\n"
    (tmp_path / "pytest.ini").write_text(settings)
    assert " passed" in run(python, "-m", "pytest", "-q", "tests/weights", cwd=tmp_path)


def test_all_four_install_together_and_answer(wheels: Path, tmp_path: Path) -> None:
    python = environment(
        tmp_path,
        f"drift-rollout[transformers] @ {wheel(wheels, 'drift_rollout').as_uri()}",
        *(wheel(wheels, name) for name in ("drift_weights", "drift_train", "drift_eval")),
    )
    where = run(python, "-c", "import drift_weights; print(drift_weights.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path))
    for package in ("weights", "rollout", "train", "eval"):
        run(python, "-c", f"import drift_{package}", cwd=tmp_path)
        assert "usage" in run(python.with_name(f"drift-{package}"), "--help", cwd=tmp_path)
