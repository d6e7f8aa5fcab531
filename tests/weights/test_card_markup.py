"""Nothing in the data becomes markup, YAML or a command in the card."""

from __future__ import annotations

import copy
import html
import re
import shlex
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cards import body, card, hostile, names, part, repository, trajectories_entry, weighted_entry
from drift_weights.card.markdown import code, fence, literal, visible

GFM = MarkdownIt("gfm-like", {"html": True, "linkify": False})
OURS = re.compile(
    r"</?code>|<br>|<!-- /?drift: [a-z]+ -->|<!-- What stands between .* -->|</?details>"
    r"|<details>\n<summary><code>[^<>]*</code></summary>",
    re.DOTALL,
)


def tokens(text: str) -> Iterator[Token]:
    """All tokens of a card's body, in lines as well."""
    for token in GFM.parse(body(text)):
        yield token
        yield from token.children or []


def skeleton(text: str) -> list[tuple[str, str]]:
    """The structure of a page; a code span is one however it is written."""
    found = []
    for token in tokens(text):
        if token.type in ("html_inline", "html_block"):
            assert not OURS.sub("", token.content).strip(), token.content
        inside = token.type in ("text", "html_inline", "code_inline", "inline", "text_special", "softbreak")
        if not inside:
            href = str(token.attrs.get("href", ""))
            found.append((token.type, token.tag + href))
    return found


def filled(value: str) -> dict[str, Any]:
    """A repository with one string wherever the data may bring one."""
    entry = weighted_entry(license=value, problems_license=value, format_of_log=value)
    made = entry["source"]["manifest"]
    entry["source"] |= {"path": value, "sha256": value}
    entry["made_by"] = {"drift-weights": value, "commit": value}
    made["rollout"] |= {"policy": value, "verifier": value, "prompt": {"system": value, "user": value}}
    made["rollout"]["protocol"]["feedback"] = value
    made["rollout"]["sampling"] = {"temperature": value}
    made["origin"] = {"model": value, "revision": value, "problems": {"name": value, "sha256": value}}
    return repository(**{value: entry, f"{value}2": copy.deepcopy(entry) | {"selection": "rft"}})


@given(hostile.filter(str.strip))
@example("<!-- drift: use -->")
@example("a\n<!-- drift: use -->\nb")
def test_no_string_of_the_data_changes_the_structure_of_the_page(value: str) -> None:
    plain, strange = card(filled("plain")), card(filled(value), repo_id=f"org/{value}")
    assert skeleton(strange.text) == skeleton(plain.text)
    assert names(strange.text) == names(plain.text)
    strange.text.encode()


@given(hostile)
def test_a_code_span_shows_the_very_value_even_in_a_table(value: str) -> None:
    (table, *rest) = [code(value), "end"]
    shown = GFM.render(f"| a | b |\n|---|---|\n| {table} | {rest[0]} |\n")
    cells = re.findall(r"<td>(.*?)</td>", shown, re.DOTALL)
    assert cells[1:] == ["end"]
    expected = visible(value) if visible(value).strip() else "–"
    assert html.unescape(re.sub(r"</?code>", "", cells[0])).split() == expected.split()


@given(st.text(alphabet="`~ \nab<", max_size=40))
def test_a_fence_holds_whatever_it_is_given(content: str) -> None:
    (token,) = GFM.parse(fence(content))
    assert token.type == "fence"
    assert token.content.rstrip() == content.rstrip()


@given(hostile)
def test_snippets_name_the_data_in_their_own_language(value: str) -> None:
    made = card(repository(**{value: weighted_entry()}), repo_id=f"org/{value}", revision=value)
    fences = [token for token in tokens(part_page(made.text, "use")) if token.type == "fence"]
    python, pull, settings, *_ = [token.content for token in fences]
    found: dict[str, Any] = {}
    call = python.replace("from datasets import load_dataset", "")
    exec(call, {"load_dataset": lambda *names, **settings: found.update(names=names, **settings)})
    assert found == {"names": (f"org/{value}", value), "revision": value, "split": "train"}
    words = shlex.split(pull.splitlines()[1])
    assert words == [
        "drift-weights",
        "pull",
        visible(f"org/{value}"),
        "my-data",
        "--revision",
        visible(value),
    ]
    assert yaml.safe_load(settings)["data"] == {"path": f"org/{value}", "revision": value}
    assert yaml.safe_load(settings)["model"]["learning_rate"] == 5e-6


def part_page(text: str, name: str) -> str:
    """A page of one part alone."""
    return f"\n---\n{part(text, name)}"


@given(hostile)
def test_a_literal_is_one_line_and_the_same_in_python_and_yaml(value: str) -> None:
    written = literal(value)
    assert len(written.splitlines()) == 1
    assert eval(written) == value
    if not re.search("[\ud800-\udfff]", value):
        assert yaml.safe_load(written) == value


def test_a_model_that_is_no_hub_id_never_enters_a_command() -> None:
    entry = trajectories_entry()
    entry["origin"]["model"] = "a/$(reboot)"
    assert "reboot" not in part(card(repository(T=entry)).text, "use")
