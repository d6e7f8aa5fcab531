"""A policy's card: what it says against what made the policy, what it does not know, and what it hides."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import example, given
from lightning.pytorch import Trainer
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cards import HOSTILE, hostile
from drift_eval.report import write_report
from drift_eval.scoring import score
from drift_rollout.engines.transformers import TransformersEngine
from drift_train import LoRA, SingleDevice, WeightedDataModule, WeightedSFT, export
from drift_train.cli import main
from drift_train.model_card import load_evaluation, make_model_card
from drift_train.state import newest, read_state
from drift_weights import to_table, write_folder
from drift_weights.outputs import reweight_file
from drift_weights.weighing import WeightConfig
from eval.dialogues import policy_rows
from hub_data import trajectories
from tiny import bpe_tokenizer, save_policy, tiny_model

GFM = MarkdownIt("gfm-like", {"html": True, "linkify": False})
IDS = torch.arange(2, 14).reshape(2, 6)
COMMIT = "5ca1ab1e" * 5
SHA256 = "ab" * 32
ROWS = policy_rows("the policy's name", ["c", "wwc", "www", "mww"], max_turns=3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What was trained, and where its traces lie."""

    home: Path
    base: Path
    data: Path
    modules: dict[str, WeightedSFT]

    def checkpoint(self, name: str) -> Path:
        return self.home / "runs" / name

    def about(self, name: str) -> dict[str, Any]:
        """A checkpoint's manifest, to be changed."""
        found: dict[str, Any] = json.loads(json.dumps(read_state(newest(self.checkpoint(name))).manifest))
        return found


def fit(base: str, data: Path, run: Path, settings: dict[str, Any], **of_data: Any) -> WeightedSFT:
    """Two steps, kept."""
    module = WeightedSFT(base, **settings)
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        strategy=SingleDevice("cpu"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=WeightedDataModule(str(data), base, **of_data))
    trainer.save_checkpoint(run / "step-000002")
    module.policy.eval()
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("ada")
    base = save_policy(home / "base-policy", bpe_tokenizer(), tiny_model())
    data = home / "my-turns"
    reweight_file(trajectories(home / "rollouts"), data, WeightConfig(beta=0.125, gamma=0.75, lam=0.625))
    whole = {
        "learning_rate": 3e-2,
        "schedule": "cosine",
        "warmup_share": 0.5,
        "weight_decay": 0.25,
        "betas": (0.5, 0.75),
        "gradient_clip": 1.5,
        "reduction": "mean",
    }
    of_data = {"batch_size": 3, "seed": 11, "weighting": "resample"}
    lora = LoRA(rank=2, alpha=8, dropout=0.5, targets=["q_proj", "v_proj"])
    modules = {
        "whole": fit(str(base), data, home / "runs" / "whole", whole, **of_data),
        "lora": fit(
            str(base), data, home / "runs" / "lora", {"learning_rate": 3e-2, "lora": lora}, batch_size=6
        ),
    }
    return Made(home=home, base=base, data=data, modules=modules)


def cells(card: str) -> dict[str, str]:
    """The first table of a card: what → in this model."""
    table = card.partition("## How it was made")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.*) \|$", table, re.MULTILINE)
    return dict(rows[2:])


def front(card: str) -> Any:
    return ModelCard(card).data


def part(card: str, heading: str) -> str:
    return card.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def evaluated(folder: Path, *, temperature: float | None = 0.0, **settings: Any) -> Path:
    """What drift-eval run leaves of a policy that solved 1 of 4 problems at once and 2 within 3 turns."""
    rows = settings.pop("rows", ROWS)
    write_report(folder, score(to_table(rows), **settings))
    about = {
        "rollout": {"sampling": {"temperature": temperature}},
        "origin": {"problems": {"name": "held-out.jsonl", "sha256": SHA256}},
    }
    if temperature is not None:
        write_folder(folder / "trajectories", to_table(rows), "trajectories", about)
    return folder


def test_it_names_what_made_the_policy(made: Made, tmp_path: Path) -> None:
    card = (export(made.checkpoint("whole"), tmp_path / "my-policy") / "README.md").read_text()
    found = cells(card)
    assert re.findall(r"`drift-train (.+?)`", found.pop("Made by")) == [version("drift-train")]
    assert found == {
        "Trained from": "`base-policy` (a folder)",
        "Data": "`my-turns`",
        "Examples": "6 of 2 prompts; held out 0",
        "Weights": "β = 0.125, γ = 0.75, λ = 0.625",
        "Weighting": "`resample`: rows are drawn by w",
        "Loss on": "the last response of each dialogue (`terminal`)",
        "Steps": "2 of 3 examples",
        "Learning rate": "0.03, cosine, warm-up 0.5 of the steps",
        "AdamW": "weight decay 0.25, betas 0.5, 0.75; gradient norm at most 1.5",
        "Loss of a response": "`mean` over its tokens",
        "Seed": "11",
        "Strategy": "`SingleDevice` on 1 device",
    }
    assert card.partition("\n---\n\n")[2].startswith("# my-policy\n")
    usage = part(card, "How to ask it")
    assert "dialogues of at most 6 turns" in usage
    assert "followed by the user's `again`" in usage


