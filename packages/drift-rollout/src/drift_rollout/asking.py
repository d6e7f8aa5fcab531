"""A verifier asked: it gives a verdict, or an error says who failed, where, and on what."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drift_rollout.verify import Verified, Verifier, mark_answer

_SHOWN = 200
"""Characters of a response that an error shows."""


class VerifierError(RuntimeError):
    """A verifier raised, or gave no `Verified`, where it should have given a verdict."""


def ask(verifier: Verifier, response: str, target: str, *, problem: str) -> Verified:
    """The verdict on a response.

    Args:
        response: with what the assistant had said before it.
        target: the gold answer.
        problem: its id, and its place if that is known, for messages.

    Raises:
        VerifierError: the verifier raised, or gave something else; verifier, problem, the first 200
            characters of the response and the line that raised are named.
    """
    about = f"problem {problem}, response {response[:_SHOWN]!r}"
    with _naming(verifier, about):
        verified: object = verifier.verify(response, target)
    if not isinstance(verified, Verified):
        raise VerifierError(
            f"verifier {verifier.name} must give a Verified, got {type(verified).__name__}; {about}"
        )
    return verified


def ask_for_gold(verifier: Verifier, target: str, *, problem: str) -> str:
    """A response that gives the gold as its answer.

    Raises:
        VerifierError: the verifier's `gold_response` raised.
    """
    with _naming(verifier, f"problem {problem}, gold_response of the target {target!r}"):
        said: str = getattr(verifier, "gold_response", mark_answer)(target)
    return said


def refusal(verifier: Verifier, target: str, *, problem: str) -> str | None:
    """Why the verifier does not take a target; None if it does.

    Raises:
        VerifierError: `check_target` raised anything but ValueError.
    """
    with _naming(verifier, f"problem {problem}, check_target of {target!r}"):
        try:
            verifier.check_target(target)
        except ValueError as error:
            return str(error)
    return None


@contextmanager
def _naming(verifier: Verifier, about: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise VerifierError(
            f"verifier {verifier.name} raised {type(error).__name__}: {error} ({Path(last.filename).name}, "
            f"line {last.lineno}, in {last.name}); {about}"
        ) from error
