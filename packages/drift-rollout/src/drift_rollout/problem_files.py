"""Where problems lie: a file, a folder, or a data set of the Hub; and the rows of its files."""

from __future__ import annotations

import codecs
import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from drift_weights.files import (
    JSONL_SUFFIXES,
    PARQUET_SUFFIXES,
    file_format,
    open_parquet,
    parquet_rows,
    read_rows,
)
from drift_weights.folder import file_sha256
from drift_weights.names import check_repo_id, check_revision

CSV_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIX = ".json"
SUFFIXES = (*JSONL_SUFFIXES, *PARQUET_SUFFIXES, *CSV_SUFFIXES, JSON_SUFFIX)
_DELIMITERS = ",;\t"
_PINNED = "name a tag or a commit by --problems_revision"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file with rows, and the name by which a user knows it."""

    path: Path
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """The files of a place."""

    files: tuple[DataFile, ...]
    origin: dict[str, Any] = field(default_factory=dict)
    """As the manifest of a run records it; no path of this machine."""
    notes: tuple[str, ...] = ()
    """What a user should be told."""


def locate(
    place: Path, *, revision: str | None = None, subset: str | None = None, split: str = "train"
) -> Located:
    """The data files of a place: itself, those of a folder, or those of a data set on the Hub.

    A path that exists wins over a Hub id of the same name. Which files of a folder or of a Hub data
    set belong to a subset and a split, `datasets` decides: by the card, else by the names of the files.

    Args:
        place: a file, a folder, or org/name.
        revision: tag, branch or commit of a Hub id; without one nothing is asked of the Hub.
        subset: one of several data sets in a folder or on the Hub.
        split: of a folder or a Hub data set.

    Raises:
        FileNotFoundError: no such path and no revision, or no data file there.
        OSError: the Hub refused or did not answer.
        ValueError: a subset of a file, no such subset or split, or files in none of the formats.
    """
    took = f"took {place} as it is here, not the Hub's data set of that name"
    notes = (took,) if revision is not None and place.exists() else ()
    if place.is_file():
        if subset is not None:
            raise ValueError(f"{place} is a file; only a folder or a Hub data set has a subset")
        origin = {"name": place.name, "sha256": file_sha256(place)}
        return Located(files=(DataFile(path=place, name=str(place)),), origin=origin, notes=notes)
    if place.is_dir():
        return _of_folder(place, subset, split, notes)
    if revision is None:
        raise FileNotFoundError(f"{place} does not exist; if it is a data set of the Hub, {_PINNED}")
    return _of_hub(place.as_posix(), revision, subset, split)


def rows_of(file: DataFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file; of a wide one only the columns named, if it has them.

    A dot in a name leads into a nested field. All fields of a CSV file are texts.

    Raises:
        ValueError: what is no JSONL, JSON, Parquet or CSV; file and line are named.
    """
    path = file.path
    if path.suffix in CSV_SUFFIXES:
        return _csv_rows(file, columns)
    if path.suffix == JSON_SUFFIX:
        return iter(_json_rows(file))
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{file.name}: expected a file ending in {', '.join(SUFFIXES)}")
    if file_format(path) == "jsonl":
        return read_rows(path)
    there = set(open_parquet(path).schema_arrow.names)
    tops = {name if name in there else name.partition(".")[0] for name in columns}
    # What is missing is told together with everything that is there.
    return parquet_rows(path, names=sorted(tops) if tops <= there else None)


def _of_folder(folder: Path, subset: str | None, split: str, notes: tuple[str, ...]) -> Located:
    found = [Path(name) for name in _data_files(str(folder.resolve()), None, subset, split)]
    root = folder.resolve()
    files = tuple(DataFile(path=file, name=str(folder / file.relative_to(root))) for file in found)
    _refuse_foreign(folder, files)
    origin = {"name": root.name, "subset": subset, "split": split, "sha256": _digest(root, found)}
    return Located(files=files, origin=origin, notes=notes)


