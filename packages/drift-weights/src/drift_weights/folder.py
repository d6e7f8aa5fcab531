"""A data set on disk: Parquet shards and, written last, the `drift.json` that vouches for them."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from drift_weights.manifest import MANIFEST, read_manifest
from drift_weights.provenance import made_by
from drift_weights.schema import FORMAT_VERSION, SCHEMAS, check
from drift_weights.writers import sync, whole_file

ROW_GROUP = 8192
"""Rows of a Parquet row group; small enough to stream."""
SHARD_BYTES = 450_000_000
"""A shard is ended when it reaches this; with its last rows it stays below 500 MB."""


class FolderWriter:
    """A folder that is written shard by shard and appears whole, at the end, or not at all.

    An overwritten folder is moved aside first; a kill in that moment leaves it as `.NAME.old`. What killed
    writers of this folder left is removed by the next one.

    Args:
        path: the folder to make; it must not exist, or be empty, unless `overwrite`.
        kind: `trajectories` or `weighted`.

    Raises:
        FileExistsError: the folder holds something and `overwrite` is off.
    """

    def __init__(self, path: Path, kind: str, *, overwrite: bool = False) -> None:
        refuse_replacing(path, overwrite=overwrite)
        self.path, self.kind = path, kind
        self._scratch = path.with_name(f"{_scratch_of(path)}{os.getpid()}")
        self._shards: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0
        self.rows = 0

    def __enter__(self) -> Self:
        _remove_leftovers(self.path)
        shutil.rmtree(self._scratch, ignore_errors=True)
        (self._scratch / "data").mkdir(parents=True)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._writer is not None:
                with _errors_named(self.path):
                    self._writer.close()
        finally:
            # On a full disk even closing fails.
            shutil.rmtree(self._scratch, ignore_errors=True)

    def write(self, table: pa.Table) -> None:
        """Append rows.

        Raises:
            ValueError: the table does not fit the schema.
            OSError: the disk takes no more; it names the folder.
        """
        checked = check(table, SCHEMAS[self.kind], source=f"the {self.kind} table for {self.path}")
        file = self._shard()
        with _errors_named(self.path):
            if self._writer is None:
                self._writer = pq.ParquetWriter(file, checked.schema, compression="zstd")
            self._writer.write_table(checked, row_group_size=ROW_GROUP)
        self._rows += checked.num_rows
        self.rows += checked.num_rows
        if file.stat().st_size >= SHARD_BYTES:
            self._end_shard()

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, and put the folder in its place.

        Raises:
            ValueError: no rows were written.
        """
        self._end_shard()
        if not self._shards:
            raise ValueError(f"there are no rows for {self.path}")
        found = {
            "format": FORMAT_VERSION,
            "kind": self.kind,
            "made_by": made_by(),
            "rows": self.rows,
            "shards": self._shards,
        }
        # What was found out just now is not overruled by a manifest that was carried along.
        write_json(self._scratch / MANIFEST, {**manifest, **found})
        sync(self._scratch / MANIFEST)
        sync(self._scratch)
        swap_folder(self._scratch, self.path)
        sync(self.path.parent)

    def _shard(self) -> Path:
        return self._scratch / "data" / f"part-{len(self._shards):05d}.parquet"

    def _end_shard(self) -> None:
        if self._writer is None:
            return
        with _errors_named(self.path):
            self._writer.close()
        self._writer = None
        file = self._shard()
        sync(file)
        self._shards.append(shard_entry(file, f"data/{file.name}", self._rows))
        self._rows = 0


