"""The benchmark of weights runs whole on small logs, counts what it says, and believes no weight."""

import importlib
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
data, checking, peers, results = (
    importlib.import_module(f"weights_{name}") for name in ("data", "check", "peers", "results")
)
ROWS = 320
HALVES = (("wide-parquet", "narrow-contiguous", "narrow-shuffled"), ("wide-side", "wide-jsonl"))


def in_small_process(script: str, *words: object) -> str:
    """What a script prints that has benchmarks/ in reach and is as small as the benchmark itself."""
    head = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
    command = [sys.executable, "-c", head + script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str, str]:
    """All tasks at their small sizes, two processes sharing them: numbers, tables, what was printed."""
    folder = tmp_path_factory.mktemp("quick")
    script = str(BENCHMARKS / "weights.py")
    running = []
    for number, tasks in enumerate(HALVES):
        words = ["--quick", "--out", str(folder / f"{number}.json"), "--data", str(folder / str(number))]
        command = [sys.executable, script, *words, "--tasks", *tasks]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    printed = ""
    for child in running:
        out, errors = child.communicate()
        assert child.returncode == 0, errors[-3000:]
        printed += out
    found = [json.loads((folder / f"{number}.json").read_text()) for number in range(len(HALVES))]
    tables = "".join((folder / f"{number}.md").read_text() for number in range(len(HALVES)))
    return [task for part in found for task in part["tasks"]], tables, printed


def test_every_contender_stands_in_every_table(quick: tuple[list[dict[str, Any]], str, str]) -> None:
    tasks, tables, printed = quick
    assert [task["task"]["name"] for task in tasks] == [name for half in HALVES for name in half]
    for task in tasks:
        wanted = set(peers.CONTENDERS[task["task"]["form"]])
        if task["task"]["name"].startswith("narrow"):
            wanted = {"ours", "duckdb", "polars", "copy"}
        assert set(task["runs"]) == wanted == set(task["medians"])
        lines = tables.split(f"### {task['task']['title']}")[1].split("###")[0].splitlines()
        assert {line.split("|")[1].strip() for line in lines[4:] if line.startswith("|")} == wanted
    for name in {name for task in tasks for name in task["runs"]}:
        assert name in printed


def test_every_run_cost_something_and_ratios_are_to_ours(
    quick: tuple[list[dict[str, Any]], str, str],
) -> None:
    tasks, tables, _ = quick
    for task in tasks:
        for run in (run for runs in task["runs"].values() for run in runs):
            assert 0 < run["cpu_s"] < 60
            assert run["wall_s"] > 0
            assert 5e6 < run["peak_bytes"] < 2e9
        # A copy imports nothing and holds nothing: if it does, the launcher has grown.
        if "copy" in task["medians"]:
            assert task["medians"]["copy"]["peak_bytes"] < 40e6
    ours = [line.split("|") for line in tables.splitlines() if line.startswith("| ours")]
    assert {(cells[3].strip(), cells[5].strip(), cells[7].strip()) for cells in ours} == {("1.00",) * 3}


@pytest.mark.parametrize("kind", data.KINDS)
def test_true_weights_are_those_of_the_formula(kind: str, tmp_path: Path) -> None:
    source = data.make(kind, ROWS, tmp_path)
    assert data.make(kind, ROWS, tmp_path) == source
    rows = read(source)
    keys = [(row["prompt_id"], row.get("round"), row.get("policy")) for row in rows]
    returns = [
        row["correct"] * 0.9 ** (row["length"] - 1) - 0.5 * (1 - row["unique"] / row["length"])
        for row in rows
    ]
    weights = []
    for key, returned in zip(keys, returns, strict=True):
        group = [other for other_key, other in zip(keys, returns, strict=True) if other_key == key]
        assert len(group) == 16
        total = math.fsum(math.exp((other - returned) / 0.1) for other in group)
        weights.append(len(group) / total)
    assert np.load(data.truth_file(source)) == pytest.approx(weights, rel=1e-12)
    assert len(set(np.round(weights, 9))) > ROWS / 8


