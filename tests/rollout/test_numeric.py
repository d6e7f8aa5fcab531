"""`numeric`: the gold's type decides, signs count, and no number is picked out of prose."""

import json
import os
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from drift_rollout import NumericVerifier, Verified
from drift_rollout.verifiers.opening import VerifierOptions, open_verifier
from drift_rollout.verify import mark_answer

DATA = os.environ.get("DRIFT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="DRIFT_DATA is not set")

NUMERIC = NumericVerifier()
INTEGERS = st.integers(-(10**12), 10**12)
DECIMALS = st.decimals(-1_000_000, 1_000_000, places=4)
GOLDS = st.one_of(
    INTEGERS.map(str),
    INTEGERS.map("{:,}".format),
    DECIMALS.map("{:f}".format),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["True", "false", "Yes", "(a)", "(D)"]),
    st.lists(INTEGERS.map(str) | DECIMALS.map("{:f}".format), min_size=1, max_size=5).map(
        lambda parts: f"[{', '.join(parts)}]"
    ),
)


def judged(answer: str, gold: str) -> str:
    return NUMERIC.judge(answer, gold).verdict


@pytest.mark.parametrize(
    ("gold", "answers"),
    [
        ("18", "18 | 18.0 | 18.00 | +18 | 18. | $18 | 18 $ | € 18 | $18$ | \\$18 | 36/2 | 1.8e1"),
        ("18", "18% | 18 % | 18\\% | 18 eggs"),
        ("18", "18 dollars per day | 18 square feet | \\boxed{18}."),
        ("18", "18\\text{ cm}^2 | 18\\,\\mathrm{km/h} | 18 m/s^{2} | 18^\\circ | 18 °C"),
        ("18", "18 years old"),
        ("18", "１８ | 𝟏𝟖 | \u00a018\u2009 | 18\u202fkg | \\(18\\) | \\text{18}"),
        ("1800", "1,800 | $1,800.00 | 1{,}800 | 1,\\!800 | 1.8\\times 10^3 | 1.8 × 10^{3}"),
        ("1800", "1.8*10**3"),
        ("1,800", "1800 | 1,800 | 1800 dollars"),
        ("-3", "-3 | \u22123 | - 3 | -$3 | $-3 | –3 | -6/2 | $-3$ | -3.0 m"),
        ("0.75", "0.75 | .75 | 3/4 | \\frac{3}{4} | \\dfrac{3}{4} | 75e-2 | 0.78 | 0.72"),
        ("0.75", "3/4 cup"),
        ("1.75", "1 3/4 | 1\\frac{3}{4} | 1 \\tfrac{3}{4} cups | 7/4"),
        ("1e-5", "1e-5 | 0.00001 | 10^{-5} | 10^-5 | 1\\times 10^{-5} | 1.04e-5 | 0.96E-05"),
        ("3e8", "3\\times10^8 m/s | 2.99792458 \\cdot 10^{8} | 300,000,000"),
        ("0.0", "0 | 0.00 | -0 | 0/7"),
        ("True", "True | true. | YES | \\text{True}"),
        ("No", "no | False"),
        ("(a)", "(a) | a | (A) | A. | \\text{(a)}"),
        ("[1, 2.5]", "[1, 2.5] | (1,2.5) | [1.0, 5/2] | \\left[1, \\frac{5}{2}\\right]"),
        ("[1, 2.5]", "[ 1 , 2.6 ]"),
    ],
)
def test_right_answers_however_they_are_spelled(gold: str, answers: str) -> None:
    spelled = answers.split(" | ")
    assert {a: judged(a, gold) for a in spelled} == dict.fromkeys(spelled, "correct")


