"""The DRIFT authors' JSONL: what a row says of L, E, the verdict, the penalty and the group."""

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_weights.columns import Columns
from drift_weights.logs.drift_jsonl import DRIFT
from drift_weights.logs.messages import TRAILING
from drift_weights.logs.opening import open_log
from drift_weights.logs.reader import Outcome
from drift_weights.returns import trajectory_return

BUDGET = 5


def row(
    *turns: Sequence[str], solved: bool = False, question: str = "What is 3 + 4?", **changes: Any
) -> dict[str, Any]:
    """A row of the MetaMathQA script; a turn is the answers that it gave, none where it is unreadable."""
    messages = [{"role": "system", "content": "You're a helpful assistant. "}]
    for turn in turns:
        asked = question if len(messages) == 1 else "Incorrect. Please think again."
        messages.append({"role": "user", "content": asked})
        messages.append(
            {"role": "assistant", "content": f"<think></think><answer>{' || '.join(turn)}</answer>"}
        )
    right = [solved and turn == len(turns) for turn in range(1, BUDGET + 1)]
    made = {
        "prompt_id": "sample_17",
        "gold": "7",
        "messages": messages,
        "verifier": {f"t{turn}": int(right[turn - 1]) for turn in range(1, BUDGET + 1)},
        "turn_rewards": {f"t{turn}": float(right[turn - 1]) for turn in range(1, BUDGET + 1)},
        "reward_details": {
            f"t{number}": {
                "env_reward": 0.0,
                "format_penalty": 0.0 if turn else -0.1,
                "actions": list(turn),
                "parsed_actions": list(turn),
                "info": {"success": solved and number == len(turns)},
            }
            for number, turn in enumerate(turns, start=1)
        },
        "t_star": len(turns) if solved else None,
        "answer_norms": [answer for turn in turns for answer in turn],
        "format_penalty": sum(0.0 if turn else -0.1 for turn in turns),
    }
    return made | changes


def math_row(*answers: str, solved: bool = False) -> dict[str, Any]:
    """A row of the MATH script: shaped rewards, no gold, one answer a turn, which may be empty."""
    made = row(*([answer] for answer in answers), solved=solved)
    del made["gold"], made["format_penalty"]
    last = f"t{len(answers)}"
    return made | {
        "turn_rewards": {turn: 3.3 if right else 0.7 for turn, right in made["verifier"].items()},
        "reward_details": {f"t{n}": {"correctness": 0.0, "xml": 0.5} for n in range(1, len(answers) + 1)},
        "t_star": len(answers) if made["verifier"][last] else None,
        "answer_norms": list(answers),
    }


def outcome(found: dict[str, Any], malformed: Any = "count") -> Outcome:
    return DRIFT.bind(found, Columns(), malformed).outcome(found)


def counts(found: dict[str, Any], malformed: Any = "count") -> tuple[Any, ...]:
    result = outcome(found, malformed)
    return result.reward, result.length, result.unique, result.counted


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_rows_of_both_scripts_are_recognised() -> None:
    assert DRIFT.sniff(row(["7"], solved=True))
    assert DRIFT.sniff(math_row("7", solved=True))


def test_verdicts_filled_up_to_the_budget_are_no_turns() -> None:
    assert counts(row(["8"], ["7"], solved=True)) == (1, 2, 2, 2)
    assert counts(row(["8"], ["8"], ["9"])) == (0, 3, 2, 3)
    assert counts(row(["7"], solved=True)) == (1, 1, 1, 1)


def test_an_unreadable_turn_is_one_more_answer_or_is_left_out() -> None:
    found = row([], ["8"], [], ["8"])
    assert counts(found) == (0, 4, 2, 4)
    assert counts(found, "skip") == (0, 4, 1, 2)
    assert counts(row(["8"], [""]), "skip") == (0, 2, 1, 1)
    assert counts(row([], []), "count") == (0, 2, 1, 2)
    assert counts(row([], []), "skip") == (0, 2, 0, 0)


def test_the_format_penalty_is_taken_under_skip_alone() -> None:
    found = row([], ["8"])
    assert outcome(found).penalty == 0
    assert outcome(found, "skip").penalty == -0.1
    assert "format_penalty" not in DRIFT.bind(found, Columns(), "count").fields
    assert outcome(math_row("8"), "skip").penalty == 0