def read(source: Path) -> list[dict[str, Any]]:
    if source.suffix == ".jsonl":
        return [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    return pq.read_table(source).to_pylist()


@pytest.mark.parametrize("kind", ["wide-parquet", "wide-jsonl"])
def test_wide_rows_are_dialogues(kind: str, tmp_path: Path) -> None:
    rows = read(data.make(kind, ROWS, tmp_path))
    assert len({(row["prompt_id"], row["round"], row["policy"], row["sample"]) for row in rows}) == ROWS
    for row in rows:
        assert re.fullmatch("[0-9a-f]{64}", row["prompt_id"])
        assert re.fullmatch("[0-9a-f]{64}", row["policy"])
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * row["length"]
    prompts = {row["prompt_id"]: row["messages"][0]["content"] for row in rows}
    assert all(row["messages"][0]["content"] == prompts[row["prompt_id"]] for row in rows)
    assert len({row["messages"][1]["content"] for row in rows}) == ROWS


def test_narrow_rows_stand_as_they_are_called(tmp_path: Path) -> None:
    def changes(kind: str) -> int:
        ids = [row["prompt_id"] for row in read(data.make(kind, ROWS, tmp_path))]
        return sum(here != there for here, there in itertools.pairwise(ids))

    assert changes("narrow-contiguous") == ROWS // 16 - 1
    assert changes("narrow-shuffled") > ROWS * 0.8


def test_groups_are_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        data.make("narrow-shuffled", 100, tmp_path)


def weighed(source: Path, output: Path, order: Any = slice(None), **tampered: Any) -> Path:
    """The source again with its true weights, by no contender, or with something else in their place."""
    table = pq.read_table(source)
    table = table.append_column("weight", pa.array(np.load(data.truth_file(source))))
    for name, column in tampered.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table.take(np.arange(len(table))[order]), output)
    return output


@pytest.mark.parametrize("kind", ["wide-parquet", "narrow-shuffled"])
def test_equal_weights_pass_in_any_order(kind: str, tmp_path: Path) -> None:
    source = data.make(kind, ROWS, tmp_path)
    backwards = weighed(source, tmp_path / "b.parquet", slice(None, None, -1))
    checking.check_outputs(
        "parquet", source, {"ours": weighed(source, tmp_path / "a.parquet"), "b": backwards}
    )


@pytest.mark.parametrize("contender", ["ours", "polars"])
@pytest.mark.parametrize("kind", ["wide-parquet", "narrow-shuffled"])
def test_one_weight_off_by_a_millionth_is_refused(kind: str, contender: str, tmp_path: Path) -> None:
    source = data.make(kind, ROWS, tmp_path)
    weights = np.load(data.truth_file(source))
    weights[17] *= 1 + 1e-6
    outputs = {name: weighed(source, tmp_path / f"{name}.parquet") for name in ("ours", "polars")}
    weighed(source, outputs[contender], weight=pa.array(weights))
    with pytest.raises(
        ValueError, match=f"{contender}: 1 weights differ from the true weight, the first in row 17"
    ):
        checking.check_outputs("parquet", source, outputs)


def test_weights_in_another_order_than_their_rows_are_refused(tmp_path: Path) -> None:
    source = data.make("narrow-shuffled", ROWS, tmp_path)
    weights = np.roll(np.load(data.truth_file(source)), 1)
    output = weighed(source, tmp_path / "o.parquet", weight=pa.array(weights))
    with pytest.raises(ValueError, match=r"polars: .* weights differ"):
        checking.check_outputs("parquet", source, {"polars": output})


def test_lost_rows_and_other_contents_are_refused(tmp_path: Path) -> None:
    source = data.make("wide-parquet", ROWS, tmp_path)
    messages = pq.read_table(source).column("messages").to_pylist()
    messages[3][1]["content"] += "!"
    shorter = weighed(source, tmp_path / "short.parquet", slice(0, -1))
    other = weighed(source, tmp_path / "other.parquet", messages=pa.array(messages))
    for output in (shorter, other):
        with pytest.raises(ValueError, match=r"duckdb: .* does not hold the rows"):
            checking.check_outputs("parquet", source, {"duckdb": output})


