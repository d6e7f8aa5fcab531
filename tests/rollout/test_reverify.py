"""A log judged again: where its dialogues end then, what is kept, what is counted, and what is refused."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_rollout import (
    ChoiceVerifier,
    Completion,
    ExactVerifier,
    Journal,
    Protocol,
    RolloutConfig,
    ScriptedEngine,
    Verified,
    make_problem,
    problem_set,
)
from drift_rollout.cli import main
from drift_rollout.regrade import regrade
from drift_rollout.reverify import check_reverify, reverify
from drift_rollout.run import filled_journal, rollout
from drift_rollout.stored_log import open_log
from drift_weights import Message, Trajectory, Turn, from_table, read_folder, to_table
from drift_weights.checking import check_trajectories
from drift_weights.cli import main as weights
from drift_weights.folder import write_folder
from drift_weights.types import VERDICTS
from strategies import trajectories
from tiny import bpe_tokenizer

ROLLOUT = {
    "policy": "p",
    "verifier": "old/1",
    "protocol": {"max_turns": 3, "feedback": "again"},
    "samples": 2,
    "prefill": "",
}
ANSWERS = {"correct": "b", "wrong": "a", "malformed": None, "timeout": None, "error": None}


@dataclass(frozen=True)
class Said:
    """Judges by the last word of a response, whatever the target, and notes what it is asked."""

    name: str = "said/1"
    asked: list[tuple[str, str]] = field(default_factory=list)
    refused: tuple[str, ...] = ()

    def check_target(self, target: str) -> None:
        if target in self.refused:
            raise ValueError(f"{target!r} is no gold")

    def verify(self, response: str, target: str) -> Verified:
        self.asked.append((response, target))
        verdict = response.split()[-1]
        return Verified(answer=ANSWERS[verdict], verdict=verdict)


def dialogue(
    was: Sequence[str],
    now: Sequence[str],
    *,
    prompt_id: str = "q",
    sample: int = 0,
    max_turns: int = 3,
    ended: str = "budget",
    tokens: bool = False,
    **changes: Any,
) -> Trajectory:
    """Turns that the log calls `was` and `Said` calls `now`."""
    last = len(was) - 1
    turns = tuple(
        Turn(
            response=f"{prompt_id} {sample} turn {n} is {later}",
            answer=None if ANSWERS[before] is None else f"old {before}",
            verdict=before,
            feedback=None if n == last else "again",
        )
        for n, (before, later) in enumerate(zip(was, now, strict=True))
    )
    ids: dict[str, Any] = {}
    if tokens:
        # Two ids of the prompt or the feedback ahead of each turn of one, two … ids.
        spans, at = [], 0
        for n in range(len(was)):
            spans.append((at + 2, at + 3 + n))
            at += 3 + n
        logprobs = tuple(-float(n) for n in range(sum(b - a for a, b in spans)))
        ids = {"token_ids": tuple(range(at)), "response_spans": tuple(spans), "logprobs": logprobs}
    ending = {"correct": "solved", "timeout": "error", "error": "error"}.get(was[-1], ended)
    return Trajectory(
        **{
            "prompt_id": prompt_id,
            "sample": sample,
            "policy": "p",
            "prompt": (Message(role="user", content=prompt_id),),
            "target": "gold",
            "turns": turns,
            "max_turns": max_turns,
            "ended": ending,
            "metadata": {"level": 5},
            **ids,
            **changes,
        }
    )


def stored(path: Path, rows: Sequence[Trajectory], **rollout: Any) -> Path:
    return write_folder(path, to_table(rows), "trajectories", {"rollout": {**ROLLOUT, **rollout}})


def read(path: Path) -> tuple[list[Trajectory], dict[str, Any]]:
    table, manifest = read_folder(path, "trajectories")
    return list(from_table(check_trajectories(table))), manifest


def verified(now: Sequence[str]) -> list[Verified]:
    return [Verified(answer=ANSWERS[verdict], verdict=verdict) for verdict in now]


W, C, M, T, E = "wrong", "correct", "malformed", "timeout", "error"


@pytest.mark.parametrize(
    ("was", "now", "kept", "ended", "unfinished"),
    [
        ([W, C], [W, C], [W, C], "solved", False),
        ([W, C], [C, C], [C], "solved", False),
        ([W, M, C], [W, C, W], [W, C], "solved", False),
        ([W, W, W], [W, W, C], [W, W, C], "solved", False),
        ([W, W, W], [M, W, M], [M, W, M], "budget", False),
        ([W, W, C], [W, W, W], [W, W, W], "budget", False),
        ([C], [W], [E], "error", True),
        ([W, C], [W, M], [W, E], "error", True),
        ([W, T], [W, W], [W, E], "error", True),
        ([W, T], [W, C], [W, C], "solved", False),
        ([W, W, T], [W, W, M], [W, W, M], "budget", False),
        ([W, C], [T, C], [T], "error", False),
        ([W, W, W], [W, E, C], [W, E], "error", False),
    ],
)
def test_a_dialogue_ends_where_it_would_have(
    was: list[str], now: list[str], kept: list[str], ended: str, unfinished: bool
) -> None:
    row = regrade(dialogue(was, now), verified(now), verifier="old/1")
    assert [turn.verdict for turn in row.after.turns] == kept
    assert (row.after.ended, row.unfinished) == (ended, unfinished)
    assert row.after.metadata["reverified"]["new_verdicts"] == now


def test_a_full_context_stays_the_reason() -> None:
    row = regrade(dialogue([W, W], [M, W], ended="context"), verified([M, W]), verifier=None)
    assert row.after.ended == "context"


def test_tokens_are_cut_with_their_turns() -> None:
    before = dialogue([W, W, C], [W, C, C], tokens=True)
    after = regrade(before, verified([W, C, C]), verifier="old/1").after
    assert after.token_ids == (0, 1, 2, 3, 4, 5, 6)
    assert after.response_spans == ((2, 3), (5, 7))
    assert after.logprobs == (0.0, -1.0, -2.0)


@given(trajectories(), st.data())
def test_laws_of_a_dialogue_judged_again(before: Trajectory, data: st.DataObject) -> None:
    """Valid, a beginning of the old one, over where it would have been, with both verdicts."""
    verdicts = st.lists(st.sampled_from(VERDICTS), min_size=before.length, max_size=before.length)
    now = data.draw(verdicts)
    row = regrade(before, verified(now), verifier="old/1")
    table = check_trajectories(to_table([row.after]))
    assert list(from_table(table)) == [row.after]
    after, length = row.after, row.after.length
    assert [t.response for t in after.turns] == [t.response for t in before.turns][:length]
    assert [t.finish_reason for t in after.turns] == [t.finish_reason for t in before.turns][:length]
    assert all(verdict in (W, M) for verdict in now[: length - 1])
    assert length == before.length or now[length - 1] in (C, T, E)
    assert after.solved == (C in now and all(v in (W, M) for v in now[: now.index(C)]))
    assert after.scored or row.unfinished or now[length - 1] in (T, E)
    if row.unfinished:
        assert before.ended in ("solved", "error")
        assert length < before.max_turns
    if before.token_ids is not None:
        assert after.token_ids == before.token_ids[: before.response_spans[length - 1][1]]
    both = after.metadata["reverified"]
    assert both["verdicts"] == [turn.verdict for turn in before.turns]
    assert both["answers"] == [turn.answer for turn in before.turns]
    assert both["new_verdicts"] == now
    assert {**after.metadata, "reverified": None} == {**before.metadata, "reverified": None}
    assert after.key == before.key


def test_a_folder_keeps_both_verdicts_and_says_what_it_was_made_of(tmp_path: Path) -> None:
    rows = [dialogue([W, C], [C, C], sample=0, tokens=True), dialogue([W, W, W], [W, M, W], sample=1)]
    old = stored(tmp_path / "old", rows)
    changes = reverify(open_log(old), tmp_path / "new", Said())
    found, manifest = read(tmp_path / "new")
    assert [row.key for row in found] == [row.key for row in rows]
    assert found[0].metadata == {
        "level": 5,
        "reverified": {
            "verifier": "old/1",
            "ended": "solved",
            "verdicts": [W, C],
            "answers": ["old wrong", "old correct"],
            "new_verdicts": [C, C],
            "new_answers": ["b", "b"],
        },
    }
    assert [turn.answer for turn in found[1].turns] == ["a", None, "a"]
    assert manifest["rollout"] == {**ROLLOUT, "verifier": "said/1"}
    said = manifest["reverified"]
    before = json.loads((old / "drift.json").read_text())
    assert said["source"] == {"path": "old", "manifest": before}
    assert said["verifier"] == {"before": "old/1", "now": "said/1"}
    assert said["turns"] == [
        {"before": C, "now": C, "count": 1},
        {"before": W, "now": C, "count": 1},
        {"before": W, "now": M, "count": 1},
        {"before": W, "now": W, "count": 2},
    ]
    assert (said["cut_turns"], changes.cut) == (1, 1)


def test_a_group_with_a_dialogue_that_would_have_gone_on_gets_no_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        dialogue(was, now, prompt_id=name, sample=sample)
        for name, pair in {
            "a": (([C], [W]), ([W, W, W], [W, W, W])),
            "b": (([C], [C]), ([W, W, W], [W, W, C])),
        }.items()
        for sample, (was, now) in enumerate(pair)
    ]
    changes = reverify(open_log(stored(tmp_path / "old", rows)), tmp_path / "new", Said())
    assert (changes.unfinished, changes.unscored) == (1, 0)
    found, manifest = read(tmp_path / "new")
    assert found[0].ended == "error"
    assert found[0].metadata["reverified"]["new_verdicts"] == [W]
    assert manifest["rollout"]["samples"] == 2
    capsys.readouterr()
    weights(["reweight", str(tmp_path / "new"), str(tmp_path / "weighted")])
    said = " ".join("".join(capsys.readouterr()).split())
    assert "1 groups hold an unscored row and are left out whole; by the verifier that judged" in said
    assert "1 dialogues would have gone on and were never sampled further" in said
    assert "sample them again" not in said
    weighted, said = read_folder(tmp_path / "weighted", "weighted")
    assert weighted["prompt_id"].to_pylist() == ["b", "b"]
    assert [group["prompt_id"] for group in said["omitted_groups"]] == ["a"]


def test_an_engine_error_stays_one_and_is_not_judged(tmp_path: Path) -> None:
    failed = dialogue([W, E], [W, C], sample=1)
    last = replace(failed.turns[-1], response="", answer=None, finish_reason="error")
    rows = [dialogue([W, E], [W, C]), replace(failed, turns=(failed.turns[0], last))]
    judge = Said()
    changes = reverify(open_log(stored(tmp_path / "old", rows)), tmp_path / "new", judge)
    assert [row.ended for row in read(tmp_path / "new")[0]] == ["solved", "error"]
    assert all(response for response, _ in judge.asked)
    assert len(judge.asked) == 3
    assert (changes.unfinished, changes.unscored) == (0, 1)


def many(count: int, seed: int = 0) -> list[Trajectory]:
    """Dialogues of any verdicts, of two policies and two budgets."""
    draw = random.Random(seed)
    rows = []
    for sample in range(count):
        rejected = [draw.choice([W, M]) for _ in range(draw.randrange(3))]
        was = [*rejected, draw.choice([C, C, C, W, M, T])]
        now = [draw.choice([C, W, W, W, M]) for _ in was]
        budget = draw.choice([3, 5])
        rows.append(dialogue(was, now, sample=sample, max_turns=budget, policy=draw.choice("pq")))
    return rows


def test_accuracies_and_spelling_are_a_brute_force_count(tmp_path: Path) -> None:
    rows = many(400)
    changes = reverify(open_log(stored(tmp_path / "old", rows)), tmp_path / "new", Said())
    new = {row.sample: row for row in read(tmp_path / "new")[0]}
    assert len(changes.tallies) == 4
    for (policy, budget), tally in changes.tallies.items():
        mine = [row for row in rows if (row.policy, row.max_turns) == (policy, budget)]
        now = {row.sample: [turn.response.split()[-1] for turn in row.turns] for row in mine}
        corrected = [row for row in mine if row.turns[-1].verdict == C and len(row.turns) > 1]
        respelled = [row for row in corrected if C in now[row.sample][:-1]]
        assert tally.dialogues == len(mine)
        assert (tally.corrected, tally.respelled) == (len(corrected), len(respelled))
        assert tally.first_before == sum(row.turns[0].verdict == C for row in mine)
        assert tally.first_now == sum(now[row.sample][0] == C for row in mine)
        assert tally.solved_before - tally.first_before == tally.corrected
        assert tally.solved_now == sum(C in now[row.sample] for row in mine)
        assert tally.open_before == sum(row.turns[-1].verdict == T for row in mine)
        assert tally.open_now == sum(new[row.sample].ended == "error" for row in mine)
        assert 0 < tally.respelled < tally.corrected
    assert changes.turns.total() == sum(row.length for row in rows)
    assert changes.cut == sum(row.length - new[row.sample].length for row in rows) > 0


class Shuffled(Said):
    """Takes its time, so that verdicts come in another order than they were asked for."""

    concurrency = 4

    def verify(self, response: str, target: str) -> Verified:
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(random.random() / 200)
        return super().verify(response, target)


def test_the_order_of_verdicts_changes_nothing(tmp_path: Path) -> None:
    old = stored(tmp_path / "old", many(60))
    for name, judge in {"inline": Said(), "threads": Shuffled()}.items():
        reverify(open_log(old), tmp_path / name, judge)
    shards = [(tmp_path / name / "data/part-00000.parquet").read_bytes() for name in ("inline", "threads")]
    assert shards[0] == shards[1]
    assert read(tmp_path / "inline")[1]["reverified"] == read(tmp_path / "threads")[1]["reverified"]


def test_what_was_said_alike_is_judged_once_a_batch_and_batches_are_small(tmp_path: Path) -> None:
    turn = Turn(response="it is wrong", answer="x", verdict=C)
    rows = [
        dialogue([C], [W], sample=n, turns=(turn,), target=f"gold {n % 2}", prompt_id=f"q{n % 2}")
        for n in range(600)
    ]
    judge, sizes = Said(), []
    reverify(
        open_log(stored(tmp_path / "old", rows)), tmp_path / "new", judge, advance=lambda n: sizes.append(n)
    )
    assert sum(sizes) == 600
    assert max(sizes) <= 512
    assert len(judge.asked) == 2 * len(sizes)
    assert set(judge.asked) == {("it is wrong", "gold 0"), ("it is wrong", "gold 1")}


@pytest.mark.parametrize(
    ("known", "given_prefill", "opened"),
    [
        ({"prefill": "<think>"}, None, "<think>"),
        ({"opened": "<think>"}, None, "<think>"),
        ({}, "<think>", "<think>"),
        ({"prefill": "<think>"}, "", ""),
        ({}, None, ""),
    ],
)
def test_what_the_assistant_had_said_before_is_judged_too(
    tmp_path: Path, known: dict[str, str], given_prefill: str | None, opened: str
) -> None:
    """A thought that the prompt opened and nobody closed holds no answer."""
    turn = Turn(response="<answer> gold </answer>", answer="gold", verdict=C)
    old = stored(tmp_path / "old", [dialogue([C], [C], turns=(turn,), max_turns=1)], **known)
    reverify(open_log(old), tmp_path / "new", ExactVerifier(), prefill=given_prefill)
    found, manifest = read(tmp_path / "new")
    assert found[0].turns[0].verdict == (M if opened else C)
    assert found[0].turns[0].response == "<answer> gold </answer>"
    assert manifest["reverified"]["prefill"] == opened


def test_a_run_notes_the_thought_that_its_template_opens(tmp_path: Path) -> None:
    thinking, plain = bpe_tokenizer(), bpe_tokenizer()
    opening = "<|im_start|>assistant\n"
    assert opening in thinking.chat_template.replace("\\n", "\n")
    thinking.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    problems = problem_set([make_problem((Message(role="user", content="q"),), "1")], source="here")

    def thought(request: Any) -> Completion:
        text = "</think> <answer> 1 </answer>"
        return Completion(id=request.id, text=text, token_ids=(1,), logprobs=(0.0,))

    for name, tokenizer in {"thinking": thinking, "plain": plain}.items():
        engine = ScriptedEngine(thought, tokenizer=tokenizer)
        rollout(problems, engine, ExactVerifier(), RolloutConfig(samples=1), tmp_path / name)
    said = [read(tmp_path / name / "trajectories")[1]["rollout"] for name in ("thinking", "plain")]
    assert [rollout.get("opened") for rollout in said] == ["<think>", None]


LETTERS = [make_problem((Message(role="user", content=f"q{n}"),), letter) for n, letter in enumerate("AB")]


def letters(answers: Sequence[str]) -> ScriptedEngine:
    def script(request: Any) -> Completion:
        turn = sum(message.role == "assistant" for message in request.messages)
        return Completion(id=request.id, text=f"<answer> {answers[turn]} </answer>")

    return ScriptedEngine(script)


CONFIG = RolloutConfig(samples=2, protocol=Protocol(max_turns=2))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two problems × two samples that answer (B), then B; `exact` calls the first answer wrong."""
    problems = problem_set(LETTERS, source="here")
    rollout(problems, letters(["(B)", "B"]), ExactVerifier(), CONFIG, tmp_path / "run")
    return tmp_path / "run"


