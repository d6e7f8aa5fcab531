"""Plain chat logs: which fields are read, and what messages say of turns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_weights.columns import Columns
from drift_weights.logs.chat import CHAT
from drift_weights.logs.messages import TRAILING
from drift_weights.logs.opening import open_log
from drift_weights.logs.reader import LogReader, Outcome

ASKED = {"role": "user", "content": "What is 3 + 4?"}
AGAIN = {"role": "user", "content": "Incorrect. Please think again."}


def said(*responses: Any) -> list[dict[str, Any]]:
    """A dialogue of these responses."""
    messages: list[dict[str, Any]] = []
    for response in responses:
        messages += [AGAIN if messages else ASKED, {"role": "assistant", "content": response}]
    return messages


def row(*responses: Any, **changes: Any) -> dict[str, Any]:
    return {"prompt_id": "q1", "correct": 1, "messages": said(*responses)} | changes


def pair(prompt: Any, completion: Any, **changes: Any) -> dict[str, Any]:
    return {"prompt_id": "q1", "correct": 0, "prompt": prompt, "completion": completion} | changes


def bind(found: dict[str, Any], columns: Columns | None = None, malformed: Any = "count") -> LogReader:
    return CHAT.bind(found, columns or Columns(), malformed)


def outcome(found: dict[str, Any], columns: Columns | None = None, malformed: Any = "count") -> Outcome:
    reader = bind(found, columns, malformed)
    return reader.outcome({name: found[name] for name in reader.fields})


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_dialogues_and_pairs_are_recognised_and_numbers_are_not() -> None:
    assert CHAT.sniff(row("7"))
    assert CHAT.sniff(pair("What is 3 + 4?", "7"))
    assert CHAT.sniff(row("7", messages=None))
    assert not CHAT.sniff({"prompt_id": "q1", "correct": 1})
    assert not CHAT.sniff({"prompt_id": "q1", "correct": 1, "messages": 4})


def test_turns_are_the_assistant_messages() -> None:
    assert outcome(row("7"))[:4] == (("q1",), 1, 1, 1)
    assert outcome(row("8", "9", "7"))[:4] == (("q1",), 1, 3, None)


def test_responses_are_answers_only_if_asked() -> None:
    responses = Columns(answers="responses")
    assert outcome(row("8", "9", "8"), responses)[2:5] == (3, 2, None)
    parts = [{"type": "text", "text": "8"}]
    assert outcome(row("8", parts, "7"), responses)[2:5] == (3, 2, None)


def test_a_response_without_text_is_malformed() -> None:
    responses = Columns(answers="responses")
    assert outcome(row("8", "", None), responses)[2:5] == (3, 2, None)
    assert outcome(row("8", None, None), responses)[2:5] == (3, 2, None)
    assert outcome(row("8", None, None), responses, "skip")[2:5] == (3, 1, 1)
    assert outcome(row(None), responses, "skip")[2:5] == (1, 0, 0)


def test_with_counted_turns_or_a_return_no_text_is_read() -> None:
    counted = row("8", "7", length=5, unique=2, sample=3, max_turns=5)
    assert bind(counted).fields == ("prompt_id", "sample", "correct", "length", "unique")
    assert outcome(counted)[:4] == (("q1",), 1, 5, 2)
    assert outcome(counted).sample == 3
    returned = row("8", "7", score=0.4)
    assert bind(returned, Columns(return_column="score")).fields == ("prompt_id", "correct", "score")


def test_columns_by_other_names() -> None:
    found = {"task": "q", "won": True, "dialogue": said("8", "7"), "steps": 4, "different": 3}
    named = Columns(group="task", correct="won", messages="dialogue")
    assert outcome(found, named)[:4] == (("q",), True, 2, None)
    named = Columns(group="task", correct="won", messages="dialogue", length="steps", unique="different")
    assert outcome(found, named)[:4] == (("q",), True, 4, 3)
    assert bind(found, named).dialogue(found).completion == "7"
    asked = {"q": "What?", "a": "7", "task": "q", "won": 1}
    named = Columns(group="task", correct="won", prompt="q", completion="a")
    assert bind(asked, named).dialogue(asked) == ([{"role": "user", "content": "What?"}], "7", "stop")


def test_rounds_and_policies_part_groups_unless_a_group_is_named() -> None:
    found = row("7", round=2, policy="base", sample=1)
    assert outcome(found).group == ("q1", 2, "base")
    assert outcome(found).sample == 1
    # Samples of several policies are numbered alike.
    mixed = outcome(found, Columns(group="prompt_id"))
    assert (mixed.group, mixed.sample) == (("q1",), None)


def test_a_completion_is_a_response_or_the_messages_of_its_turns() -> None:
    assert outcome(pair("What?", "7"))[:4] == (("q1",), 0, 1, 1)
    assert outcome(pair([ASKED], said("8", "7")[1:]))[2:4] == (2, None)
    # A first row speaks for no other in JSONL.
    reader = bind(pair("What?", "7"))
    assert reader.outcome(pair([ASKED], said("8", "7")[1:])).length == 2


def test_an_assistant_message_in_the_prompt_is_refused() -> None:
    found = pair(said("8", "9")[:3], "7")
    with pytest.raises(ValueError, match=r"prompt\[1\] is by the assistant.*--return-column"):
        outcome(found)
    assert outcome(found, Columns(return_column="correct")).length == 1
    assert outcome(found | {"length": 2, "unique": 2}).length == 2


BROKEN = {
    "expected a list of messages": row("7", messages="error: rate limit"),
    "is null, expected a list": row("7", messages=None),
    "holds no assistant message": row("7", messages=[ASKED]),
    "expected a message with role": row("7", messages=[ASKED, "7"]),
    "2 turns are more than 'max_turns', which is 1": row("8", "7", max_turns=1),
}


@pytest.mark.parametrize(("says", "found"), BROKEN.items(), ids=BROKEN)
def test_a_broken_dialogue_is_refused(says: str, found: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=says):
        outcome(found)


def test_a_budget_that_fits_is_fine() -> None:
    assert outcome(row("8", "7", max_turns=2)).length == 2


def test_what_is_missing_is_named_with_its_option() -> None:
    with pytest.raises(ValueError, match=r"no column 'prompt_id'.*--group"):
        bind({"id": "q1", "correct": 1, "messages": said("7")})
    with pytest.raises(ValueError, match=r"no column 'correct'.*reward.*--correct"):
        bind({"prompt_id": "q1", "reward": 1, "messages": said("7")})
    with pytest.raises(ValueError, match="'length' is there but 'unique' is not"):
        bind(row("7", length=3))
    with pytest.raises(ValueError, match=r"no column 'messages'.*--prompt"):
        bind({"prompt_id": "q1", "correct": 1, "question": "What?", "completion": "7"})


def test_the_last_assistant_message_is_terminal() -> None:
    found = row("8", "7", messages=[*said("8", "7"), AGAIN, {"role": "tool", "content": "4"}])
    assert outcome(found).note == TRAILING
    assert outcome(found).length == 2
    assert outcome(row("8", "7")).note is None
    dialogue = bind(found).dialogue(found)
    assert (list(dialogue.prompt), dialogue.completion) == (said("8", "7")[:3], "7")


def test_a_cut_response_says_so() -> None:
    for cut in ({"finish_reason": "length"}, {"is_truncated": True}):
        found = row("7", **cut)
        assert bind(found).dialogue(found).finish_reason == "length"
        found = pair("What?", "7", **cut)
        assert bind(found).dialogue(found).finish_reason == "length"
    for whole in ({"finish_reason": "stop"}, {"is_truncated": False}, {}):
        assert bind(row("7")).dialogue(row("7", **whole)).finish_reason == "stop"


UNTRAINABLE = {
    "is empty": row(""),
    "is null, expected text": row(None),
    "calls tools": row("7", messages=[ASKED, {"role": "assistant", "content": "", "tool_calls": [{}]}]),
    "'completion' is null": pair("What?", None),
    "'prompt' is null": pair(None, "7"),
    "no assistant message": pair("What?", [ASKED]),
    "'completion' holds no assistant": pair(said("8"), [AGAIN]),
    "expected text or a list of messages": pair("What?", ["7"]),
}


@pytest.mark.parametrize(("says", "found"), UNTRAINABLE.items(), ids=UNTRAINABLE)
def test_what_cannot_be_trained_on_is_refused(says: str, found: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=says):
        bind(found).dialogue(found)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_groups_of_three_four_and_eight(tmp_path: Path, suffix: str) -> None:
    rows = [
        row(*(["8"] * wrong), "7", prompt_id=f"p{size}", sample=wrong)
        for size in (3, 4, 8)
        for wrong in range(size)
    ]
    log = open_log(write(tmp_path / f"log{suffix}", rows), Columns(answers="responses"))
    batch = next(log.outcomes())
    assert log.format is CHAT
    assert [batch.key_columns[0].to_pylist().count(f"p{size}") for size in (3, 4, 8)] == [3, 4, 8]
    assert batch.length_N.tolist() == [wrong + 1 for size in (3, 4, 8) for wrong in range(size)]
    assert batch.unique_N.tolist() == [min(wrong + 1, 2) for size in (3, 4, 8) for wrong in range(size)]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_text_beside_counted_turns_changes_nothing(tmp_path: Path, suffix: str) -> None:
    rows = [row("8", "7", sample=n, length=n + 1, unique=1, correct=n % 2) for n in range(4)]
    bare = [{name: value for name, value in one.items() if name != "messages"} for one in rows]
    with_text = next(open_log(write(tmp_path / f"chat{suffix}", rows)).outcomes())
    without = next(open_log(write(tmp_path / f"table{suffix}", bare)).outcomes())
    for name in ("solved_N", "length_N", "unique_N", "counted_N"):
        assert getattr(with_text, name).tolist() == getattr(without, name).tolist()
    assert with_text.key_columns == without.key_columns
    assert with_text.sample == without.sample


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_turns_of_a_completion_are_counted_in_a_file(tmp_path: Path, suffix: str) -> None:
    rows = [pair([ASKED], said("8", "7")[1:]), pair([ASKED], said("7")[1:])]
    log = open_log(write(tmp_path / f"log{suffix}", rows), Columns(answers="responses"))
    assert next(log.outcomes()).length_N.tolist() == [2, 1]
