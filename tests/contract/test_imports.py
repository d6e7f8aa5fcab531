"""Who may import whom, and how light `import drift_weights` is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("drift_weights", "drift_rollout", "drift_train", "drift_eval")
ALLOWED = {
    "drift_weights": set(),
    "drift_rollout": {"drift_weights"},
    "drift_train": {"drift_weights"},
    "drift_eval": {"drift_weights", "drift_rollout"},
}
HEAVY = ("torch", "transformers", "datasets", "huggingface_hub", "pandas", "polars", "jsonargparse", "rich")


def sources(package: str) -> list[Path]:
    found = list((ROOT / "packages" / package.replace("_", "-") / "src" / package).rglob("*.py"))
    assert len(found) > 5
    return found


def imported(file: Path) -> set[str]:
    """Top-level names of all imports of a file, wherever in it they stand."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{file}: relative import")
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_is_below_them(package: str) -> None:
    for file in sources(package):
        others = imported(file) & set(PACKAGES) - {package}
        assert others <= ALLOWED[package], file


def test_heavy_imports_live_in_engines_only() -> None:
    for package in ("drift_weights", "drift_rollout", "drift_eval"):
        for file in sources(package):
            if "engines" not in file.parts:
                assert not imported(file) & {"torch", "transformers", "vllm"}, file


def test_only_the_command_line_of_weights_prints() -> None:
    prints = {"command_line.py", "commands.py", "hub_commands.py", "tables.py"}
    for file in sources("drift_weights"):
        assert file.name in prints or "rich" not in imported(file), file


def test_only_hub_of_weights_speaks_to_the_hub() -> None:
    for file in sources("drift_weights"):
        assert ("huggingface_hub" in imported(file)) == (file.name == "hub.py"), file


def test_jsonargparse_lives_in_cli_modules() -> None:
    for package in PACKAGES:
        for file in sources(package):
            if file.name != "cli.py":
                assert "jsonargparse" not in imported(file), file


def loaded_after(statement: str) -> set[str]:
    """Which heavy modules a fresh interpreter holds after a statement."""
    script = f"import sys\n{statement}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_drift_weights_is_light() -> None:
    assert loaded_after("import drift_weights") == set()


def test_the_light_test_can_fail() -> None:
    assert loaded_after("import drift_weights.cli") == {"jsonargparse", "rich"}
