"""Settings of all tests: no Hypothesis deadline, since a busy machine is no broken law, and one thread.

Torch reads the number of threads when it is first imported, and more than one slows tiny models down.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("laws", deadline=None, max_examples=60)
settings.load_profile("laws")


@pytest.fixture(scope="session")
def vllm_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has vLLM, for the tests of the marker `vllm`."""
    # Imported at use: drift-weights alone runs its own tests with this file.
    from vllm_environment import interpreter

    return interpreter(tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The base URL of a `transformers serve`, and the folder of its model, which is its name."""
    # Imported at use: torch takes seconds.
    from transformers_serve import serving

    with serving(tmp_path_factory.mktemp("served")) as found:
        yield found
