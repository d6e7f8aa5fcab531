r"""`math`: equal spelling first, then numbers, then what math-verify says of the rest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import threading
from collections import OrderedDict
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from drift_rollout.verifiers.equality import MathGuards, equal
from drift_rollout.verifiers.normal_form import Form, depth, normal_form
from drift_rollout.verifiers.worker_pool import WorkerDiedError, WorkerPool
from drift_rollout.verify import AnswerVerifier, Verified
from drift_weights.types import Verdict

_WORKER = Path(__file__).with_name("math_worker.py")
_NO_VERDICT = frozenset({"timeout", "memory", "workers"})
_BOX = re.compile(r"\\(?:boxed|fbox)")
"""A box in an answer would be taken for the whole of it."""
_GRACE = 30.0
"""Seconds above its limit after which a process that should have said so is given up."""
_MEMO = 1 << 16
"""Pairs whose verdict is kept."""


# No slots: jsonargparse reads the fields of a default from its __dict__.
@dataclass(frozen=True, kw_only=True)
class MathOptions:
    """Of the verifier `math`.

    Raises:
        ValueError: a value out of its range.
    """

    guards: MathGuards = field(default_factory=MathGuards)
    max_length: int = 1000
    """Characters of an answer, ≥ 1; a longer one is wrong unless it is the gold itself."""
    max_depth: int = 24
    """Brackets in brackets of an answer, ≥ 1; a deeper one is wrong likewise."""
    timeout: float = 5.0
    """Seconds that math-verify may take over one pair, > 0; after that the verdict is `timeout`."""
    memory: int = 1024
    """MiB that it may take, ≥ 256; beyond that the verdict is `error` or `wrong`."""
    workers: int = 2
    """Processes that ask math-verify, ≥ 1."""

    def __post_init__(self) -> None:
        for name, least in (("max_length", 1), ("max_depth", 1), ("memory", 256), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0, got {self.timeout}")


@dataclass(frozen=True, kw_only=True)
class MathVerifier(AnswerVerifier):
    """Equality of mathematics: the normal forms are the same, or the numbers are, or math-verify says so.

    An answer that is readable but no mathematics is wrong. `timeout` and `error` say that nobody knows.

    Raises:
        ValueError: math-verify is not installed.
    """

    options: MathOptions = field(default_factory=MathOptions)
    _memo: OrderedDict[tuple[str, str, str], bool] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)
    _pool: WorkerPool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError("the verifier math needs math-verify; install drift-rollout[math]")
        command = [sys.executable, "-P", str(_WORKER)]
        object.__setattr__(self, "_pool", WorkerPool(command, size=self.options.workers))

    @property
    def name(self) -> str:
        """As in `Verifier`; limits of time and memory bear on no verdict."""
        changed = {**_changed(self.options.guards), **_changed(self.options), **_changed(self)}
        words = [f"{name}={changed[name]}" for name in sorted(changed.keys() - _NO_VERDICT)]
        return " ".join([f"math/1 math-verify={importlib.metadata.version('math-verify')}", *words])

    @property
    def concurrency(self) -> int:
        """As in `Verifier`: a thread for each process, and one that finds verdicts without them."""
        return self.options.workers + 1

    def check_target(self, target: str) -> None:
        """Refuse a target that is blank, or longer than an answer may be."""
        _gold_form(target, self.options.max_length)

    def judge(self, answer: str, target: str) -> Verified:
        """Correct if the answer is the same mathematics as the target.

        Raises:
            ValueError: what `check_target` refuses.
        """
        gold = _gold_form(target, self.options.max_length)
        if len(answer) > self.options.max_length:
            return Verified(answer=_shortened(answer), verdict="wrong")
        said = normal_form(answer)
        return Verified(answer=said.canonical, verdict=self._verdict(gold, said))

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def _verdict(self, gold: Form, said: Form) -> Verdict:
        if not said.text:
            return "wrong"
        try:
            return "correct" if equal(gold, said, self.options.guards, self) else "wrong"
        except TimeoutError:
            return "timeout"
        except WorkerDiedError:
            return "error"

    def same(self, gold: str, said: str) -> bool:
        """math-verify's word on two texts, as in `Oracle`; what is no formula is not asked."""
        deep = depth(said)
        if deep is None or deep > self.options.max_depth or _BOX.search(said):
            return False
        return self._ask(gold, said, "same" if self.options.guards.units else "same without units")

    def rounds(self, value: str, decimal: str) -> bool:
        """As in `Oracle`."""
        deep = depth(value)
        return deep is not None and deep <= self.options.max_depth and self._ask(value, decimal, "rounds")

    def _ask(self, gold: str, said: str, what: str) -> bool:
        """What math-verify says, kept."""
        question = (gold, said, what)
        with self._lock:
            if question in self._memo:
                self._memo.move_to_end(question)
                return self._memo[question]
        options = self.options
        found = self._pool.ask(
            [*question, options.timeout, options.memory << 20], seconds=options.timeout + _GRACE
        )
        if found == "timeout":
            raise TimeoutError(f"math-verify had no answer after {options.timeout:g} s")
        if not isinstance(found, bool):
            raise WorkerDiedError("the process that asked math-verify was killed")
        with self._lock:
            self._memo[question] = found
            if len(self._memo) > _MEMO:
                self._memo.popitem(last=False)
        return found


def _changed(options: Any) -> dict[str, Any]:
    """The plain options that are not the default's."""
    values = {option.name: (getattr(options, option.name), option.default) for option in fields(options)}
    return {name: value for name, (value, default) in values.items() if default not in (value, MISSING)}


@lru_cache(maxsize=1 << 14)
def _gold_form(target: str, max_length: int) -> Form:
    if len(target) > max_length:
        raise ValueError(f"the target has {len(target)} characters, more than max_length {max_length}")
    form = normal_form(target)
    if not form.text:
        raise ValueError(f"the target must not be blank, got {target!r}")
    return form


def _shortened(answer: str) -> str:
    """An answer that is too long to be one, as one that differs from others."""
    digest = hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{' '.join(answer[:100].split())}… ({len(answer)} characters, sha256 {digest})"
