"""A verifier by its name or import path, with its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from drift_rollout.verifiers.choice import ChoiceVerifier
from drift_rollout.verifiers.exact import ExactVerifier
from drift_rollout.verifiers.math import MathOptions, MathVerifier
from drift_rollout.verify import Grammar, Verifier


# No slots: jsonargparse reads the fields of a default from its __dict__.
@dataclass(frozen=True, kw_only=True)
class VerifierOptions:
    """Which verifier judges, and its options; those of the others are ignored."""

    name: str = "exact"
    """exact, choice, numeric, math, or a verifier of your own by import path (`package.module.Class`)."""
    grammar: Grammar = "answer"
    """How a response marks its answer: `answer` is <answer>…</answer>, `boxed` is \\boxed{…}."""
    math: MathOptions = field(default_factory=MathOptions)
    own: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a verifier by import path."""


def open_verifier(options: VerifierOptions) -> Verifier:
    """The verifier of these options.

    Raises:
        ValueError: no verifier of that name, or an extra that is not installed.
    """
    if options.name not in VERIFIERS:
        raise ValueError(f"verifier {options.name!r} is none of {', '.join(VERIFIERS)}")
    return VERIFIERS[options.name](options)


VERIFIERS: dict[str, Callable[[VerifierOptions], Verifier]] = {
    "exact": lambda options: ExactVerifier(grammar=options.grammar),
    "choice": lambda options: ChoiceVerifier(grammar=options.grammar),
    "math": lambda options: MathVerifier(grammar=options.grammar, options=options.math),
}
"""The verifiers by the name that a configuration uses."""
