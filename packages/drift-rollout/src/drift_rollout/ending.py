"""How a command that samples ends before it is done: told in a line, with nothing lost."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from drift_rollout.asking import VerifierError
from drift_rollout.engine import EngineError
from drift_rollout.unscored import UnscoredError


@contextmanager
def early_end() -> Iterator[None]:
    """End the process with 1 for a dead engine, a broken verifier or many failures; 130 if interrupted.

    All unwind what is under way first, so that journal and engine are closed.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except EngineError as error:
        sys.stderr.write(f"the engine failed: {' '.join(str(error).split())}\nthe same command goes on\n")
        sys.exit(1)
    except UnscoredError as error:
        sys.stderr.write(f"stopped: {' '.join(str(error).split())}\nthe same command goes on\n")
        sys.exit(1)
    except VerifierError as error:
        sys.stderr.write(
            f"error: {' '.join(str(error).split())}\n"
            "what had finished is in the journal; mend the verifier, and the same command goes on\n"
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what had finished is in the journal, the same command goes on\n")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
