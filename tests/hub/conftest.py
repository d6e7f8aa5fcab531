"""A Hub on loopback for each test, and clients whose caches lie in the test's own folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_data import private_caches
from loopback_hub import OWNER, LoopbackHub, patient_clients, serve


@pytest.fixture(scope="session")
def running_hub() -> Iterator[LoopbackHub]:
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: LoopbackHub, tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub, and patient clients of it."""
    running_hub.reset()
    with patient_clients(), private_caches(tmp_path / "hf"):
        yield running_hub


@pytest.fixture
def api(hub: LoopbackHub) -> object:
    """The owner's client."""
    return hub.api(OWNER)
