"""What detect-secrets, an independent scanner, takes for a provider's secret, we find, too."""

from __future__ import annotations

import pytest
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import BasePlugin

from drift_weights.leaks import leaks_in_text
from made_up_secrets import MAKERS, Draw

LEFT_OUT = {
    "Base64 High Entropy String": "knows no provider: every hash and id of a data set has high entropy",
    "Hex High Entropy String": "knows no provider: every hash and id of a data set has high entropy",
    "Secret Keyword": "knows no provider: it takes any value beside a word like password",
    "Public IP (ipv4)": "an address is no credential",
}
PLUGINS = get_mapping_from_secret_type_to_class()
PROVIDERS = sorted(PLUGINS.keys() - LEFT_OUT)


def lines() -> list[str]:
    """Many secrets of all shapes, each in one piece."""
    made = [maker(Draw(seed)).text for maker in MAKERS.values() for seed in range(60)]
    return [f"before {text} after" for text in made]


def flags(plugin: BasePlugin, text: str) -> bool:
    return any(True for line in text.splitlines() for _ in plugin.analyze_string(line))


def test_the_plugins_left_out_are_there() -> None:
    assert set(LEFT_OUT) < set(PLUGINS)
    assert len(PROVIDERS) > 20


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_the_plugin_flags_we_flag(provider: str) -> None:
    plugin = PLUGINS[provider]()
    flagged = [text for text in lines() if flags(plugin, text)]
    assert len(flagged) > 10, "the test makes no secrets that this plugin knows"
    assert [text for text in flagged if not leaks_in_text(text, "x")] == []