def test_every_place_of_a_log_gives_the_same(run: Path, tmp_path: Path) -> None:
    """A run's folder before and after its export, its trajectories folder, and the shard as a file."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "journal.sqlite").write_bytes((run / "journal.sqlite").read_bytes())
    file = next((run / "trajectories" / "data").iterdir())
    backwards = list(reversed(pq.read_schema(file).names))
    pq.write_table(pq.read_table(file).select(backwards), tmp_path / "a.parquet")
    places = {
        run: run / "trajectories",
        run / "trajectories": run / "trajectories",
        tmp_path / "bare": tmp_path / "bare" / "journal.sqlite",
        tmp_path / "a.parquet": tmp_path / "a.parquet",
    }
    found = []
    for number, (place, taken) in enumerate(places.items()):
        log = open_log(place)
        assert log.path == taken
        assert log.rows == 4
        reverify(log, tmp_path / f"new{number}", ChoiceVerifier())
        rows, manifest = read(tmp_path / f"new{number}")
        found.append([replace(row, metadata={}) for row in rows])
        source = manifest["reverified"]["source"]
        assert "sha256" in source or "sha256" in source.get("journal", {}) or source["manifest"]["shards"]
        before = manifest["reverified"]["verifier"]["before"]
        assert before == (None if place.suffix == ".parquet" else "exact/1")
    assert found[0] == found[1] == found[2] == found[3]


def test_the_journal_declares_k_only_for_whole_groups(tmp_path: Path) -> None:
    problems = problem_set(LETTERS, source="here")
    with filled_journal(problems, letters(["B", "B"]), ExactVerifier(), CONFIG, tmp_path) as journal:
        plan = journal.plan
        assert plan is not None
        config = journal.config
    assert open_log(tmp_path).about["rollout"]["samples"] == 2
    with Journal(tmp_path / "journal.sqlite", config) as journal:
        journal.begin(replace(plan, samples=3))
    assert open_log(tmp_path).about["rollout"]["samples"] is None
    assert open_log(tmp_path).notes == ("the run is not complete: its journal holds 4 of 6 dialogues",)
    assert open_log(tmp_path).rows == 4
    with Journal(tmp_path / "journal.sqlite", config) as journal:
        journal.begin(replace(plan, samples=1))
    log = open_log(tmp_path)
    assert log.about["rollout"]["samples"] == 2
    assert log.notes == ()
    assert log.rows == sum(map(len, log.batches())) == 2


def test_a_journal_that_is_written_to_is_refused(tmp_path: Path) -> None:
    problems = problem_set(LETTERS, source="here")
    with (
        filled_journal(problems, letters(["B", "B"]), ExactVerifier(), CONFIG, tmp_path),
        pytest.raises(ValueError, match=r"a run is writing to .*journal.sqlite; wait for it, or take"),
    ):
        open_log(tmp_path)


def _weighted(path: Path) -> Path:
    old = stored(path / "old", [dialogue([C], [C], sample=n) for n in range(2)])
    weights(["reweight", str(old), str(path / "weighted")])
    return path / "weighted"


def _text(path: Path) -> Path:
    (path / "log.jsonl").write_text("{}\n")
    return path / "log.jsonl"


def _other(path: Path) -> Path:
    pq.write_table(pa.table({"prompt_id": ["a"], "target": ["b"]}), path / "other.parquet")
    return path / "other.parquet"


def _changed(path: Path) -> Path:
    folder = stored(path / "old", [dialogue([C], [C])])
    file = folder / "data" / "part-00000.parquet"
    file.write_bytes(file.read_bytes() + b"x")
    return folder


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_weighted, "holds weighted, expected trajectories"),
        (_text, r"read from a folder or a \.parquet file"),
        (_other, "it lacks the columns round, policy, sample, prompt, turns"),
        (_changed, "is not the file that drift.json vouches for"),
        (lambda path: path, r"holds no drift.json, no trajectories/ and no journal.sqlite"),
    ],
)
def test_another_kind_of_log_is_refused(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        open_log(make(tmp_path))


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="nowhere is not there; a log is a trajectories folder, the"
    ):
        open_log(tmp_path / "nowhere")


def test_a_row_that_is_no_dialogue_is_named(tmp_path: Path) -> None:
    table = to_table([dialogue([W, W, W], [W, W, W], sample=n) for n in range(300)])
    broken = table.to_pylist()
    broken[270]["ended"] = "solved"
    pq.write_table(pa.Table.from_pylist(broken, schema=table.schema), tmp_path / "old.parquet")
    with pytest.raises(ValueError, match=r"old.parquet, rows from 256, row 14: .*ended 'solved'"):
        reverify(open_log(tmp_path / "old.parquet"), tmp_path / "new", Said())
    assert not (tmp_path / "new").exists()


def test_columns_that_would_be_lost_are_named(tmp_path: Path) -> None:
    table = to_table([dialogue([C], [C])])
    pq.write_table(table.append_column("mine", pa.array([1])), tmp_path / "old.parquet")
    assert open_log(tmp_path / "old.parquet").notes == (
        "columns that the format does not know are left out: mine",
    )


@pytest.mark.parametrize(
    ("target", "says"),
    [(None, "has no target to verify against"), ("bad", "'bad' is no gold")],
)
def test_golds_are_held_against_the_verifier_before_anything_is_judged(
    tmp_path: Path, target: str | None, says: str
) -> None:
    rows = [dialogue([C], [C], prompt_id=f"q{n:02}", target=target) for n in range(12)]
    rows += [dialogue([C], [C], prompt_id="q00", sample=1, target=target), dialogue([C], [C])]
    judge = Said(refused=("bad",))
    with pytest.raises(ValueError, match="12 problems cannot be judged by said/1") as error:
        reverify(open_log(stored(tmp_path / "old", rows)), tmp_path / "new", judge)
    lines = str(error.value).splitlines()[1:]
    assert [line.split()[:2] for line in lines[:10]] == [
        ["problem", f"q{n:02}:" if target else f"q{n:02}"] for n in range(10)
    ]
    assert all(says in line for line in lines[:10])
    assert lines[10].strip() == "… and 2 more"
    assert judge.asked == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("targets", [(None, None), (None, "bad"), ("bad", "bad")])
def test_refused_targets_are_a_list_and_missing_ones_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], targets: tuple[str | None, ...]
) -> None:
    rows = [dialogue([C], [C], prompt_id=f"q{n}", target=target) for n, target in enumerate(targets)]
    words = ["reverify", str(stored(tmp_path / "old", rows)), str(tmp_path / "new"), "--verifier=choice"]
    with pytest.raises(SystemExit):
        main(words)
    head, *items = capsys.readouterr().err.splitlines()
    assert [item[:12] for item in items] == ["  problem q0", "  problem q1"]
    missing = targets.count(None)
    needed = f"{missing} have no target, and every verifier needs one: give them their gold answers"
    assert (needed in head) == (missing > 0)
    assert ("choose another verifier" in head) == (missing < 2)


def test_what_is_there_stays_unless_told_otherwise(run: Path, tmp_path: Path) -> None:
    new, log = tmp_path / "new", open_log(run)
    reverify(log, new, ChoiceVerifier())
    before = (new / "drift.json").read_bytes()
    for refused in (reverify, check_reverify):
        with pytest.raises(FileExistsError, match="new exists; choose another output"):
            refused(log, new, ExactVerifier())
    assert (new / "drift.json").read_bytes() == before
    reverify(log, new, ExactVerifier(), overwrite=True)
    assert read(new)[1]["rollout"]["verifier"] == "exact/1"


@pytest.mark.parametrize("place", ["run/trajectories", "run"])
@pytest.mark.parametrize("exported", [True, False])
def test_a_log_is_never_replaced_by_its_verdicts(
    run: Path, tmp_path: Path, place: str, exported: bool
) -> None:
    if not exported:
        (run / "trajectories").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="is the place of the log itself"):
        reverify(open_log(run), tmp_path / place, ChoiceVerifier(), overwrite=True)


def test_verdicts_of_verdicts_are_refused(run: Path, tmp_path: Path) -> None:
    reverify(open_log(run), tmp_path / "new", ChoiceVerifier())
    with pytest.raises(ValueError, match="was re-verified before and may have lost turns; take the log"):
        reverify(open_log(tmp_path / "new"), tmp_path / "newer", ExactVerifier())
    assert not (tmp_path / "newer").exists()


def test_the_command_says_what_changed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of problem B both samples answer (B), which `choice` calls right: the correction was spelling."""
    monkeypatch.setenv("COLUMNS", "100")
    main(["reverify", str(run), str(tmp_path / "new"), "--verifier", "choice", "--examples", "1"])
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    b = LETTERS[1].prompt_id
    assert shown == [
        f"took {run}/trajectories: 4 dialogues of 2 problems, judged by exact/1, now by choice/2",
        "2 of 8 verdicts changed; rows exact/1, columns choice/2",
        "correct wrong",
        "correct 2 0",
        "wrong 2 4",
        "wrong → correct, 1 of 2:",
        f"gold 'B', answer '(b)', now 'B': turn 1, sample 0, {b}",
        "policy k dialogues acc@1 multi@k not known",
        "scripted 2 4 0.0% → 50.0% 50.0% → 50.0% 0.0% → 0.0%",
        "exact/1 saw 2 of 4 dialogues corrected after turn 1 (multi@2 − acc@1 = 50.0%); in 2 of them "
        "choice/2 calls an earlier answer correct: 100.0% of that is spelling",
        "2 turns behind the end of their dialogue are cut",
        f"wrote {tmp_path}/new; next: drift-weights inspect {tmp_path}/new",
    ]
    rows, _ = read(tmp_path / "new")
    assert sorted(row.length for row in rows) == [1, 1, 2, 2]


