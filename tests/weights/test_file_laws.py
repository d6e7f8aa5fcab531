"""Laws over whole files: a weight depends on what its group holds, not on where or how a file has it.

Laws, each bit for bit and by (prompt_id, sample): rows may be shuffled, groups may be sharded into files
and put together again, JSONL and Parquet are one, a batch may end within a group, and rows spilled to disk
weigh as rows in memory. Reweighting a reweighted file changes no byte. All forms agree with the in-memory
functions, and those with eq. 12 and eq. 13 in 60 digits.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mpmath
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import drift_weights.ledger
import drift_weights.sources
from drift_weights import WeightConfig, group_weights, to_table, trajectory_return
from drift_weights.columns import Columns
from drift_weights.folder import read_folder, write_folder
from drift_weights.logs import OpenLog, open_log
from drift_weights.outputs import reweight_file
from rows import trajectory
from strategies import counts, gammas, lams

Rows = list[dict[str, Any]]
Weights = dict[tuple[Any, int], float]
READING = sys.modules[OpenLog.__module__]
RESPONSES = Columns(answers="responses")
few = settings(max_examples=15)


def texts() -> st.SearchStrategy[str]:
    """What JSON has to escape and what takes several bytes, line ends included."""
    return st.text(max_size=6) | st.sampled_from(
        ["", "}", '"weight": 3', "\\", "line\nend", "\u2028", "中文"]
    )


def prompt_ids() -> st.SearchStrategy[list[Any]]:
    """The ids of a log: strings, long ones too, or whole numbers."""
    strings = st.text(min_size=1, max_size=8) | st.sampled_from(["q" * 300, "q" * 301])
    numbers = st.integers(-(2**63), 2**63 - 1)
    size = {"min_size": 1, "max_size": 5, "unique": True}
    return st.lists(strings, **size) | st.lists(numbers, **size)


@st.composite
def plain_logs(draw: st.DrawFn, ids: st.SearchStrategy[list[Any]] | None = None) -> Rows:
    """Rows with their outcomes in columns, a prompt and a completion, in any order."""
    samples = st.lists(st.integers(0, 70) | st.integers(0, 2**40), min_size=1, max_size=6, unique=True)
    rows = []
    for prompt_id in draw(prompt_ids() if ids is None else ids):
        for sample in draw(samples):
            row = draw(counts(5))
            rows.append(
                {
                    "prompt_id": prompt_id,
                    "sample": sample,
                    "correct": int(row.solved),
                    "length": row.length,
                    "unique": row.unique,
                    "prompt": draw(texts()),
                    "completion": draw(texts()) + ".",
                }
            )
    return draw(st.permutations(rows))


@st.composite
def chat_logs(draw: st.DrawFn) -> Rows:
    """Rows whose turns and distinct answers only their messages tell."""
    answers = st.lists(st.sampled_from(["7", "8", "3 + 4", "sieben"]), min_size=1, max_size=4)
    rows = []
    for group in range(draw(st.integers(1, 4))):
        for sample in range(draw(st.integers(1, 5))):
            messages = [{"role": "user", "content": f"question {group}"}]
            for answer in draw(answers):
                messages.append({"role": "assistant", "content": answer})
                messages.append({"role": "user", "content": "Incorrect."})
            row = {"prompt_id": f"q{group}", "sample": sample, "correct": draw(st.integers(0, 1))}
            rows.append(row | {"messages": messages[:-1]})
    return draw(st.permutations(rows))


def logs() -> st.SearchStrategy[Rows]:
    return plain_logs() | chat_logs()


def configs() -> st.SearchStrategy[WeightConfig]:
    exponents = st.floats(-2, 2).map(lambda exponent: 10.0**exponent)
    drawn = st.builds(WeightConfig, beta=exponents, gamma=gammas(), lam=lams())
    return st.just(WeightConfig()) | drawn


def write_log(path: Path, rows: Rows) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    else:
        lines = [json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows)]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return path


def read_log(path: Path) -> Rows:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@contextmanager
def scratch() -> Iterator[Path]:
    # No law is about power cuts, and waiting for a disk thousands of times is slow.
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield Path(name)


def by_key(rows: Rows, weights: Sequence[float]) -> Weights:
    found = {(row["prompt_id"], row["sample"]): w for row, w in zip(rows, weights, strict=True)}
    assert len(found) == len(rows)
    return found


def written(folder: Path, source: Path, rows: Rows, form: str, config: WeightConfig) -> Weights:
    """The weights of a log by key, as one form of output has them."""
    name = {"log": f"out{source.suffix}", "side": "side.parquet", "turns": "turns"}[form]
    target = folder / f"of-{source.name}-{name}"
    reweight_file(source, target, config, RESPONSES, form=form, format="chat")
    if form == "log":
        found = read_log(target)
        assert [{k: v for k, v in row.items() if k != "weight"} for row in found] == rows
        return by_key(found, [row["weight"] for row in found])
    if form == "side":
        found = pq.read_table(target).to_pylist()
        assert [row["row"] for row in found] == list(range(len(rows)))
        return by_key(rows, [row["weight"] for row in found])
    found = read_folder(target, "weighted")[0].to_pylist()
    # An id that is no short string becomes its hash; rows keep their order.
    assert [row["sample"] for row in found] == [row["sample"] for row in rows]
    return by_key(rows, [row["weight"] for row in found])


def weigh(rows: Rows, form: str, config: WeightConfig, suffix: str = ".jsonl") -> Weights:
    with scratch() as folder:
        return written(folder, write_log(folder / f"log{suffix}", rows), rows, form, config)


def turns_of(row: dict[str, Any]) -> tuple[int, int]:
    """L and E."""
    if "messages" not in row:
        return row["length"], row["unique"]
    said = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    return len(said), len(set(said))


def in_memory(rows: Rows, config: WeightConfig) -> Weights:
    lengths, uniques = zip(*map(turns_of, rows), strict=True)
    solved = [row["correct"] for row in rows]
    returns = trajectory_return(solved, lengths, uniques, gamma=config.gamma, lam=config.lam)
    return by_key(
        rows, group_weights(returns, [row["prompt_id"] for row in rows], beta=config.beta).tolist()
    )


FORMS = st.sampled_from(["log", "side", "turns"])
SUFFIXES = st.sampled_from([".jsonl", ".parquet"])


@few
@given(logs(), configs(), FORMS, SUFFIXES, st.randoms())
def test_shuffled_rows_keep_their_weights(rows, config, form, suffix, random) -> None:
    shuffled = random.sample(rows, len(rows))
    assert weigh(shuffled, form, config, suffix) == weigh(rows, form, config, suffix)


@few
@given(logs(), configs(), FORMS, SUFFIXES, st.integers(1, 3))
def test_sharding_by_group_and_putting_together_changes_nothing(rows, config, form, suffix, shards) -> None:
    keys = list(dict.fromkeys(row["prompt_id"] for row in rows))
    parts = [[row for row in rows if keys.index(row["prompt_id"]) % shards == n] for n in range(shards)]
    together: Weights = {}
    for part in filter(None, parts):
        together |= weigh(part, form, config, suffix)
    assert together == weigh(rows, form, config, suffix)


@few
@given(
    plain_logs(st.just(["a", "b"])), plain_logs(st.just(["c", "d", "e"])), configs(), SUFFIXES, st.randoms()
)
def test_two_files_with_disjoint_groups_weigh_as_one(first, second, config, suffix, random) -> None:
    merged = random.sample(first + second, len(first) + len(second))
    apart = weigh(first, "log", config, suffix) | weigh(second, "log", config, suffix)
    assert weigh(merged, "log", config, suffix) == apart


@few
@given(logs(), configs())
def test_formats_and_forms_agree_with_the_arithmetic_in_memory(rows, config) -> None:
    expected = in_memory(rows, config)
    for suffix in (".jsonl", ".parquet"):
        for form in ("log", "side", "turns"):
            assert weigh(rows, form, config, suffix) == expected


@contextmanager
def tiny_batches(rows: int) -> Iterator[None]:
    """Batches of a few rows, and a ledger that is on disk after a few bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(READING, "BATCH", rows)
        patch.setattr(drift_weights.ledger, "_IN_MEMORY", 16)
        patch.setattr(drift_weights.sources, "TABLE_ROWS", rows)
        yield