def _of_hub(repo_id: str, revision: str, subset: str | None, split: str) -> Located:
    # Seconds to import, and needed for Hub data sets alone.
    from drift_weights.hub import cache_folder, download, hub_api, resolve

    api = hub_api()
    commit = resolve(api, check_repo_id(repo_id), check_revision(revision))
    root = f"hf://datasets/{repo_id}@{commit}/"
    names = [url.removeprefix(root) for url in _data_files(repo_id, commit, subset, split)]
    cache = cache_folder(repo_id, commit) / "_files"
    cache.mkdir(parents=True, exist_ok=True)
    listed = tuple(DataFile(path=cache / name, name=f"{repo_id}/{name}") for name in names)
    _refuse_foreign(Path(repo_id), listed)
    fetched = [download(api, repo_id, commit, name, cache) for name in names]
    pin = {"revision": revision, "commit": commit, "subset": subset, "split": split}
    origin = {"name": repo_id, "sha256": _digest(cache, fetched)} | pin
    return Located(
        files=listed,
        origin=origin,
        notes=(f"took {repo_id} from the Hub: split {split} at {revision} (commit {commit})",),
    )


def _digest(root: Path, files: Sequence[Path]) -> str:
    """One hash over the content and the names of several files."""
    lines = (f"{file_sha256(file)}  {file.relative_to(root).as_posix()}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _data_files(place: str, commit: str | None, subset: str | None, split: str) -> list[str]:
    """The data files of a subset and a split, as `datasets` finds them."""
    import datasets
    import yaml

    try:
        builder = datasets.load_dataset_builder(place, subset, revision=commit)
    except yaml.YAMLError as error:
        raise ValueError(f"{place}: the block on top of its README.md is no YAML: {error}") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{place}: {error}; name a subset by --problems_subset") from error
    found: dict[str, list[str]] = {str(name): list(f) for name, f in builder.config.data_files.items()}
    if split not in found:
        raise ValueError(
            f"{place} has no split {split!r}, but {', '.join(sorted(found))}; name one by --problems_split"
        )
    return [str(file) for file in found[split]]


def _refuse_foreign(place: Path, files: Sequence[DataFile]) -> None:
    foreign = [file.name for file in files if file.path.suffix not in SUFFIXES]
    if foreign:
        raise ValueError(
            f"{place}: {foreign[0]} ends in none of {', '.join(SUFFIXES)}; convert it, or name files"
        )


def _json_rows(file: DataFile) -> list[dict[str, Any]]:
    """The objects of a JSON list, or the one object that a file is."""
    try:
        found = msgspec.json.decode(file.path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{file.name}: not valid JSON ({error}); if it has one object a line, name it .jsonl"
        ) from error
    rows = found if isinstance(found, list) else [found]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{file.name}, row {number}: expected a JSON object, got {type(row).__name__}")
    return rows


def _csv_rows(file: DataFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    delimiter = _delimiter(file, columns)
    # The byte order mark that spreadsheets write is no part of the first name.
    with file.path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            _check_header(file, header)
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise ValueError(
                        f"{file.name}, line {reader.line_num}: {len(fields)} fields under {len(header)} "
                        f"columns; quote a field that holds {delimiter!r} or a quote"
                    )
                yield dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise ValueError(
                f"{file.name}, line {reader.line_num}: no valid CSV ({error}); a quote may be missing"
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{file.name} is no UTF-8 ({error.reason}); save it as UTF-8") from error


def _delimiter(file: DataFile, columns: Sequence[str]) -> str:
    """The first of , ; and tab by which the header has the columns; the comma where none does."""
    if file.path.suffix == ".tsv":
        return "\t"
    with file.path.open(encoding="utf-8-sig", newline="", errors="replace") as lines:
        first = lines.readline()
    for delimiter in _DELIMITERS:
        if set(columns) <= set(next(csv.reader([first], delimiter=delimiter), [])):
            return delimiter
    return _DELIMITERS[0]


def _check_header(file: DataFile, header: Sequence[str]) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise ValueError(f"{file.name} has several columns {twice[0]!r}; rename them")
