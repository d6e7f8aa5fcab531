"""The card's YAML means to `datasets` and to the Hub's own reader what it means to us."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from datasets import Features, load_dataset
from datasets.exceptions import NonMatchingSplitsSizesError
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st

from cards import card, hostile, repository, trajectories_entry, weighted_entry
from drift_weights.audit import audit
from drift_weights.card import make_card
from drift_weights.card.merging import open_card
from drift_weights.features import features_yaml
from drift_weights.folder import read_folder, write_folder
from drift_weights.outputs import reweight_file
from drift_weights.repository import added, entry_of
from drift_weights.schema import SCHEMAS, to_table
from rows import trajectory

PLAIN = [
    *(pa.null(), pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()),
    *(pa.binary(3), pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.duration("s")),
    *(pa.timestamp("us"), pa.timestamp("ns", "Europe/Berlin"), pa.decimal128(9, 2), pa.decimal256(60, 7)),
    pa.dictionary(pa.int8(), pa.string()),
]
REFUSED = [pa.map_(pa.string(), pa.int8()), pa.list_view(pa.int8()), pa.decimal32(3, 1), pa.uuid()]


def nested(inner: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    """Lists of every kind, and structs."""
    struct = st.dictionaries(st.text("abc", min_size=1), inner, min_size=1, max_size=3)
    return st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        st.builds(pa.list_, inner, st.integers(1, 4)),
        struct.map(lambda fields: pa.struct(list(fields.items()))),
    )


types = st.recursive(st.sampled_from(PLAIN), nested, max_leaves=5)


@given(st.dictionaries(st.text(min_size=1, max_size=5), types, min_size=1, max_size=4))
def test_features_are_written_as_datasets_writes_them(columns: dict[str, pa.DataType]) -> None:
    schema = pa.schema(list(columns.items()))
    theirs = Features.from_arrow_schema(schema)
    ours = features_yaml(schema)
    assert ours == theirs._to_yaml_list()
    assert Features._from_yaml_list(ours) == theirs
    # drift.json is written with sorted keys.
    stored = json.loads(json.dumps(ours, sort_keys=True))
    made = DatasetCard(card(repository(W=weighted_entry(features=stored))).text)
    assert DatasetInfosDict.from_dataset_card_data(made.data)["W"].features == theirs


@pytest.mark.parametrize("kind", SCHEMAS)
def test_both_schemas_come_back_as_the_same_features(kind: str) -> None:
    theirs = Features.from_arrow_schema(SCHEMAS[kind])
    assert Features._from_yaml_list(features_yaml(SCHEMAS[kind])) == theirs


@pytest.mark.parametrize("refused", REFUSED, ids=str)
def test_what_datasets_refuses_is_refused(refused: pa.DataType) -> None:
    schema = pa.schema([("x", refused)])
    with pytest.raises(ValueError, match="does not have a datasets dtype"):
        Features.from_arrow_schema(schema)
    with pytest.raises(ValueError, match="column 'x'"):
        features_yaml(schema)


@given(hostile)
def test_the_hubs_own_reader_finds_the_same_yaml_and_body(name: str) -> None:
    made = card(repository(**{name: weighted_entry(), f"{name}2": trajectories_entry()}))
    found = DatasetCard(made.text)
    opened = open_card(made.text)
    assert found.text == opened.body
    assert found.data.to_dict() == yaml.safe_load(opened.yaml)
    configs = MetadataConfigs.from_dataset_card_data(found.data)
    assert list(configs) == [name, f"{name}2"]
    assert configs.get_default_config_name() == name
    infos = DatasetInfosDict.from_dataset_card_data(found.data)
    assert infos[name].features == Features.from_arrow_schema(SCHEMAS["weighted"])
    assert infos[name].splits["train"].num_examples == 32


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder that looks like a repository: dialogues, their weights as the default, and the card."""
    root = tmp_path / "repository"
    dialogues = [
        trajectory("a", 0, [], ended="solved"),
        trajectory("a", 1, ["1", "1"]),
        trajectory("b", 0, ["1", None]),
    ]
    write_folder(tmp_path / "dialogues", to_table(dialogues), "trajectories", {})
    reweight_file(tmp_path / "dialogues", tmp_path / "weights+")
    found = None
    for name in ("dialogues", "weights+"):
        audited = audit(tmp_path / name)
        entry = entry_of(audited, name, license=None, problems_license=None)
        found = added(found, name, entry, default=name != "dialogues")
        (root / name).mkdir(parents=True)
        for file in audited.files:
            (root / name / file.name).write_bytes(file.read_bytes())
    made = make_card("org/data", found.manifest(), revision=None)
    (root / "README.md").write_text(made.text, encoding="utf-8")
    return root


def test_load_dataset_takes_the_default_config_and_each_by_name(published: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    rows = load_dataset(str(published), split="train", cache_dir=cache)
    table, _ = read_folder(tmp_path / "weights+", "weighted")
    assert rows.features == Features.from_arrow_schema(SCHEMAS["weighted"])
    assert rows.to_list() == table.to_pylist()
    named = load_dataset(str(published), "dialogues", split="train", cache_dir=cache)
    assert named["prompt_id"] == ["a", "a", "b"]
    streamed = load_dataset(str(published), "weights+", split="train", cache_dir=cache, streaming=True)
    assert list(streamed) == table.to_pylist()


def test_load_dataset_refuses_rows_that_the_card_does_not_count(published: Path, tmp_path: Path) -> None:
    shard = published / "weights+" / "part-00000.parquet"
    (published / "weights+" / "part-00001.parquet").write_bytes(shard.read_bytes())
    with pytest.raises(NonMatchingSplitsSizesError):
        load_dataset(str(published), cache_dir=str(tmp_path / "cache"))