@few
@given(plain_logs(), configs(), FORMS, SUFFIXES, st.integers(1, 3))
def test_groups_may_be_split_over_batches(rows, config, form, suffix, size) -> None:
    whole = weigh(rows, form, config, suffix)
    with tiny_batches(size):
        assert weigh(rows, form, config, suffix) == whole


@few
@given(chat_logs(), configs(), FORMS, SUFFIXES)
def test_dialogues_may_be_split_over_batches(rows, config, form, suffix) -> None:
    # As many rows as make batches of 16, of which Parquet is read a row at a time.
    copies = range(20 // len(rows) + 1)
    rows = [row | {"prompt_id": f"{row['prompt_id']}-{n}"} for n in copies for row in rows]
    whole = weigh(rows, form, config, suffix)
    with tiny_batches(16):
        assert weigh(rows, form, config, suffix) == whole


def test_the_small_batches_of_these_laws_are_batches_on_disk() -> None:
    rows = [{"prompt_id": "q", "sample": n, "correct": n % 2} for n in range(8)]
    with scratch() as folder, tiny_batches(3):
        log = open_log(write_log(folder / "log.jsonl", rows))
        ledger = drift_weights.ledger.Ledger()
        for outcomes in log.outcomes():
            ledger.add(outcomes)
        assert [len(entry.code_N) for entry in ledger.entries()] == [3, 3, 2]
        assert ledger._file._rolled


@few
@given(logs(), configs(), SUFFIXES)
def test_reweighting_a_reweighted_log_changes_no_byte(rows, config, suffix) -> None:
    with scratch() as folder:
        source = write_log(folder / f"log{suffix}", rows)
        once, twice = folder / f"once{suffix}", folder / f"twice{suffix}"
        reweight_file(source, once, config, RESPONSES, format="chat")
        reweight_file(once, twice, config, RESPONSES, format="chat")
        assert twice.read_bytes() == once.read_bytes()


@few
@given(logs(), configs(), configs(), SUFFIXES)
def test_other_settings_in_between_leave_no_trace(rows, config, other, suffix) -> None:
    with scratch() as folder:
        source = write_log(folder / f"log{suffix}", rows)
        reweight_file(source, folder / f"once{suffix}", config, RESPONSES, format="chat")
        reweight_file(source, folder / f"other{suffix}", other, RESPONSES, format="chat")
        reweight_file(folder / f"other{suffix}", folder / f"back{suffix}", config, RESPONSES, format="chat")
        assert (folder / f"back{suffix}").read_bytes() == (folder / f"once{suffix}").read_bytes()


@few
@given(logs(), configs())
def test_reweighting_weighted_turns_changes_no_byte(rows, config) -> None:
    with scratch() as folder:
        source = write_log(folder / "log.jsonl", rows)
        reweight_file(source, folder / "once", config, RESPONSES, form="turns", format="chat")
        reweight_file(folder / "once", folder / "twice", config)
        shards = [folder / name / "data" / "part-00000.parquet" for name in ("once", "twice")]
        assert shards[0].read_bytes() == shards[1].read_bytes()


@few
@given(plain_logs(), configs(), SUFFIXES)
def test_dropping_all_wrong_groups_leaves_the_others_weights(rows, config, suffix) -> None:
    right = {row["prompt_id"] for row in rows if row["correct"]}
    assume(right)
    expected = {key: weight for key, weight in in_memory(rows, config).items() if key[0] in right}
    with scratch() as folder:
        source = write_log(folder / f"log{suffix}", rows)
        reweight_file(source, folder / f"out{suffix}", replace(config, all_wrong="drop"))
        reweight_file(source, folder / "side.parquet", replace(config, all_wrong="drop"), form="side")
        found = read_log(folder / f"out{suffix}")
        assert by_key(found, [row["weight"] for row in found]) == expected
        side = pq.read_table(folder / "side.parquet").to_pylist()
        assert by_key([rows[row["row"]] for row in side], [row["weight"] for row in side]) == expected


@few
@given(plain_logs(), SUFFIXES, st.floats(-3, 3), configs())
def test_a_return_of_the_logs_own_is_weighed_as_it_is(rows, suffix, shift, config) -> None:
    rows = [row | {"score": shift + row["correct"] / row["length"]} for row in rows]
    expected = group_weights(
        [row["score"] for row in rows], [row["prompt_id"] for row in rows], beta=config.beta
    )
    with scratch() as folder:
        source = write_log(folder / f"log{suffix}", rows)
        columns = Columns(group="prompt_id", return_column="score")
        reweight_file(source, folder / "side.parquet", config, columns, form="side")
        assert pq.read_table(folder / "side.parquet")["weight"].to_pylist() == expected.tolist()


ANSWERS = st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=4)
TRAJECTORIES = st.lists(st.lists(st.tuples(ANSWERS, st.booleans()), min_size=1, max_size=5), min_size=1)


