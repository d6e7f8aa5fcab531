"""Settings of all Hypothesis tests: no deadline, since a busy machine is no broken law."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("laws", deadline=None, max_examples=60)
settings.load_profile("laws")
