"""Which format a log has."""

from __future__ import annotations

from pathlib import Path

import msgspec

from drift_weights.columns import Columns, Plain
from drift_weights.files import decode_line, file_lines, open_parquet, parquet_rows
from drift_weights.logs.documents import json_document
from drift_weights.logs.formats import FORMATS
from drift_weights.logs.opened import OpenLog, is_jsonl
from drift_weights.logs.reader import LogFormat, LogReader, Row
from drift_weights.types import Malformed


def open_log(
    path: Path,
    columns: Columns | None = None,
    *,
    format: str | None = None,
    malformed: Malformed = "count",
    answers_matter: bool = True,
) -> OpenLog:
    """Recognise a log's format, or take the one named, and bind its reader to it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no format fits, or the first row leaves open what to read.
    """
    columns = columns or Columns()
    record = first_record(path)
    chosen = _named_format(format) if format is not None else _sniffed(path, record)
    row = record
    if chosen.trajectories is not None:
        first = next(chosen.trajectories(path), None)
        if first is None:
            raise ValueError(f"{path} has no trajectories")
        row = first
    try:
        reader = chosen.bind(row, columns, malformed)
        plain = _plain(path, chosen, row, columns, reader)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path}: format {chosen.name} needs a field {error}") from error
    return OpenLog(
        path=path,
        format=chosen,
        reader=reader,
        columns=columns,
        plain=plain,
        present=tuple(_present(path, row)),
        answers_matter=answers_matter,
        has_weight="weight" in _present(path, row),
    )


def first_record(path: Path) -> Row:
    """A file's first line, row or array element, or the object that it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an empty or broken file, or an ending that no format has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    if is_jsonl(path):
        for line in file_lines(path):
            return decode_line(path, 1, line)
    elif path.suffix in (".parquet", ".pq"):
        for row in parquet_rows(path, 1):
            return row
    elif path.suffix == ".json":
        return _first_of_document(path)
    elif path.suffix == ".eval":
        return {}
    else:
        raise ValueError(f"{path}: expected a file ending in .jsonl, .parquet, .json or .eval")
    raise ValueError(f"{path} has no rows")


def _first_of_document(path: Path) -> Row:
    try:
        found = json_document(path, list[msgspec.Raw] | dict[str, msgspec.Raw])
        record = msgspec.json.decode(found[0]) if isinstance(found, list) and found else found
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}; write or fetch it again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected a JSON object or a list of them with at least one element")
    return record


def _sniffed(path: Path, record: Row) -> LogFormat:
    for found in FORMATS:
        if path.suffix in found.suffixes and found.sniff(record):
            return found
    raise ValueError(
        f"{path} has no format that is known here ({', '.join(f.name for f in FORMATS)}); its first record "
        f"has {', '.join(record)}; name the format (--format), or the columns (--group, --correct)"
    )


def _named_format(name: str) -> LogFormat:
    for found in FORMATS:
        if found.name == name:
            return found
    raise ValueError(f"format {name!r} is not one of {', '.join(f.name for f in FORMATS)}")


def _present(path: Path, row: Row) -> list[str]:
    if path.suffix in (".parquet", ".pq"):
        return list(open_parquet(path).schema_arrow.names)
    return list(row)


def _plain(path: Path, chosen: LogFormat, row: Row, columns: Columns, reader: LogReader) -> Plain | None:
    """The columns to read as they are: in a table, and in a chat log whose text need not be read."""
    if chosen.name not in ("table", "chat"):
        return None
    plain = columns.plain(_present(path, row))
    return plain if set(reader.fields) <= set(plain.names) else None