@few
@given(TRAJECTORIES, configs(), st.sampled_from(["turns", "side"]), st.randoms(), st.integers(1, 3))
def test_trajectories_obey_the_same_laws(groups, config, form, random, size) -> None:
    records = [
        trajectory(f"g{g}", k, answers, ended="solved" if solved else "budget")
        for g, rows in enumerate(groups)
        for k, (answers, solved) in enumerate(rows)
    ]
    keys = [(record.prompt_id, record.sample) for record in records]
    returns = trajectory_return(
        [record.solved for record in records],
        [record.length for record in records],
        [record.unique_answers("count") for record in records],
        gamma=config.gamma,
        lam=config.lam,
    )
    weights = group_weights(returns, [record.prompt_id for record in records], beta=config.beta)
    expected = dict(zip(keys, weights.tolist(), strict=True))
    shuffled = random.sample(records, len(records))
    with scratch() as folder, tiny_batches(size):
        write_folder(folder / "rollout", to_table(shuffled), "trajectories", {})
        target = folder / ("turns" if form == "turns" else "side.parquet")
        reweight_file(folder / "rollout", target, config, form=form)
        if form == "turns":
            found = read_folder(target, "weighted")[0].to_pylist()
            named = {(row["prompt_id"], row["sample"]): row["weight"] for row in found}
        else:
            found = pq.read_table(target).to_pylist()
            named = {
                (shuffled[row["row"]].prompt_id, shuffled[row["row"]].sample): row["weight"]
                for row in found
            }
        assert named == expected


