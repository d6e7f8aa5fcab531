"""A verifier by its name or import path, with its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from drift_rollout.importing import call_named, check_has, import_named
from drift_rollout.verifiers.choice import ChoiceVerifier
from drift_rollout.verifiers.exact import ExactVerifier
from drift_rollout.verifiers.math import MathOptions, MathVerifier
from drift_rollout.verifiers.numeric import NumericVerifier
from drift_rollout.verify import Grammar, Verifier


# No slots: jsonargparse reads the fields of a default from its __dict__.
@dataclass(frozen=True, kw_only=True)
class VerifierOptions:
    """Which verifier judges, and its options; those of the other verifiers are ignored."""

    name: str = "exact"
    """exact, choice, numeric, math, or a verifier of your own by import path (`package.module.Class`)."""
    grammar: Grammar = "answer"
    """How a response marks its answer: `answer` is <answer>…</answer>, `boxed` is \\boxed{…}."""
    math: MathOptions = field(default_factory=MathOptions)
    own: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a verifier by import path, which also gets `grammar`, if it takes one."""


def open_verifier(options: VerifierOptions) -> Verifier:
    """The verifier of these options.

    Raises:
        ValueError: no verifier of that name, an extra that is not installed, or one by import path that
            cannot be imported, does not take its arguments, or lacks something of a `Verifier`.
    """
    if options.name not in VERIFIERS:
        return _opened(options)
    if options.own:
        raise ValueError(
            f"verifier.own is for a verifier by import path; {options.name} takes none, got "
            f"{', '.join(sorted(options.own))}"
        )
    return VERIFIERS[options.name](options)


def _opened(options: VerifierOptions) -> Verifier:
    """A verifier of a user's own."""
    path = options.name
    kind = import_named("verifier", path, VERIFIERS)
    verifier: Verifier = call_named(
        "verifier",
        path,
        kind,
        called_with="verifier.own, and grammar= if it takes one",
        keywords={**_grammar_of(kind, options), **options.own},
    )
    parts = ("name", "check_target", "verify")
    check_has("verifier", path, verifier, parts, "drift_rollout.verify.Verifier")
    return verifier


def _grammar_of(kind: Any, options: VerifierOptions) -> dict[str, Grammar]:
    if "grammar" in inspect.signature(kind).parameters:
        return {"grammar": options.grammar}
    if options.grammar != VerifierOptions.grammar:
        raise ValueError(
            f"verifier {options.name!r} takes no grammar, got verifier.grammar={options.grammar}"
        )
    return {}


VERIFIERS: dict[str, Callable[[VerifierOptions], Verifier]] = {
    "exact": lambda options: ExactVerifier(grammar=options.grammar),
    "choice": lambda options: ChoiceVerifier(grammar=options.grammar),
    "math": lambda options: MathVerifier(grammar=options.grammar, options=options.math),
    "numeric": lambda options: NumericVerifier(grammar=options.grammar),
}
"""The verifiers by the name that a configuration uses."""
