"""What the card of a data set says, on the page and to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cards import (
    PARTS,
    again,
    card,
    front,
    hostile,
    names,
    other,
    part,
    repository,
    trajectories_entry,
    weighted_entry,
)
from drift_weights.audit import audit
from drift_weights.card import make_card
from drift_weights.card.front import size_category
from drift_weights.card.markdown import bar
from drift_weights.card.words import COLUMNS, SELECTIONS
from drift_weights.features import features_yaml
from drift_weights.folder import write_folder
from drift_weights.outputs import reweight_file
from drift_weights.repository import added, entry_of
from drift_weights.schema import SCHEMAS, to_table
from drift_weights.selections import Selection
from rows import trajectory


def test_every_part_is_there_in_order_and_recorded() -> None:
    made = card()
    assert PARTS[:3] == ["title", "summary", "use"]
    assert {"configs", "columns", "weights", "composition", "histograms"} < set(PARTS)
    assert PARTS[-4:] == ["origin", "limits", "citation", "trust"]
    assert set(PARTS) <= made.recorded.keys()
    assert made.kept == ()


def test_the_numbers_of_the_manifest_are_on_the_page() -> None:
    made = card().text
    row = next(line for line in part(made, "configs").splitlines() if "`W`" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "`W` **default**"
    assert cells[1] == "`Qwen/Qwen2.5-3B-Instruct`<br>`dddddddd`<br>`3fa9c1d2`"
    assert cells[2:] == ["`drift`", "0.1", "0.9", "0.5", "32", "2", "3.25"]
    assert "| `W` | 16 | 1 (50.0%) | 1 (50.0%) | 0 (0.0%) | 100.0% | 75.0% |" in made
    assert "| `W` | 0 of 2 | 3 of 8 | 4.75 | 12.5% | 3.25 |" in part(made, "limits")
    for fact in (
        "math/1",
        "Wrong, again.",
        "temperature=1.0",
        "top_p=0.95",
        "math.jsonl",
        "commit " + "c" * 40,
    ):
        assert f"`{fact}`" in part(made, "origin")


def test_what_is_new_in_the_manifest_shows_in_every_unedited_part() -> None:
    made = card()
    changed = again(made, manifest=other())
    assert changed.text == card(other()).text
    assert changed.kept == ()
    for name in ("configs", "composition", "histograms", "trust"):
        assert part(changed.text, name) != part(made.text, name)


def test_the_histogram_draws_the_shares_to_one_scale() -> None:
    lines = part(card().text, "histograms").splitlines()
    drawn = [line for line in lines if "–" in line or "≥" in line]
    assert [line.split("%")[0].split()[-2:] for line in drawn] == [
        ["16", "50.0"],
        ["8", "25.0"],
        ["8", "25.0"],
    ]
    assert [line.count("█") for line in drawn] == [13, 6 + 6, 6 + 20]
    assert [line.split("%")[1].split()[-1] for line in drawn] == ["0.0", "25.0", "75.0"]


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_bar_grows_with_its_share(a: float, b: float) -> None:
    def length(share: float) -> float:
        drawn = bar(share)
        return sum(1.0 if char == "█" else (ord("█") + 8 - ord(char)) / 8 for char in drawn)

    assert (bar(0), bar(1)) == ("", "█" * 20)
    assert abs(length(a) - 20 * a) <= 1 / 16 + 1e-9
    assert (length(a) <= length(b)) if a <= b else (length(a) >= length(b))


def test_the_columns_of_both_schemas_are_explained_once_each() -> None:
    for kind, schema in SCHEMAS.items():
        told = [name for columns, _ in COLUMNS[kind] for name in columns.split(", ")]
        assert sorted(told) == sorted(schema.names)


def test_further_columns_are_named() -> None:
    schema = SCHEMAS["weighted"].append(pa.field("drawn|sample", pa.int64()))
    made = card(repository(W=weighted_entry(features=features_yaml(schema))))
    assert "Further columns: <code>drawn&#124;sample</code>." in part(made.text, "columns")


def test_every_selection_but_the_pages_own_is_explained() -> None:
    assert set(SELECTIONS) == {*get_args(Selection), "resampled", "trajectories"} - {"drift"}
    made = card(repository(W=weighted_entry(), R=weighted_entry(selection="rft"))).text
    assert f"- `rft`: {SELECTIONS['rft']}" in made
    assert "star-2turn" not in made


@pytest.mark.parametrize(
    ("entry", "said", "unsaid"),
    [
        (weighted_entry(), "drift-weights resample my-data", "Every weight of the default config is 1"),
        (weighted_entry(selection="rft"), "Every weight of the default config is 1", "resample my-data"),
        (trajectories_entry(), "drift-weights reweight my-data weighted", "train.yaml"),
    ],
)
def test_the_recipes_fit_what_the_default_config_holds(
    entry: dict[str, Any], said: str, unsaid: str
) -> None:
    use = part(card(repository(X=entry)).text, "use")
    assert said in use
    assert unsaid not in use


def test_trajectories_alone_have_no_weights_to_explain() -> None:
    made = names(card(repository(T=trajectories_entry())).text)
    assert {"composition", "origin", "limits"} <= set(made)
    assert not {"weights", "histograms"} & set(made)


def test_a_log_of_unknown_making_is_not_said_to_be_a_rollout() -> None:
    log = {"path": "log.jsonl", "sha256": "e" * 64}
    made = card(repository(L=weighted_entry(source=log, format_of_log="plain"))).text
    assert "frozen model" not in part(made, "summary")
    assert f"`log.jsonl`, sha256 `{'e' * 64}`" in part(made, "origin")
    assert "your/model" in part(made, "use")


def test_the_rollout_behind_resampled_rows_is_found() -> None:
    drawn = weighted_entry(selection="resampled", source={"path": "w", "manifest": weighted_entry()})
    made = card(repository(R=drawn)).text
    assert "`math/1`" in part(made, "origin")
    assert "`3fa9c1d2`" in part(made, "configs")


def test_configs_made_alike_share_one_table() -> None:
    alike = repository(a=weighted_entry(), b=weighted_entry(), c=weighted_entry(license="mit"))
    origin = part(card(alike).text, "origin")
    assert origin.count("| Verifier |") == 2
    assert "`a`, `b`:" in origin
    assert "`c`:" in origin


def test_a_real_data_set_from_rollout_to_card(tmp_path: Path) -> None:
    made_by_hand = [
        trajectory("a", 0, [], ended="solved"),
        trajectory("a", 1, ["1", "1"]),
        trajectory("b", 0, ["1", None]),
        trajectory("b", 1, ["1", "2"]),
    ]
    manifest = {key: trajectories_entry()[key] for key in ("problems", "origin")}
    write_folder(tmp_path / "t", to_table(made_by_hand), "trajectories", manifest)
    reweight_file(tmp_path / "t", tmp_path / "w")
    repo = None
    for name in ("t", "w"):
        audited = audit(tmp_path / name)
        entry = entry_of(audited, name, license="cc-by-4.0", problems_license=None)
        repo = added(repo, name, entry, default=name == "w")
    assert repo is not None
    made = make_card("org/data", repo.manifest(), revision=None)
    assert "| `w` | 2 | 0 (0.0%) | 1 (50.0%) | 1 (50.0%) | 50.0% | 25.0% |" in made.text
    assert front(made.text)["license"] == "cc-by-4.0"
    assert [entry.get("default") for entry in front(made.text)["configs"]] == [None, True]
    assert make_card("org/data", repo.manifest(), revision=None) == made


@given(st.lists(hostile, min_size=1, max_size=4, unique=True), st.data())
def test_names_come_through_yaml_and_one_config_is_the_default(
    found: list[str], data: st.DataObject
) -> None:
    default = data.draw(st.sampled_from(found))
    if "default" in found:
        default = "default"
    manifest = repository(**{name: weighted_entry() for name in found}) | {"default": default}
    said = front(card(manifest).text)
    assert [entry["config_name"] for entry in said["configs"]] == found
    assert [entry["config_name"] for entry in said["dataset_info"]] == found
    assert [entry["config_name"] for entry in said["configs"] if entry.get("default")] == [default]
    assert list(said) == [
        *("pretty_name", "task_categories", "tags", "size_categories", "configs", "dataset_info"),
    ]


def test_a_config_named_default_that_is_not_the_default_is_refused() -> None:
    manifest = repository(a=weighted_entry(), default=weighted_entry())
    with pytest.raises(ValueError, match="'default' would be the default config"):
        card(manifest)


def test_counts_and_sizes_of_a_config_are_those_of_its_shards() -> None:
    shards = [
        {"file": f"W/{n}.parquet", "rows": 16, "bytes": 100 + n, "sha256": "a" * 64} for n in range(2)
    ]
    (info,) = front(card(repository(W=weighted_entry(shards=shards))).text)["dataset_info"]
    assert info["splits"] == [{"name": "train", "num_bytes": 201, "num_examples": 32}]
    assert (info["download_size"], info["dataset_size"]) == (201, 201)


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9_999, "1K<n<10K"),
        (10_000, "10K<n<100K"),
        (123_456, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
        (50_000_000, "10M<n<100M"),
        (100_000_000, "100M<n<1B"),
        (10**9, "1B<n<10B"),
        (10**11, "100B<n<1T"),
        (10**12, "n>1T"),
        (10**15, "n>1T"),
    ],
)
def test_size_categories_are_the_hubs(rows: int, category: str) -> None:
    assert size_category(rows) == category


def test_the_size_category_counts_all_configs() -> None:
    made = card(repository(a=weighted_entry(rows=600), b=weighted_entry(rows=600)))
    assert front(made.text)["size_categories"] == ["1K<n<10K"]


@pytest.mark.parametrize(
    ("given_licenses", "said"),
    [
        (["mit", "mit"], {"license": "mit"}),
        (["MIT"], {"license": "mit"}),
        (["mit", "cc-by-4.0"], {"license": ["mit", "cc-by-4.0"]}),
        (["mit", None], {}),
        ([None], {}),
        (["My Own: Terms"], {"license": "other", "license_name": "my-own-terms"}),
        (["mit", "A", "B"], {"license": ["mit", "other"], "license_name": "a-and-b"}),
    ],
)
def test_a_license_is_said_where_it_holds_for_all(
    given_licenses: list[str | None], said: dict[str, Any]
) -> None:
    configs = {f"c{n}": weighted_entry(license=name) for n, name in enumerate(given_licenses)}
    found = front(card(repository(**configs)).text)
    assert {key: found[key] for key in ("license", "license_name") if key in found} == said


def test_a_column_that_datasets_cannot_name_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"column 'odd': .* map<string, int8>"):
        features_yaml(pa.schema([("odd", pa.map_(pa.string(), pa.int8()))]))
