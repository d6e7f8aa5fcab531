"""What must not be published: secrets anywhere; absolute paths and user names in manifests.

The shapes of secrets are our own, and RE2 looks for them inside Arrow: the scanners that exist read line by
line in Python, know few of the tokens that are at hand here, and take mathematics for passwords.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import PurePath
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from drift_weights.secret_shapes import MARKS, NAMING, SHAPES, Shape

_Suspect: TypeAlias = tuple[int, str, str, list[Shape]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """Something that must not be published, and where it stands; never the thing itself."""

    place: str
    """As `data/part-00000.parquet, row 17, completion[0].content`."""
    what: str
    """As `a Hugging Face token`."""
    shown: str
    """Its first characters, by which it can be found."""


def leaks_in_text(text: str, place: str) -> list[Leak]:
    """The secrets in a text; the place of each has its line, counted from 1."""
    return [
        Leak(place=f"{place}, line {text.count(chr(10), 0, start) + 1}", what=what, shown=shown)
        for _, shapes in _shaped(_encoded([text]))
        for start, what, shown in _secrets(text, shapes)
    ]


def leaks_in_batch(batch: pa.RecordBatch, first_row: int, place: str) -> list[Leak]:
    """The secrets in any text or bytes of any column, however nested, and in the schema.

    Args:
        batch: rows of a file.
        first_row: the number of the first of them in the file, from 0; with row 0 come the names
            and the metadata of the columns.
        place: the file's name.

    Returns:
        One entry a secret, column by column.
    """
    found = [] if first_row else _schema_leaks(batch.schema, place)
    for field, column in zip(batch.schema, batch.columns, strict=True):
        name = _masked(field.name)
        for row, path, text, shapes in _suspects(column, field.name):
            found += _leaks(text, f"{place}, row {first_row + row}, {name}{path}", shapes)
    return found


def leaks_in_json(value: Any, place: str) -> list[Leak]:
    """The secrets in the strings and the keys of a JSON value; the place of each has its dotted path."""
    strings = list(_strings(value))
    texts = [f'{name}="{text}"' if NAMING.search(name) else text for _, name, text in strings]
    return [
        leak
        for index, shapes in _shaped(_encoded(texts))
        for leak in _leaks(texts[index], _joined(place, strings[index][0]), shapes)
    ]


def private_in_json(
    value: Any, place: str, *, user: str, home: str, known: Collection[str] = ()
) -> list[Leak]:
    """The absolute paths and the user names in the strings and the keys of a JSON value.

    Args:
        value: a manifest.
        place: its file's name.
        user: the login name; not looked for if shorter than 3 letters or nobody's own, such as `root`.
        home: the home folder; it is found wherever it stands, and its last part counts as a user name, too.
        known: names that may be published, such as a namespace on the Hub; upper and lower case are one.

    Returns:
        At most one entry a string.
    """
    rules = [*_PATHS, *_personal(user, home, known)]
    found = []
    for path, _, text in _strings(value):
        # What a web address holds behind its host is no path of this machine.
        local = _WEB.sub(" ", text)
        matches = ((what, pattern.search(text if what == _USER else local)) for what, pattern in rules)
        first = next(((what, match) for what, match in matches if match), None)
        if first is not None:
            what, match = first
            found.append(
                Leak(place=_joined(place, path), what=what, shown=_start(match[match.lastindex or 0]))
            )
    return found


def _leaks(text: str, place: str, shapes: Sequence[Shape] = SHAPES) -> list[Leak]:
    return [Leak(place=place, what=what, shown=shown) for _, what, shown in _secrets(text, shapes)]


def _secrets(text: str, shapes: Sequence[Shape] = SHAPES) -> list[tuple[int, str, str]]:
    """Where each secret of a text begins, what it is and its first characters, in the text's order."""
    found: list[tuple[int, str, str]] = []
    taken: list[tuple[int, int]] = []
    for shape in shapes:
        for match in shape.pattern.finditer(text):
            start, end = match.span(1)
            # What has two shapes, as a key in an authorization header, is said once, by the narrower one.
            if any(start < other_end and other < end for other, other_end in taken):
                continue
            if shape.real(match[1]):
                taken.append((start, end))
                found.append((match.start(), shape.what, _start(match[0])))
    return sorted(found)


