"""The columns of a schema, as the Hub's datasets library writes its features."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

_ALIASES = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
"""Where `datasets` calls an Arrow type otherwise than Arrow does."""
_NAMED = re.compile(
    r"null|bool|u?int(8|16|32|64)|float(16|32|64)|date(32|64)|(large_)?(string|binary)|(string|binary)_view"
    r"|fixed_size_binary\[\d+\]|(time(32|64)|duration|timestamp)\[.+\]|decimal(128|256)\(.+\)"
)
"""The types that `datasets` has a name for."""


def features_yaml(schema: pa.Schema) -> list[dict[str, Any]]:
    """The columns of a schema as `datasets` writes its features in a card.

    Raises:
        ValueError: a column of a type that `datasets` cannot name.
    """
    found = []
    for field in schema:
        try:
            found.append({"name": field.name, **_feature(field.type)})
        except TypeError as error:
            raise ValueError(f"column {field.name!r}: {error}; drop it or change its type") from error
    return found


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pt.is_dictionary(kind):
        return _feature(kind.value_type)
    if pt.is_struct(kind):
        return {"struct": [{"name": field.name, **_feature(field.type)} for field in kind.fields]}
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        word = "large_list" if pt.is_large_list(kind) else "list"
        length = {"length": kind.list_size} if pt.is_fixed_size_list(kind) else {}
        return {word: _short(_feature(kind.value_type)), **length}
    name = _ALIASES.get(str(kind), str(kind))
    if not _NAMED.fullmatch(name):
        raise TypeError(f"the Hub's datasets library has no name for {kind}")
    return {"dtype": name}


def _short(feature: dict[str, Any]) -> Any:
    """What a list holds is written without its own key where that says everything."""
    (key, value), *more = feature.items()
    return value if key in ("dtype", "struct") and not more else feature
