"""What a user names by import path, opened: `package.module.Class` with its keyword arguments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any


def import_named(kind: str, path: str, known: Iterable[str]) -> Any:
    """What stands under an import path.

    Args:
        kind: engine or verifier, for messages.
        path: `package.module.Class`.
        known: the names that need no path.

    Raises:
        ValueError: no such module, or nothing of that name in it that can be called.
    """
    module, _, name = path.rpartition(".")
    names = f"{kind} {path!r} is none of {', '.join(known)}, and"
    try:
        found = getattr(importlib.import_module(module), name, None) if module.strip(".") else None
    except ModuleNotFoundError as error:
        hint = "a module of your own has to be installed, or its folder on PYTHONPATH"
        raise ValueError(f"{kind} {path!r}: {error}; {hint}") from error
    if found is None and module.strip("."):
        raise ValueError(f"{names} module {module} has no {name}")
    if not callable(found):
        raise ValueError(f"{names} no package.module.Class")
    return found


def call_named(
    kind: str, path: str, found: Any, *arguments: Any, called_with: str, keywords: Mapping[str, Any]
) -> Any:
    """Call what was imported, if these arguments fit.

    Args:
        kind, path: as in `import_named`.
        found: what stands under the path.
        arguments: the positional ones.
        called_with: all arguments in words, for messages.
        keywords: the keyword arguments.

    Raises:
        ValueError: arguments that it does not take, or ones missing that it needs.
    """
    try:
        inspect.signature(found).bind(*arguments, **keywords)
    except TypeError as error:
        raise ValueError(f"{kind} {path!r} is called with {called_with}, and: {error}") from error
    return found(*arguments, **keywords)


def check_has(kind: str, path: str, opened: Any, names: Iterable[str], protocol: str) -> None:
    """Refuse what lacks attributes of its protocol.

    Raises:
        ValueError: names what is missing, and where the protocol is described.
    """
    missing = [name for name in names if not hasattr(opened, name)]
    if missing:
        raise ValueError(f"{kind} {path!r} lacks {', '.join(missing)}: see {protocol}")