def test_several_answers_in_a_turn_are_one_and_are_told() -> None:
    found = row(["7", "8"], ["8"], ["7", "8"])
    result = outcome(found)
    assert (result.length, result.unique, result.counted) == (3, 2, 3)
    assert "several answers" in (result.note or "")
    # Two answers and an unreadable turn are as many as two turns.
    assert counts(row(["7", "8"], [])) == (0, 2, 2, 2)
    assert counts(row(["7", "8"], []), "skip") == (0, 2, 1, 1)


def test_the_verdict_is_no_shaped_reward() -> None:
    assert counts(math_row("8", "7", solved=True)) == (1, 2, 2, 2)
    assert counts(math_row("8", "", "")) == (0, 3, 2, 3)
    assert counts(math_row("8", "", ""), "skip") == (0, 3, 1, 1)


def test_one_id_for_two_questions_with_one_gold_is_two_groups() -> None:
    groups = {outcome(row(["7"], question=q)).group for q in ("What is 3 + 4?", "What is 9 − 2?")}
    assert len(groups) == 2


def test_a_group_does_not_depend_on_how_a_message_is_written() -> None:
    found = row(["7"])
    turned = deepcopy(found)
    turned["messages"] = [dict(reversed(message.items())) for message in found["messages"]]
    assert outcome(turned).group == outcome(found).group
    assert outcome(row(["7"], ["8"], ["9"])).group == outcome(found).group
    assert outcome(row(["7"], prompt_id="sample_18")).group != outcome(found).group


def test_groups_of_three_four_and_eight(tmp_path: Path) -> None:
    rows = [
        row(["7"], solved=True, prompt_id=f"p{size}", question=str(size))
        for size in (3, 4, 8)
        for _ in range(size)
    ]
    log = open_log(write(tmp_path / "rollout.jsonl", rows))
    batch = next(log.outcomes())
    assert log.format is DRIFT
    sizes = [batch.key_columns[0].to_pylist().count(name) for name in ("p3", "p4", "p8")]
    assert sizes == [3, 4, 8]
    assert len(set(zip(*(column.to_pylist() for column in batch.key_columns), strict=True))) == 3


CONTRADICTIONS = {
    "budget of 'verifier' ends at 1": row(["8"], ["9"], verifier={"t1": 0}),
    "calls t1 right": row(["7"], ["8"], verifier={"t1": 1, "t2": 0}),
    "calls t1, t2 right": row(["7"], ["8"], verifier={"t1": 1, "t2": 1}),
    "calls t3 right": row(["7"], ["8"], verifier={"t1": 0, "t2": 0, "t3": 1}),
    "'t_star' is 1": row(["7"], ["8"], t_star=1),
    "'t_star' is None": row(["7"], solved=True, t_star=None),
    "speaks of 1 turns": row(["7"], ["8"], reward_details={"t1": {"actions": ["7"]}}),
    "speaks of 2;": row(["7"], ["8"], answer_norms=["7"]),
    "'answer_norms' is None": row(["7"], answer_norms=None),
    r"'answer_norms' is \[7\]": row(["7"], answer_norms=[7]),
    "1 answers for 2 turns": math_row("8", "9") | {"answer_norms": ["8"]},
    "'answer_norms' is error": row(["7"], answer_norms="error: timeout"),
    "expected a list of messages": row(["7"], messages="error: server went away"),
    "no assistant message": row(["7"], messages=[{"role": "user", "content": "What is 3 + 4?"}]),
    "expected an object of t1": row(["7"], verifier=[0]),
    "'actions'": row(["7"], reward_details={"t1": {"actions": 7}}),
    "group is unknown": row(["7"], messages=[{"role": "assistant", "content": "7"}]),
}


@pytest.mark.parametrize(("says", "found"), CONTRADICTIONS.items(), ids=CONTRADICTIONS)
def test_what_contradicts_itself_is_refused(says: str, found: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=says):
        outcome(found)


def test_a_penalty_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="'format_penalty' is 'none'"):
        outcome(row(["7"], format_penalty="none"), "skip")


def test_a_contradiction_is_reported_with_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rollout.jsonl", [row(["7"]), row(["8"], ["9"], t_star=2)])
    with pytest.raises(ValueError, match=r"rollout\.jsonl, line 2: 't_star' is 2"):
        list(open_log(path).outcomes())


