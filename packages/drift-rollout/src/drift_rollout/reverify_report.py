"""What another verifier changed, said on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from drift_rollout.verdict_changes import Changes, Example, Tally
from drift_weights.types import VERDICTS

_POLICY = 24
"""Characters of a policy's name, which may be a hash."""


def print_changes(console: Console, changes: Changes, old: str | None, new: str) -> None:
    """Print verdicts, examples, accuracies, and how much of correction is spelling.

    Args:
        old: name of the verifier before, if that is known.
        new: name of the verifier now.
    """
    before = old or "the log"
    moved = sum(count for (then, now), count in changes.turns.items() if then != now)
    _say(console, f"{moved:,} of {changes.turns.total():,} verdicts changed; rows {before}, columns {new}")
    console.print(_matrix(changes))
    for line in _examples(changes):
        _say(console, line)
    console.print(_accuracies(changes))
    for (policy, budget), tally in sorted(changes.tallies.items()):
        name = f"policy {policy[:_POLICY]}: " if len(changes.tallies) > 1 else ""
        _say(console, name + _spelling(tally, budget, before, new))
    for line in _remarks(changes):
        _say(console, line)


def _matrix(changes: Changes) -> Table:
    """Old verdicts down, new ones across; those that occur."""
    old = [verdict for verdict in VERDICTS if any(then == verdict for then, _ in changes.turns)]
    new = [verdict for verdict in VERDICTS if any(now == verdict for _, now in changes.turns)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for verdict in new:
        table.add_column(verdict, justify="right")
    for then in old:
        table.add_row(then, *(f"{changes.turns[then, now]:,}" for now in new))
    return table


def _examples(changes: Changes) -> Iterator[str]:
    places = {verdict: number for number, verdict in enumerate(VERDICTS)}
    for change in sorted(changes.examples, key=lambda change: (places[change[0]], places[change[1]])):
        kept = changes.examples[change]
        if kept:
            yield f"{change[0]} → {change[1]}, {len(kept)} of {changes.turns[change]:,}:"
        for example in kept:
            yield (
                f"  gold {example.gold!r}, answer {_answer(example)}: turn {example.turn}, sample "
                f"{example.sample}, {example.prompt_id}"
            )


def _answer(example: Example) -> str:
    """How both read it; where neither could, the end of the response."""
    if example.before is None and example.now is None:
        return f"none in {example.ending!r}"
    read = ["none" if answer is None else repr(answer) for answer in (example.before, example.now)]
    return read[0] if read[0] == read[1] else f"{read[0]}, now {read[1]}"


def _accuracies(changes: Changes) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("policy", "k", "dialogues", "acc@1", "multi@k", "not known"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for (policy, budget), tally in sorted(changes.tallies.items()):
        pairs = (
            (tally.first_before, tally.first_now),
            (tally.solved_before, tally.solved_now),
            (tally.open_before, tally.open_now),
        )
        shares = (f"{old / tally.dialogues:.1%} → {new / tally.dialogues:.1%}" for old, new in pairs)
        table.add_row(policy[:_POLICY], str(budget), f"{tally.dialogues:,}", *shares)
    return table


def _spelling(tally: Tally, budget: int, old: str, new: str) -> str:
    if not tally.corrected:
        return f"{old} saw no dialogue corrected after turn 1"
    correction, share = tally.corrected / tally.dialogues, tally.respelled / tally.corrected
    return (
        f"{old} saw {tally.corrected:,} of {tally.dialogues:,} dialogues corrected after turn 1 "
        f"(multi@{budget} − acc@1 = {correction:.1%}); in {tally.respelled:,} of them {new} calls an "
        f"earlier answer correct: {share:.1%} of that is spelling"
    )


def _remarks(changes: Changes) -> Iterator[str]:
    if changes.cut:
        yield f"{changes.cut:,} turns behind the end of their dialogue are cut"
    if changes.unfinished:
        yield (
            f"{changes.unfinished:,} dialogues would have gone on and were never sampled further: unscored "
            "(ended: error)"
        )
    if changes.unscored:
        yield f"{changes.unscored:,} dialogues are unscored by a timeout or an error"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
