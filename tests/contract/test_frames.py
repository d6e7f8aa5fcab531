"""reweight() on data frames and Hugging Face Datasets gives the same weights in the same kind."""

from decimal import Decimal

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from drift_weights import reweight
from rows import LOG


def expected() -> list[float]:
    return reweight(pa.table(LOG)).column("weight").to_pylist()


def test_pandas_keeps_its_index() -> None:
    frame = pd.DataFrame(LOG, index=[7, 5, 3, 1])
    out = reweight(frame)
    assert isinstance(out, pd.DataFrame)
    assert out["weight"].tolist() == expected()
    assert out.index.tolist() == [7, 5, 3, 1]
    assert "weight" not in frame.columns


def test_polars() -> None:
    out = reweight(pl.DataFrame(LOG))
    assert isinstance(out, pl.DataFrame)
    assert out["weight"].to_list() == expected()
    assert out.drop("weight").equals(pl.DataFrame(LOG))


def test_datasets() -> None:
    data = datasets.Dataset.from_dict(LOG)
    out = reweight(data)
    assert isinstance(out, datasets.Dataset)
    assert out["weight"][:] == expected()
    assert out.remove_columns("weight").to_dict() == LOG


def test_a_dataset_with_an_indices_mapping() -> None:
    """select() and shuffle() leave the Arrow table as it was; the rows that are seen must count."""
    shuffled = datasets.Dataset.from_dict(LOG).select([3, 0, 2, 1])
    out = reweight(shuffled)
    assert out["weight"][:] == [expected()[row] for row in (3, 0, 2, 1)]
    assert out["length"][:] == [LOG["length"][row] for row in (3, 0, 2, 1)]


def test_only_the_columns_that_weights_need_are_read() -> None:
    """An unrelated column of mixed types is nobody's business."""
    frame = pd.DataFrame(LOG | {"odd": [1, "two", None, [3]]})
    assert reweight(frame)["weight"].tolist() == expected()


def test_categories_decimals_and_subclasses() -> None:
    class Mine(pd.DataFrame):
        """A user's own frame."""

    frame = Mine(LOG)
    frame["prompt_id"] = frame["prompt_id"].astype("category")
    frame["correct"] = [Decimal(value) for value in LOG["correct"]]
    assert reweight(frame)["weight"].tolist() == expected()


@pytest.mark.parametrize(
    "data",
    [
        pl.DataFrame(LOG).lazy(),
        datasets.DatasetDict({"train": datasets.Dataset.from_dict(LOG)}),
        datasets.Dataset.from_dict(LOG).to_iterable_dataset(),
    ],
    ids=["lazy", "dict", "streamed"],
)
def test_what_is_not_in_memory_is_refused(data: object) -> None:
    with pytest.raises(TypeError, match="in memory"):
        reweight(data)