def exact_weights(rows: Rows, config: WeightConfig) -> dict[tuple[Any, int], Any]:
    """Eq. 12 in fractions, eq. 13 in 60 digits, from the rows alone."""
    gamma, lam, beta = (Fraction(value) for value in (config.gamma, config.lam, config.beta))
    with mpmath.workdps(60):

        def tilt(row: dict[str, Any]) -> Any:
            length, unique = turns_of(row)
            value = (row["correct"] * gamma ** (length - 1) - lam * (1 - Fraction(unique, length))) / beta
            return mpmath.exp(mpmath.mpf(value.numerator) / value.denominator)

        found = {}
        for row in rows:
            group = [tilt(other) for other in rows if other["prompt_id"] == row["prompt_id"]]
            found[row["prompt_id"], row["sample"]] = tilt(row) * len(group) / mpmath.fsum(group)
        return found


@few
@given(logs(), configs(), FORMS, SUFFIXES)
def test_weights_are_those_of_the_definitions(rows, config, form, suffix) -> None:
    exact = exact_weights(rows, config)
    found = weigh(rows, form, config, suffix)
    assert found.keys() == exact.keys()
    # A return is wrong by a few units in its last place, which exp(R/β) multiplies by its exponent.
    tolerance = 1e-15 * (16 + 8 * (1 + config.lam) / config.beta)
    for key, weight in found.items():
        assert abs(weight - exact[key]) <= tolerance * max(exact[key], mpmath.mpf(10) ** -300)


@pytest.mark.parametrize("size", [3, 4, 8])
def test_groups_of_the_usual_sizes_have_weights_that_sum_to_their_size(size: int) -> None:
    rows = [
        {"prompt_id": f"q{g}", "sample": k, "correct": int(k < g), "prompt": "?", "completion": "!"}
        for k in range(size)
        for g in range(3)
    ]
    found = weigh(rows, "log", WeightConfig(group_size=size))
    for group in range(3):
        total = sum(weight for (prompt_id, _), weight in found.items() if prompt_id == f"q{group}")
        assert total == pytest.approx(size, rel=1e-14)
