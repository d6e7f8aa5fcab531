"""A log judged again by another verifier: both verdicts are kept, and nothing is sampled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import starmap
from pathlib import Path
from typing import Any

from drift_rollout.asking import ask
from drift_rollout.problems import Problem, check_targets
from drift_rollout.regrade import Regraded, regrade
from drift_rollout.run import JOURNAL, TRAJECTORIES
from drift_rollout.stored_log import StoredLog
from drift_rollout.verdict_changes import Changes
from drift_rollout.verifiers.opening import VERIFIERS
from drift_rollout.verify import Verified, Verifier
from drift_weights.folder import FolderWriter, refuse_replacing
from drift_weights.schema import to_table
from drift_weights.types import Trajectory, Turn

Pair = tuple[str, str]
"""What the assistant said, and the target."""
Judge = Callable[[Mapping[Pair, str]], list[Verified]]
"""The verdicts on pairs, each of which comes with a problem that it is of."""
_CARRIED = ("rollout", "problems", "origin", "license", "problems_license")
"""What the old manifest says that holds for the new folder, too."""


def reverify(
    log: StoredLog,
    new: Path,
    verifier: Verifier,
    *,
    prefill: str | None = None,
    examples: int = 5,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda dialogues: None,
) -> Changes:
    """Judge every turn of a log anew and write NEW, the dialogues as `regrade` gives them.

    Rows keep their order and their key. Results do not depend on the order of the verdicts.

    Args:
        log: of `open_log`.
        new: the folder to make.
        verifier: which judges; from so many threads as its `concurrency` says.
        prefill: what the assistant had said before each response, by a prefill or by the chat template
            itself; as the manifest says if not given.
        examples: of each change, at least 0.
        overwrite: replace a folder of ours.
        advance: told how many more dialogues are done.

    Raises:
        ValueError: what `check_reverify` refuses, a row that is no dialogue, or one that was re-verified
            before.
        FileExistsError: NEW holds something.
        VerifierError: the verifier raised, or gave no `Verified`; the problem is named.
    """
    check_reverify(log, new, verifier, overwrite=overwrite)
    changes, before = Changes(examples), old_verifier(log)
    opened = _opened(log) if prefill is None else prefill
    with FolderWriter(new, "trajectories", overwrite=overwrite) as writer, _judging(verifier) as judge:
        for batch in log.batches():
            rows = _regraded(batch, judge, opened, before)
            writer.write(to_table(row.after for row in rows))
            for row in rows:
                changes.add(row)
            advance(len(rows))
        writer.finish(_manifest(log, changes, verifier.name, opened))
    return changes


def check_reverify(log: StoredLog, new: Path, verifier: Verifier, *, overwrite: bool = False) -> int:
    """What can be said before the first verdict.

    Returns:
        The number of problems.

    Raises:
        ValueError: an empty log, targets that are missing or that the verifier refuses (the first ten
            are listed), or a NEW that would replace the log.
        FileExistsError: NEW holds something.
    """
    if log.rows == 0:
        raise ValueError(f"{log.path} has no rows")
    exported = log.path.with_name(TRAJECTORIES) if log.path.name == JOURNAL else log.path
    if any(place.resolve().is_relative_to(new.resolve()) for place in (log.path, exported)):
        raise ValueError(f"{new} is the place of the log itself; choose another output")
    refuse_replacing(new, overwrite=overwrite)
    golds = dict.fromkeys(log.golds())
    check_targets((Problem(prompt_id=name, messages=(), target=gold) for name, gold in golds), verifier)
    return len(golds)


def old_verifier(log: StoredLog) -> str | None:
    """The name of the verifier that gave a log's verdicts, if that is known."""
    found: str | None = log.about.get("rollout", {}).get("verifier")
    return found


def grammar_note(before: str | None, verifier: Verifier) -> str | None:
    """What to say where the verifier before read answers by another grammar; None where it did not.

    Args:
        before: its name, which says a grammar that is not the default's.
    """
    now = getattr(verifier, "grammar", None)
    named = re.search(r"\bgrammar=(\w+)", before or "")
    ours = before is not None and before.partition("/")[0] in VERIFIERS
    then = named[1] if named else "answer" if ours else None
    if None in (then, now) or then == now:
        return None
    return (
        f"{before} read answers by the grammar {then}, and {verifier.name} reads them by {now}: what was "
        f"marked the old way is malformed; to read it as before, give --verifier.grammar {then}"
    )


def _opened(log: StoredLog) -> str:
    rollout = log.about.get("rollout", {})
    found: str = rollout.get("opened") or rollout.get("prefill") or ""
    return found


@contextmanager
def _judging(verifier: Verifier) -> Iterator[Judge]:
    """A function from pairs to verdicts, in threads if the verifier takes its time."""
    threads = getattr(verifier, "concurrency", 0)

    def verdict(pair: Pair, problem: str) -> Verified:
        return ask(verifier, *pair, problem=problem)

    if not threads:
        yield lambda pairs: list(starmap(verdict, pairs.items()))
        return
    with ThreadPoolExecutor(threads, "verify") as pool:
        yield lambda pairs: list(pool.map(verdict, pairs.keys(), pairs.values()))


def _regraded(batch: Sequence[Trajectory], judge: Judge, opened: str, before: str | None) -> list[Regraded]:
    """The dialogues of a batch; what was said alike to the same target is judged once."""
    pairs: dict[Pair, str] = {}
    for row in batch:
        for turn in row.turns:
            if _was_given(turn):
                pairs.setdefault(_pair(row, turn, opened), row.prompt_id)
    verdicts = dict(zip(pairs, judge(pairs), strict=True))

    def verified(row: Trajectory, turn: Turn) -> Verified:
        if _was_given(turn):
            return verdicts[_pair(row, turn, opened)]
        return Verified(answer=turn.answer, verdict=turn.verdict)

    return [regrade(row, [verified(row, turn) for turn in row.turns], verifier=before) for row in batch]


def _was_given(turn: Turn) -> bool:
    """Whether there is a response; a request that failed has none."""
    return (turn.verdict, turn.finish_reason) != ("error", "error")


def _pair(row: Trajectory, turn: Turn, opened: str) -> Pair:
    return opened + turn.response, row.target or ""


def _manifest(log: StoredLog, changes: Changes, verifier: str, opened: str) -> dict[str, Any]:
    carried = {name: log.about[name] for name in _CARRIED if name in log.about}
    if "rollout" in carried:
        carried["rollout"] = {**carried["rollout"], "verifier": verifier}
    return {
        **carried,
        "reverified": {
            "verifier": {"before": old_verifier(log), "now": verifier},
            "prefill": opened,
            "source": log.identity,
            **changes.facts,
        },
    }
