"""Export: the same turns and weights in forms of other trainers; earlier responses carry no loss."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_weights import to_table, weighted_turns, write_folder
from drift_weights.commands import export, resample
from drift_weights.export import ExportForm, export_file
from drift_weights.schema import WEIGHTED
from rows import trajectory
from strategies import weighted_tables

Row = dict[str, Any]
FORMS: Sequence[ExportForm] = ("trl", "messages")
ENDINGS = ("out.jsonl", "out.ndjson", "out.parquet", "out.pq")


def read(path: Path) -> list[Row]:
    """As a trainer reads it; the standard library's parser, not ours."""
    if path.suffix in (".jsonl", ".ndjson"):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return list(pq.read_table(path).to_pylist())


def turns(path: Path) -> Path:
    """One dialogue of three turns and one of one."""
    data = [trajectory("q", 0, ["a", None], ended="solved"), trajectory("q", 1, ["c"])]
    return write_folder(path, weighted_turns(to_table(data))[0], "weighted", {})


@given(weighted_tables(), st.sampled_from(ENDINGS), st.integers(1, 5))
@settings(max_examples=40)
def test_prompt_completion_rows_are_the_turns_themselves(table: pa.Table, name: str, portion: int) -> None:
    with TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr("drift_weights.sources.TABLE_ROWS", portion)
        source = write_folder(Path(scratch) / "in", table, "weighted", {})
        said = export_file(source, Path(scratch) / name, to="trl")
        found = read(Path(scratch) / name)
    assert found == table.select(["prompt", "completion", "weight"]).to_pylist()
    assert said.rows == table.num_rows
    assert said.cut == table.column("finish_reason").to_pylist().count("length")


@given(weighted_tables(), st.sampled_from(ENDINGS), st.integers(1, 5))
@settings(max_examples=40)
def test_chat_rows_are_prompt_and_completion_end_to_end(table: pa.Table, name: str, portion: int) -> None:
    with TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr("drift_weights.sources.TABLE_ROWS", portion)
        source = write_folder(Path(scratch) / "in", table, "weighted", {})
        export_file(source, Path(scratch) / name, to="messages")
        found = read(Path(scratch) / name)
    for row, turn in zip(found, table.to_pylist(), strict=True):
        assert row["weight"] == turn["weight"]
        spoken = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        assert spoken == turn["prompt"] + turn["completion"]


@pytest.mark.parametrize("name", ENDINGS)
def test_only_the_terminal_response_carries_loss(tmp_path: Path, name: str) -> None:
    """Terminal retention: trainers of chats learn every response that is not marked."""
    export_file(turns(tmp_path / "in"), tmp_path / name, to="messages")
    long, short = read(tmp_path / name)
    roles = ["user", "assistant", "user", "assistant", "user", "assistant"]
    assert [m["role"] for m in long["messages"]] == roles
    assert [m.get("weight") for m in long["messages"]] == [None, 0, None, 0, None, None]
    assert [m.get("weight") for m in short["messages"]] == [None, None]


def test_a_jsonl_message_without_a_mark_has_no_such_field(tmp_path: Path) -> None:
    export_file(turns(tmp_path / "in"), tmp_path / "out.jsonl", to="messages")
    for row in read(tmp_path / "out.jsonl"):
        assert set(row) == {"messages", "weight"}
        assert all(set(m) == {"role", "content"} for m in row["messages"] if m["role"] == "user")
        assert set(row["messages"][-1]) == {"role", "content"}


@pytest.mark.parametrize("to", FORMS)
def test_text_that_json_and_lines_could_break_survives(tmp_path: Path, to: ExportForm) -> None:
    text = 'a "quoted" line\nand \\ another\r\n\u2028 \u0000 中文 🙂'
    table, _ = weighted_turns(to_table([trajectory("q", 0, ["a"])]))
    rows = table.to_pylist()
    rows[0]["prompt"][0]["content"] = rows[0]["completion"][0]["content"] = text
    source = write_folder(tmp_path / "in", pa.Table.from_pylist(rows, WEIGHTED), "weighted", {})
    found = []
    for name in ("out.jsonl", "out.parquet"):
        export_file(source, tmp_path / name, to=to)
        (row,) = read(tmp_path / name)
        found.append([m["content"] for m in row.get("messages") or row["prompt"] + row["completion"]])
    assert found == [[text, text]] * 2


