"""Which rows and weights each offline method trains on: SFT-5turn (M34), STaR-2turn (M35), RFT."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given

from drift_weights.schema import WEIGHTED, check
from drift_weights.selections import SELECTIONS, select
from strategies import weighted_tables


def keeps(row: dict[str, Any], selection: str) -> bool:
    """Whether a method keeps a row, in plain words."""
    if selection == "star-2turn":
        return bool(row["solved"]) and row["length"] == 2
    return selection in ("drift", "sft-5turn") or bool(row["solved"])


@pytest.mark.parametrize("selection", SELECTIONS)
@given(table=weighted_tables())
def test_keeps_the_rows_it_should_in_order_and_changes_only_weights(
    table: pa.Table, selection: Any
) -> None:
    kept = [row for row in table.to_pylist() if keeps(row, selection)]
    expected = kept if selection == "drift" else [row | {"weight": 1.0} for row in kept]
    if expected:
        found = select(table, selection)
        assert found.to_pylist() == expected
        assert check(found, WEIGHTED).schema == WEIGHTED
    else:
        with pytest.raises(ValueError, match=f"'{selection}' keeps none of {table.num_rows} rows"):
            select(table, selection)


@given(table=weighted_tables())
def test_sft_is_drift_with_every_weight_one(table: pa.Table) -> None:
    drift, sft = select(table, "drift"), select(table, "sft-5turn")
    assert sft.column("weight").to_pylist() == [1.0] * table.num_rows
    assert sft.drop_columns("weight").equals(drift.drop_columns("weight"))


@given(table=weighted_tables())
def test_the_table_given_is_left_as_it_was(table: pa.Table) -> None:
    before = table.to_pylist()
    select(table, "sft-5turn")
    assert table.to_pylist() == before


def test_an_unknown_selection_is_refused_with_the_known_ones() -> None:
    table = WEIGHTED.empty_table()
    with pytest.raises(ValueError, match="'best' is not one of drift, sft-5turn, star-2turn, rft"):
        select(table, "best")
