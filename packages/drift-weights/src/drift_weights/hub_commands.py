"""drift-weights publish | pull, and inputs of the other commands that come from the Hub."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from rich.console import Console

from drift_weights.command_line import ask
from drift_weights.names import not_here
from drift_weights.repository import PublishConfig
from drift_weights.tables import print_plan, progress


def publish(
    folder: Path,
    repo_id: str,
    publishing: PublishConfig,
    *,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Put trajectories or weighted turns on the Hub, private, as one commit with a tag.

    Args:
        folder: a trajectories or weighted folder.
        repo_id: org/name on the Hub; it is made if it is not there.
        dry_run: print files, sizes, card and what is there already; change nothing.
        yes: do not ask before making it public.
    """
    hub = _with_hub("publishing")
    with progress("rows looked through") as advance:
        plan = hub.prepare(folder, repo_id, publishing, advance=advance)
    console = Console()
    print_plan(console, plan, card=dry_run)
    if dry_run:
        return
    if publishing.public and not yes:
        ask(f"Let everybody see {repo_id}?")
    done = hub.publish(plan)
    state = "published" if done.fresh else "published before, nothing to do:"
    console.print(
        f"{state} {repo_id}, {plan.subset}, {publishing.tag} (commit {done.commit})\n"
        f'next: load_dataset("{repo_id}", "{plan.subset}", revision="{publishing.tag}")',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def pull(
    repo_id: str,
    output: Path,
    *,
    revision: str = "main",
    subset: str | None = None,
    overwrite: bool = False,
) -> None:
    """Fetch a data set from the Hub, hold it to its manifest, and keep the commit that it came from.

    Args:
        repo_id: org/name on the Hub.
        output: the folder to make.
        revision: a tag or a commit; a branch is taken as it is now.
        subset: which of its data sets; the default one if not given.
        overwrite: replace the output.
    """
    got = _with_hub("pulling").pull(repo_id, output, revision=revision, subset=subset, overwrite=overwrite)
    state = "wrote" if got.fresh else "is there already:"
    sys.stdout.write(
        f"{state} {output}: {got.manifest['rows']} rows ({got.manifest['kind']}, {got.subset}), verified\n"
        f"pinned to commit {got.commit}\n"
    )


def located(path: Path, revision: str | None, subset: str | None) -> Path:
    """A path that is here, or where the data set of the Hub lies that a revision or a subset asks for.

    Raises:
        FileNotFoundError: no such path.
        ImportError: the Hub is asked for, and the extra is not installed.
    """
    # Logs of a user without the extra never meet the Hub.
    if revision is None and subset is None:
        if not path.exists():
            raise not_here(path)
        return path
    found: Path = _with_hub("pulling").located(
        path, revision, subset, say=lambda words: sys.stdout.write(f"{words}\n")
    )
    return found


def _with_hub(module: str) -> ModuleType:
    try:
        return import_module(f"drift_weights.{module}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"this needs {error.name}, which is not installed: pip install 'drift-weights[hub]'"
        ) from error
