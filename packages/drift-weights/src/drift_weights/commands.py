"""drift-weights resample | export: the commands for trainers that know no weights; they call and print."""

from __future__ import annotations

import sys
from pathlib import Path

from drift_weights.export import ExportForm, export_file
from drift_weights.resampling import resample_file


def resample(input: Path, output: Path, *, seed: int, epoch: int = 0, overwrite: bool = False) -> None:
    """Write each row as often as its weight says, by chance for the fraction, for trainers without weights.

    Args:
        input: a weighted folder, or a .jsonl or .parquet log that reweight wrote.
        output: a folder for a folder, a file of the input's format for a log.
        seed: of the draw; the same seed draws the same rows.
        epoch: a new epoch is a new draw.
        overwrite: replace the output.
    """
    drawn = resample_file(input, output, seed=seed, epoch=epoch, overwrite=overwrite)
    sys.stdout.write(
        f"wrote {output}\n{drawn.drawn} rows drawn from {drawn.rows} in {drawn.groups} groups, each of "
        f"weight 1 (seed {seed}, epoch {epoch})\n"
    )


def export(input: Path, output: Path, *, to: ExportForm, overwrite: bool = False) -> None:
    """Write weighted terminal turns in a form that other trainers read.

    Args:
        input: a weighted folder.
        output: a .jsonl or .parquet file.
        to: trl (prompt, completion, weight) or messages (a chat with its weight beside it).
        overwrite: replace the output.
    """
    written = export_file(input, output, to=to, overwrite=overwrite)
    sys.stdout.write(f"wrote {output}\n{written.rows} rows\n")
    if to == "trl":
        sys.stdout.write("Note: stock TRL drops the column weight without a word; see docs/trl.md.\n")
    elif written.earlier:
        sys.stdout.write(
            f"Note: {written.earlier} rows have earlier responses, marked with a weight of 0; a trainer "
            "that does not know the mark learns them, too.\n"
        )
    if written.cut:
        sys.stdout.write(
            f"Note: {written.cut} completions were cut by the token limit; a chat template ends them all "
            "the same.\n"
        )