def test_the_order_of_columns_is_what_trainers_show(tmp_path: Path) -> None:
    source = turns(tmp_path / "in")
    for to, names in (("trl", ["prompt", "completion", "weight"]), ("messages", ["messages", "weight"])):
        export_file(source, tmp_path / f"{to}.parquet", to=to)
        export_file(source, tmp_path / f"{to}.jsonl", to=to)
        assert pq.read_schema(tmp_path / f"{to}.parquet").names == names
        assert all(list(row) == names for row in read(tmp_path / f"{to}.jsonl"))


def test_the_same_export_is_the_same_bytes(tmp_path: Path) -> None:
    source = turns(tmp_path / "in")
    for name in ENDINGS:
        for number in range(2):
            export_file(source, tmp_path / f"{number}-{name}", to="messages")
        assert (tmp_path / f"0-{name}").read_bytes() == (tmp_path / f"1-{name}").read_bytes()


def refused(says: str, source: Path, output: Path, **settings: Any) -> None:
    before = sorted(output.parent.rglob("*"))
    with pytest.raises((ValueError, OSError), match=says):
        export_file(source, output, **({"to": "trl"} | settings))
    assert sorted(output.parent.rglob("*")) == before


def test_bad_calls_are_refused_and_write_nothing(tmp_path: Path) -> None:
    source = turns(tmp_path / "in")
    refused("name it so", source, tmp_path / "out.csv")
    refused("name it so", source, tmp_path / "out")
    refused("to must be one of trl, messages, got 'chat'", source, tmp_path / "out.jsonl", to="chat")
    refused("no folder of drift data", tmp_path / "nothing", tmp_path / "out.jsonl")
    write_folder(tmp_path / "t", to_table([trajectory("g", 0, ["a"])]), "trajectories", {})
    refused("run drift-weights reweight on it first", tmp_path / "t", tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").write_text("mine")
    refused("exists", source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    export_file(source, tmp_path / "out.jsonl", to="trl", overwrite=True)
    assert len(read(tmp_path / "out.jsonl")) == 2


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -0.5])
@pytest.mark.parametrize("name", ENDINGS)
def test_a_bad_weight_is_named_and_nothing_is_left(tmp_path: Path, weight: float, name: str) -> None:
    """In the third portion, when two are written already; JSON would have made NaN a null."""
    table, _ = weighted_turns(to_table([trajectory("q", n, ["a"]) for n in range(6)]))
    rows = table.to_pylist()
    rows[5]["weight"] = weight
    source = write_folder(tmp_path / "in", pa.Table.from_pylist(rows, WEIGHTED), "weighted", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drift_weights.sources.TABLE_ROWS", 2)
        refused("row 5: weight must be finite", source, tmp_path / name)


def test_rows_are_reported_as_they_are_written(tmp_path: Path) -> None:
    told: list[int] = []
    export_file(turns(tmp_path / "in"), tmp_path / "out.jsonl", to="trl", advance=told.append)
    assert sum(told) == 2


def said(command: Any, *args: Any, **settings: Any) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        command(*args, **settings)
    return printed.getvalue()


def test_the_command_says_what_a_form_cannot(tmp_path: Path) -> None:
    table, _ = weighted_turns(to_table([trajectory("q", 0, ["a", "b"]), trajectory("q", 1, ["c"])]))
    rows = table.to_pylist()
    rows[1]["finish_reason"] = "length"
    source = write_folder(tmp_path / "in", pa.Table.from_pylist(rows, WEIGHTED), "weighted", {})
    trl = said(export, source, tmp_path / "a.jsonl", to="trl")
    assert "2 rows" in trl
    assert "stock TRL drops the column weight" in trl
    assert "1 completions were cut by the token limit" in trl
    chat = said(export, source, tmp_path / "b.jsonl", to="messages")
    assert "1 rows have earlier responses, marked with a weight of 0" in chat
    assert "TRL" not in chat


def test_drawn_rows_are_exported_with_the_weight_one(tmp_path: Path) -> None:
    source = turns(tmp_path / "in")
    told = said(resample, source, tmp_path / "drawn", seed=0, epoch=1)
    assert "2 rows drawn from 2 in 1 groups, each of weight 1 (seed 0, epoch 1)" in told
    export_file(tmp_path / "drawn", tmp_path / "out.jsonl", to="trl")
    assert [row["weight"] for row in read(tmp_path / "out.jsonl")] == [1.0, 1.0]
