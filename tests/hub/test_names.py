"""Hostile repo ids, revisions, subsets and shards: what is let in stays where it belongs, on any system."""

from __future__ import annotations

import ntpath
import posixpath
import subprocess
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from urllib.parse import quote

import pytest
from huggingface_hub.utils import validate_repo_id
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drift_weights.names import check_repo_id, check_revision, check_shard, check_subset, check_tag

PIECES = [
    *(
        "..",
        ".",
        "...",
        "",
        "/",
        "//",
        "\\",
        "\\\\",
        "\\\\?\\",
        "\\\\.\\",
        "~",
        "~root",
        "C:",
        "c:/",
        "C:\\",
    ),
    *("CON", "con", "NUL", "nul.parquet", "COM1", "LPT9.x.parquet", "AUX ", "PRN.", "CONIN$", "a:stream"),
    *("%2e%2e", "%2F", "%5c", "%00", "．．", "／", "＼", "‥", "\u202e", "\u200b", "é", "e\u0301", "ß"),
    *(
        "\0",
        "\n",
        "\r",
        "\t",
        " ",
        ".git",
        ".lock",
        "@{",
        "^",
        ":",
        "?",
        "*",
        "[",
        "-",
        "--",
        "_",
        "+",
        "@",
    ),
    *("$HOME", "${x}", "`id`", "$(id)", ";", "|", "&", "<", ">", '"', "'", "#", "=", ","),
    *(
        "a",
        "B",
        "7",
        "data",
        "part-00000",
        ".parquet",
        ".pkl",
        ".py",
        "refs/heads/main",
        "file://",
        "a" * 300,
    ),
]
hostile = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=6).map("".join)
"""Pieces of attacks, put together in any way."""
BASE_POSIX, BASE_WINDOWS = "/srv/data", "C:\\srv\\data"


def accepted(check: Callable[[str], str], name: str) -> bool:
    said = None
    try:
        assert check(name) == name
    except ValueError as error:
        said = str(error)
    assert said is None or (len(said) < 300 and said.isprintable())
    return said is None


def stays_inside(name: str) -> None:
    """Joined to a folder, the name means something below it, on POSIX and on Windows."""
    posix = posixpath.normpath(posixpath.join(BASE_POSIX, name))
    assert posix.startswith(BASE_POSIX + "/")
    windows = ntpath.normpath(ntpath.join(BASE_WINDOWS, name))
    assert windows.startswith(BASE_WINDOWS + "\\")
    pure = PureWindowsPath(name)
    assert (pure.drive, pure.root) == ("", "")
    assert not pure.is_reserved()
    # The bytes that go into a URL and on to a disk are the ones that were checked.
    assert quote(name, safe="/+") == name
    assert not any(part.startswith(".") or part.endswith((".", " ")) for part in name.split("/"))


@settings(max_examples=4000)
@example("../x.parquet")
@example("data\\..\\x.parquet")
@example("data/x.parquet\n")
@example("data/CON.parquet")
@example("data/..parquet")
@given(hostile | st.builds("{}/{}.parquet".format, hostile, hostile))
def test_a_shard_lies_in_a_folder_of_its_data_set(name: str) -> None:
    if accepted(check_shard, name):
        stays_inside(name)
        assert name.endswith(".parquet")
        assert name.count("/") == 1


@settings(max_examples=2000)
@example("nul")
@example("a.")
@given(hostile)
def test_a_subset_is_a_folder_everywhere(name: str) -> None:
    if accepted(check_subset, name):
        stays_inside(name)
        assert "/" not in name


@settings(max_examples=2000)
@example("org/../name")
@example("org/na--me")
@example("datasets/org/name")
@example("org/name.git")
@example("org/con")
@given(hostile | st.builds("{}/{}".format, hostile, hostile))
def test_a_hub_id_is_one_for_the_client_too(name: str) -> None:
    if accepted(check_repo_id, name):
        validate_repo_id(name)
        stays_inside(name)
        assert name.count("/") == 1


@settings(max_examples=2500)
@example("refs/../../../etc/passwd")
@example("v1..v2")
@example("a.lock")
@example("-delete")
@given(hostile)
def test_a_revision_is_a_path_below_refs_and_a_part_of_a_url(name: str) -> None:
    if accepted(check_revision, name):
        stays_inside(name)
        assert not name.startswith("-")


@pytest.mark.parametrize(
    "name", ["v0.1.0", "main", "refs/pr/1", "feature/x-1", "a" * 40, "2026.11", "v1+cpu", "release_2"]
)
def test_git_takes_the_revisions_that_we_take(name: str, tmp_path: Path) -> None:
    assert check_revision(name) == name
    done = subprocess.run(["git", "check-ref-format", f"refs/tags/{name}"], check=False, cwd=tmp_path)
    assert done.returncode == 0


@pytest.mark.parametrize("tag", ["main", "0" * 40, "abcdef1", "", "v 1"])
def test_a_tag_is_neither_a_branch_nor_a_commit(tag: str) -> None:
    with pytest.raises(ValueError, match=r"is no (tag|revision)"):
        check_tag(tag)


def test_ordinary_names_are_taken() -> None:
    assert check_shard("Qwen2.5-3B_beta0.1_gamma0.9_lambda0.5/part-00000.parquet")
    assert check_repo_id("org/name-1.0_x")
    assert check_subset("tiny-policy-3fa9c1d2_beta0.1_gamma0.9_lambda0.5_sft-5turn")
