"""Inspect's archives, written by Inspect itself."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import EvalLog, write_eval_log

from drift_weights.logs.opening import open_log
from inspect_logs import AGAIN, rows, said, sample, write


def archive(path: Path, *samples: dict[str, Any]) -> Path:
    spec = {"created": "2026-01-01T00:00:00+00:00", "task": "sums", "dataset": {}, "model": "mine/model"}
    filled = [{**each, "output": {"model": "mine/model"}} for each in samples]
    made = EvalLog.model_validate(
        {"status": "error", "eval": spec | {"config": {"epochs": 2}}, "samples": filled}
    )
    write_eval_log(made, str(path))
    return path


def test_an_archive_reads_like_the_log_it_holds(tmp_path: Path) -> None:
    samples = [
        sample(
            said("8"), AGAIN, said(str(number)), id=number, epoch=epoch, value="C" if epoch == 1 else "I"
        )
        for number in range(20)
        for epoch in (1, 2)
    ]
    (open_archive, open_text) = (
        open_log(archive(tmp_path / "log.eval", *samples), answers_matter=False),
        open_log(write(tmp_path / "log.json", *samples), answers_matter=False),
    )
    found = [
        sorted(
            (key, number, bool(solved), length)
            for batch in opened.outcomes()
            for key, number, solved, length in zip(
                batch.key_columns[0].to_pylist(),
                batch.sample.to_pylist() if batch.sample is not None else [],
                batch.solved_N if batch.solved_N is not None else [],
                batch.length_N,
                strict=True,
            )
        )
        for opened in (open_archive, open_text)
    ]
    assert found[0] == found[1] == [(key, epoch, epoch == 1, 2) for key in range(20) for epoch in (1, 2)]
    assert sorted(map(str, map(open_archive.reader.dialogue, open_archive.rows()))) == sorted(
        map(str, map(open_text.reader.dialogue, open_text.rows()))
    )


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "log.eval", sample())
    whole = path.read_bytes()
    for body in (b"", b"no zip", whole[: len(whole) // 2]):
        path.write_bytes(body)
        with pytest.raises(ValueError, match=r"log\.eval is no readable Inspect log"):
            rows(path)


def test_an_archive_with_other_bytes_than_were_written_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "log.eval", sample())
    plain = tmp_path / "plain.eval"
    with zipfile.ZipFile(path) as packed, zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as stored:
        for name in packed.namelist():
            stored.writestr(name, packed.read(name))
    assert [row["id"] for row in rows(plain)] == ["sum-3"]
    plain.write_bytes(plain.read_bytes().replace(b'"What is 3 + 4?"', b'"What is 3 + 5?"'))
    with pytest.raises(ValueError, match=r"does not match its checksum|Bad CRC-32"):
        rows(plain)
