"""`choice`: an anchored letter or one option's own text, and nothing out of prose."""

import json
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from drift_rollout import ChoiceVerifier, Verified, choice_target
from drift_rollout.verify import MALFORMED, Grammar

CHOICE = ChoiceVerifier()
COLOURS = choice_target("B", ["red", "blue", "Sky blue.", "green"])
LETTERS = st.sampled_from("ABCDEFGHIJ")
# Nothing in them reads as a letter.
WORDS = st.lists(
    st.text("xyzß é3", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=2, max_size=10
).filter(lambda words: len({" ".join(word.casefold().split()) for word in words}) == len(words))


def judged(answer: str, target: str) -> tuple[str, str | None]:
    verified = CHOICE.judge(answer, target)
    return verified.verdict, verified.answer


ALONE = "B | (B) |  B.  | B: | [B] | (B). | B) | Ｂ | \u00a0B\u2009"
HEADED = "B. blue | (B) blue | B) blue. | B: blue | [B] blue | (B). blue | B.\n blue | B.\u00a0blue"
PROSE = (
    "A or B | A, B | B, I think | I think B | B C | B blue | B - blue | option B | the answer is B | A/B"
)
HEDGED = "B. not A | B. blue or (C) green | B. I think | (B) or C | B. blue (A) | B. J."
NO_LETTER = (
    "b | (b) | AB | K | 3B | B.blue | B)blue | А | B\u0301 | B! | B? | B; | -B | B\u200b | b. blue |  "
)


@pytest.mark.parametrize("target", ["B", COLOURS])
@pytest.mark.parametrize("answer", f"{ALONE} | {HEADED}".split(" | "))
def test_a_letter_alone_or_in_front_of_its_text(answer: str, target: str) -> None:
    assert judged(answer, target) == ("correct", "B")


@pytest.mark.parametrize("answer", ["B. Bleu Azur", "B. Option B", "(B) the École at H2O", "B: k and m"])
def test_a_text_may_have_capitals_but_no_other_letter_by_itself(answer: str) -> None:
    assert judged(answer, "B") == ("correct", "B")


@pytest.mark.parametrize("target", ["B", COLOURS])
@pytest.mark.parametrize("answer", ["C", "(A)", "D. green", "J", "C. Sky blue"])
def test_another_option_is_wrong(answer: str, target: str) -> None:
    verdict, letter = judged(answer, target)
    assert (verdict, letter) == ("wrong", answer.strip("()")[0])


@pytest.mark.parametrize("target", ["B", COLOURS])
@pytest.mark.parametrize(
    "answer", [*f"{PROSE} | {HEDGED} | {NO_LETTER}".split(" | "), "", "B. " + "x" * 4000]
)
def test_no_letter_is_picked_out_of_prose(answer: str, target: str) -> None:
    assert judged(answer, target) == ("malformed", None)


@pytest.mark.parametrize(
    ("answer", "verdict", "letter"),
    [
        ("blue", "correct", "B"),
        (" Blue. ", "correct", "B"),
        ("BLUE", "correct", "B"),
        ("ｂlue", "correct", "B"),
        ("sky \n blue", "wrong", "C"),
        ("C. sky blue", "wrong", "C"),
        ("green", "wrong", "D"),
        ("B. BLUE.", "correct", "B"),
        ("E", "wrong", "E"),
        ("B. red", "malformed", None),
        ("B. sky blue", "malformed", None),
        ("B. something else", "malformed", None),
        ("E. blue", "malformed", None),
        ("blue, red", "malformed", None),
        ("blue or red", "malformed", None),
        ("not blue", "malformed", None),
        ("bluest", "malformed", None),
        ("It is blue", "malformed", None),
    ],
)
def test_with_options_a_text_is_its_own_option_s(answer: str, verdict: str, letter: str | None) -> None:
    assert judged(answer, COLOURS) == (verdict, letter)


def test_two_options_of_one_text_are_told_apart_by_their_letters_alone() -> None:
    target = choice_target("B", ["none", "none", "all"])
    assert judged("none", target) == ("malformed", None)
    assert judged("B", target) == judged("B. none", target) == ("correct", "B")
    assert judged("A. none", target) == ("wrong", "A")
    assert judged("all", target) == ("wrong", "C")


def test_the_case_counts_where_it_tells_two_options_apart() -> None:
    target = choice_target("B", ["Pp", "PP", "qq"])
    assert judged("PP", target) == judged("B. PP", target) == ("correct", "B")
    assert judged("Pp", target) == ("wrong", "A")
    assert judged("A. PP", target) == judged("pp", target) == ("malformed", None)
    assert judged("QQ", target) == ("wrong", "C")


def test_an_answer_that_names_two_options_names_none() -> None:
    target = choice_target("A", {"A": "E. coli", "B": "S. aureus", "E": "other"})
    assert judged("E. coli", target) == ("correct", "A")
    clash = choice_target("A", {"A": "E. coli", "E": "coli"})
    assert judged("E. coli", clash) == ("malformed", None)
    assert judged("A. E. coli", clash) == ("correct", "A")
    vitamins = choice_target("A", ["B", "A", "C or D"])
    assert judged("A", vitamins) == ("correct", "A")
    assert judged("A. B", vitamins) == ("correct", "A")
    assert judged("A. A", vitamins) == ("malformed", None)
    assert judged("C or D", vitamins) == ("wrong", "C")


def test_targets_by_letter_and_in_order_are_the_same() -> None:
    target = choice_target("B", {"B": "bleu clair", "A": "rouge"})
    assert target == choice_target("B", ["rouge", "bleu clair"])
    assert json.loads(target) == {"answer": "B", "options": {"A": "rouge", "B": "bleu clair"}}
    assert judged("bleu clair", '{"options": ["rouge", "bleu clair"], "answer": "B"}') == ("correct", "B")


@pytest.mark.parametrize("grammar", ["answer", "boxed"])
@pytest.mark.parametrize("target", ["B", " (B). ", COLOURS])
def test_the_gold_response_is_the_letter(grammar: Grammar, target: str) -> None:
    verifier = ChoiceVerifier(grammar=grammar)
    assert verifier.gold_response(target) in ("<answer> B </answer>", "\\boxed{B}")
    assert verifier.verify(verifier.gold_response(target), target) == Verified(
        answer="B", verdict="correct"
    )


def test_a_response_without_an_answer_is_malformed() -> None:
    assert CHOICE.verify("B", "B") == CHOICE.verify("<answer>B", "B") == MALFORMED


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("", "one letter A-J"),
        ("b", "one letter A-J"),
        ("AB", "one letter A-J"),
        ("17", "one letter A-J"),
        ('{"answer": "B"}', "one letter A-J"),
        ('{"answer": "B", "options": ["x", "y"], "note": 1}', "one letter A-J"),
        ('{"answer": "B", "options": {"A": "x", "B": "y", "B": "z"}}', "one letter A-J"),
        ('["B"]', "one letter A-J"),
        ('{"answer":' * 5000, "one letter A-J"),
        ('{"answer": "A", "options": ["x"]}', "two to ten texts"),
        ('{"answer": "A", "options": "xyz"}', "two to ten texts"),
        (json.dumps({"answer": "A", "options": [*"abcdefghijk"]}), "two to ten texts"),
        ('{"answer": "A", "options": {"A": "x", "K": "y"}}', "two to ten texts"),
        ('{"answer": "A", "options": {"A": "x", "b": "y"}}', "two to ten texts"),
        ('{"answer": "C", "options": ["x", "y"]}', "one of its options A, B"),
        ('{"answer": ["A"], "options": ["x", "y"]}', "one of its options A, B"),
        ('{"answer": "A", "options": ["x", " "]}', "option B must be a text of 1 to 4000"),
        ('{"answer": "A", "options": ["x", 5]}', "option B must be a text of 1 to 4000"),
        (json.dumps({"answer": "A", "options": ["x" * 4001, "y"]}), "option A must be a text of 1 to 4000"),
    ],
)
def test_a_target_of_another_shape_is_refused(target: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        CHOICE.check_target(target)
    assert repr(target) in str(error.value)
    with pytest.raises(ValueError, match=reason):
        CHOICE.judge("B", target)


@pytest.mark.parametrize(
    ("letter", "options", "reason"),
    [
        ("C", ["x", "y"], "one of its options A, B"),
        ("A", ["x", "\n"], "option B must be a text"),
        ("A", ["x"] * 11, "two to ten texts"),
        ("A", "red", "two to ten texts"),
    ],
)
def test_no_target_is_made_that_would_be_refused(
    letter: str, options: list[str] | str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        choice_target(letter, options)


@given(LETTERS, LETTERS, st.sampled_from(["{}", "({})", "{}.", "[{}]:", " {} "]))
def test_a_letter_is_right_if_and_only_if_it_is_the_gold(gold: str, letter: str, shape: str) -> None:
    verdict, answer = judged(shape.format(letter), gold)
    assert (verdict == "correct", answer) == (letter == gold, letter)


@given(LETTERS, LETTERS, st.sampled_from([" ", ", ", " or ", " and ", "/", ". ", ") ", ": "]))
def test_two_letters_are_never_one(first: str, second: str, between: str) -> None:
    assume(first != second)
    for target in (first, second):
        assert judged(f"{first}{between}{second}", target) == ("malformed", None)
        assert judged(f"{first}. text {between} {second}", target) == ("malformed", None)


@given(WORDS, st.data())
def test_an_option_s_text_is_never_another_option(words: list[str], data: st.DataObject) -> None:
    letters = "ABCDEFGHIJ"[: len(words)]
    gold, own, other = (data.draw(st.sampled_from(letters)) for _ in range(3))
    target, text = choice_target(gold, words), words[letters.index(own)]
    right = "correct" if own == gold else "wrong"
    assert judged(text, target) == judged(f"{own}. {text}", target) == (right, own)
    assert judged(text.upper(), target) == judged(f"({own})  {text}.", target) == (right, own)
    assume(other != own)
    assert judged(f"{other}. {text}", target) == judged(f"{own} or {other}", target) == ("malformed", None)


PIECES = st.sampled_from([*"ABIJab().:[] ", "blue", "red", "\n"])
TEXTS = st.text() | st.lists(PIECES | st.characters(), max_size=12).map("".join)
TARGETS = st.just("B") | st.lists(TEXTS.filter(str.strip), min_size=2, max_size=5).map(
    lambda texts: choice_target("B", texts)
)


@given(TEXTS, TARGETS)
@settings(max_examples=400)
def test_any_text_has_one_verdict(answer: str, target: str) -> None:
    first = CHOICE.judge(answer, target)
    assert first.verdict in ("correct", "wrong", "malformed")
    assert (first.answer is None) == (first.verdict == "malformed")
    assert ChoiceVerifier().judge(answer, target) == first


@pytest.mark.parametrize("target", ["B", COLOURS], ids=["letter", "options"])
@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 10**6,
        " " * 10**6 + "B",
        "B" + "." * 10**6,
        "B. " + "x " * 500_000,
        "B. " + "A" * 10**6,
        "B" * 10**6,
        "\u0301\u0316" * 500_000,
        "B. " + "\u0301\u0316" * 1_998,
        "\ufdfa" * 4_000,
        "(B" * 2_000,
        "B. " + " " * 3_990,
        "B. " + "C" * 3_990,
        "blue" * 1_000,
    ],
    ids=range(13),
)
def test_hostile_answers_take_no_time(hostile: str, target: str) -> None:
    start = time.process_time()
    CHOICE.judge(hostile, target)
    taken = time.process_time() - start
    assert taken < 0.1, f"{taken:.3f} s"
