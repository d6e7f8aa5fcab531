"""A few hundred of the cases of fuzz_readers.py, which has its own command for the others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_broken_logs_are_refused_or_read_as_a_second_reader_reads_them(tmp_path: Path) -> None:
    script = Path(__file__).with_name("fuzz_readers.py")
    command = [sys.executable, script, "--cases", "416", "--workers", "1", "--keep", tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"^all +416 cases +(\d+) refused +(\d+) read alike +0 failures", done.stdout, re.M)
    assert counts is not None, done.stdout
    # Both happen, or the cases would be too broken, or not broken at all.
    assert min(int(counts[1]), int(counts[2])) > 20
