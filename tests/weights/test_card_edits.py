"""A card that is published again: edits survive, the rest follows the data."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cards import PARTS, again, body, card, front, hostile, names, other, part, repository, weighted_entry

part_names = st.sampled_from(PARTS)


def without(text: str, name: str) -> str:
    """A card of which a part was cut out, comments and all."""
    return re.sub(rf"<!-- drift: {name} -->.*?<!-- /drift: {name} -->\n", "", text, flags=re.DOTALL)


free_text = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=60)
user_text = free_text.filter(lambda text: "drift:" not in text)


@given(st.lists(hostile, min_size=1, max_size=3, unique=True))
def test_publishing_the_same_again_changes_no_byte(found: list[str]) -> None:
    if "default" in found:
        found = ["default"]
    manifest = repository(**{name: weighted_entry() for name in found})
    made = card(manifest)
    assert card(manifest) == made
    assert again(made, manifest=manifest) == made


@given(user_text, part_names)
def test_text_outside_of_the_parts_survives_to_the_letter(text: str, name: str) -> None:
    made = card()
    mine = made.text.replace(f"<!-- drift: {name} -->", f"\n{text}\n<!-- drift: {name} -->")
    changed = again(made, mine, other())
    fresh = card(other()).text
    assert changed.text == fresh.replace(f"<!-- drift: {name} -->", f"\n{text}\n<!-- drift: {name} -->")
    assert changed.kept == ()
    assert changed.recorded == card(other()).recorded


@given(user_text.filter(str.strip), part_names)
def test_an_edited_part_stays_and_the_others_are_made_anew(text: str, name: str) -> None:
    made = card()
    edited = part(made.text, name) + f"\n{text}"
    mine = made.text.replace(part(made.text, name), edited)
    changed = again(made, mine, other())
    assert changed.kept == (name,)
    assert part(changed.text, name) == edited
    fresh = card(other()).text
    assert all(part(changed.text, n) == part(fresh, n) for n in PARTS if n != name)
    # And so it is for good.
    assert again(changed, manifest=other()) == changed
    assert again(changed).kept == (name,)


@given(st.sets(part_names, min_size=1))
def test_removed_parts_stay_away(gone: set[str]) -> None:
    made = card()
    mine = made.text
    for name in gone:
        mine = without(mine, name)
    changed = again(made, mine, other())
    assert names(changed.text) == [name for name in PARTS if name not in gone]
    assert set(changed.kept) - {"title"} == gone - {"title"}
    assert names(again(changed).text) == names(changed.text)


def test_a_part_that_is_new_to_the_card_goes_to_its_end() -> None:
    made = card()
    recorded = {name: said for name, said in made.recorded.items() if name != "weights"}
    changed = card(before=without(made.text, "weights") + "\nMy last words.", recorded=recorded)
    assert changed.kept == ()
    assert names(changed.text) == [name for name in PARTS if name != "weights"] + ["weights"]
    assert "\nMy last words.\n\n<!-- drift: weights -->\n" in changed.text


def test_a_part_that_is_made_no_more_goes_unless_it_was_edited() -> None:
    made = card()
    drawn = repository(W=weighted_entry(selection="rft"))
    assert "histograms" not in names(again(made, manifest=drawn).text)
    edited = made.text.replace("## Weights in this data", "## My weights")
    changed = again(made, edited, drawn)
    assert "## My weights" in changed.text
    assert changed.kept == ("histograms",)


def test_parts_without_a_record_are_left_alone() -> None:
    made = card()
    changed = card(other(), before=made.text)
    assert set(changed.kept) == {
        name for name in PARTS if part(made.text, name) != part(card(other()).text, name)
    }
    assert body(changed.text) == body(made.text)


@pytest.mark.parametrize("mine", ["# Mine\n\nText.", "# Mine\n", "---\nlicense: mit\n---\n# Mine\n\n\n"])
def test_a_page_of_the_users_own_stays_on_top(mine: str) -> None:
    changed = card(before=mine)
    assert body(changed.text).startswith(mine.split("---\n")[-1])
    assert names(changed.text) == [name for name in PARTS if name != "title"]
    assert again(changed) == changed


def test_an_empty_page_is_filled_like_none() -> None:
    assert card(before="").text == card().text


@given(
    st.dictionaries(
        st.text(alphabet="abcdef_-é", min_size=1).filter(lambda key: key not in card().text),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.dates() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_a_users_own_yaml_survives(theirs: dict[str, Any]) -> None:
    made = card()
    written = yaml.safe_dump(theirs, allow_unicode=True) if theirs else ""
    mine = made.text.replace("---\n", f"---\n{written}", 1)
    kept_as_it_is = again(made, mine)
    assert kept_as_it_is.text == mine
    changed = front(again(made, mine, other()).text)
    assert {key: changed[key] for key in theirs} == yaml.safe_load(written or "{}")
    assert changed["dataset_info"] == front(card(other()).text)["dataset_info"]


def test_comments_in_the_yaml_stay_while_no_value_changes() -> None:
    made = card()
    mine = made.text.replace("tags:\n", "tags: # mine\n")
    assert again(made, mine).text == mine
    assert "# mine" not in again(made, mine, other()).text.replace("made", "")
    assert again(made, mine, repository(W=weighted_entry(license="mit"))).kept == ()


def test_values_that_a_user_changed_or_removed_stay_so() -> None:
    licensed = repository(W=weighted_entry(license="mit"))
    made = card(licensed)
    mine = made.text.replace("license: mit", "license: cc0-1.0").replace("- multi-turn\n", "")
    mine = mine.replace("pretty_name: data\n", "")
    changed = again(made, mine, licensed)
    assert changed.text == mine
    assert changed.kept == ("yaml: license", "yaml: pretty_name", "yaml: tags")
    assert again(changed, manifest=licensed) == changed


def test_values_that_nobody_changed_follow_the_data() -> None:
    made = card(repository(W=weighted_entry(license="mit")))
    assert (
        front(again(made, manifest=repository(W=weighted_entry(license="odbl"))).text)["license"] == "odbl"
    )
    assert "license" not in front(again(made).text)


def test_configs_of_others_stay_and_ours_are_replaced() -> None:
    made = card(repository(a=weighted_entry(), b=weighted_entry()))
    said = front(made.text)
    said["configs"].insert(1, {"config_name": "mine", "data_files": "mine/*.csv", "default": True})
    said["dataset_info"].append({"config_name": "mine", "features": []})
    said["configs"][0]["data_files"] = "elsewhere"
    mine = f"---\n{yaml.safe_dump(said, sort_keys=False)}---\n{body(made.text)}"
    now = repository(a=weighted_entry(), c=weighted_entry())
    found, fresh = front(again(made, mine, now).text), front(card(now).text)
    by_name = {entry["config_name"]: entry for entry in found["configs"]}
    assert list(by_name) == ["a", "mine", "c"]
    assert by_name["mine"] == {"config_name": "mine", "data_files": "mine/*.csv"}
    assert [by_name["a"], by_name["c"]] == fresh["configs"]
    assert [entry["config_name"] for entry in found["dataset_info"]] == ["a", "mine", "c"]


def test_a_part_that_was_removed_stays_away_when_it_is_not_made_for_a_while() -> None:
    made = card()
    removed = again(made, without(made.text, "histograms"))
    between = again(removed, manifest=repository(W=weighted_entry(selection="rft")))
    assert "histograms" not in names(again(between).text)


def test_a_single_dataset_info_as_datasets_writes_it_is_taken() -> None:
    mine = "---\ndataset_info:\n  config_name: mine\n  features: []\n---\n"
    found = front(card(before=mine).text)["dataset_info"]
    assert [entry["config_name"] for entry in found] == ["mine", "W"]


def test_a_users_config_named_default_is_refused_with_what_to_do() -> None:
    mine = "---\nconfigs:\n- config_name: default\n  data_files: a.csv\n---\n"
    with pytest.raises(ValueError, match=r"'default' and 'W' would be the default config; .* rename"):
        card(before=mine)


def windows(text: str) -> str:
    return text.replace("\n", "\r\n")


def test_a_card_with_windows_line_ends_keeps_them() -> None:
    made = card()
    mine = windows(made.text + "\nMine.\n")
    assert again(made, mine).text == mine
    changed = again(made, mine, other())
    assert changed.text == windows(card(other()).text + "\nMine.\n")
    assert changed.kept == ()
    assert again(changed, manifest=other()).text == changed.text
    assert "\r" not in again(changed, changed.text.replace("\r\n", "\n"), other()).text


def test_a_byte_order_mark_does_not_hide_the_yaml() -> None:
    changed = card(before="\ufeff---\nlicense: mit\n---\nMine.\n")
    assert changed.text.startswith("\ufeff---\nlicense: mit\n")
    assert changed.text.count("\n---\n") == 1


YAML = "---\nlicense: mit\n---\n\n"
BROKEN = {
    "tab in yaml": ("---\na: 1\nb:\n\t- c\n---\n", 4, "no valid YAML .*correct it on the Hub"),
    "open quote": ("---\na: 'b\n---\n", 2, "no valid YAML"),
    "impossible date": ("---\na: 2024-99-99\n---\n", 2, "no valid YAML"),
    "control character": ("---\na: \x07\n---\n", 2, "no valid YAML"),
    "python object": ("---\na: !!python/object/apply:os.system [ls]\n---\n", 2, "no valid YAML"),
    "deep nesting": (f"---\na: {'[' * 5000}\n---\n", 2, "no valid YAML"),
    "list": ("---\n- a\n---\n", 2, "no mapping"),
    "never closed": ("\n---\na: 1\n", 2, "no later line --- closes it; close it"),
    "configs that are text": ("---\nconfigs: a\n---\n", None, "configs .* must be a list"),
    "no end": (f"{YAML}a\n<!-- drift: use -->\nb\n", 6, "no <!-- /drift: use --> follows"),
    "no beginning": (f"{YAML}<!-- /drift: use -->\n", 5, "no <!-- drift: use --> is open"),
    "nested": (
        f"{YAML}<!-- drift: use -->\n<!-- drift: trust -->\n<!-- /drift: trust -->\n<!-- /drift: use -->\n",
        5,
        "<!-- drift: use --> stands alone",
    ),
    "crossed": (f"{YAML}<!-- drift: use -->\n\n<!-- /drift: trust -->\n", 7, "drift: trust --> is open"),
    "twice": (YAML + "<!-- drift: use -->\n<!-- /drift: use -->\n" * 2, 7, "a second time; remove one"),
}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_card_is_refused_with_its_line_and_what_to_do(broken: str, ends: str) -> None:
    text, line, says = BROKEN[broken]
    where = "" if line is None else rf"README\.md, line {line}: "
    with pytest.raises(ValueError, match=rf"{where}.*{says}"):
        card(before=text.replace("\n", ends))


@given(free_text)
def test_any_text_is_taken_or_refused_and_never_lost(text: str) -> None:
    try:
        made = card(before=text)
    except ValueError:
        return
    assert made.text.endswith("\n")
    assert again(made) == made
    if not re.match(r"\ufeff?\s*---", text):
        assert text in made.text
