"""Publishing and pulling, over real HTTP, as a user does it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from drift_weights.hub import Api, HubError
from drift_weights.manifest import read_manifest
from drift_weights.publishing import Published, prepare, publish
from drift_weights.pulling import Pulled, fetch, located, pull
from drift_weights.repository import PublishConfig
from hub_data import POLICY, downloads, rows_of, trajectories, weighted
from loopback_hub import OWNER, READER, STRANGER, LoopbackHub

REPO = "org/corrections"
NAME = "tiny-policy-3fa9c1d2_beta0.1_gamma0.9_lambda0.5"


def put(api: Api, folder: Path, tag: str = "v0.1.0", **settings: Any) -> Published:
    return publish(prepare(folder, REPO, PublishConfig(tag=tag, **settings), api=api), api=api)


def get(api: Api, out: Path, revision: str = "v0.1.0", **settings: Any) -> Pulled:
    return pull(REPO, out, revision=revision, api=api, **settings)


def writes(hub: LoopbackHub) -> list[str]:
    return [f"{found.method} {found.path}" for found in hub.requests if found.method not in ("GET", "HEAD")]


def test_what_is_pulled_is_what_was_published(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    folder = weighted(tmp_path / "w")
    done = put(api, folder)
    got = get(api, tmp_path / "got")
    assert rows_of(got.path) == rows_of(folder)
    assert (got.commit, got.subset, got.fresh) == (done.commit, NAME, True)
    shard = f"{NAME}/part-00000.parquet"
    assert set(hub.files(REPO)) >= {"README.md", "drift.json", shard}
    manifest = json.loads(hub.files(REPO)["drift.json"])
    (said,) = manifest["configs"][NAME]["shards"]
    assert said["sha256"] == hashlib.sha256(hub.files(REPO)[shard]).hexdigest()
    assert manifest["configs"][NAME]["source"]["manifest"]["rollout"]["policy"] == POLICY
    assert read_manifest(got.path)["hub"] == {
        "repo": REPO,
        "revision": "v0.1.0",
        "commit": done.commit,
        "subset": NAME,
    }


def test_one_commit_holds_everything_and_the_tag_names_it(
    hub: LoopbackHub, api: Api, tmp_path: Path
) -> None:
    done = put(api, weighted(tmp_path / "w"))
    commits = [asked for asked in writes(hub) if "/commit/" in asked]
    assert len(commits) == 1
    refs = api.list_repo_refs(REPO, repo_type="dataset")
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v0.1.0": done.commit}


def test_publishing_twice_asks_for_nothing_to_be_written(
    hub: LoopbackHub, api: Api, tmp_path: Path
) -> None:
    folder = weighted(tmp_path / "w")
    first = put(api, folder)
    before = len(writes(hub))
    again = put(api, folder)
    assert (again.commit, again.fresh) == (first.commit, False)
    assert len(writes(hub)) == before


def test_a_pulled_folder_is_the_same_data_set(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    got = get(api, tmp_path / "got")
    before = len(writes(hub))
    assert not put(api, got.path).fresh
    assert len(writes(hub)) == before


def test_a_new_tag_for_the_same_rows_uploads_no_shard(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    folder = weighted(tmp_path / "w")
    put(api, folder)
    before = len(writes(hub))
    put(api, folder, "v0.1.1")
    assert not any(asked.startswith("PUT") for asked in writes(hub)[before:])
    shards = [get(api, tmp_path / tag, tag).manifest["shards"] for tag in ("v0.1.0", "v0.1.1")]
    assert shards[0] == shards[1]


def test_it_is_private_and_nobody_else_sees_it(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    for token in (None, STRANGER):
        with pytest.raises(RepositoryNotFoundError):
            hub.api(token).dataset_info(REPO)
        with pytest.raises(HubError, match="no such repository, or none that you may see"):
            get(hub.api(token), tmp_path / "got")
    assert get(hub.api(READER), tmp_path / "got").fresh
    assert not (tmp_path / "hf" / "hub" / "refs").exists()


def test_public_is_the_last_step_and_stays(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    folder = weighted(tmp_path / "w")
    put(api, folder, public=True, license="cc-by-4.0")
    assert "/settings" in writes(hub)[-1]
    assert get(hub.api(None), tmp_path / "got").fresh
    with pytest.raises(ValueError, match="is public; pass --public"):
        put(api, folder, "v0.1.1")
    with pytest.raises(ValueError, match="needs a licence"):
        PublishConfig(tag="v1", public=True)


def test_who_may_not_write_is_told_so(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"org/corrections: you may not do that \(403"):
        put(hub.api(READER), weighted(tmp_path / "w"))
    with pytest.raises(HubError, match="log in with `hf auth login`"):
        put(hub.api(None), weighted(tmp_path / "x"))
    assert not hub.store.repos


def test_a_second_subset_stands_beside_the_first(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    first = weighted(tmp_path / "w")
    put(api, first)
    second = weighted(tmp_path / "sharper", beta=0.05)
    put(api, second, "v0.2.0")
    put(api, trajectories(tmp_path / "r"), "v0.3.0")
    manifest = json.loads(hub.files(REPO)["drift.json"])
    other = NAME.replace("0.1", "0.05")
    assert set(manifest["configs"]) == {NAME, other, "tiny-policy-3fa9c1d2_trajectories"}
    assert manifest["default"] == NAME
    assert rows_of(get(api, tmp_path / "a", "v0.3.0").path) == rows_of(first)
    assert rows_of(get(api, tmp_path / "b", "v0.3.0", subset=other).path) == rows_of(second)
    with pytest.raises(ValueError, match=f"org/corrections has no subset '{other}'; it has {NAME}"):
        get(api, tmp_path / "c", "v0.1.0", subset=other)
    put(api, second, "v0.4.0", default=True)
    assert rows_of(get(api, tmp_path / "d", "v0.4.0").path) == rows_of(second)


def test_other_rows_under_the_same_name_are_refused_with_the_difference(
    hub: LoopbackHub, api: Api, tmp_path: Path
) -> None:
    put(api, weighted(tmp_path / "w"))
    more = weighted(tmp_path / "more", "abc")
    with pytest.raises(ValueError, match="another data set under the name") as error:
        put(api, more, "v0.2.0")
    assert "rows: 6 there, 9 here" in str(error.value)
    with pytest.raises(ValueError, match="tags are not moved"):
        put(api, more, "v0.1.0", overwrite=True)
    put(api, more, "v0.2.0", overwrite=True)
    assert len(rows_of(get(api, tmp_path / "old", "v0.1.0").path)) == 6
    assert len(rows_of(get(api, tmp_path / "new", "v0.2.0").path)) == 9


def test_shards_that_are_replaced_are_deleted(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    """A folder of two shards is replaced by one of one: what nobody vouches for does not stay."""
    folder = weighted(tmp_path / "w")
    shard = read_manifest(folder)["shards"][0]
    shutil.copyfile(folder / shard["file"], folder / "data" / "part-00001.parquet")
    # The rows come twice, under a second round of the same groups.
    _second_round(folder)
    put(api, folder)
    assert f"{NAME}/part-00001.parquet" in hub.files(REPO)
    put(api, weighted(tmp_path / "x"), "v0.2.0", overwrite=True)
    assert f"{NAME}/part-00001.parquet" not in hub.files(REPO)
    assert len(rows_of(get(api, tmp_path / "old", "v0.1.0").path)) == 12


def _second_round(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "data" / "part-00001.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index("round")
    ones = pa.array([1] * table.num_rows, pa.int32())
    pq.write_table(table.set_column(place, table.schema.field("round"), ones), file)
    manifest = json.loads((folder / "drift.json").read_text())
    content = file.read_bytes()
    entry = {
        "file": "data/part-00001.parquet",
        "rows": table.num_rows,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest["shards"].append(entry)
    manifest["rows"] += table.num_rows
    (folder / "drift.json").write_text(json.dumps(manifest))


def test_somebody_elses_commit_in_between_is_not_overwritten(
    hub: LoopbackHub, api: Api, tmp_path: Path
) -> None:
    put(api, weighted(tmp_path / "w"))
    plan = prepare(weighted(tmp_path / "x", beta=0.2), REPO, PublishConfig(tag="v0.2.0"), api=api)
    hub.put(REPO, {"notes.txt": b"theirs"})
    with pytest.raises(HubError, match=r"changed while this was being published, in notes\.txt"):
        publish(plan, api=api)
    assert hub.files(REPO)["notes.txt"] == b"theirs"
    assert put(api, tmp_path / "x", "v0.2.0").fresh


def test_somebody_elses_commit_of_the_same_is_taken(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    folder = weighted(tmp_path / "x", beta=0.2)
    plans = [prepare(folder, REPO, PublishConfig(tag="v0.2.0"), api=api) for _ in range(2)]
    first, second = (publish(plan, api=api) for plan in plans)
    assert second.commit == first.commit


def test_a_pull_that_was_done_before_downloads_no_shard(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    get(api, tmp_path / "got")
    before = len(downloads(hub))
    assert not get(api, tmp_path / "got").fresh
    assert not [file for file in downloads(hub)[before:] if file.endswith(".parquet")]


def test_a_pull_does_not_replace_what_is_there(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    other = weighted(tmp_path / "other", "abc")
    with pytest.raises(FileExistsError, match="other exists"):
        get(api, other)
    assert len(rows_of(other)) == 9
    assert len(rows_of(get(api, other, overwrite=True).path)) == 6


def test_a_damaged_copy_is_not_taken_for_the_data_set(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    shard = get(api, tmp_path / "got").path / "data" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FileExistsError):
        get(api, tmp_path / "got")
    assert get(api, tmp_path / "got", overwrite=True).fresh


def test_a_pull_replaces_no_folder_of_something_else(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="is no folder of drift data"):
        get(api, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years"


def test_a_damaged_cache_is_fetched_anew(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    for damage in ("data/part-00000.parquet", "drift.json"):
        got = fetch(REPO, "v0.1.0", api=api)
        (got.path / damage).write_bytes(b"{")
        again = fetch(REPO, "v0.1.0", api=api)
        assert (again.fresh, rows_of(again.path)) == (True, rows_of(tmp_path / "w"))


def test_a_licence_may_be_said_later(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    put(api, tmp_path / "w", "v0.1.1", license="cc-by-4.0")
    put(api, tmp_path / "w", "v0.1.2")
    for tag, license in (("v0.1.0", None), ("v0.1.1", "cc-by-4.0"), ("v0.1.2", "cc-by-4.0")):
        assert get(api, tmp_path / tag, tag).manifest.get("license") == license
    assert b"license: cc-by-4.0" in hub.files(REPO)["README.md"]


def test_what_a_user_wrote_on_the_card_stays(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    card = hub.files(REPO)["README.md"].replace(b"## Columns", b"## Columns, as I see them")
    hub.put(REPO, {"README.md": card + b"\nWritten by hand.\n"})
    put(api, weighted(tmp_path / "x", beta=0.2), "v0.2.0")
    kept = hub.files(REPO)["README.md"]
    assert b"## Columns, as I see them" in kept
    assert b"\nWritten by hand.\n" in kept
    assert b"beta0.2" in kept


def test_secrets_and_private_paths_stop_an_upload(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    token = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3f"
    folder = trajectories(tmp_path / "r", "a")
    manifest = json.loads((folder / "drift.json").read_text())
    for field, value, says in (
        ("prompt", {"user": f"use {token}"}, r"drift\.json, rollout\.prompt\.user: .*Hugging Face"),
        ("model", "/home/ada/models/policy", r"drift\.json, rollout\.model: an absolute path"),
    ):
        rollout = manifest["rollout"] | {field: value}
        (folder / "drift.json").write_text(json.dumps(manifest | {"rollout": rollout}))
        with pytest.raises(ValueError, match=says) as error:
            put(api, folder)
        assert token not in str(error.value)
    leaky = trajectories(tmp_path / "leaky", [token])
    with pytest.raises(ValueError, match=r"leaky/data/part-00000\.parquet, row 0, .*Hugging Face token"):
        put(api, leaky)
    assert not hub.store.repos


def test_a_fetched_commit_needs_no_hub(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    got = fetch(REPO, "v0.1.0", api=api)
    before = len(hub.requests)
    again = fetch(REPO, got.commit, api=api)
    assert (again.path, again.fresh, len(hub.requests)) == (got.path, False, before)


def test_a_path_wins_over_a_hub_id_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("org/corrections")
    folder.mkdir(parents=True)
    said: list[str] = []
    assert located(folder, "v0.1.0", None, say=said.append) == folder
    assert said == ["took org/corrections as it is here, not the Hub's data set of that name"]
    with pytest.raises(FileNotFoundError, match="pin it with a revision"):
        located(Path("org/other"), None, None, say=said.append)
    with pytest.raises(ValueError, match="a subset is part of a Hub repository"):
        located(folder, None, "x", say=said.append)


def test_without_a_manifest_there_is_nothing_to_pull(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    hub.put(REPO, {"README.md": b"---\n---\n", "data.parquet": b"PAR1", "load.py": b"raise SystemExit"})
    with pytest.raises(ValueError, match=r"has no drift\.json .* drift-weights did not publish it"):
        get(api, tmp_path / "got", "main")
    assert not downloads(hub)


def test_a_revision_that_is_not_there_is_named(hub: LoopbackHub, api: Api, tmp_path: Path) -> None:
    put(api, weighted(tmp_path / "w"))
    with pytest.raises(HubError, match="there is no such revision"):
        get(api, tmp_path / "got", "v9")
    assert OWNER not in str(hub.requests)
