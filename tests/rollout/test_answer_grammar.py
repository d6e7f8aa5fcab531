"""Only one answer, said openly behind all thinking, is ever read; and floods of tags are read in time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_rollout import ChoiceVerifier, ExactVerifier, extract_answer
from drift_rollout.verify import Grammar

GOLD = "B"
Kind = Literal["prose", "thought", "unclosed", "gold", "other", "trap"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a response; the oracle reads the kinds, never the text."""

    kind: Kind
    text: str


def good(parts: list[Part]) -> bool:
    """One gold answer, nothing that could be another, and the last thought before it closes."""
    kinds = [part.kind for part in parts]
    if kinds.count("gold") != 1 or {"other", "trap"} & {*kinds}:
        return False
    thinking = [i for i, kind in enumerate(kinds) if kind in ("thought", "unclosed")]
    last = max(thinking, default=-1)
    return last < kinds.index("gold") and (last < 0 or kinds[last] == "thought")


PROSE = st.sampled_from(
    [
        "so the option must be B",
        "2 < 3 and 4 > 3, {x | x < 5}",
        "verdict: correct",
        '{"verdict": "correct", "answer": "B"}',
        "<!-- the gold is B -->",
        "\\frac{1}{2} and \\text{boxed} answer, think",
        "ответ: B, 答えは B",
        "<b>B</b> <answering>",
        "\u200b",
        "",
    ]
)
OTHER = [
    "C",
    "",
    "B or C",
    "B, C",
    "B verdict: correct",
    '{"answer": "B"}',
    "verdict: correct",
    "-B",
    "B <b>",
]
UNSEEN = [
    "",
    "",
    "",
    "\u200b",
    "\u2060",
    "\x00",
    "\x7f",
    "\u00ad",
    "\u0301",
    "\ufe0f",
    "\U000e0041",
    "\u3164",
]
ROUND = ["", "", " ", "\n", "\t", "\u00a0", "\u3000", " " * 40, "\u200b"]
CYRILLIC = dict(zip("aeshiwknotxr", "аеѕһіԝкпотхг", strict=True))


def likenesses(letter: str) -> list[str]:
    """What a letter may be replaced by without looking another."""
    full, bold = chr(ord(letter) + 0xFEE0), chr(ord(letter) - ord("a") + 0x1D41A)
    return [letter, letter, letter.upper(), full, bold, CYRILLIC.get(letter, letter)]


@st.composite
def disguised(draw: st.DrawFn, name: str) -> str:
    """A word as someone would write it who wants it to be seen and not to be found."""
    return "".join(
        draw(st.sampled_from(UNSEEN)) + draw(st.sampled_from(likenesses(letter))) for letter in name
    )


@st.composite
def disguised_tags(draw: st.DrawFn, name: str, slashes: tuple[str, ...] = ("", "/", "\uff0f", "∕")) -> str:
    opening, closing = draw(st.sampled_from(["<>", "<>", "＜＞", "‹›", "〈〉"]))
    before, between = draw(st.sampled_from(ROUND)), draw(st.sampled_from(ROUND))
    rest = draw(st.sampled_from(["", "", " ", "/", " /", ' x="1"', "\u200b", "\n"]))
    return (
        f"{opening}{before}{draw(st.sampled_from(slashes))}{between}{draw(disguised(name))}{rest}{closing}"
    )


def marked(answer: str, grammar: Grammar) -> str:
    return f"<answer>{answer}</answer>" if grammar == "answer" else f"\\boxed{{{answer}}}"


def hidden(grammar: Grammar) -> st.SearchStrategy[str]:
    """A mark in disguise, alone or around an answer."""
    if grammar == "boxed":
        names = st.sampled_from(["boxed", "fbox"]).flatmap(disguised)
        return st.tuples(
            st.sampled_from("\\＼∖"), names, st.sampled_from(["", "{B}", " {C}", "｛B｝", "{"])
        ).map("".join)
    tag = disguised_tags("answer")
    return tag | st.tuples(tag, st.sampled_from(["B", "C", ""]), tag).map("".join)


def traps(grammar: Grammar) -> st.SearchStrategy[str]:
    """Marks that make a response malformed wherever they stand."""
    mark = st.sampled_from([GOLD, *OTHER]).map(lambda answer: marked(answer, grammar)) | hidden(grammar)
    stray = ["<answer>", "</answer>"] if grammar == "answer" else ["\\boxed", "\\boxed{B", "\\fbox{\\{B}"]
    inside = st.tuples(mark, PROSE).map(" ".join)
    return st.one_of(
        st.sampled_from(stray),
        hidden(grammar),
        inside.map(lambda text: f"<think> {text} </think>"),
        inside.map(lambda text: f"<thinking> {text} </thinking>"),
        mark.map(lambda text: marked(text, grammar)),
        st.just(marked("B</answer><answer>B", grammar) if grammar == "answer" else "\\boxed{B}\\boxed{B}"),
        mark.map(lambda text: f"{text} {marked(GOLD, grammar)}"),
    )


@cache
def parts(grammar: Grammar, *kinds: Kind) -> st.SearchStrategy[Part]:
    texts: dict[Kind, st.SearchStrategy[str]] = {
        "prose": PROSE,
        "thought": PROSE.map(lambda text: f"<think>{text}</think>") | st.just("</think>"),
        "unclosed": st.just("<think>") | disguised_tags("think", slashes=("",)),
        "gold": st.sampled_from(["B", " B ", "\nB\n"]).map(lambda answer: marked(answer, grammar)),
        "other": st.sampled_from(OTHER).map(lambda answer: marked(answer, grammar)),
        "trap": traps(grammar),
    }
    return st.one_of([texts[kind].map(lambda text, kind=kind: Part(kind, text)) for kind in kinds or texts])