@pytest.mark.parametrize(
    ("gold", "answers"),
    [
        ("3", "-3 | \u22123 | - 3 | (3) | 17.9 | 3.01 | 3.0000000000000000000000001 | 30% | --3"),
        ("3", "+-3"),
        ("18", "about 18 | 18 or 19 | 18 19 | 18, 19 | [18] | 18 = 18 | x = 18 | 18 - 0 | 8+10"),
        ("18", "2*9"),
        ("-3", "+-3 | --3 | -$-3 | 3"),
        ("180", "1{,}80 | 1,\\!80"),
        ("3", "3 apples and 4 pears | 3 apples 4 | 3m | 3 x | 3 xy | 3 pi | 3 million"),
        ("3", "3 thousand"),
        ("3", "3 dozen | 3 plus one | 3 squared | 3 or more | 3 is wrong | 3 not | 3 to four"),
        ("3", "3 k | 3!"),
        ("2", "2 \\pi | 2\\pi | 2^1 | 2 sqrt | 2 times three | 2_10 | 2:1 | 2//1 | 4/2/1 | 2e"),
        ("2", "2e0.0"),
        ("1800", "1,80 | 18,00 | 1,8,00 | 1 800 | 1.800 | ,1800 | 1800, | 1,800,0 | 0x708"),
        ("1800", "1_800"),
        ("52", "5² | 5\u2075 | ⑤② | 5\u200b2 | \u202e52 | ٥٢ | 5 2"),
        ("15.5", "31½ | 3½ | -15.5 | 15,5"),
        ("31", "3 1/1 | 3\\frac{1}{1} | 3½ | NaN"),
        ("2", "1 3/3 | 1 6/3 | 4/0 | 4/-2 | \\frac{4}{0}"),
        ("13", "1\\frac{3}{1} | 1/\\frac{1}{13} | 10\\frac{3}{1}5"),
        ("0.0", "1e-300 | 0.0001 | -0.0001 | (0)"),
        ("100.0", "104.0000001 | 95.9999 | -100 | nan | inf | \\infty | True"),
        ("1", "True | yes | (a) | [1] | one"),
        ("True", "1 | False | no | T | True or False | not False"),
        ("(a)", "(b) | b | (ab) | a or b | (a) and (b) | (a | a b | 1"),
        ("[1, 2.5]", "[2.5, 1] | [1] | [1, 2.5, 3] | 1, 2.5 | [1; 2.5] | [1, 2.5 | [1, -2.5]"),
        ("[1, 2.5]", "[1.01, 2.5]"),
        ("[1800]", "[1,800] | 1800"),
        ("[5]", "5 | [5,] | [] | [[5]]"),
        ("5", "$ | % | five | 5 5/0"),
    ],
)
def test_everything_else_is_wrong(gold: str, answers: str) -> None:
    spelled = answers.split(" | ")
    assert {a: judged(a, gold) for a in spelled} == dict.fromkeys(spelled, "wrong")


@pytest.mark.parametrize(
    ("spellings", "canonical"),
    [
        (["18", "18.0", "18.00 dollars", "$18", "36/2", "1.8e1"], "18"),
        (["2.5", "5/2", "2\\frac{1}{2}", "2.50", "25e-1", "+2.5 m"], "2.5"),
        (["1/3", "2/6", "\\frac{1}{3} of a cup"], "1/3"),
        (["-0", "0.0", "0/3", "+0"], "0"),
        (["1200", "1,200", "1.2\\times10^3", "1,200.0"], "1200"),
        (["0.00001", "1e-5", "10^{-5}"], "0.00001"),
        (["[1, 2.50]", "(1.0,5/2)"], "[1, 2.5]"),
        (["yes", "True."], "True"),
        (["A", "(a)"], "(a)"),
        (["About 18\u00a0or 19", "about18or19"], "about18or19"),
    ],
)
def test_one_spelling_for_each_answer(spellings: list[str], canonical: str) -> None:
    assert {NUMERIC.judge(s, "7").answer for s in spellings} == {canonical}


def test_a_response_without_an_answer_is_malformed() -> None:
    assert NUMERIC.judge(" ", "18") == Verified(answer="", verdict="wrong")
    assert NUMERIC.verify("18", "18") == Verified(answer=None, verdict="malformed")
    assert NUMERIC.verify("so <answer> $18 </answer>", "18").verdict == "correct"
    assert NumericVerifier(grammar="boxed").verify("so \\boxed{18}", "18").verdict == "correct"


