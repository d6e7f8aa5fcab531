"""The answer grammar, and M7 for `exact` and `choice`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_rollout import ChoiceVerifier, ExactVerifier, Verifier, extract_answer

TAGS = ["<answer>", "</answer>", "<think>", "</think>", "7"]
# Orders of one of each, so that well-formed and almost well-formed responses are common; and any mixture.
PIECES = st.permutations(TAGS).flatmap(
    lambda order: st.integers(3, 5).map(lambda count: list(order[:count]))
) | st.lists(st.sampled_from([*TAGS, " so ", "\n", "8"]), max_size=9)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think> x </think> <answer> 7 </answer>", "7"),
        ("<answer>7</answer>", "7"),
        ("<answer></answer>", ""),
        ("before <answer> a b </answer> after", "a b"),
        ("</think><answer>7</answer>", "7"),
        ("7", None),
        ("<answer>7", None),
        ("7</answer>", None),
        ("</answer>7<answer>", None),
        ("<answer>7</answer> <answer>7</answer>", None),
        ("<answer><answer>7</answer></answer>", None),
        ("<answer>7</answer></answer>", None),
        ("<think><answer>7</answer></think>", None),
        ("<answer>7</answer></think>", None),
        ("<think> a </think> <think> <answer>7</answer>", None),
        ("<answer>7</answer> <think> more", None),
        ("<thinking> x </thinking> <answer>7</answer>", "7"),
        ("<thinking> <answer>7</answer> </thinking>", None),
        ("<answer>7</answer> <final_answer>8</final_answer>", None),
        ("<answer>7 <Final Answer>8</Final Answer></answer>", None),
    ],
)
def test_grammar(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


@given(PIECES)
@settings(max_examples=400)
def test_only_one_answer_behind_all_thinking_is_ever_read(pieces: list[str]) -> None:
    answer = extract_answer("".join(pieces))
    # The oracle works on the list of pieces, not on the text.
    opens = [i for i, p in enumerate(pieces) if p == "<answer>"]
    closes = [i for i, p in enumerate(pieces) if p == "</answer>"]
    thinks = [i for i, p in enumerate(pieces) if p == "<think>"]
    ends = [i for i, p in enumerate(pieces) if p == "</think>"]
    last_end = max(ends, default=-1)
    whole = len(opens) == len(closes) == 1 and opens[0] < closes[0]
    if whole and last_end < opens[0] and max(thinks, default=-1) <= last_end:
        assert answer == "".join(pieces[opens[0] + 1 : closes[0]]).strip()
    else:
        assert answer is None


@pytest.mark.parametrize(
    ("answer", "target", "verdict", "canonical"),
    [
        (" X 7 ", "x7", "correct", "x7"),
        ("\\frac{1}{2}", "\\FRAC {1} {2}", "correct", "\\frac{1}{2}"),
        ("-3", "3", "wrong", "-3"),
        ("", "3", "wrong", ""),
        ("", "", "wrong", ""),
        (" ", " \n", "wrong", ""),
    ],
)
def test_exact(answer: str, target: str, verdict: str, canonical: str) -> None:
    judged = ExactVerifier().verify(f"<answer>{answer}</answer>", target)
    assert (judged.verdict, judged.answer) == (verdict, canonical)


@pytest.mark.parametrize(
    ("verifier", "good", "bad"),
    [
        (ExactVerifier(), ["3", " x "], ["", " \n\t"]),
        (ChoiceVerifier(), ["B", " (C). "], ["", "b", "AB", "7"]),
    ],
)
def test_targets_are_checked_by_themselves(verifier: Verifier, good: list[str], bad: list[str]) -> None:
    for target in good:
        verifier.check_target(target)
    for target in bad:
        with pytest.raises(ValueError, match="the target") as error:
            verifier.check_target(target)
        assert repr(target) in str(error.value)


@pytest.mark.parametrize("verifier", [ExactVerifier(), ChoiceVerifier()])
@given(responses=st.lists(PIECES.map("".join), min_size=1, max_size=5))
def test_same_input_same_verdict_in_any_order(verifier: object, responses: list[str]) -> None:
    forward = [verifier.verify(r, "B") for r in responses]
    backward = [verifier.verify(r, "B") for r in reversed(responses)]
    assert forward == backward[::-1]


@pytest.mark.parametrize("verifier", [ExactVerifier(), ChoiceVerifier()])
def test_a_response_without_answer_is_malformed(verifier: object) -> None:
    judged = verifier.verify("no tags", "B")
    assert (judged.verdict, judged.answer) == ("malformed", None)