@cache
def responses(grammar: Grammar) -> st.SearchStrategy[list[Part]]:
    """Well-formed ones, ones with one part too many, and any mixture."""
    before = st.lists(parts(grammar, "prose", "thought"), max_size=3)
    behind = st.lists(parts(grammar, "prose"), max_size=2)
    whole = st.tuples(before, parts(grammar, "gold"), behind).map(lambda s: [*s[0], s[1], *s[2]])
    spoilt = st.tuples(whole, parts(grammar), st.integers(0, 6)).map(
        lambda s: [*s[0][: s[2]], s[1], *s[0][s[2] :]]
    )
    return whole | spoilt | st.lists(parts(grammar), max_size=6)


@pytest.mark.parametrize("verifier", [ExactVerifier, ChoiceVerifier])
@pytest.mark.parametrize("grammar", ["answer", "boxed"])
@given(data=st.data())
@settings(max_examples=200)
def test_a_response_is_correct_if_and_only_if_it_says_the_gold_openly(
    verifier: type, grammar: Grammar, data: st.DataObject
) -> None:
    response = data.draw(responses(grammar))
    judged = verifier(grammar=grammar).verify(" ".join(part.text for part in response), GOLD)
    assert (judged.verdict == "correct") == good(response)


@pytest.mark.parametrize("grammar", ["answer", "boxed"])
@given(data=st.data())
@settings(max_examples=200)
def test_a_hidden_mark_beside_a_good_answer_makes_it_malformed(
    grammar: Grammar, data: st.DataObject
) -> None:
    trap, answer = data.draw(hidden(grammar)), marked(GOLD, grammar)
    assert extract_answer(answer, grammar) == GOLD
    for response in (f"{trap} {answer}", f"{answer} {trap}", answer.replace(GOLD, GOLD + trap)):
        assert extract_answer(response, grammar) is None


@pytest.mark.parametrize(
    "text", ["é ñ ≮ ≯ 数学 ﷺ", "x<3, y>2", "\ud800", "‹b›", "<answering> <think2> answer>"]
)
@pytest.mark.parametrize("grammar", ["answer", "boxed"])
def test_text_that_is_no_tag_hides_no_answer(grammar: Grammar, text: str) -> None:
    answer = marked(text, grammar)
    assert extract_answer(f"{text} {answer} {text}", grammar) == text


@pytest.mark.parametrize("text", [r"\{1\}", r"a\\", r"\\\{", "{{1}{2}}", "{}" * 50, "é{ü}", ""])
def test_boxes_end_at_their_own_brace(text: str) -> None:
    assert extract_answer(f"}} \\boxed{{{text}}} {{ }}", "boxed") == text


MILLION = 1_000_000


def flood(text: str) -> str:
    return text * (MILLION // len(text))


ANSWER, BOX = "<answer>7</answer>", "\\boxed{7}"
FLOODS = {
    "opening tags": flood("<answer>"),
    "closing tags": flood("</answer>"),
    "answers": flood(ANSWER),
    "closed thinking before": flood("<think></think>") + ANSWER + BOX,
    "open thinking before": flood("<think>") + ANSWER + BOX,
    "thinking behind": ANSWER + BOX + flood("<think>"),
    "thinking that never ends its tag": flood("<think x") + ANSWER + BOX,
    "brackets inside": f"<answer>{flood('<')}</answer>",
    "brackets and spaces": ANSWER + BOX + flood("< "),
    "brackets and slashes": ANSWER + BOX + flood("</ "),
    "one bracket and spaces": f"{ANSWER}{BOX}<{flood(' ')}",
    "attributes": ANSWER + BOX + flood("<answer "),
    "capitals": flood("<ANSWER>") + ANSWER + BOX,
    "zero width": ANSWER + BOX + flood("\u200b"),
    "brackets of zero width": ANSWER + BOX + flood("<\u200b"),
    "Cyrillic": ANSWER + BOX + flood("<аnswer"),
    "angle brackets": ANSWER + BOX + flood("〈answer"),
    "full width": ANSWER + BOX + flood("＜ａｎｓｗｅｒ＞"),
    "marks in the wrong order": ANSWER + BOX + flood("\u0315\u0300"),
    "open braces": "\\boxed" + flood("{"),
    "pairs of braces": f"\\boxed{{{flood('{}')}}}",
    "escaped braces": f"\\boxed{{{flood(chr(92) + '{')}}}",
    "backslashes": f"\\boxed{{{flood(chr(92))}}}",
    "boxes": flood(BOX),
    "a box far from its brace": f"{ANSWER}\\boxed{flood(' ')}{{7}}",
}


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.parametrize("grammar", ["answer", "boxed"])
def test_a_megabyte_is_read_in_under_50_ms(grammar: Grammar, name: str) -> None:
    extract_answer("<answer>", grammar)
    assert min(seconds(FLOODS[name], grammar) for _ in range(3)) < 0.05


def seconds(response: str, grammar: Grammar) -> float:
    start = time.process_time()
    extract_answer(response, grammar)
    return time.process_time() - start


def test_floods_that_leave_an_answer_are_read_through() -> None:
    """Or the time would be that of a refusal at first sight."""
    read = {name for name, text in FLOODS.items() if extract_answer(text) is not None}
    assert {"closed thinking before", "brackets inside", "brackets and spaces", "zero width"} <= read
    boxed = {name for name, text in FLOODS.items() if extract_answer(text, "boxed") is not None}
    assert {"pairs of braces", "escaped braces", "marks in the wrong order"} <= boxed
