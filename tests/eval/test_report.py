"""Tables, picture and JSON show the numbers of the records, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest
from rich.console import Console
from rich.table import Table

from drift_eval.comparing import compare_all
from drift_eval.report import (
    accuracy_figure,
    comparison_table,
    notes,
    numbers,
    score_table,
    write_report,
)
from drift_eval.scoring import Scores, score
from drift_weights.schema import to_table
from eval.dialogues import policy_rows, policy_table

ROWS = [
    *policy_rows("base [v1]", ["c", "wwc", "www", "mww"], max_turns=3),
    *policy_rows("f" * 64, ["c", "c", "wc", "www"], max_turns=3),
]


def text(table: Table) -> str:
    console = Console(width=160, record=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def row_of(table: Table, name: str) -> str:
    return next(line for line in text(table).splitlines() if name in line)


def test_score_table_shows_percentages() -> None:
    table = score_table(score(to_table(ROWS)), extra={"CPU s": {"base [v1]": "12"}}, title="Six")
    row = row_of(table, "base [v1]")
    # 2 of 4, whose Wilson ends are 15.0 and 85.0; 1 of 3 failures repaired; E 3 and 3.
    for cell in ("4", "25.0", "50.0 [15.0, 85.0]", "33.3", "3.00", "25.0 0.0 0.0", "12"):
        assert cell in row
    assert "multi@3 [95%]" in text(table)
    other = row_of(table, "ffffffff")
    assert "f" * 9 not in other
    assert "75.0 [30.1, 95.4]" in other
    assert other.rstrip().endswith("–")


def test_labels_replace_policies() -> None:
    table = score_table(score(to_table(ROWS)), labels={"f" * 64: "DRIFT"})
    assert "DRIFT" in text(table)
    assert "ffff" not in text(table)


def test_mixed_budgets_say_which_k() -> None:
    rows = [*policy_rows("two", ["c", "ww"], max_turns=2), *policy_rows("six", ["c"], max_turns=6)]
    table = score_table(score(to_table(rows)))
    assert "multi@k" in text(table)
    assert "@2 50.0" in row_of(table, "two")
    assert "@6 100.0" in row_of(table, "six")


def test_comparison_table_shows_difference_and_test() -> None:
    comparisons = compare_all(to_table(ROWS))
    row = row_of(comparison_table(comparisons), "base [v1]")
    pair = comparisons.pairs[0]
    assert "50.0 : 75.0" in row
    assert f"-25.0 [{pair.difference.low * 100:+.1f}, {pair.difference.high * 100:+.1f}]" in row
    assert "0 : 1" in row
    assert row.rstrip().endswith("1")


def test_notes_say_what_a_reader_must_know() -> None:
    table = policy_table("π", ["c", "t", "w"], max_turns=1)
    omitted = notes(score(table, unscored="omit", size=7))
    assert omitted == ["π: 4 problems missing, counted as wrong", "π: 1 dialogues unscored, left out"]
    assert notes(score(table, unscored="wrong")) == ["π: 1 dialogues unscored, counted as wrong"]
    one_each = to_table([*policy_rows("a", ["c"]), *policy_rows("b", ["c"])])
    assert notes(score(one_each), compare_all(one_each))[0].startswith("not compared: 'a' and 'b'")


def edge_cases() -> tuple[Scores, ...]:
    rows = [*policy_rows("all", ["c", "c"], max_turns=2), *policy_rows("none", ["ww", "ww"], max_turns=2)]
    return score(to_table(rows))


def test_json_holds_every_number_and_no_nan() -> None:
    content = numbers(edge_cases(), compare_all(to_table(ROWS)))
    again = json.loads(json.dumps(content, allow_nan=False))
    first, second = again["policies"]
    assert first["total_correction"] is None
    assert first["correction_rates"] == [1.0, None]
    assert second["solved_rates"] is None
    assert [rate["value"] for rate in second["multi_at"]] == [0.0, 0.0]
    assert {"low", "high", "confidence", "successes", "trials"} <= set(second["acc_at_1"])
    assert again["comparisons"][0]["mcnemar"]["only_second"] == 1


def test_the_picture_draws_multi_at_k() -> None:
    scores = score(to_table(ROWS))
    (axes,) = accuracy_figure(scores, labels={"f" * 64: "DRIFT"}, title="Riddle").axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [line.get_label() for line in lines] == ["base [v1]", "DRIFT"]
    for line, one in zip(lines, scores, strict=True):
        assert list(line.get_xdata()) == [1, 2, 3]
        assert list(line.get_ydata()) == [rate.value for rate in one.multi_at]
    for band, one in zip(axes.collections, scores, strict=True):
        corners = band.get_paths()[0].vertices[:, 1]
        assert corners.min() == pytest.approx(min(rate.low for rate in one.multi_at))
        assert corners.max() == pytest.approx(max(rate.high for rate in one.multi_at))
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 2
    assert axes.get_xlabel()
    assert "95%" in axes.get_ylabel()


def test_report_is_written_as_png_and_json(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "folder", edge_cases())
    assert matplotlib.image.imread(tmp_path / "new/folder/accuracy.png").shape[0] > 300
    written = json.loads((tmp_path / "new/folder/scores.json").read_text())
    assert [one["policy"] for one in written["policies"]] == ["all", "none"]