def test_a_side_file_is_compared_by_row_number(tmp_path: Path) -> None:
    source = data.make("wide-parquet", ROWS, tmp_path)
    order = np.random.default_rng(0).permutation(ROWS)
    weights = np.load(data.truth_file(source))[order]
    output = tmp_path / "side.parquet"
    pq.write_table(pa.table({"row": order, "weight": weights}), output)
    checking.check_outputs("side", source, {"duckdb": output})
    weights[0] = weights[0] * 2
    pq.write_table(pa.table({"row": order, "weight": weights}), output)
    with pytest.raises(ValueError, match=rf"duckdb: 1 weights differ .* row {order[0]}"):
        checking.check_outputs("side", source, {"duckdb": output})
    pq.write_table(pa.table({"row": np.maximum(order, 1), "weight": weights}), output)
    with pytest.raises(ValueError, match="does not hold the rows"):
        checking.check_outputs("side", source, {"duckdb": output})


TAMPER = """
import pathlib, numpy as np, pyarrow as pa, pyarrow.parquet as pq, weights
measure = weights.measure
def tampering(command):
    run = measure(command)
    if "polars" in command:
        path = command[5]
        table = pq.read_table(path)
        column = table.column("weight").to_numpy().copy()
        column[0] *= 1.001
        pq.write_table(table.set_column(table.num_columns - 1, "weight", pa.array(column)), path)
    return run
weights.measure = tampering
task = weights.Task(name="t", title="t", kind="narrow-shuffled", rows=320, form="parquet",
                    keys=("prompt_id",), contenders=("ours", "polars", "copy"))
try:
    weights.run_task(task, pathlib.Path(sys.argv[1]), 1)
except RuntimeError as error:
    print(error)
"""


def test_a_round_ends_with_the_comparison(tmp_path: Path) -> None:
    assert "polars: 1 weights differ from the true weight" in in_small_process(TAMPER, tmp_path)


def test_the_launcher_is_small_and_sees_all_that_a_child_costs() -> None:
    script = """
import json, weights
heavy = [name for name in ("numpy", "pyarrow", "rich", "drift_weights") if name in sys.modules]
grown = "import subprocess, sys; x = bytearray(150 << 20); x[::4096] = x[::4096]"
loop = "import time\\nwhile time.process_time() < 0.5: pass"
burn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {loop!r}])"
runs = [weights.measure([sys.executable, "-c", code]) for code in ("pass", grown, burn)]
print(json.dumps([heavy, [run.peak_bytes for run in runs], [run.cpu_s for run in runs]]))
"""
    heavy, peaks, cpus = json.loads(in_small_process(script))
    assert heavy == []
    assert peaks[0] < 40e6
    assert 150e6 < peaks[1] < 220e6
    assert cpus[0] < 0.5 <= cpus[2]


def test_a_child_that_fails_stops_the_benchmark() -> None:
    script = """
import weights
try:
    weights.measure([sys.executable, "-c", "raise SystemExit('no such thing')"])
except RuntimeError as error:
    print(error)
"""
    assert "no such thing" in in_small_process(script)


def test_medians_and_best_peers() -> None:
    def run(cpu_s: float) -> Any:
        return results.Run(cpu_s=cpu_s, wall_s=10 - cpu_s, peak_bytes=1.0)

    task = results.Task(name="t", title="t", kind="k", rows=16, form="side", keys=(), contenders=())
    times = {"ours": [1, 9, 2], "duckdb": [5, 3, 4], "polars": [6, 6, 1], "copy": [0, 0, 0]}
    found = results.Result(
        task=task, source_bytes=1, runs={name: [run(cpu) for cpu in cpus] for name, cpus in times.items()}
    )
    assert found.median("ours") == results.Run(cpu_s=2, wall_s=8, peak_bytes=1.0)
    assert found.best_peer("cpu_s") == 4