def test_the_command_says_what_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`choice` takes `ab` for no letter, so a dialogue that `exact` called solved would have gone on."""
    problems = problem_set([make_problem((Message(role="user", content="q"),), "A")], source="here")
    rollout(problems, letters(["a"]), ExactVerifier(), replace(CONFIG, samples=1), tmp_path / "run")
    main(["reverify", str(tmp_path / "run"), str(tmp_path / "new"), "--verifier=choice"])
    shown = capsys.readouterr().out
    assert "correct → malformed, 1 of 1:\n  gold 'A', answer 'a', now none: turn 1, sample 0" in shown
    assert "100.0% → 0.0%  100.0% → 0.0%  0.0% → 100.0%" in shown
    assert "exact/1 saw no dialogue corrected after turn 1" in shown
    assert "1 dialogues would have gone on and were never sampled further: unscored (ended: error)" in shown


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("before", "given", "advised"),
    [
        ("math/1 math-verify=0.9.0 grammar=boxed percent=True", "answer", "boxed"),
        ("exact/1", "boxed", "answer"),
        ("exact/1 grammar=boxed", "boxed", None),
        ("exact/1", "answer", None),
        ("mine/1", "boxed", None),
    ],
)
def test_another_grammar_is_said_before_anything_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: str,
    given: str,
    advised: str | None,
    dry: bool,
) -> None:
    old = stored(tmp_path / "old", [dialogue([C], [C])], verifier=before)
    words = ["--verifier=exact", f"--verifier.grammar={given}", *(["--dry-run"] if dry else [])]
    main(["reverify", str(old), str(tmp_path / "new"), *words])
    second = capsys.readouterr().out.splitlines()[1]
    assert second.startswith(f"Note: {before} read answers by the grammar") == (advised is not None)
    assert advised is None or second.endswith(f"give --verifier.grammar {advised}")


def test_a_dry_run_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["reverify", str(run), str(tmp_path / "new"), "--verifier", "choice", "--dry-run"])
    assert capsys.readouterr().out == (
        f"took {run}/trajectories: 4 dialogues of 2 problems, judged by exact/1, now by choice/2\n"
        "dry run: choice/2 would judge; nothing is written\n"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "error: say by --verifier who is to judge now, such as --verifier choice"),
        (["--verifier", "nobody"], "error: verifier 'nobody' is none of exact, choice"),
        (["--verifier", "choice", "--examples=-1"], "error: examples must be at least 0, got -1"),
    ],
)
def test_a_mistake_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["reverify", str(run), str(tmp_path / "new"), *words])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith(says)
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()
