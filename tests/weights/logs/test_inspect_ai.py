"""Inspect's logs: scorers and letters, generated turns, archives, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import pytest

from drift_weights.columns import Columns
from drift_weights.logs.inspect_ai import INSPECT
from drift_weights.logs.messages import TRAILING
from drift_weights.logs.opening import open_log
from drift_weights.logs.reader import Outcome
from drift_weights.outcomes import Outcomes
from inspect_logs import AGAIN, ASKED, log, rows, said, sample, scored, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.json"


def outcome(
    path: Path, found: dict[str, Any], columns: Columns | None = None, malformed: Any = "count"
) -> Outcome:
    (row,) = rows(write(path, found))
    return INSPECT.bind(row, columns or Columns(), malformed).outcome(row)


def read(path: Path, columns: Columns | None = None) -> Outcomes:
    (batch,) = open_log(path, columns).outcomes()
    return batch


def test_a_log_is_recognised_and_other_objects_are_not() -> None:
    assert INSPECT.sniff(log(sample()))
    assert not INSPECT.sniff({"task_id": 7, "trial": 0, "reward": 1.0, "traj": []})


def test_a_sample_is_a_trajectory_of_its_id_and_its_epoch_a_number_in_the_group(path: Path) -> None:
    found = outcome(path, sample(said("8"), AGAIN, said("7"), epoch=2))
    assert (found.group, found.sample, found.reward) == ("sum-3", 2, 1)
    assert (found.length, found.unique, found.note) == (2, None, None)


@pytest.mark.parametrize(
    ("value", "reward"), [("C", 1), ("I", 0), ("N", 0), ("P", 0.5), (1, 1), (0.25, 0.25), (True, True)]
)
def test_letters_count_as_in_inspects_own_metrics(path: Path, value: Any, reward: float) -> None:
    assert outcome(path, sample(value=value)).reward == reward


@pytest.mark.parametrize("value", ["the container died", None, [1, 0]])
def test_a_value_that_is_no_verdict_is_refused(path: Path, value: Any) -> None:
    write(path, sample(), sample(value=value, epoch=2))
    with pytest.raises(
        ValueError, match=r"trajectory 1: 'scores\.match' is .*expected C, I, P, N or a number"
    ):
        read(path)


def test_partial_credit_needs_a_threshold_or_to_be_the_return(path: Path) -> None:
    write(path, sample(value="P"), sample(value="I", epoch=2))
    with pytest.raises(ValueError, match=r"scores\.match.*0\.5.*--threshold"):
        read(path)
    solved = read(path, Columns(threshold=0.5)).solved_N
    assert solved is not None
    assert solved.tolist() == [True, False]
    returns = read(path, Columns(return_column="scores.match")).return_N
    assert returns is not None
    assert returns.tolist() == [0.5, 0.0]


def test_of_several_scores_one_is_named(path: Path) -> None:
    scores = scored("I", rubric={"clear": 1.0, "brief": "C"})
    write(path, sample(scores=scores))
    with pytest.raises(
        ValueError, match=r"scores\.match, scores\.rubric\.clear, scores\.rubric\.brief; name"
    ):
        read(path)
    for name, right in (("scores.match", False), ("scores.rubric.brief", True)):
        solved = read(path, Columns(correct=name)).solved_N
        assert solved is not None
        assert solved.tolist() == [right]
    with pytest.raises(ValueError, match=r"scores\.style"):
        read(path, Columns(correct="scores.style"))


@pytest.mark.parametrize("scores", [None, {}])
def test_a_sample_that_was_not_scored_is_unscored(path: Path, scores: Any) -> None:
    broken = sample(scores=scores, epoch=2, error={"message": "sandbox timeout", "traceback": ""})
    write(path, sample(), broken)
    assert read(path).unscored_N.tolist() == [False, True]
    assert read(path, Columns(correct="scores.match")).unscored_N.tolist() == [False, True]
    write(path, broken, sample())
    with pytest.raises(
        ValueError, match=r"first sample was not scored \(sandbox timeout\); name the score"
    ):
        read(path)
    assert read(path, Columns(correct="scores.match")).unscored_N.tolist() == [True, False]


def test_assistant_messages_of_the_input_are_no_turns(path: Path) -> None:
    shot = {"role": "assistant", "content": "2", "source": "input"}
    assert outcome(path, sample(shot, AGAIN, said("7"))).length == 1
    with pytest.raises(ValueError, match="no generated message"):
        outcome(path, sample(shot))


def test_messages_behind_the_last_response_are_no_turn(path: Path) -> None:
    assert outcome(path, sample(said("8"), AGAIN)).note == TRAILING
    (row,) = rows(write(path, sample(said("8"), AGAIN, {**ASKED, "role": "assistant"})))
    found = INSPECT.bind(row, Columns(), "count").dialogue(row)
    assert found[:2] == ([{"role": "user", "content": "What is 3 + 4?"}], "8")


def test_responses_may_be_the_answers(path: Path) -> None:
    answers = Columns(answers="responses")
    found = sample(said("8"), AGAIN, said("8"), AGAIN, said(None), AGAIN, said("7"))
    assert outcome(path, found, answers)[2:5] == (4, 3, None)
    assert outcome(path, found, answers, "skip")[2:5] == (4, 2, 3)


def dialogue(path: Path, found: dict[str, Any]) -> Any:
    (row,) = rows(write(path, found))
    return INSPECT.bind(row, Columns(), "count").dialogue(row)


def test_the_terminal_turn_has_all_before_it_and_its_finish_reason(path: Path) -> None:
    found = dialogue(path, sample(said("8"), AGAIN, said("7")))
    contents = [message["content"] for message in found.prompt]
    assert contents == ["What is 3 + 4?", "8", "Wrong, try again."]
    assert (found.completion, found.finish_reason) == ("7", "stop")
    for reason in ("max_tokens", "model_length"):
        cut = dialogue(path, sample(output={"choices": [{"stop_reason": reason}]}))
        assert cut.finish_reason == "length"


def test_texts_stored_apart_are_put_back(path: Path) -> None:
    parts = [{"type": "text", "text": "attachment://b2"}]
    found = sample(said("attachment://a1"), AGAIN, said(parts), attachments={"a1": "long", "b2": "longer"})
    whole = dialogue(path, found)
    assert (whole.prompt[1]["content"], whole.completion) == ("long", "longer")
    with pytest.raises(ValueError, match="null"):
        dialogue(path, sample(said("attachment://c3")))


@pytest.mark.parametrize(
    "message",
    [
        said(None),
        said(""),
        said("", tool_calls=[{"id": "c1", "function": "add", "arguments": {}}]),
        said([{"type": "reasoning", "reasoning": "3 + 4"}, {"type": "text", "text": "7"}]),
    ],
)
def test_responses_that_are_not_text_are_refused(path: Path, message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="messages"):
        dialogue(path, sample(message))


@pytest.mark.parametrize("size", [3, 4, 8])
def test_groups_of_any_size(path: Path, size: int) -> None:
    epochs = range(1, size + 1)
    write(path, *(sample(id=name, epoch=epoch) for name in ("a", "b") for epoch in epochs))
    batch = read(path)
    assert batch.key_columns[0].to_pylist() == ["a"] * size + ["b"] * size
    assert batch.sample is not None
    assert batch.sample.to_pylist() == [*epochs, *epochs]


def test_string_and_number_ids_do_not_mix(path: Path) -> None:
    with pytest.raises(ValueError, match=r"trajectory 1: .*id"):
        read(write(path, sample(), sample(id=3)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"eval": {}, "samples": []}',
        b'{"eval": {}, "samples": [3]}',
        b'{"eval": {}, "samples": [{"id": 1}, {"id"',
        b'{"eval": {}, "samples": [{"id": 1, "scores": {"match": {"value": NaN}}}]}',
    ],
)
def test_what_is_no_log_with_samples_is_refused(path: Path, body: bytes) -> None:
    path.write_bytes(body)
    with pytest.raises(ValueError, match=r"log\.json"):
        rows(path)


def test_without_the_extra_an_archive_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(ImportError, match=r"pip install 'drift-weights\[inspect\]'"):
        rows(tmp_path / "log.eval")
