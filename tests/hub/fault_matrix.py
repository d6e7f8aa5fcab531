"""Every fault at every request of a publish and of a pull: nothing half done is seen, trying again ends it.

uv run python tests/hub/fault_matrix.py     all points, with a table of what came of them
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from drift_weights.audit import audit
from drift_weights.hub import Api, HubError
from drift_weights.publishing import prepare, publish
from drift_weights.pulling import pull
from drift_weights.repository import PublishConfig
from hub_data import private_caches, weighted
from loopback_hub import OWNER, Fault, Kind, LoopbackHub, patient_clients, serve

REPO = "org/corrections"
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_REQUESTS = 12
"""Times the requests of an undisturbed run: no client may ask for ever."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One fault at one request of one piece of work."""

    work: str
    kind: Kind
    at: int
    times: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Something a user does with the Hub, what must be there before, and what must be seen after."""

    before: Callable[[LoopbackHub, Api, Path], object]
    act: Callable[[Api, Path], object]
    look: Callable[[LoopbackHub, Path], object]
    """Refuses what is half done; what it gives is the same after every run that ended well."""


def _put(api: Api, folder: Path, tag: str) -> object:
    return publish(prepare(folder, REPO, PublishConfig(tag=tag), api=api), api=api)


def published(hub: LoopbackHub, tag: str) -> object:
    """What readers see at main and at a tag: shards and a manifest that vouches for each, or none of it."""
    if ("dataset", REPO) not in hub.store.repos:
        return None
    files = hub.files(REPO)
    shards = {name: data for name, data in files.items() if name.endswith(".parquet")}
    vouched: dict[str, str] = {}
    if "drift.json" in files:
        for config in json.loads(files["drift.json"])["configs"].values():
            vouched |= {shard["file"]: shard["sha256"] for shard in config["shards"]}
    found = {name: hashlib.sha256(data).hexdigest() for name, data in shards.items()}
    assert found == vouched, "shards and their manifest differ"
    assert bool(shards) == ("README.md" in files), "shards without a card, or the other way round"
    tags = hub.store.repos["dataset", REPO].tags
    assert hub.store.repos["dataset", REPO].private
    if tag not in tags:
        return None
    assert hub.files(REPO, tag) == files, "the tag names something else"
    return files


def pulled(out: Path) -> object:
    """A folder that is what it says, or none at all."""
    if not out.exists():
        return None
    return audit(out).manifest


WORK = {
    "publish": Work(
        before=lambda hub, api, home: weighted(home / "w"),
        act=lambda api, home: _put(api, home / "w", "v0.1.0"),
        look=lambda hub, home: published(hub, "v0.1.0"),
    ),
    "publish a second subset": Work(
        before=lambda hub, api, home: (
            _put(api, weighted(home / "w"), "v0.1.0"),
            weighted(home / "x", beta=0.05),
        ),
        act=lambda api, home: _put(api, home / "x", "v0.2.0"),
        look=lambda hub, home: (
            None if "v0.2.0" not in hub.store.repos["dataset", REPO].tags else published(hub, "v0.2.0")
        ),
    ),
    "pull": Work(
        before=lambda hub, api, home: _put(api, weighted(home / "w"), "v0.1.0"),
        act=lambda api, home: pull(REPO, home / "got", revision="v0.1.0", api=api),
        look=lambda hub, home: pulled(home / "got"),
    ),
}


def points(hub: LoopbackHub) -> Iterator[Point]:
    """All of them: each kind once and for ever, from each request of an undisturbed run on."""
    for name in WORK:
        with tempfile.TemporaryDirectory() as folder:
            requests = undisturbed(hub, name, Path(folder))[0]
        for kind in KINDS:
            for at in range(requests):
                for times in (1, None):
                    yield Point(work=name, kind=kind, at=at, times=times)


def undisturbed(hub: LoopbackHub, name: str, home: Path) -> tuple[int, object]:
    """How many requests a piece of work makes, and what is seen after it."""
    work = WORK[name]
    hub.reset()
    with private_caches(home / "hf"):
        api = hub.api(OWNER)
        work.before(hub, api, home)
        before = len(hub.requests)
        work.act(api, home)
    return len(hub.requests) - before, work.look(hub, home)


def run(hub: LoopbackHub, point: Point, home: Path, wanted: object, requests: int) -> str:
    """Carry out a piece of work under a fault, then again without one; what came of the first try."""
    work = WORK[point.work]
    hub.reset()
    with private_caches(home / "hf"):
        api = hub.api(OWNER)
        work.before(hub, api, home)
        before = len(hub.requests)
        hub.arm(Fault(kind=point.kind, at=point.at, times=point.times))
        said = None
        try:
            work.act(api, home)
        except (HubError, ValueError) as error:
            said = str(error)
        ended = "done" if said is None else "refused"
        assert said is None or (REPO in said and len(said) < 600), said
        asked = len(hub.requests) - before
        assert asked <= MOST_REQUESTS * requests, f"{asked} requests"
        hub.arm()
        seen = work.look(hub, home)
        if ended == "done":
            assert seen == wanted, "it said that it was done"
        work.act(api, home)
        assert work.look(hub, home) == wanted, "the second run does not end it"
    return ended


def run_all(
    hub: LoopbackHub, chosen: Callable[[int], bool]
) -> tuple[Counter[tuple[str, str, str]], list[str]]:
    """Run the points of chosen number; counts of (work, kind, outcome), and what broke."""
    counts: Counter[tuple[str, str, str]] = Counter()
    broken = []
    known: dict[str, tuple[int, object]] = {}
    for number, point in enumerate(list(points(hub))):
        if not chosen(number):
            continue
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            if point.work not in known:
                known[point.work] = undisturbed(hub, point.work, home / "calm")
                shutil.rmtree(home / "calm")
            requests, wanted = known[point.work]
            try:
                ended = run(hub, point, home, wanted, requests)
            except Exception as error:  # noqa: BLE001 whatever escapes is what is being looked for
                broken.append(f"{point}: {type(error).__name__}: {error}")
                ended = "BROKEN"
        counts[point.work, point.kind, ended] += 1
    return counts, broken


def main() -> None:
    """Run them all and print a table."""
    with serve() as hub, patient_clients(timeout_s=0.3):
        hub.slow_s = 0.6
        counts, broken = run_all(hub, lambda number: True)
    table = Table(title="Faults at every request, once and for ever")
    for column in ("work", "fault", "done at the first try", "refused, done at the second", "broken"):
        table.add_column(column, justify="left" if column in ("work", "fault") else "right")
    for name in WORK:
        for kind in KINDS:
            outcomes = [str(counts[name, kind, ended]) for ended in ("done", "refused", "BROKEN")]
            table.add_row(name, kind, *outcomes)
    console = Console()
    console.print(table)
    for line in broken:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{counts.total()} fault points tried, {len(broken)} broken", highlight=False)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