@pytest.mark.parametrize(
    "target",
    [
        "",
        "  ",
        "3/4",
        "about 3",
        "$3",
        "−3",
        "1,80",
        "nan",
        "inf",
        "1e1000",
        "[]",
        "[1, x]",
        "[[1]]",
        "(1, 2)",
        "a",
        "(ab)",
        "3 cm",
        "9" * 1001,
    ],
)
def test_a_gold_of_no_type_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="the target of `numeric` must be") as error:
        NUMERIC.check_target(target)
    assert repr(target) in str(error.value)


@pytest.mark.parametrize("tolerance", [-0.01, 1.0, float("nan"), float("inf")])
def test_a_tolerance_out_of_range_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be at least 0 and below 1"):
        NumericVerifier(tolerance=tolerance)


def test_the_name_has_every_option_that_bears_on_a_verdict() -> None:
    assert open_verifier(VerifierOptions(name="numeric")).name == "numeric/1"
    assert NumericVerifier(tolerance=0.01, grammar="boxed").name == "numeric/1 grammar=boxed tolerance=0.01"


@given(GOLDS)
def test_a_gold_is_a_right_answer(gold: str) -> None:
    NUMERIC.check_target(gold)
    assert NUMERIC.verify(NUMERIC.gold_response(gold), gold).verdict == "correct"


@given(INTEGERS.map(str) | DECIMALS.map("{:f}".format))
def test_the_other_sign_is_wrong(gold: str) -> None:
    assume(Decimal(gold) != 0)
    other = gold[1:] if gold.startswith("-") else f"-{gold}"
    for lax in (NUMERIC, NumericVerifier(tolerance=0.999)):
        assert lax.judge(other, gold).verdict == "wrong"
        assert lax.judge(other.replace("-", "\u2212"), gold).verdict == "wrong"


@given(
    st.decimals(-(10**9), 10**9, places=3),
    st.sampled_from(["", "$", "\\$", "€"]),
    st.sampled_from(["", " ", "\u00a0", "\u2009"]),
    st.sampled_from(["", "0", "000"]),
    st.sampled_from(["", " dollars", "%", "\\text{ cm}", " km/h", "."]),
    st.booleans(),
)
def test_spelling_changes_neither_verdict_nor_answer(
    value: Decimal, currency: str, space: str, zeros: str, unit: str, commas: bool
) -> None:
    gold = f"{value:f}"
    digits = f"{abs(value):,f}" if commas else f"{abs(value):f}"
    sign = "-" if value < 0 else ""
    spelled = f"{space}{sign}{currency}{space}{digits}{zeros}{space if unit else ''}{unit}{space}"
    assert NUMERIC.judge(spelled, gold) == NUMERIC.judge(gold, gold)
    assert judged(gold, gold) == "correct"


@given(st.integers(), st.integers())
def test_an_integer_gold_wants_the_exact_value(answer: int, gold: int) -> None:
    assert (judged(str(answer), str(gold)) == "correct") == (answer == gold)
    assert judged(f"{gold}.{'0' * 30}1", str(gold)) == "wrong"


@given(DECIMALS, st.decimals(-1, 1, places=3), st.sampled_from(["0.04", "0.0", "0.1", "0.999"]))
@example(Decimal("100"), Decimal("0.04"), "0.04")
@example(Decimal("-0.3"), Decimal("0.1"), "0.1")
@example(Decimal("0"), Decimal("0"), "0.999")
def test_a_decimal_gold_allows_its_tolerance_and_not_more(
    gold: Decimal, off: Decimal, tolerance: str
) -> None:
    verifier, target = NumericVerifier(tolerance=float(tolerance)), f"{gold:.4f}"
    answer = gold * (1 + off)
    within = abs(answer - gold) <= Decimal(tolerance) * abs(gold)
    assert (verifier.judge(f"{answer:f}", target).verdict == "correct") == within
    # Right on the edge, and the least bit beyond it.
    edge = gold + Decimal(tolerance) * gold
    assert verifier.judge(f"{edge:f}", target).verdict == "correct"
    beyond = edge + Decimal("1e-12").copy_sign(gold)
    assert verifier.judge(f"{beyond:f}", target).verdict == "wrong"