def _schema_leaks(schema: pa.Schema, place: str) -> list[Leak]:
    texts = [*_metadata(schema.metadata), *_field_texts(schema)]
    return [leak for text in texts for leak in _leaks(text, f"{place}, names and metadata of the columns")]


def _field_texts(fields: Iterable[pa.Field]) -> Iterator[str]:
    for field in fields:
        yield field.name
        yield from _metadata(field.metadata)
        yield from _field_texts(field.type.field(i) for i in range(field.type.num_fields))


def _metadata(metadata: Mapping[bytes, bytes] | None) -> Iterator[str]:
    for item in (metadata or {}).items():
        yield b"=".join(item).decode("utf-8", "replace")


def _suspects(array: pa.Array, name: str) -> Iterator[_Suspect]:
    """The texts that have the shape of a secret: index in the array, path below it, text and shapes."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        yield from _suspects(array.storage, name)
    elif pa.types.is_dictionary(kind):
        if any(True for _ in _suspects(array.dictionary, name)):
            yield from _suspects(array.dictionary_decode(), name)
    elif pa.types.is_run_end_encoded(kind):
        yield from _suspects(pc.run_end_decode(array), name)
    elif pa.types.is_struct(kind):
        for field, child in zip(kind, array.flatten(), strict=True):
            for index, path, text, shapes in _suspects(child, field.name):
                yield index, f".{_masked(field.name)}{path}", text, shapes
    elif pa.types.is_map(kind):
        yield from _suspects(array.cast(pa.list_(kind.field(0).type)), name)
    elif any(is_list(kind) for is_list in _LISTS):
        yield from _list_suspects(array, name)
    elif any(is_text(kind) for is_text in _TEXTS):
        texts = _with_name(array.cast(pa.large_binary()), name)
        for index, shapes in _shaped(texts):
            yield index, "", texts[index].as_py().decode("utf-8", "replace"), shapes


def _list_suspects(array: pa.Array, name: str) -> Iterator[_Suspect]:
    parents = None
    for index, path, text, shapes in _suspects(array.flatten(), name):
        if parents is None:
            # Only now, since most columns hold no secret and there is one number for each item.
            parents = pc.list_parent_indices(array).to_numpy()
        parent = int(parents[index])
        yield parent, f"[{index - int(parents.searchsorted(parent))}]{path}", text, shapes


def _shaped(texts: pa.Array) -> Iterator[tuple[int, list[Shape]]]:
    """The indices of the texts that have the shape of a secret, bounds and placeholders left aside."""
    marked = pc.indices_nonzero(pc.match_substring_regex(texts, MARKS))
    if len(marked) == 0:
        return
    few = texts.take(marked)
    matches = [pc.match_substring_regex(few, shape.form).to_pylist() for shape in SHAPES]
    for index, *matched in zip(marked.to_pylist(), *matches, strict=True):
        shapes = list(compress(SHAPES, matched))
        if shapes:
            yield index, shapes


def _encoded(texts: Iterable[str]) -> pa.Array:
    return pa.array([text.encode("utf-8", "surrogatepass") for text in texts], pa.large_binary())


def _with_name(texts: pa.Array, name: str) -> pa.Array:
    """Some secrets are known only by their names, so such a column's texts are read behind its name."""
    if not NAMING.search(name):
        return texts
    before, after, nothing = (pa.scalar(x.encode(), pa.large_binary()) for x in (f'{name}="', '"', ""))
    return pc.binary_join_element_wise(before, texts, after, nothing)


