"""Mutation testing of the arithmetic of weights: runs mutmut on a copy and prints the score.

uv run --group mutation python tests/mutation/run.py                     all that are not known to be killed
uv run --group mutation python tests/mutation/run.py 'drift_weights.re*'  some, by mutmut's names
uv run --group mutation python tests/mutation/run.py --report            the score of the last run again

The copy stays in runs/mutation with what was found out: a run that was stopped goes on where it was, killed
mutants and those listed in equivalent.toml are tested again once their function changes, others every time.
Delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KILLED = ("killed", "timeout", "segfault")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One change of one function, and what became of it."""

    name: str
    module: str
    status: str
    place: str = ""
    was: str = ""
    now: str = ""

    @property
    def change(self) -> tuple[str, str, str]:
        """What stays the same when other mutants of the function come and go."""
        return self.name.rpartition("__mutmut_")[0].removeprefix("drift_weights."), self.was, self.now


def main() -> None:
    """Copy, mutate, report; exits with 1 where a mutant survives that is not listed as equivalent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("mutants", nargs="*", help="names or patterns; all by default")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--tree", type=Path, default=ROOT / "runs" / "mutation", help="the copy")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    options.tree.mkdir(parents=True, exist_ok=True)
    os.chdir(options.tree)
    if not options.report:
        prepare()
        command = ["mutmut", "run", "--max-children", str(options.workers), *options.mutants]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    sys.exit(report([mutant for path in metas() for mutant in mutants(path)]))


def prepare() -> None:
    """Lay out here what mutmut expects, and forget what may have changed with the tests."""
    shutil.copy2(HERE / "pyproject.toml", ".")
    for path in metas():
        forget(path)
    sources = {"src": ROOT / "packages" / "drift-weights" / "src", "tests": HERE.parent}
    for name, source in sources.items():
        shutil.rmtree(name, ignore_errors=True)
        shutil.copytree(source, name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree("mutants/tests", ignore_errors=True)
    # Which tests reach which function is found out anew: mutmut would take it from the last run.
    Path("mutants", "mutmut-stats.json").unlink(missing_ok=True)


def forget(meta: Path) -> None:
    """Have all mutants of a module tested again that were neither killed nor are listed as equivalent."""
    record, known = json.loads(meta.read_bytes()), listed()
    for mutant in mutants(meta):
        if mutant.status not in KILLED and mutant.change not in known:
            record["exit_code_by_key"][mutant.name] = None
    meta.write_text(json.dumps(record))


def metas() -> list[Path]:
    """mutmut's record of each mutated module, in the order of the settings."""
    settings = tomllib.loads(Path("pyproject.toml").read_text())
    found = [Path("mutants", f"{path}.meta") for path in settings["tool"]["mutmut"]["only_mutate"]]
    return [path for path in found if path.exists()]


def mutants(meta: Path) -> Iterator[Mutant]:
    """The mutants of one module; what changed is worked out for those that were not killed."""
    source = meta.relative_to("mutants").with_suffix("")
    lines = function_lines(source)
    for name, code in json.loads(meta.read_bytes())["exit_code_by_key"].items():
        status = status_by_exit_code[code]
        if status in KILLED:
            yield Mutant(name=name, module=source.stem, status=status)
            continue
        was, now, offset = changed(get_diff_for_mutant(name, path=source))
        function = name.rpartition(".")[2].partition("__mutmut_")[0]
        place = f"{source}:{lines[function] + offset}"
        yield Mutant(name=name, module=source.stem, status=status, place=place, was=was, now=now)


def changed(diff: str) -> tuple[str, str, int]:
    """The lines taken out, those put in, and how far down the function they stand."""
    body = diff.splitlines()[2:]
    was = " ".join(line[1:].strip() for line in body if line.startswith("-"))
    now = " ".join(line[1:].strip() for line in body if line.startswith("+"))
    start = re.match(r"@@ -(\d+)", body[0])
    before = next(i for i, line in enumerate(body[1:]) if line[:1] in "+-")
    return was, now, (int(start[1]) if start else 1) + before - 1


def function_lines(source: Path) -> dict[str, int]:
    """The line of every `def`, under mutmut's name of the function."""
    found = {}
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[f"x_{node.name}"] = node.lineno
        elif isinstance(node, ast.ClassDef):
            methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
            found |= {f"xǁ{node.name}ǁ{method.name}": method.lineno for method in methods}
    return found


def report(found: list[Mutant]) -> int:
    """Print survivors and the table; 1 where a survivor is not listed as equivalent."""
    console = Console(width=140, highlight=False, markup=False)
    known = listed()
    alike = {m.name for m in found if m.status == "survived" and m.change in known}
    open_ = [m for m in found if m.status not in KILLED and m.name not in alike]
    for mutant in open_:
        console.print(
            f"\n{mutant.place}  {mutant.name}: {mutant.status}\n  - {mutant.was}\n  + {mutant.now}"
        )
    for change in sorted(known - {m.change for m in found if m.name in alike}):
        console.print(f"\nlisted as equivalent, but killed or gone: {change}")
    table = Table("module", "mutants", "killed", "timeout", "equivalent", "survived", "not run", "score")
    for module in [*dict.fromkeys(m.module for m in found), "all"]:
        table.add_row(module, *row([m for m in found if module in (m.module, "all")], alike))
    console.print(table)
    return 1 if open_ else 0


def row(found: list[Mutant], alike: set[str]) -> list[str]:
    """One line of the table: the score is the share killed of those that ran and are not equivalent."""
    killed = sum(m.status in ("killed", "segfault") for m in found)
    timeout = sum(m.status == "timeout" for m in found)
    same = sum(m.name in alike for m in found)
    waiting = sum(m.status == "not checked" for m in found)
    counted = len(found) - same - waiting
    score = f"{(killed + timeout) / counted:.1%}" if counted else "-"
    return [*map(str, (len(found), killed, timeout, same, counted - killed - timeout, waiting)), score]


def listed() -> set[tuple[str, str, str]]:
    """The changes that equivalent.toml says no test can see."""
    groups = tomllib.loads((HERE / "equivalent.toml").read_text())["because"]
    return {tuple(change) for group in groups for change in group["changes"]}


if __name__ == "__main__":
    main()
