"""How tests start scripts on several ranks: one torchrun a node, which makes the processes."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def commands(script: Path, todo: Path, *, ranks: int = 1, nodes: int = 1) -> list[list[str]]:
    """One command a node; a single rank is started without torchrun."""
    if ranks == 1:
        return [[sys.executable, str(script), str(todo)]]
    port = free_port()
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks // nodes}", f"--nnodes={nodes}"]
    meet = ["--master-addr=127.0.0.1", f"--master-port={port}"]
    return [
        [sys.executable, *torchrun, f"--node-rank={node}", *meet, str(script), str(todo)]
        for node in range(nodes)
    ]


def environment(**more: str) -> dict[str, str]:
    """That of this process, with one thread a rank and the tests' modules on the path."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