@pytest.mark.parametrize("system", [None, *HOSTILE])
def test_it_shows_the_prompt_that_problems_were_asked_by(made: Made, system: str | None) -> None:
    about = made.about("whole")
    user = "Problem:\n{problem}\n\n```\nThink.\n```"
    rollout = about["data"]["manifest"]["source"]["manifest"]["rollout"]
    rollout["prompt"] = {"system": system, "user": user}
    card = make_model_card(about, name="n")
    blocks = [token for token in GFM.parse(card) if token.type == "fence" and token.info == "text"]
    assert blocks[-1].content == user + "\n"
    assert len(blocks) == (1 if system is None or not system.strip() else 2)
    assert all(char.isprintable() or char == "\n" for block in blocks for char in block.content)
    headings = [token for token in GFM.parse(card) if token.type == "heading_open"]
    del rollout["prompt"]
    plain = make_model_card(about, name="n")
    assert len(headings) == sum(token.type == "heading_open" for token in GFM.parse(plain))
    assert "Problems were asked as" not in plain


@pytest.mark.parametrize("keep", [False, True])
def test_it_names_the_adapter(made: Made, keep: bool, tmp_path: Path) -> None:
    out = export(made.checkpoint("lora"), tmp_path / "out", keep_adapter=keep)
    card = (out / "README.md").read_text()
    found = cells(card)
    assert found["LoRA"] == "rank 2, alpha 8, dropout 0.5, on `q_proj`, `v_proj`"
    assert found["Weighting"] == "`loss`: w multiplies each row's loss"
    assert found["Loss on"] == "the last response of each dialogue (`terminal`)"
    assert found["AdamW"].endswith("gradient norm no limit")
    assert front(card).library_name == ("peft" if keep else "transformers")
    everywhere = {**made.about("lora")["hyper_parameters"]["lora"], "targets": None}
    settings = made.about("lora")["hyper_parameters"] | {"lora": everywhere}
    other = make_model_card({**made.about("lora"), "hyper_parameters": settings}, name="n")
    assert cells(other)["LoRA"].endswith(", on all linear layers but the head")


def test_a_module_says_what_its_checkpoint_says(made: Made, tmp_path: Path) -> None:
    for name, module in made.modules.items():
        from_module, from_checkpoint = (
            (export(source, tmp_path / kind / name) / "README.md").read_text()
            for kind, source in (("module", module), ("checkpoint", made.checkpoint(name)))
        )
        found, wanted = cells(from_module), cells(from_checkpoint)
        assert set(found.pop("Made by").split(", ")) == set(wanted.pop("Made by").split(", "))
        assert found == wanted


def test_a_module_names_the_commit_that_its_base_was_read_at(tmp_path: Path) -> None:
    module = WeightedSFT.from_model(tiny_model(), 1e-3)
    module.hparams["model"], module.base = "org/base", {"commit": COMMIT}
    card = (export(module, tmp_path / "out", tokenizer=bpe_tokenizer()) / "README.md").read_text()
    assert cells(card)["Trained from"] == f"`org/base` at `{COMMIT}`"


def test_data_of_the_hub_are_named_with_their_commit(made: Made, tmp_path: Path) -> None:
    data = tmp_path / "pulled"
    reweight_file(made.home / "rollouts", data, WeightConfig())
    manifest = json.loads((data / "drift.json").read_text())
    manifest["hub"] = {"repo": "org/corrections", "revision": "v0.1.0", "commit": COMMIT, "subset": "b0.1"}
    (data / "drift.json").write_text(json.dumps(manifest))
    fit(str(made.base), data, tmp_path / "run", {"learning_rate": 1e-3}, batch_size=6)
    card = (export(tmp_path / "run", tmp_path / "out") / "README.md").read_text()
    assert cells(card)["Data"] == f"`org/corrections` at `{COMMIT}` (`v0.1.0`), `b0.1`"
    assert front(card).datasets == ["org/corrections"]
    assert "pulled" not in card


