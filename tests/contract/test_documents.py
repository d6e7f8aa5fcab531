"""The code in README and docs runs, and prints what they say it prints."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HUB = ROOT / "docs" / "hub.md"
"""Runs against a Hub on loopback: tests/hub/test_hub_document.py."""
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("packages/*/README.md")]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_BY_CI = (
    "uv run recipes/quickstart.py",
    "uv run pytest -n 2 --dist loadfile",
    "git clone",
    "cd drift",
    "pip install",
    "uv pip install",
)
"""Commands that .ci/run or the wheels test runs, or that only fetch."""


def blocks(document: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(document.read_text(encoding="utf-8"))


def squeeze(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def run_python(code: str, names: dict) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<document>", "exec"), names)
    return printed.getvalue()


def run_shell(code: str, folder: Path) -> str:
    printed = ""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in code.strip().replace("\\\n", " ").splitlines():
        command = line.partition("  #")[0].strip()
        if not command or command.startswith(RUN_BY_CI):
            continue
        assert command.startswith("drift-"), f"no test runs the command {command!r}"
        env = os.environ | {"PATH": path, "COLUMNS": "100", "NO_COLOR": "1"}
        done = subprocess.run(
            shlex.split(command), cwd=folder, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        printed += done.stdout
    return printed


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path != HUB], ids=lambda path: str(path.relative_to(ROOT))
)
def test_blocks_run_and_print_what_is_shown(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """python and sh blocks run in order in one folder; a text block behind one is its output."""
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "document"}
    printed = ""
    for kind, code in blocks(document):
        if kind == "python":
            printed = run_python(code, names)
        elif kind == "sh":
            printed = run_shell(code, tmp_path)
        elif kind in ("jsonl", "yaml"):
            first, _, rest = code.partition("\n")
            (tmp_path / first.removeprefix("# ").strip()).write_text(rest, encoding="utf-8")
        elif kind == "text":
            assert squeeze(printed) == squeeze(code)


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if not target.startswith(("http", "mailto")):
                assert (document.parent / target).exists(), f"{document.name} → {target}"


def test_every_test_named_in_equations_exists() -> None:
    named = re.findall(r"\b(test_\w+)\b(?!\.py|`?/)", (ROOT / "docs" / "equations.md").read_text("utf-8"))
    files = list((ROOT / "tests").rglob("test_*.py"))
    defined = set(
        re.findall(r"^def (test_\w+)", "\n".join(f.read_text("utf-8") for f in files), re.MULTILINE)
    )
    assert set(named) - defined - {file.stem for file in files} == set()
    assert len(named) > 50