def _strings(value: Any, path: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """Each string of a JSON value and each key: its dotted path, the key that it stands at, and itself."""
    if isinstance(value, str):
        yield path, name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            below = f"{path}.{_masked(str(key))}".removeprefix(".")
            yield below, "", str(key)
            yield from _strings(item, below, str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}[{index}]", name)


def _personal(user: str, home: str, known: Collection[str]) -> Iterator[tuple[str, re.Pattern[str]]]:
    """What is looked for on this machine only: its home folder, and its user's names."""
    home = home.rstrip("\\/")
    if len(PurePath(home).parts) > 2:
        yield _PATH, re.compile(rf"{re.escape(home)}(?![\w-])")
    public = _NOBODYS | {name.lower() for name in known}
    names = {name for name in (user, re.split(r"[\\/]", home)[-1]) if len(name) >= 3}
    wanted = sorted(re.escape(name) for name in names if name.lower() not in public)
    if wanted:
        # An underscore parts words here: alice_run_3 is Alice's.
        yield _USER, re.compile(rf"(?i)(?<![^\W_])(?:{'|'.join(wanted)})(?![^\W_])")


def _joined(place: str, path: str) -> str:
    return f"{place}, {path}" if path else place


def _masked(name: str) -> str:
    return _start(name) if _secrets(name) else name


def _start(found: str) -> str:
    return f"{found.strip()[:5]}…"


_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_PATH = "an absolute path"
_USER = "a user name"
_WEB = re.compile(r"""(?i)\b(?!file:)[a-z][a-z0-9+.-]{1,20}://[^\s,;'"<>)\]}]*""")
_ROOTS = (
    "home|Users|root|mnt|tmp|var|opt|srv|usr|data|datasets|scratch|work|workspace|media|private|Volumes|"
    "lustre|gpfs|nfs|content|kaggle|dbfs|projects?|storage|shared?|efs|fsx"
)
_PATHS = tuple(
    (_PATH, re.compile(form))
    for form in (
        # POSIX: the whole value, a usual root within it, a home folder anywhere.
        r"^\s*/[^/\s]+/[^/\s]",
        rf"(?<![\w.~/-])/(?:{_ROOTS})/[\w.@+-]",
        r"/(?:home|Users)/[\w.-]",
        # Windows: a drive; T:\Omega\to\mathbb{R} stands in formulas, so there only before a usual root.
        r"^\s*[A-Za-z]:[\\/](?![\\/])[^{}$\n]*$",
        r"^[^{}$]*?(?<!\w)([A-Z]:\\\w[\w .-]*\\\w)[^{}$]*$",
        r"(?i)(?<![A-Za-z0-9])[A-Z]:[\\/]+(?:Users|Documents and Settings|te?mp|data|work|projects?)[\\/]",
        # A share.
        r"^\s*(?:\\\\|//)[\w.-]+[\\/][\w.$-]",
        # A home folder for short.
        r"^\s*~(?:[A-Za-z_][\w.-]*)?(?:[\\/].*)?$",
        r"""(?<=[\s"'=:(,\[])~(?:[A-Za-z_][\w.-]*)?/[\w.]""",
        r"(?i)\bfile:/+[^\s/]",
    )
)
_NOBODYS = frozenset(
    {"admin", "administrator", "app", "azureuser", "build", "centos", "ci", "codespace"}
    | {"colab", "content", "data", "debian", "default", "dev", "docker", "drift", "ec2-user"}
    | {"fedora", "github", "gitpod", "guest", "home", "jenkins", "jovyan", "kaggle", "model"}
    | {"node", "nobody", "opc", "postgres", "root", "runner", "runneradmin", "service"}
    | {"student", "system", "test", "tester", "ubuntu", "user", "username", "users"}
    | {"vagrant", "vscode", "work", "worker", "workspace"}
)
"""Logins of images and services, which name nobody."""