@pytest.mark.parametrize("name", ["whole", "lora"])
@pytest.mark.parametrize("source", ["org/base", "gpt2"])
def test_a_base_of_the_hub_is_named_with_its_revision(made: Made, name: str, source: str) -> None:
    about = made.about(name)
    for revision, commit, says in (
        ("v1", None, " at `v1`"),
        ("v1", COMMIT, f" at `{COMMIT}`"),
        (None, None, ", revision unknown"),
    ):
        about["hyper_parameters"] |= {"model": source, "revision": revision}
        about["policy_base"] = {"commit": commit}
        card = make_model_card({**about, "adapter": name == "lora"}, name="n")
        assert cells(card)["Trained from"] == f"`{source}`{says}"
        assert front(card).base_model == source
        assert front(card).base_model_relation == ("adapter" if name == "lora" else "finetune")
        assert front(card).datasets is None


@pytest.mark.parametrize(
    "source",
    [
        "base-policy",
        "base-policy/",
        "./base-policy",
        "../base-policy",
        "~/base-policy",
        "/base-policy",
        "ada/base-policy",
        "gone/by/base-policy",
        "/gone/base-policy",
    ],
)
def test_a_folder_is_no_name_on_the_hub(
    made: Made, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("base-policy", "ada/base-policy"):
        (tmp_path / folder).mkdir(parents=True)
    about = made.about("whole")
    about["hyper_parameters"]["model"] = source
    card = make_model_card(about, name="n")
    assert cells(card)["Trained from"] == "`base-policy` (a folder)"
    assert "base_model" not in front(card).to_dict()


def test_an_evaluation_of_another_policy_is_refused(made: Made, tmp_path: Path) -> None:
    """Scores carry the fingerprint that the engine saw; a merged adapter is a policy as any other."""
    for name, other in (("whole", "lora"), ("lora", "whole")):
        out = export(made.checkpoint(name), tmp_path / name)
        policy = TransformersEngine(str(out), device="cpu").policy
        folder = evaluated(tmp_path / f"eval-{name}", rows=policy_rows(policy, ["c", "wwc"], max_turns=3))
        before = (out / "README.md").read_text()
        export(made.checkpoint(name), out, overwrite=True, evaluation=folder)
        assert "## Evaluation" in (out / "README.md").read_text()
        assert "## Evaluation" not in before
        with pytest.raises(ValueError, match=f"is of the policy {policy[:12]}…, this one is "):
            export(made.checkpoint(other), tmp_path / "other", evaluation=folder)
    assert not (tmp_path / "other").exists()


def test_what_is_unknown_is_said_to_be(tmp_path: Path) -> None:
    module = WeightedSFT.from_model(tiny_model(), 1e-3)
    card = (export(module, tmp_path / "out", tokenizer=bpe_tokenizer()) / "README.md").read_text()
    found = cells(card)
    assert found["Trained from"] == "unknown: a model built in memory"
    for what in ("Data", "Steps", "Seed", "Strategy"):
        assert found[what] == "unknown"
    assert "Weights" not in found
    assert "which is unknown here" in part(card, "How to ask it")
    assert "None" not in card
    assert "–" not in card
    said = front(card).to_dict()
    assert not {"base_model", "base_model_relation", "datasets", "license", "model-index"} & said.keys()


def test_it_says_what_the_loss_was_on_and_what_the_weights_were_for(made: Made) -> None:
    about = made.about("whole")
    about["data"] |= {"weighting": "none", "supervise": "all"}
    found = cells(make_model_card(about, name="n"))
    assert found["Weighting"] == "`none`: w = 1"
    assert found["Loss on"] == "every response of each dialogue (`all`)"


def test_a_table_in_memory_has_no_weighting_that_is_known(made: Made) -> None:
    about = made.about("whole")
    about["data"] |= {"path": "the table", "manifest": None}
    found = cells(make_model_card(about, name="n"))
    assert (found["Data"], found["Weights"]) == ("`the table`", "β, γ, λ unknown")


def test_the_evaluation_is_that_of_the_scores(made: Made, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "eval")
    out = export(made.checkpoint("whole"), tmp_path / "out", evaluation=folder, license="apache-2.0")
    card = (out / "README.md").read_text()
    (scores,) = json.loads((folder / "scores.json").read_text())["policies"]
    rows = re.findall(r"^\| (multi@\d) \| (.+) \|$", card, re.MULTILINE)
    assert rows == [
        (f"multi@{k}", f"{100 * rate['value']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]")
        for k, rate in enumerate(scores["multi_at"], start=1)
    ]
    # 2 of 4, whose Wilson ends are 15.0 and 85.0.
    assert rows[-1] == ("multi@3", "50.0 [15.0, 85.0]")
    said = part(card, "Evaluation")
    assert (
        f"Greedy, 4 problems (N), one dialogue each. Problems: `held-out.jsonl`, sha256 `{SHA256}`." in said
    )
    assert "% [95% Wilson]" in said
    results = front(card).eval_results
    assert [(found.metric_type, found.metric_value) for found in results] == [
        ("multi@1", 0.25),
        ("multi@3", 0.5),
    ]
    assert {found.dataset_name for found in results} == {"held-out.jsonl"}
    assert front(card).license == "apache-2.0"
    by_file = make_model_card(
        made.about("whole"), name="n", evaluation=load_evaluation(folder / "scores.json")
    )
    assert part(by_file, "Evaluation") == said


@pytest.mark.parametrize(
    ("temperature", "says"), [(0.5, "Temperature 0.5, "), (None, "Temperature unknown, ")]
)
def test_only_greedy_answers_are_called_greedy(
    made: Made, temperature: float | None, says: str, tmp_path: Path
) -> None:
    found = load_evaluation(evaluated(tmp_path / "eval", temperature=temperature))
    card = make_model_card(made.about("whole"), name="n", evaluation=found)
    assert part(card, "Evaluation").strip().startswith(says)
    assert ("Problems: unknown." in card) == (temperature is None)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"size": 6}, "6 problems (N), one dialogue each. Problems: unknown. 2 of them are missing, "),
        (
            {"unscored": "wrong"},
            "5 problems (N), one dialogue each. Problems: unknown. 1 of them could not ",
        ),
        ({"unscored": "omit"}, "4 problems (N), one dialogue each. Problems: unknown. 1 more could not "),
    ],
)
def test_problems_without_a_verdict_are_counted_as_the_scores_count_them(
    made: Made, settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    rows = ROWS if "size" in settings else policy_rows("π", ["c", "wwc", "www", "mww", "we"], max_turns=3)
    found = load_evaluation(evaluated(tmp_path / "eval", temperature=None, rows=rows, **settings))
    card = make_model_card(made.about("whole"), name="n", evaluation=found)
    assert says in card


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no scores.json; name the folder that drift-eval wrote"),
        ('{"policies": [', "scores.json is not JSON"),
        ("[1]", "holds no scores of drift-eval"),
        ('{"policies": []}', "holds no scores of drift-eval"),
        ('{"policies": [{"policy": "p", "problems": 1}]}', "holds no scores of drift-eval"),
        ('{"policies": [{"policy": "p", "problems": 1, "multi_at": []}]}', "holds no scores of drift-eval"),
        (
            '{"policies": [{"policy": "p", "problems": 1, "multi_at": [0.5]}]}',
            "holds no scores of drift-eval",
        ),
    ],
)
def test_what_is_no_evaluation_is_refused(
    made: Made, content: str | None, says: str, tmp_path: Path
) -> None:
    folder = tmp_path / "eval"
    folder.mkdir()
    if content is not None:
        (folder / "scores.json").write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(says)):
        export(made.checkpoint("whole"), tmp_path / "out", evaluation=folder)
    assert not (tmp_path / "out").exists()


