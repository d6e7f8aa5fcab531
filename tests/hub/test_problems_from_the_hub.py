"""Problems out of data sets on the Hub, over HTTP, by the real clients."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopback_hub import OWNER, Fault, LoopbackHub

REPO = "org/problems"
CARD = b"""---
configs:
- config_name: main
  default: true
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: plain
  data_files: plain/golds.csv
---
# Problems
"""

LOAD = """
import json, socket, sys
from pathlib import Path

asked, look_up = set(), socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: asked.add(str(host)) or look_up(host, *rest, **more)

from drift_rollout import PromptTemplate, load_problems

bare = PromptTemplate(user="{problem}", system=None)
found = []
for settings in json.loads(sys.argv[1]):
    place = Path(settings.pop("place", "org/problems"))
    try:
        made = load_problems(place, bare, **settings)
    except (ValueError, OSError) as error:
        found.append(str(error))
        continue
    rows = [[p.question, p.target, p.place] for p in made.problems]
    found.append({"rows": rows, "origin": dict(made.origin), "notes": made.notes})
print(json.dumps([found, sorted(asked)]))
"""


def parquet(*rows: dict[str, str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file.getvalue()


FILES = {
    "README.md": CARD,
    "main/train-0.parquet": parquet({"question": "a?", "answer": "so\n#### 1,200"}),
    "main/test-0.parquet": parquet({"question": "b?", "answer": "so\n#### 3"}),
    "plain/golds.csv": b"problem,answer\nc?,007\n",
}


def loaded(hub: LoopbackHub, folder: Path, *settings: dict[str, str]) -> list[Any]:
    """What a process that knows this Hub alone loads; it spoke to nobody else."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(settings)],
        env=hub.env(folder, OWNER),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found, asked = json.loads(done.stdout.splitlines()[-1])
    assert set(asked) <= {"127.0.0.1"}
    return found


def test_a_pinned_data_set_gives_its_problems(hub: LoopbackHub, tmp_path: Path) -> None:
    """Subset and split as the card says; the text of a CSV as it is; the commit in the origin."""
    commit = hub.put(REPO, FILES, private=True)
    hub.put(REPO, {"main/train-0.parquet": parquet({"question": "new?", "answer": "#### 9"})})
    main, test, plain = loaded(
        hub,
        tmp_path,
        {"source": "gsm8k", "revision": commit},
        {"source": "gsm8k", "revision": commit, "split": "test"},
        {"revision": commit, "subset": "plain"},
    )
    assert main["rows"] == [["a?", "1200", f"{REPO}/main/train-0.parquet, row 0"]]
    assert test["rows"] == [["b?", "3", f"{REPO}/main/test-0.parquet, row 0"]]
    assert plain["rows"] == [["c?", "007", f"{REPO}/plain/golds.csv, row 0"]]
    assert (main["origin"]["name"], main["origin"]["commit"]) == (REPO, commit)
    assert main["notes"] == [f"took {REPO} from the Hub: split train at {commit} (commit {commit})"]


def test_a_moving_revision_is_noted_as_its_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.put(REPO, FILES)
    (found,) = loaded(hub, tmp_path, {"source": "gsm8k", "revision": "main"})
    assert (found["origin"]["revision"], found["origin"]["commit"]) == ("main", commit)


def test_what_is_not_there_is_said(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.put(REPO, FILES)
    hub.put("org/two", FILES | {"README.md": CARD.replace(b"  default: true\n", b"")})
    hub.put("org/foreign", {"train.txt": b"1 + 1?\n"})
    split, subset, which, revision, repo, unpinned, foreign = loaded(
        hub,
        tmp_path,
        {"revision": commit, "split": "dev"},
        {"revision": commit, "subset": "other"},
        {"place": "org/two", "revision": "main"},
        {"revision": "v9"},
        {"place": "org/nothing", "revision": "main"},
        {},
        {"place": "org/foreign", "revision": "main"},
    )
    assert split == f"{REPO} has no split 'dev', but test, train; name one by --problems_split"
    assert "'other' not found" in subset
    assert "['main', 'plain']" in subset
    assert "name a subset by --problems_subset" in subset
    assert "['main', 'plain']" in which
    assert "name a subset by --problems_subset" in which
    assert revision == f"{REPO} at v9: there is no such revision"
    assert "the Hub has no such repository" in repo
    assert "does not exist; if it is a data set of the Hub, name a tag or a commit" in unpinned
    assert "org/foreign/train.txt ends in none of .jsonl" in foreign


def test_a_path_that_exists_wins(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.put(REPO, FILES)
    (tmp_path / REPO).mkdir(parents=True)
    (tmp_path / REPO / "mine.jsonl").write_text('{"problem": "here?", "answer": "1"}\n')
    (found,) = loaded(hub, tmp_path, {"revision": "main"})
    assert [row[0] for row in found["rows"]] == ["here?"]
    assert found["notes"] == [f"took {REPO} as it is here, not the Hub's data set of that name"]
    assert not [asked for asked in hub.requests if "problems" in asked.path]


@pytest.mark.parametrize("status", ["503", "truncated"])
def test_a_hub_that_stumbles_once_is_asked_again(hub: LoopbackHub, tmp_path: Path, status: str) -> None:
    commit = hub.put(REPO, FILES)
    hub.arm(Fault(kind=status, on="GET .*/resolve/.*train-0.parquet"))
    (found,) = loaded(hub, tmp_path, {"source": "gsm8k", "revision": commit})
    assert hub.fired
    assert [row[1] for row in found["rows"]] == ["1200"]