def write_folder(
    path: Path, table: pa.Table, kind: str, manifest: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Write one table and its manifest as a folder that appears whole or not at all.

    Args:
        path: the folder to make; it must not exist, or be empty, unless `overwrite`.
        table: fits the schema of `kind`.
        kind: `trajectories` or `weighted`.
        manifest: what the data were made from; format, kind, counts and hashes are added.

    Raises:
        ValueError: the table does not fit its schema.
        FileExistsError: the folder holds something and `overwrite` is off.
    """
    with FolderWriter(path, kind, overwrite=overwrite) as folder:
        folder.write(table)
        folder.finish(manifest)
    return path


def swap_folder(scratch: Path, path: Path) -> None:
    """Put the new folder in the old one's place; the old one is deleted only when the new one is there."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        # A kill came between the two renames of an earlier run.
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    scratch.rename(path)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """PyArrow says that a disk is full, and not where."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(f"{path}: {error}") from error


def _scratch_of(path: Path) -> str:
    """What a folder is called while it is written, without the number of the process."""
    return f".{path.name}.writing-"


def _remove_leftovers(path: Path) -> None:
    """Remove what writers of this folder left that were killed: their processes are gone."""
    for left in path.parent.glob(f"{glob.escape(_scratch_of(path))}*"):
        number = left.name.removeprefix(_scratch_of(path))
        if number.isdecimal() and not _is_running(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    if sys.platform == "win32":
        # There, asking with signal 0 would end it.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_folder(path: Path, kind: str) -> tuple[pa.Table, dict[str, Any]]:
    """Read a folder of `kind`, with every shard's hash verified.

    Returns:
        The table, checked against its schema, and the manifest.

    Raises:
        ValueError: another kind or major format, a shard that is missing or not the one vouched for.
        FileNotFoundError: no manifest there.
    """
    files, manifest = folder_shards(path, kind)
    tables = [pq.read_table(file) for file in files]
    table = check(pa.concat_tables(tables), SCHEMAS[kind], source=str(path))
    if table.num_rows != manifest.get("rows"):
        raise ValueError(f"{path} has {table.num_rows} rows, its {MANIFEST} says {manifest.get('rows')}")
    return table, manifest


def folder_shards(path: Path, kind: str) -> tuple[list[Path], dict[str, Any]]:
    """The shards of a folder of `kind` in order, each with its hash verified, and the manifest.

    Raises:
        ValueError: another kind or major format, a shard that is missing or not the one vouched for.
        FileNotFoundError: no manifest there.
    """
    manifest = read_manifest(path)
    if manifest["kind"] != kind:
        hint = "; run drift-weights reweight on it first" if kind == "weighted" else ""
        raise ValueError(f"{path} holds {manifest['kind']}, expected {kind}{hint}")
    files = []
    for shard in manifest["shards"]:
        file = path / shard["file"]
        if not file.is_file():
            raise ValueError(f"{path}: shard {shard['file']} is missing; fetch or write the folder again")
        if file_sha256(file) != shard["sha256"]:
            raise ValueError(f"{file} is not the file that {MANIFEST} vouches for (sha256 differs)")
        files.append(file)
    return files, manifest


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder with a manifest."""
    return (path / MANIFEST).is_file()


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse to write over something.

    Raises:
        FileExistsError: `path` holds something and `overwrite` is off.
    """
    taken = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if taken and not overwrite:
        raise FileExistsError(f"{path} exists; choose another output or pass --overwrite")


def refuse_replacing(path: Path, *, overwrite: bool) -> None:
    """Refuse to put a folder of drift data in the place of anything else, whatever `overwrite` says.

    Raises:
        FileExistsError: `path` holds something and `overwrite` is off, or it is no folder of ours.
    """
    refuse_existing(path, overwrite=overwrite)
    if path.exists() and not is_folder(path) and (path.is_file() or any(path.iterdir())):
        raise FileExistsError(f"{path} is no folder of drift data; remove it yourself or choose another")


def shard_entry(path: Path, name: str, rows: int) -> dict[str, Any]:
    """What a manifest says of a shard."""
    return {"file": name, "rows": rows, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON that reads well and, for equal content, is equal byte for byte; whole or not at all.

    Raises:
        ValueError: NaN or infinity.
    """
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")