def test_scores_of_several_policies_are_refused(tmp_path: Path) -> None:
    rows = [*policy_rows("ours", ["c"], max_turns=2), *policy_rows("theirs", ["ww"], max_turns=2)]
    with pytest.raises(
        ValueError, match=r"scores 2 policies \(ours, theirs\); give that of this one alone"
    ):
        load_evaluation(evaluated(tmp_path / "eval", rows=rows))


def shape(card: str) -> list[tuple[str, str, int]]:
    """The elements of the page, one inside the other, without their texts."""

    def walk(tokens: list[Token]) -> list[tuple[str, str, int]]:
        found = []
        for token in tokens:
            # `code` is Markdown's or HTML's, and a text may be cut into pieces.
            if token.type not in ("text", "code_inline", "text_special"):
                found.append((token.type, token.tag, token.nesting))
            found += walk(token.children or [])
        return [each for each in found if each[0] != "html_inline"]

    return walk(GFM.parse(ModelCard(card).text))


def html_tags(card: str) -> set[str]:
    inline = [child for token in GFM.parse(ModelCard(card).text) for child in token.children or []]
    return {child.content for child in inline if child.type == "html_inline"}


def about_with(made: Made, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint and an evaluation in which every text from outside is `text`."""
    about = made.about("lora")
    about["hyper_parameters"]["model"] = f"/x/{text}"
    about["hyper_parameters"]["lora"]["targets"] = [text, "v_proj"]
    about["data"] |= {"path": text, "revision": text, "asked": f"v{text}", "subset": text}
    about["data"]["manifest"]["source"]["manifest"]["rollout"]["protocol"]["feedback"] = text
    about |= {"strategy": text, "made_by": {text: text}}
    rates = [{"value": 0.5, "low": 0.25, "high": 0.75, "confidence": 0.95}]
    benchmark = {"name": text, "sha256": text}
    return about, {"policy": text, "problems": 4, "multi_at": rates, "benchmark": benchmark}


@example(text="a/b|`c`\n---\n<b>")
@given(text=hostile)
def test_no_text_changes_the_page(made: Made, text: str) -> None:
    harmless, evaluation = about_with(made, "plain")
    wanted = shape(make_model_card(harmless, name="plain", evaluation=evaluation, license="mit"))
    about, evaluation = about_with(made, text or "empty")
    card = make_model_card(about, name=text or "empty", evaluation=evaluation, license="mit")
    assert shape(card) == wanted
    assert html_tags(card) <= {"<code>", "</code>"}


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isprintable() or "\n" in text])
def test_no_text_changes_the_front_matter(made: Made, text: str) -> None:
    about, evaluation = about_with(made, text)
    card = make_model_card(about, name=text, evaluation=evaluation, license=text)
    found = front(card).to_dict()
    assert (found["license"], found["tags"][0]) == (text, "drift")
    assert found["datasets"] == [text]
    (index,) = found["model-index"]
    assert index["name"] == text
    assert index["results"][0]["dataset"]["name"] == text


@pytest.mark.parametrize(("name", "keep"), [("whole", False), ("lora", False), ("lora", True)])
def test_no_path_of_this_machine_leaves_but_the_base_that_peft_needs(
    made: Made, name: str, keep: bool, tmp_path: Path
) -> None:
    for kind, source in (("checkpoint", made.checkpoint(name)), ("module", made.modules[name])):
        evaluation = evaluated(made.home / f"eval-{name}-{keep}-{kind}")
        out = export(source, tmp_path / kind, keep_adapter=keep, evaluation=evaluation)
        telling = [file.name for file in out.iterdir() if str(made.home).encode() in file.read_bytes()]
        assert telling == (["adapter_config.json"] if keep else [])
        if keep:
            config = json.loads((out / "adapter_config.json").read_text())
            assert config.pop("base_model_name_or_path") == str(made.base)
            assert str(made.home) not in json.dumps(config)


def usage(out: Path) -> dict[str, Any]:
    """What the card's code leaves when it is run as it stands."""
    (code,) = re.findall(
        r"^```python\n(.+?)^```$", (out / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.mark.parametrize(("name", "keep"), [("whole", False), ("lora", False), ("lora", True)])
def test_the_code_on_the_card_runs(
    made: Made, name: str, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(made.checkpoint(name), tmp_path / "out", keep_adapter=keep)
    monkeypatch.chdir(out)
    found = usage(out)
    with torch.no_grad():
        logits, wanted = found["policy"](IDS).logits, made.modules[name].policy(IDS).logits
    assert torch.allclose(logits, wanted, atol=1e-5)
    assert found["tokenizer"].chat_template == bpe_tokenizer().chat_template


def test_an_adapter_finds_a_base_that_was_named_from_elsewhere(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made.home)
    settings = {"learning_rate": 3e-2, "lora": LoRA(rank=2)}
    module = fit("base-policy", made.data, tmp_path / "run", settings, batch_size=6)
    out = export(tmp_path / "run", tmp_path / "out", keep_adapter=True)
    monkeypatch.chdir(out)
    with torch.no_grad():
        assert torch.allclose(usage(out)["policy"](IDS).logits, module.policy(IDS).logits, atol=1e-5)


def test_the_command_takes_evaluation_and_licence(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = evaluated(tmp_path / "eval"), tmp_path / "out"
    words = ["export", str(made.checkpoint("whole"))]
    main([*words, str(out), "--evaluation", str(folder), "--license", "apache-2.0"])
    assert capsys.readouterr().out == f"wrote {out}, the policy after step 2\n"
    card = (out / "README.md").read_text()
    assert (front(card).license, "multi@3" in card) == ("apache-2.0", True)
    with pytest.raises(SystemExit) as ended:
        main([*words, str(tmp_path / "x"), "--evaluation", str(tmp_path)])
    assert ended.value.code == 2
    assert "holds no scores.json" in capsys.readouterr().err
