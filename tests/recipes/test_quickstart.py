"""The quickstart at a hundredth of its size: every file that it promises, and numbers that agree."""

import json
from dataclasses import replace

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import quickstart
from drift_eval.metrics import first_success, multi_at_k
from drift_rollout import ExactVerifier, PromptTemplate, load_problems
from drift_weights import read_folder
from quickstart import METHODS, REFERENCE, Scale

TINY = Scale(
    reference_problems=60, reference_steps=12, prompts=12, samples=8, steps=3, validation=5, heldout=20
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory):
    quickstart.hush()
    out = tmp_path_factory.mktemp("quickstart")
    console = Console(width=80, record=True)
    with quickstart.world_stage(0, TINY, out, console) as stage:
        # A policy trained for 12 steps rarely solves at turn 2, and STaR would have no row.
        methods = tuple(m for m in METHODS if m.selection in ("sft-5turn", "drift"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quickstart, "METHODS", methods)
            result = quickstart.run_world(stage, console)
    quickstart.print_world(console, result)
    return out, result, console.export_text(), stage


def test_trajectories_and_weighted_turns_are_folders(ran) -> None:
    out, _, _, _ = ran
    trajectories, manifest = read_folder(out / "rollout" / "trajectories", "trajectories")
    turns, weighted = read_folder(out / "weighted", "weighted")
    assert trajectories.num_rows == turns.num_rows == 12 * 8
    assert manifest["rollout"]["samples"] == 8
    assert weighted["weighting"]["beta"] == 0.1
    assert weighted["source"]["manifest"]["shards"] == manifest["shards"]


def test_held_out_problems_are_left_for_the_commands(ran) -> None:
    out, _, _, stage = ran
    own = PromptTemplate(user="{problem}", system=None)
    assert load_problems(out / "heldout.jsonl", own).problems == stage.splits.heldout


def test_every_policy_opens(ran) -> None:
    out, result, _, _ = ran
    folders = sorted(path.name for path in (out / "policies").iterdir())
    assert len(folders) == len(result.names) == 4
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(out / "policies" / folder)
        tokenizer = AutoTokenizer.from_pretrained(out / "policies" / folder)
        assert len(tokenizer) == model.config.vocab_size
        assert tokenizer.chat_template == quickstart.make_tokenizer(quickstart.WorldConfig()).chat_template


def test_the_picture_and_the_numbers_are_there(ran) -> None:
    out, result, _, _ = ran
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads(json.dumps(quickstart.result_numbers(result), allow_nan=False))
    assert numbers["names"][0] == REFERENCE
    assert len(numbers["policies"]) == 4
    assert numbers["with_drift"][2] is None
    assert set(numbers["costs"]) == {*numbers["names"], "rollout"}


def test_the_table_shows_what_was_measured(ran) -> None:
    out, result, printed, stage = ran
    table = quickstart.evaluate_policy(stage, "again", out / "policies" / REFERENCE, stage.splits.heldout)
    again = multi_at_k(first_success(table), 5, max_turns=5)
    assert result.scores[0].multi_at_max.value == again
    (row,) = [line for line in printed.splitlines() if line.strip().startswith("multi@5 ")]
    assert row.split()[1] == f"{again * 100:.1f}"
    assert max(map(len, printed.splitlines())) <= 80


def test_a_second_run_skips_the_reference_and_the_rollouts(ran, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, _, stage = ran

    def never(*args: object) -> None:
        raise AssertionError("trained or sampled again")

    monkeypatch.setattr(quickstart, "fit", never)
    monkeypatch.setattr(ExactVerifier, "verify", never)
    assert quickstart.has_reference(stage)
    reference = quickstart.reference_policy(stage)
    assert quickstart.rollouts(stage, reference).num_rows == 12 * 8


def test_a_reference_of_other_settings_is_no_cache(ran) -> None:
    _, _, _, stage = ran
    more = replace(stage, scale=replace(stage.scale, reference_steps=13))
    assert not quickstart.has_reference(more)


def test_work_that_was_there_already_costs_nothing_and_says_so(ran) -> None:
    _, result, _, _ = ran
    costs: dict = {}
    with quickstart.timed(costs, REFERENCE, cached=True):
        pass
    again = replace(result, costs=result.costs | costs)
    console = Console(width=80, record=True)
    quickstart.print_world(console, again)
    (row,) = [line for line in console.export_text().splitlines() if line.strip().startswith("CPU s")]
    assert row.split()[2] == "cached"
    assert quickstart.result_numbers(again)["costs"][REFERENCE] is None


def test_worlds_are_shown_side_by_side_and_never_pooled(ran) -> None:
    _, result, _, _ = ran
    console = Console(width=80, record=True)
    console.print(quickstart.seeds_table([result, result]))
    rate = f"{result.scores[0].multi_at_max.value * 100:.1f}"
    (row,) = [line for line in console.export_text().splitlines() if REFERENCE in line]
    assert row.count(rate) == 4
