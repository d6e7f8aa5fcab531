"""No verifier accepts a generated attack, and one that is broken is caught."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from drift_rollout import ChoiceVerifier, ExactVerifier, Verified
from drift_rollout.verify import MALFORMED, Grammar
from rollout.attacks import FAMILIES, attacked, attacks, main


def test_none_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count=390", "--seed=1", "--verifier", "exact", "choice"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"all +│ +0 of 390 │ +0 of \d\d", shown)
    assert shown.count("0 of 30 ") == len(FAMILIES)


def test_a_seed_gives_the_same_attacks_and_no_two_families_alike() -> None:
    first = [*attacks(260, seed=3)]
    assert first == [*attacks(260, seed=3)] != [*attacks(260, seed=4)]
    assert {attack.family for attack in first} == {*FAMILIES}
    assert len({attack.response for attack in first}) > 240
    assert {attack.grammar for attack in first} == {*get_args(Grammar)}


class FirstMatch(ExactVerifier):
    """Reads the first mark that it finds, as the authors' code does."""

    def verify(self, response: str, target: str) -> Verified:
        pattern = r"<answer>(.*?)</answer>" if self.grammar == "answer" else r"\\boxed\{(.*?)\}"
        found = re.search(pattern, response, re.DOTALL)
        return MALFORMED if found is None else self.judge(found[1], target)


class PicksALetter(ChoiceVerifier):
    """Takes the first letter of an answer."""

    def judge(self, answer: str, target: str) -> Verified:
        return super().judge(answer.strip()[:1], target)


class DropsSigns(ExactVerifier):
    """Judges numbers without their signs."""

    def judge(self, answer: str, target: str) -> Verified:
        return super().judge(answer.lstrip("+-−"), target.lstrip("-"))


@pytest.mark.parametrize(
    ("name", "broken", "families"),
    [
        ("exact", FirstMatch, {"several answers", "hidden tags", "inside thinking"}),
        ("choice", PicksALetter, {"hedged", "gold plus extra", "injected verdict"}),
        ("exact", DropsSigns, {"sign"}),
    ],
)
def test_a_broken_verifier_is_caught(name: str, broken: type, families: set[str]) -> None:
    verifiers = {(name, grammar): broken(grammar=grammar) for grammar in get_args(Grammar)}
    report = attacked(verifiers, [*attacks(1300, seed=2)])
    assert families <= {attack.family for _, attack in report.accepted}


def test_a_verifier_that_refuses_everything_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    class Never(ExactVerifier):
        def judge(self, answer: str, target: str) -> Verified:
            return MALFORMED

    report = attacked({("exact", "answer"): Never()}, [*attacks(50)])
    assert report.accepted == []
    assert len(report.refused) == report.tried.total() > 0


def test_an_accepted_attack_is_printed_and_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "rollout.attacks.open_verifier", lambda options: FirstMatch(grammar=options.grammar)
    )
    assert main(["--count=130", "--verifier", "exact"]) == 1
    shown = capsys.readouterr().out
    assert "accepted: exact: Attack(family='" in shown
    assert re.search(r"several answers +│ +[1-9]\d* of 10", shown)
