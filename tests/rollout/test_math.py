"""`math`: what it accepts and refuses, each guard on and off, and answers that never end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_rollout.verifiers.equality import MathGuards
from drift_rollout.verifiers.math import MathOptions, MathVerifier
from drift_rollout.verifiers.normal_form import normal_form
from rollout.hostile_answers import GOLDS, judge_all

NO_GUARDS = MathGuards(**{guard.name: False for guard in fields(MathGuards)})


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier()
    yield made
    made.close()


def verdict(verifier: MathVerifier, gold: str, answer: str) -> str:
    return verifier.judge(answer, gold).verdict


def _verdict_of(verifier: MathVerifier, pair: tuple[str, str]) -> str:
    return verdict(verifier, *pair)


UNITS_THAT_ARE_NONE = [
    "maybe",
    "nope",
    "negative",
    "minimum",
    "incorrect",
    "invalid",
    "lakh",
    "crore",
    "score",
    "gross",
    "googol",
    "bn",
    "mil",
    "kilo",
    "k",
    "M",
    "pairs",
    "hundredths",
    "fifths",
    "halves",
    "double",
    "octal",
    "hex",
    "sin",
    "exp",
    "sqrt",
    "xy",
    "dx",
    "rad",
    "or so",
    "maybe eighteen",
    "actually five",
    "versus five",
    "below zero",
    "lower bound",
    "remainder five",
    "root two",
    "power two",
    "choose two",
    "cos x",
    "log x",
    r"\text{k}",
    r"\text{ too small}",
    r"\mathrm{i}",
    r"\text{x}",
    r"\operatorname{sin}",
    r"\text{ not}",
]


# Found without math-verify: spelling and numbers.
SPELLED = [
    (
        r"\frac{1}{2}",
        [r"\dfrac12", r"$\frac 1 2$", "1/2", "0.5", ".50", r"\tfrac1{2}", r"\( \frac{1}{2} \)", "½"],
    ),
    ("-3", ["−3", "–3", " -3 ", "$-3$", "-3.", "-3.0", r"\boxed{-3}", "x = -3", r"\displaystyle -3"]),
    ("10{,}000", ["10000", "10,000", r"10,\!000", r"10\,000", "10 000", "10\u00a0000", "10^4", "1e4"]),
    ("1234567", ["1,234,567", r"\$1,234,567", "1,234,567 dollars", "1.234567\\times 10^6"]),
    ("1e-5", ["0.00001", r"10^{-5}", r"1\times 10^{-5}", "1 · 10⁻⁵"]),
    (r"1\frac{1}{10}", ["1.1", "11/10", r"1 \frac{1}{10}", r"\frac{11}{10}"]),
    (r"0.\overline{3}", ["1/3", r"\frac13", "0.333333"]),
    (r"30^\circ", ["30", "30°", r"30^{\circ}", "30 degrees", r"30\text{ degrees}"]),
    (r"25\%", ["25%", "25 percent", r"25 \%", "25", "0.25", "1/4"]),
    (r"12\text{ cm}", ["12", "12 cm", "12 centimeters", r"12\,\mathrm{cm}", "12\u00a0cm"]),
    (r"20\text{ sq. units}", ["20", "20 square units", r"20\text{ units}^2"]),
    (r"\text{4:30 p.m.}", [r"4:30 \text{ p.m.}", "4:30 P.M.", "4:30 p.m."]),
    (r"\text{Evelyn}", ["Evelyn", "evelyn", r"\mbox{Evelyn}", r"\textbf{Evelyn}."]),
    (r"\text{(B)}", ["B", "(B)", r"\text{B}"]),
    ("x = 5", ["5", "x=5", "x = 5.0"]),
    (r"\left( 2, -\frac{1}{2} \right)", ["(2,-1/2)", "(2, -0.5)", r"\left(2,\frac{-1}{2}\right)"]),
    (r"\{1,2\}", ["1,2", "2, 1", r"\{2,1\}", r"\left\{ 1, 2 \right\}", "1 and 2", r"2 \text{ or } 1"]),
    (r"-2 \text{ or } -12", ["-12, -2", "-2 or -12"]),
    ("2,-2", [r"\pm 2", "±2"]),
    ("(-\\infty, 3]", ["(-∞, 3]", r"\left(-\infty,3\right]"]),
    ("24_{10}", ["24"]),
    (r"60^\circ, 120^\circ", ["60^\\circ,120^\\circ", "60, 120", "120 and 60 degrees"]),
    (r"10\%", [r"10\text{\%}", r"10\text{ percent}"]),
    (r"\approx 8.24 \text{ mph}", [r"\boxed{\approx 8.24 \text{ mph}}", "8.24"]),
    (r"\$0.25", [r"\$0.25\text{ dollars}"]),
    (r"\$5", ["5", "5 dollars", "$5", r"\$ 5.00"]),
    (r"\frac{3}{2}", ["1 1/2", r"1\,1/2", r"3 \over 2", r"{3 \over 2}", "(1.5)"]),
    (r"8\!:\!34 \text{ p.m.}", ["8:34 pm", r"8:34\text{ PM}"]),
    (r"\text{A}", ["(A)", "A."]),
    (r"\$\dfrac23 \approx \$0.67", [r"\frac23", "0.67", r"2/3 \approx 0.67"]),
    (r"\frac23", [r"\frac{2}{3} \approx 0.67"]),
    ("10", ["**10**", "`10`", r"\mathbf{10}", r"{\bf 10}", "= 10", "The answer is 10", "Final answer: 10"]),
    (r"10\text{ km/h}", ["10", "10 km/h", "10 kilometers per hour", r"10\text{ km per hour}"]),
    (r"5\text{ cm}^2", ["5 cm^2", "5 square cm", "5 cm squared", "5cm^2", r"5 \text{ sq cm}"]),
    (r"21\text{ dogs}", ["21", "21 dogs", r"21\text{ dog}"]),
    (r"10\pi", [r"10 \pi \text{ cm}", "10*pi cm"]),
    ("1000, 2000", ["1,000, 2,000", "2,000 and 1,000"]),
    ("(1000, 2)", ["(1,000, 2)", "((1000,2))"]),
    ("-2", ["(-2)", "((-2))"]),
    ("1/2", ["1/2 = 0.5", "x = 1/2 = 0.5"]),
    ("4343_6", ["4343 base 6"]),
    ("(1,2)", ["(x,y)=(1,2)"]),
    (r"2\text{ miles}", ["2 mi"]),
    ("2ab", ["2 ab", "2 a b"]),
    (r"\text{C}", ["C)", "(C)", "**C**"]),
    (r"\text{No}", ["no", "No."]),
    ("81, 256", ["81,256", "256, 81"]),
    (r"\text{A, D, F}", ["A,D,F", "F, D and A", r"\text{A}, \text{D}, \text{F}"]),
    ("1011_2", ["1011_{2}", "01011_2"]),
]


@pytest.mark.parametrize(("gold", "answer"), [(gold, answer) for gold, said in SPELLED for answer in said])
def test_other_spellings_are_right_without_math_verify(gold: str, answer: str) -> None:
    def ask(*texts: str) -> bool:
        raise AssertionError(f"math-verify was asked about {texts}")

    verifier = MathVerifier()
    object.__setattr__(verifier, "_ask", ask)
    assert verdict(verifier, gold, answer) == "correct"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\sqrt{2}+1", r"1+\sqrt2"),
        (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"),
        (r"\frac{\sqrt2}{2}", "sqrt(2)/2"),
        ("(x+1)^2", "x^2+2x+1"),
        ("y=-2x+1", "y = 1 - 2*x"),
        (r"2\cos x", "2cos(x)"),
        (r"\frac{\pi}{2}", "pi/2"),
        (r"3\pm\sqrt2", r"3-\sqrt{2}, 3+\sqrt{2}"),
        (r"(\sqrt2, \frac{x}{2})", "(2^{1/2}, 0.5x)"),
        (r"(-\infty,1)\cup(2,3)", r"(2,3) \cup (-\infty, 1)"),
        (r"\begin{pmatrix} 1 \\ 1/2 \end{pmatrix}", r"\begin{pmatrix}1\\0.5\end{pmatrix}"),
        ("x > 3", r"(3,\infty)"),
        ("[1,2]", r"1\le x\le 2"),
        ("y=2x+3", "y-2x-3=0"),
        ("2^{10}", "1024"),
        ("1+2i", "2i+1"),
        (r"10\pi", r"10\pi \approx 31.4"),
        (r"\sin 30^\circ", "1/2"),
        ("(-3,5)", "-3<x<5"),
        ("31.4", r"10\pi \approx 31.4"),
    ],
)
def test_other_forms_are_right_by_math_verify(verifier: MathVerifier, gold: str, answer: str) -> None:
    assert normal_form(gold).text != normal_form(answer).text
    assert verdict(verifier, gold, answer) == "correct"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("3", "-3"),
        ("3", "3.01"),
        ("3", "7 or 3"),
        ("3", "3, 7"),
        ("3", "3 7"),
        ("3", "3 million"),
        ("3", "3 is wrong"),
        ("3", "not 3"),
        ("3", "x = 4 = 3"),
        ("3", r"4} \boxed{3"),
        ("3", "4$ $3"),
        ("1e-7", "0"),
        ("1/3", "0.33"),
        (r"25\%", "2500"),
        (r"12\text{ cm}", r"12\text{ m}"),
        (r"12\text{ cm}", r"12\text{ cm}^2"),
        ("(1,2)", "(2,1)"),
        ("(1,2]", "(1,2)"),
        ("(1,2]", "[1,2]"),
        ("1,1,-2", "1,-2,-2"),
        ("1,2,3", "1,2"),
        *[("17", f"17 {words}") for words in UNITS_THAT_ARE_NONE],
        *[(r"\sqrt2", rf"\sqrt2 {words}") for words in ("maybe", "or not", "x", "cos")],
        ("x+1", r"(x+1) xy"),
        ("x+1", r"-\boxed{x+1}"),
        ("x+1", r"0*\boxed{x+1}"),
        (r"\sqrt2", r"3 \boxed{\sqrt2}"),
        (r"10\pi", r"99 = 10\pi"),
        (r"10\pi", r"A=99=10\pi"),
        (r"10\pi", r"10\pi \approx 99"),
        ("y+1", r"y+1 \approx 3"),
        ("y+1", "0 = y+1"),
        (r"y=\sqrt2 x", r"3=\sqrt2 x"),
        (r"\sqrt2, 3", r"5=\sqrt2, 3"),
        (r"\text{No}", "on"),
        ("Amy", "May"),
        ("AB", "BA"),
        (r"\triangle ABC", r"\triangle ACB"),
        (r"\Delta", r"\delta"),
        (r"\pi r^2", r"\pi R^2"),
        ("nR", "Nr"),
        ("y+1", "y'+1"),
        (r"\sqrt2", r"x\in\sqrt2"),
        ("x+1", "[x+1]"),
        ("17", "[17]"),
        ("x=1,y=2", "2,1"),
        ("0.3", "0.3..."),
        ("0.3", "0.3…"),
        ("0.002", "0.0020004"),
        (r"\frac{\pi}{2}", r"\frac{\pi}{2}\text{ degrees}"),
        (r"\sin 30", r"\sin 30^\circ"),
        (r"21\text{ dogs}", "21 cats"),
        (r"10\text{ km/h}", "10 km"),
        (r"\frac12", r"0.5\%"),
        ("17", "1{7}_8"),
        ("1,2", "1 2"),
        ("81256", "81, 256"),
        (r"\$5", "5 cents"),
        (r"\$5", r"\$5 cents"),
        (r"\frac{3}{2}", "11/2"),
        ("11/2", "1 1/2"),
        ("3", "3.0000004"),
        (r"\$\dfrac23 \approx \$0.67", r"\$\dfrac23 \approx \$0.61"),
        ("7", r"5 \approx 7"),
        ("60120", r"60^\circ,120^\circ"),
        (r"\text{A, D}", "A"),
        (r"\text{E}", "e"),
        (r"\sqrt2", r"-\sqrt2"),
        (r"\frac{\pi}{2}", r"90^\circ"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
        (r"\text{Evelyn}", r"\text{Briana}"),
        ("1,234", "(1,234)"),
        ("(1,234)", "1234"),
        ("", ""),
    ][:-1],
)
def test_what_is_wrong(verifier: MathVerifier, gold: str, answer: str) -> None:
    assert verdict(verifier, gold, answer) == "wrong"


# What math-verify accepts; the guard that refuses it.
GUARDED = [
    ("units", "3", "3m"),
    ("units", r"12\text{ cm}", r"12\text{ m}"),
    ("brackets", r"\{1,2\}", "(1,2)"),
    ("brackets", "(1,2)", "1,2"),
    ("repeats", "3", "3,3"),
    ("repeats", "1,1,-2", "1,-2,-2"),
    ("unevaluated", "17", "8+9"),
    ("unevaluated", "1024", "2^{10}"),
    ("subscripts", "11", "11_2"),
    ("subscripts", "11_2", "11"),
    ("words", r"\text{listen}", r"\text{silent}"),
    ("names", "x=3", "y=3"),
    ("names", "a'", "a"),
    ("names", "x", "X"),
    ("percent", r"5\%", "5"),
]


@pytest.mark.parametrize(("guard", "gold", "answer"), GUARDED)
def test_a_guard_refuses_what_math_verify_accepts(guard: str, gold: str, answer: str) -> None:
    on = MathVerifier(options=MathOptions(guards=replace(MathGuards(), **{guard: True})))
    off = MathVerifier(options=MathOptions(guards=replace(MathGuards(percent=True), **{guard: False})))
    assert verdict(on, gold, answer) == "wrong"
    assert verdict(off, gold, answer) == "correct"
    on.close()
    off.close()


def test_the_percent_guard_alone_is_off() -> None:
    assert {guard.name for guard in fields(MathGuards) if not guard.default} == {"percent"}
    assert {guard for guard, _, _ in GUARDED} == {guard.name for guard in fields(MathGuards)}


def test_with_the_percent_guard_a_share_is_still_right() -> None:
    verifier = MathVerifier(options=MathOptions(guards=MathGuards(percent=True)))
    assert verdict(verifier, r"5\%", "0.05") == "correct"
    assert verdict(verifier, r"5\%", "5%") == "correct"


@given(value=st.fractions(), other=st.fractions())
def test_numbers_are_compared_exactly(value: object, other: object) -> None:
    assert (verdict(MathVerifier(), str(value), str(other)) == "correct") == (value == other)


@given(value=st.integers(-(10**12), 10**12).filter(bool))
def test_sign_and_commas(value: int) -> None:
    verifier = MathVerifier()
    assert verdict(verifier, str(value), f"{value:,}") == "correct"
    assert verdict(verifier, str(value), str(-value)) == "wrong"


@given(text=st.text(max_size=300), gold=st.sampled_from(GOLDS))
@settings(max_examples=300)
def test_any_text_has_a_normal_form_and_is_itself(text: str, gold: str) -> None:
    verifier = MathVerifier()
    object.__setattr__(verifier, "_ask", lambda *texts: False)
    assert verifier.judge(text, gold).verdict in ("correct", "wrong")
    if normal_form(text).text:
        assert verifier.judge(text, text).verdict == "correct"


@pytest.mark.parametrize("target", ["", "  ", "$ $", r"\,", "x" * 1001])
def test_targets_that_nothing_can_match_are_refused(target: str) -> None:
    with pytest.raises(ValueError, match="the target"):
        MathVerifier().check_target(target)


def test_canonical_answers_are_one_for_all_spellings() -> None:
    verifier = MathVerifier()
    canonical = {
        verifier.judge(answer, "7").answer
        for answer in ("1/2", r"\frac12", "0.5", "$.50$", r"\dfrac{1}{2}")
    }
    assert canonical == {"1/2"}
    assert verifier.judge("no tags", "7").answer != verifier.judge("nothing", "7").answer
    assert verifier.verify("no tags", "7").verdict == "malformed"


def test_the_name_says_what_bears_on_a_verdict_and_nothing_else() -> None:
    plain = MathVerifier().name
    assert plain.startswith("math/1 math-verify=0.")
    assert MathVerifier(options=MathOptions(timeout=9, workers=3, memory=300)).name == plain
    changed = MathVerifier(
        grammar="boxed", options=MathOptions(max_length=50, guards=MathGuards(percent=True))
    )
    assert changed.name == f"{plain} grammar=boxed max_length=50 percent=True"


@pytest.mark.parametrize(
    "bad", [{"timeout": 0}, {"workers": 0}, {"memory": 10}, {"max_length": 0}, {"max_depth": 0}]
)
def test_options_out_of_range(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        MathOptions(**bad)


# math-verify computes all of these, if it is let.
ENDLESS = r"9^{9^{9^{9}}}+1"


def test_a_pair_that_takes_too_long_is_a_timeout_and_the_next_is_judged(verifier: MathVerifier) -> None:
    hasty = MathVerifier(options=MathOptions(timeout=0.5, workers=1, guards=NO_GUARDS))
    hasty.judge("x+1", "1+x")
    started = time.monotonic()
    assert verdict(hasty, "x", ENDLESS) == "timeout"
    assert time.monotonic() - started < 5
    assert verdict(hasty, r"\sqrt{2}+1", r"1+\sqrt{2}") == "correct"
    hasty.close()


def test_a_timeout_is_not_kept_but_verdicts_are() -> None:
    verifier = MathVerifier(options=MathOptions(timeout=0.5, workers=1))
    asked = []
    pool_ask = verifier._pool.ask

    def ask(question: object, *, seconds: float) -> object:
        asked.append(question)
        return pool_ask(question, seconds=seconds)

    verifier._pool.ask = ask
    for answer in ("1+x", "x + 1 ", ENDLESS, ENDLESS, "1+x"):
        verdict(verifier, "(1)+x", answer)
    assert len(asked) == 4
    verifier.close()


def test_the_memory_of_a_pair_is_bounded() -> None:
    verifier = MathVerifier(options=MathOptions(timeout=20, memory=256, workers=1, guards=NO_GUARDS))
    assert verdict(verifier, "x", "10^{10^{9}}x+1") in ("error", "wrong", "timeout")
    workers = psutil.Process().children(recursive=True)
    assert sum(process.memory_info().rss for process in workers) < 300 << 20
    verifier.close()


def test_a_verdict_depends_on_nothing_that_was_asked_before() -> None:
    pairs = [
        ("x+1", "1+x"),
        ("(x+1)^2", "x^2+2x+1"),
        (r"\sqrt{8}", r"2\sqrt2"),
        ("x", "y"),
        ("2x", "x"),
        ("i^2", "-1"),
    ]
    found = []
    for order in (pairs, pairs[::-1]):
        verifier = MathVerifier()
        with ThreadPoolExecutor(4) as threads:
            found.append(dict(zip(order, threads.map(partial(_verdict_of, verifier), order), strict=True)))
        verifier.close()
    assert found[0] == found[1]
    assert set(found[0].values()) == {"correct", "wrong"}


def test_hostile_answers_are_each_answered_within_their_limit() -> None:
    verifier = MathVerifier(options=MathOptions(timeout=0.5))
    # Both processes have started after these.
    judge_all(verifier, 25, seed=2)
    judged = judge_all(verifier, 75, seed=3)
    own = psutil.Process()
    before = own.memory_info().rss
    judged += judge_all(verifier, 75, seed=4)
    grown = own.memory_info().rss - before
    verifier.close()
    assert [found for found in judged if found[2] not in ("wrong", "timeout", "error")] == []
    # One more than there are processes is asked, and waits for one.
    assert max(seconds for _, _, _, seconds in judged) < 5
    assert grown < 64 << 20


def test_a_script_needs_no_main_guard_and_leaves_nothing_running() -> None:
    script = """
from drift_rollout.verifiers.math import MathVerifier
print(MathVerifier().judge("1+x", "x+1").verdict)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ,
    )
    assert (ran.stdout, ran.stderr) == ("correct\n", "")