def test_without_details_the_answers_that_are_missing_are_unreadable_turns() -> None:
    found = row([], ["8"], ["8"])
    del found["reward_details"]
    assert counts(found) == (0, 3, 2, 3)
    assert counts(found, "skip") == (0, 3, 1, 2)
    many = row(["7", "8"])
    del many["reward_details"]
    with pytest.raises(ValueError, match="2 answers for 1 turns"):
        outcome(many)


def test_the_last_assistant_message_is_terminal_whatever_follows() -> None:
    found = row(["8"], ["9"])
    found["messages"].append({"role": "user", "content": "Incorrect. Please think again."})
    reader = DRIFT.bind(found, Columns(), "count")
    assert reader.outcome(found).note == TRAILING
    assert reader.outcome(found).length == 2
    dialogue = reader.dialogue(found)
    assert dialogue.completion == "<think></think><answer>9</answer>"
    assert dialogue.prompt == found["messages"][:4]
    assert dialogue.finish_reason == "stop"


@pytest.mark.parametrize("content", [None, ""])
def test_a_response_without_text_is_counted_but_not_trained_on(content: str | None) -> None:
    found = row([], ["8"])
    found["messages"][-1]["content"] = content
    reader = DRIFT.bind(found, Columns(), "count")
    assert reader.outcome(found).length == 2
    with pytest.raises(ValueError, match="drop"):
        reader.dialogue(found)


def test_a_table_of_the_same_rows_says_the_same(tmp_path: Path) -> None:
    rows = [row(["8"], ["7"], solved=True), row([], ["8"], ["8"]), row(["7"], solved=True)]
    path = tmp_path / "rollout.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    jsonl = next(open_log(write(tmp_path / "rollout.jsonl", rows), malformed="skip").outcomes())
    table = next(open_log(path, format="drift", malformed="skip").outcomes())
    for name in ("solved_N", "length_N", "unique_N", "counted_N", "penalty_N"):
        assert getattr(table, name).tolist() == getattr(jsonl, name).tolist()
    assert jsonl.unique_N.tolist() == [2, 1, 1]
    assert jsonl.counted_N.tolist() == [2, 2, 1]


def released_return(found: dict[str, Any], gamma: float) -> float:
    """The released rule, term by term: Σ γ^(t−1) r_t, plus the format penalty, minus the repetition."""
    rewards = found["turn_rewards"]
    discounted = sum(gamma ** (t - 1) * rewards[f"t{t}"] for t in range(1, BUDGET + 1))
    distinct: list[str] = []
    for answer in found["answer_norms"]:
        if answer not in distinct:
            distinct.append(answer)
    repetition = 0.5 * (1 - len(distinct) / len(found["answer_norms"]))
    return float(discounted + found["format_penalty"] - repetition)


@given(
    st.lists(st.sampled_from(["7", "8", "9", None]), min_size=1, max_size=BUDGET).filter(any), st.booleans()
)
def test_skip_is_the_released_rule_where_a_turn_is_readable(
    answers: list[str | None], solved: bool
) -> None:
    found = row(*([] if a is None else [a] for a in answers), solved=solved and answers[-1] is not None)
    result = outcome(found, "skip")
    ours = trajectory_return(
        [result.reward],
        [result.length],
        [result.unique],
        counted_N=[result.counted],
        penalty_N=result.penalty,
        gamma=0.9,
        lam=0.5,
    )
    assert math.isclose(ours[0], released_return(found, 0.9), abs_tol=1e-12)


@given(st.lists(st.sampled_from(["7", "8", "9", None]), min_size=1, max_size=BUDGET), st.booleans())
def test_count_is_the_papers_rule(answers: list[str | None], solved: bool) -> None:
    solved = solved and answers[-1] is not None
    result = outcome(row(*([] if a is None else [a] for a in answers), solved=solved))
    ours = trajectory_return([result.reward], [result.length], [result.unique], counted_N=[result.counted])
    turns = len(answers)
    distinct = sum(answers.index(answer) == place for place, answer in enumerate(answers))
    expected = (0.9 ** (turns - 1) if solved else 0.0) - 0.5 * (1 - distinct / turns)
    assert math.isclose(ours[0], expected, abs_tol=1e-12)
    assert result.penalty == 0