@given(
    st.lists(st.integers(-9, 9), min_size=1, max_size=5).flatmap(
        lambda v: st.tuples(st.just(v), st.permutations(v))
    )
)
def test_the_order_of_a_list_counts(lists: tuple[list[int], list[int]]) -> None:
    gold, answer = lists
    assert (judged(str(answer), str(gold)) == "correct") == (gold == answer)
    assert judged(str([*gold, 1]), str(gold)) == judged(str(gold[1:]), str(gold)) == "wrong"


@given(st.fractions(), st.fractions())
def test_canonical_answers_are_equal_if_and_only_if_the_values_are(one: Fraction, other: Fraction) -> None:
    first, second = (NUMERIC.judge(f"{v.numerator}/{v.denominator}", "1").answer for v in (one, other))
    assert (first == second) == (one == other)
    assert NUMERIC.judge(first or "", "1").answer == first


PIECES = st.sampled_from(
    ["1", "18", "-", "+", ".", ",", "/", " ", "$", "%", "e", "\\frac{", "}{", "}", "^", "10"]
)


@given(st.text() | st.lists(PIECES | st.characters(), max_size=30).map("".join), GOLDS)
@settings(max_examples=400)
def test_any_text_has_one_verdict(answer: str, gold: str) -> None:
    first = NUMERIC.judge(answer, gold)
    assert first.verdict in ("correct", "wrong")
    assert first.answer is not None
    assert NumericVerifier().judge(answer, gold) == first


@pytest.mark.parametrize(
    "hostile",
    [
        "9" * 10**6,
        "1e" + "9" * 10**6,
        "1e999999",
        "9" * 900 + "e999",
        "1/" + "3" * 990,
        "1," * 490,
        "1 " * 499,
        "[" * 10**6,
        "[" + "1," * 480 + "1]",
        "$" * 10**6,
        "\\boxed{" * 140 + "1" + "}" * 140,
        "\\frac{1}{" * 99,
        "\u0301\u0316" * 500_000,
        " " * 10**6 + "1",
        "18 " + "ab " * 330,
        "1" + "·a" * 490,
        "½" * 990,
        "\\text{" * 160,
        "1" + " cm^" * 240,
        "1e9" * 330,
        "\ufdfa" * 990,
        "1.8e-999",
        "1" * 999 + "x",
    ],
)
def test_hostile_answers_take_no_time(hostile: str) -> None:
    start = time.process_time()
    verdict = judged(hostile, "18")
    taken = time.process_time() - start
    assert verdict == "wrong"
    assert taken < 0.1, f"{taken:.3f} s"


@needs_data
def test_gsm8k_solutions_are_judged_as_they_were() -> None:
    prompts = [json.loads(line) for line in _lines("example_model_solutions.jsonl")]
    differ, without = [], []
    for prompt in prompts:
        gold = prompt["ground_truth"].rpartition("A:")[2].strip()
        for model in [value for value in prompt.values() if isinstance(value, dict)]:
            marked, _, answer = model["solution"].splitlines()[-1].partition("A:")
            # A last line that does not begin so gives no answer: a response without a tag, malformed.
            stated = marked == "" and answer != ""
            verdict = NUMERIC.verify(mark_answer(answer) if stated else model["solution"], gold).verdict
            without += [] if stated else [(verdict, model["is_correct"])]
            differ += [] if (verdict == "correct") == model["is_correct"] else [(answer, gold, verdict)]
    assert len(prompts) == 1319
    assert differ == []
    assert without == [("malformed", False)] * 11


@needs_data
@pytest.mark.parametrize(("name", "count"), [("train.jsonl", 7473), ("test.jsonl", 1319)])
def test_gsm8k_golds_pass(name: str, count: int) -> None:
    golds = [json.loads(line)["answer"].rpartition("####")[2].strip() for line in _lines(name)]
    assert len(golds) == count
    assert [g for g in golds if NUMERIC.verify(NUMERIC.gold_response(g), g).verdict != "correct"] == []


def _lines(name: str) -> list[str]:
    return (Path(DATA or "") / "gsm8k" / name).read_text(encoding="utf-8").splitlines()
