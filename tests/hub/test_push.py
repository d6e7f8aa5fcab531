"""Pushing a policy, over real HTTP, as a user does it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from rich.console import Console
from transformers import AutoModelForCausalLM

from drift_train import LoRA, WeightedSFT, export
from drift_train.cli import main
from drift_train.pushing import Pushed, prepare_push, print_push, push
from drift_weights.hub import Api, HubError
from loopback_hub import OWNER, READER, STRANGER, Fault, Kind, LoopbackHub
from made_up_secrets import MAKERS, Draw
from tiny import bpe_tokenizer, save_policy, tiny_model

REPO = "org/policy"
BASE = "org/base"
IDS = [[5, 3, 60, 1, 0, 17]]
SHARDS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Policies:
    """Exports: two of one file each, the first in two shards, and an adapter of a base that lies beside."""

    first: Path
    second: Path
    sharded: Path
    adapter: Path
    base: Path


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    home = tmp_path_factory.mktemp("exports")
    base = save_policy(home / "base", bpe_tokenizer(), tiny_model())
    for seed, name in ((1, "first"), (2, "second")):
        module = WeightedSFT.from_model(tiny_model(seed=seed), 1e-3)
        export(module, home / name, tokenizer=bpe_tokenizer(), license="apache-2.0")
    shutil.copytree(home / "first", home / "sharded")
    (home / "sharded/model.safetensors").unlink()
    # Tiny weights are the only ones that a small limit parts.
    tiny_model(seed=1).save_pretrained(home / "sharded", max_shard_size="150KB")
    shards = {file.name for file in (home / "sharded").glob("*.safetensors")}
    assert shards == SHARDS
    adapted = WeightedSFT(str(base), 1e-3, lora=LoRA(rank=2))
    adapted.configure_model()
    for name, parameter in adapted.policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    export(adapted, home / "adapter", keep_adapter=True)
    return Policies(**{name: home / name for name in ("first", "second", "sharded", "adapter", "base")})


@pytest.fixture
def policies(exports: Policies, tmp_path: Path) -> Policies:
    """Copies that a test may change; the adapter's base is one of the Hub."""
    names = ("first", "second", "sharded", "adapter", "base")
    copies = {name: shutil.copytree(getattr(exports, name), tmp_path / name) for name in names}
    rename_base(copies["adapter"], BASE)
    return Policies(**copies)


def rename_base(adapter: Path, base: str | None, revision: str | None = None) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": base, "revision": revision}
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def put(api: Api, folder: Path, **settings: Any) -> Pushed:
    return push(prepare_push(folder, REPO, api=api, **settings), api=api)


def content(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def pushed(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    """What is in the repository, without the file that the Hub puts there itself."""
    files = hub.files(REPO, revision, kind="model")
    files.pop(".gitattributes", None)
    return files


def writes(hub: LoopbackHub) -> list[str]:
    return [f"{found.method} {found.path}" for found in hub.requests if found.method not in ("GET", "HEAD")]


def commits(hub: LoopbackHub) -> int:
    return len(hub.store.repos["model", REPO].history("main"))


def tags(hub: LoopbackHub) -> dict[str, str]:
    return hub.store.repos["model", REPO].tags


def test_a_push_is_one_private_commit_of_every_byte(hub: LoopbackHub, api: Api, policies: Policies) -> None:
    for folder in (policies.first, policies.sharded, policies.adapter):
        hub.reset()
        done = put(api, folder)
        assert pushed(hub) == content(folder)
        assert done.fresh
        assert done.commit == api.model_info(REPO).sha
        # The first is that of the empty repository.
        assert commits(hub) == 2
        for token in (None, STRANGER):
            with pytest.raises(RepositoryNotFoundError):
                hub.api(token).model_info(REPO)
        assert hub.api(READER).model_info(REPO).private


def test_it_is_never_public_on_the_way(
    hub: LoopbackHub, api: Api, policies: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository is made private at once, and made public after everything else."""
    put(api, policies.first, public=True, tag="v1")
    made, *_, tagged, last = writes(hub)
    assert "/repos/create" in made
    assert "/tag/" in tagged
    assert last == f"PUT /api/models/{REPO}/settings"
    assert hub.api(None).model_info(REPO).sha == tags(hub)["v1"]
    hub.reset()
    monkeypatch.setattr("drift_train.pushing.publish_to_all", lambda *_, **__: None)
    put(api, policies.first, public=True)
    assert hub.store.repos["model", REPO].private


def test_a_second_push_writes_nothing(hub: LoopbackHub, api: Api, policies: Policies) -> None:
    for settings in ({}, {"tag": "v1"}, {"tag": "v1", "public": True}):
        first = put(api, policies.first, **settings)
        before = writes(hub)
        again = put(api, policies.first, **settings)
        assert (again.commit, again.fresh) == (first.commit, False)
        assert writes(hub) == before
        assert first.fresh


def test_only_what_changed_is_sent(hub: LoopbackHub, api: Api, policies: Policies) -> None:
    put(api, policies.first)
    shutil.copyfile(policies.second / "model.safetensors", policies.first / "model.safetensors")
    plan = prepare_push(policies.first, REPO, api=api)
    assert plan.uploads == ("model.safetensors",)
    assert set(plan.unchanged) == content(policies.first).keys() - {"model.safetensors"}
    push(plan, api=api)
    assert pushed(hub) == content(policies.first)
    # Of the same length, in a small file that git holds.
    card = (policies.first / "README.md").read_text()
    (policies.first / "README.md").write_text(card.replace("model", "Model", 1))
    assert prepare_push(policies.first, REPO, api=api).uploads == ("README.md",)


def test_a_tag_names_the_commit_and_is_never_moved(hub: LoopbackHub, api: Api, policies: Policies) -> None:
    first = put(api, policies.first, tag="v1")
    assert tags(hub) == {"v1": first.commit}
    before = writes(hub)
    with pytest.raises(ValueError, match=r"has a tag v1 with other content \(.*model\.safetensors"):
        put(api, policies.second, tag="v1")
    assert writes(hub) == before
    second = put(api, policies.second, tag="v2")
    # The older one is there already, under its name.
    assert put(api, policies.first, tag="v1") == Pushed(commit=first.commit, fresh=False)
    assert tags(hub) == {"v1": first.commit, "v2": second.commit}
    assert pushed(hub) == content(policies.second)
    named = put(api, policies.second, tag="v3")
    assert (named.commit, named.fresh) == (second.commit, True)


def test_a_tag_that_came_in_between_is_not_moved(hub: LoopbackHub, api: Api, policies: Policies) -> None:
    put(api, policies.first)
    plan = prepare_push(policies.second, REPO, tag="v1", api=api)
    api.create_tag(REPO, tag="v1")
    theirs = dict(tags(hub))
    with pytest.raises(HubError, match="tag v1 is not set"):
        push(plan, api=api)
    assert tags(hub) == theirs


def test_looking_writes_nothing(hub: LoopbackHub, api: Api, policies: Policies) -> None:
    prepare_push(policies.first, REPO, api=api)
    assert (writes(hub), hub.store.repos) == ([], {})
    put(api, policies.sharded)
    before, there = writes(hub), pushed(hub)
    prepare_push(policies.first, REPO, tag="v1", public=True, api=api)
    assert (writes(hub), pushed(hub)) == (before, there)


def test_a_plan_is_printed_file_by_file(hub: LoopbackHub, api: Api, policies: Policies) -> None:
    put(api, policies.sharded)
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        print_push(prepare_push(policies.first, REPO, tag="v1", api=api), console, card=True)
    head, said = captured.get().split("\n", 1)
    assert head == f"{REPO}: private, at {str(api.model_info(REPO).sha)[:12]}"
    listed = re.findall(r"^(send|take away|keep) +(\S+)", said, re.MULTILINE)
    gone = {*SHARDS, "model.safetensors.index.json"}
    same = content(policies.first).keys() & content(policies.sharded).keys()
    assert {name for what, name in listed if what == "take away"} == gone
    assert {name for what, name in listed if what == "keep"} == same
    assert {name for what, name in listed if what == "send"} == {"model.safetensors"}
    assert len(listed) == len(gone) + len(same) + 1
    assert "\ntag v1\n" in said
    assert said.endswith((policies.first / "README.md").read_text().strip() + "\n")


def test_public_needs_a_licence_and_is_asked_for_each_time(
    hub: LoopbackHub, api: Api, policies: Policies
) -> None:
    card = policies.first / "README.md"
    said = card.read_text()
    for broken, says in (
        (said.replace("license: apache-2.0\n", ""), "needs a licence, and .*README.md names none"),
        (said.replace("license: apache-2.0", "license: [a"), "is no YAML"),
        (said.replace("license: apache-2.0", "license:"), "needs a licence"),
    ):
        card.write_text(broken)
        with pytest.raises(ValueError, match=says):
            put(api, policies.first, public=True)
    assert not hub.requests
    card.write_text(said)
    put(api, policies.first, public=True)
    before = writes(hub)
    with pytest.raises(ValueError, match="is public; pass --public"):
        put(api, policies.second)
    assert writes(hub) == before
    put(api, policies.second, public=True)
    assert pushed(hub) == content(policies.second)
    hub.reset()
    api.create_repo(REPO, private=False)
    with pytest.raises(ValueError, match="is public; pass --public"):
        put(api, policies.first)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("sharded", "first"),
        ("first", "sharded"),
        ("adapter", "first"),
        ("first", "adapter"),
        ("sharded", "adapter"),
    ],
)
def test_nothing_is_left_of_the_policy_before(
    before: str, after: str, hub: LoopbackHub, api: Api, policies: Policies
) -> None:
    old, new = getattr(policies, before), getattr(policies, after)
    (old / "chat_template.jinja").write_text("of another policy")
    (new / "chat_template.jinja").unlink(missing_ok=True)
    put(api, old)
    theirs = {"notes.md": b"mine", "extra/model.safetensors": b"mine", "steering.safetensors": b"mine"}
    hub.put(REPO, theirs, kind="model")
    there = commits(hub)
    put(api, new)
    assert pushed(hub) == {**content(new), **theirs}
    assert commits(hub) == there + 1


@pytest.mark.parametrize("provider", ["Hugging Face", "GitHub", "OpenAI project"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("README.md", "README.md, line {last}"),
        ("config.json", "config.json, line"),
        ("chat_template.jinja", "chat_template.jinja, line"),
        ("notes/run.yaml", "notes/run.yaml, line 1"),
    ],
)
def test_a_secret_is_refused_with_its_place(
    provider: str, name: str, place: str, hub: LoopbackHub, api: Api, policies: Policies
) -> None:
    made = MAKERS[provider](Draw(7))
    file = policies.first / name
    file.parent.mkdir(exist_ok=True)
    add(file, made.text)
    last = len(file.read_text().splitlines())
    with pytest.raises(ValueError, match="this must not be pushed") as error:
        put(api, policies.first)
    assert place.format(last=last) in str(error.value)
    assert made.secret not in str(error.value)
    assert not hub.requests


def add(file: Path, text: str) -> None:
    """Write a text into a file, as its kind allows."""
    before = file.read_text() if file.is_file() else ""
    if file.suffix == ".json":
        file.write_text(json.dumps({**json.loads(before), "note": text}, indent=2))
    else:
        file.write_text(f"{before}{text}\n")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("README.md", "README.md, line {last}: an absolute path"),
        ("config.json", "config.json, note: an absolute path"),
        ("generation_config.json", "generation_config.json, note: an absolute path"),
        ("tokenizer_config.json", "tokenizer_config.json, note: an absolute path"),
    ],
)
@pytest.mark.parametrize("path", ["/home/ada/models/base", "C:\\Users\\ada\\base"])
def test_a_path_is_refused_with_its_place(
    path: str, name: str, place: str, hub: LoopbackHub, api: Api, policies: Policies
) -> None:
    add(policies.first / name, path)
    last = len((policies.first / name).read_text().splitlines())
    with pytest.raises(ValueError, match="this must not be pushed") as error:
        put(api, policies.first)
    assert place.format(last=last) in str(error.value)
    assert "ada" not in str(error.value).replace(str(policies.first), "")
    assert not hub.requests


def test_an_adapter_of_a_local_base_is_refused_with_advice(
    hub: LoopbackHub, api: Api, exports: Policies, policies: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it is exported.
    with pytest.raises(ValueError, match=r"base_model_name_or_path: .* absolute path .* --keep-adapter"):
        put(api, exports.adapter)
    monkeypatch.chdir(policies.base.parent)
    for base in ("base", "./base", "../gone/base", "", None):
        rename_base(policies.adapter, base)
        with pytest.raises(ValueError, match=r"write the base's id on the Hub \(org/name\) there"):
            put(api, policies.adapter)
    assert not hub.requests
    rename_base(policies.adapter, BASE)
    assert put(api, policies.adapter).fresh


def test_a_policy_of_a_local_base_may_be_pushed(
    hub: LoopbackHub, api: Api, exports: Policies, tmp_path: Path
) -> None:
    """Merged or trained whole, it holds no path of the base that it came from."""
    for lora in (None, LoRA(rank=2)):
        module = WeightedSFT(str(exports.base), 1e-3, lora=lora)
        module.configure_model()
        out = export(module, tmp_path / "out", overwrite=True)
        put(api, out)
        assert pushed(hub) == content(out)
        assert not any(str(exports.base.parent).encode() in data for data in pushed(hub).values())


def test_what_is_no_export_is_refused_by_name(
    hub: LoopbackHub, api: Api, policies: Policies, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="gone is no folder"):
        put(api, tmp_path / "gone")
    for name, says in (
        ("config.json", "config.json"),
        ("tokenizer_config.json", "tokenizer_config.json"),
        ("README.md", "README.md"),
        ("model.safetensors", r"\*\.safetensors"),
    ):
        there = (policies.first / name).read_bytes()
        (policies.first / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"first lacks {says}; a policy is what drift-train"):
            put(api, policies.first)
        (policies.first / name).write_bytes(there)
    (policies.first / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"first: config\.json is not JSON"):
        put(api, policies.first)
    for repo_id in ("policy", "org/../policy", "datasets/org/policy"):
        with pytest.raises(ValueError, match="is no Hub id"):
            prepare_push(policies.second, repo_id, api=api)
    with pytest.raises(ValueError, match="is no tag"):
        put(api, policies.second, tag="main")
    assert not hub.requests


def test_somebody_elses_commit_in_between_is_not_overwritten(
    hub: LoopbackHub, api: Api, policies: Policies
) -> None:
    put(api, policies.first)
    plan = prepare_push(policies.second, REPO, tag="v2", api=api)
    hub.put(REPO, {"notes.md": b"theirs"}, kind="model")
    there = pushed(hub)
    with pytest.raises(HubError, match="changed while this was being pushed; nothing was overwritten"):
        push(plan, api=api)
    assert (pushed(hub), tags(hub)) == (there, {})
    put(api, policies.second, tag="v2")
    assert pushed(hub) == {**content(policies.second), "notes.md": b"theirs"}


def test_a_commit_whose_answer_was_lost_is_found(hub: LoopbackHub, api: Api, policies: Policies) -> None:
    put(api, policies.first)
    before = commits(hub)
    hub.arm(Fault(kind="cut-after", on="POST .*/commit/"))
    done = put(api, policies.second, tag="v2")
    assert commits(hub) == before + 1
    assert tags(hub) == {"v2": done.commit}
    assert pushed(hub) == content(policies.second)


KINDS: tuple[Kind, ...] = ("cut", "cut-after", "412", "503")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False], ids=["first push", "next push"])
def test_whatever_fails_there_is_the_old_or_the_new_and_a_second_push_ends_it(
    first: bool,
    kind: Kind,
    hub: LoopbackHub,
    api: Api,
    exports: Policies,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From each request of an undisturbed push on, by turns one fault and one that stays."""
    # Most of a push's time, and no request.
    monkeypatch.setattr("drift_train.pushing._refuse_leaks", lambda *_: None)
    old, new = {} if first else content(exports.sharded), content(exports.second)
    start(hub, old)
    put(api, exports.second, tag="v2")
    refused = 0
    for at in range(len(hub.requests)):
        start(hub, old)
        hub.arm(Fault(kind=kind, at=at, times=1 if (at + first) % 2 else None))
        said = refusal(api, exports.second)
        assert said is None or REPO in said
        refused += said is not None
        hub.arm()
        repo = hub.store.repos.get(("model", REPO))
        if repo is not None:
            assert repo.private
            assert pushed(hub) in (old, new)
            assert not repo.tags or pushed(hub, "v2") == new
        put(api, exports.second, tag="v2")
        assert pushed(hub) == pushed(hub, "v2") == new
    assert refused


def start(hub: LoopbackHub, old: dict[str, bytes]) -> None:
    """A Hub that holds an older policy, or none."""
    hub.reset()
    if old:
        hub.put(REPO, old, kind="model", private=True)


def refusal(api: Api, folder: Path) -> str | None:
    """What a push said that did not end well."""
    try:
        put(api, folder, tag="v2")
    except HubError as error:
        return str(error)
    return None


def test_who_may_not_write_is_told_so(hub: LoopbackHub, policies: Policies) -> None:
    with pytest.raises(HubError, match=r"org/policy: you may not do that \(403"):
        put(hub.api(READER), policies.first)
    with pytest.raises(HubError, match="log in with `hf auth login`"):
        put(hub.api(None), policies.first)
    assert not hub.store.repos


def test_the_command_asks_before_everybody_sees_it(
    hub: LoopbackHub,
    policies: Policies,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("drift_train.pushing.hub_api", lambda: hub.api(OWNER))
    words = ["push", str(policies.first), REPO, "--tag", "v1"]
    main([*words, "--dry-run"])
    said = capsys.readouterr().out
    assert f"{REPO}: private, to be made" in said
    assert "model.safetensors" in said
    assert "# first" in said
    with pytest.raises(SystemExit) as refused:
        main([*words, "--public"])
    assert refused.value.code == 2
    assert "nobody can be asked here whether everybody may see it; pass --yes" in capsys.readouterr().err
    assert (writes(hub), hub.store.repos) == ([], {})
    main(words)
    found = hub.store.repos["model", REPO]
    assert f"pushed {REPO} (commit {found.tags['v1']})" in capsys.readouterr().out
    assert found.private
    main([*words, "--public", "--yes"])
    assert capsys.readouterr().out.count(f"pushed {REPO}") == 1
    assert not found.private
    main([*words, "--public"])
    assert f"pushed before, nothing to do: {REPO} (commit {found.tags['v1']})" in capsys.readouterr().out


OPEN = """
import os, sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = torch.tensor({ids})
found = [{models}]
os.chdir({adapter!r})
{card}
found.append(policy)
with torch.no_grad():
    torch.save([model.eval()(ids).logits for model in found], sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained({repo!r}, revision={commit!r})
sys.stdout.write(tokenizer.chat_template)
"""


def test_what_was_pushed_opens_at_its_revision(
    hub: LoopbackHub,
    api: Api,
    exports: Policies,
    policies: Policies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A whole policy by transformers, an adapter by the line that the command prints and by its card."""
    pinned = hub.put(BASE, content(exports.base), kind="model", private=True)
    # What the base became since must not come under the adapter.
    hub.put(BASE, {"model.safetensors": content(exports.second)["model.safetensors"]}, kind="model")
    rename_base(policies.adapter, BASE, pinned)
    monkeypatch.setattr("drift_train.pushing.hub_api", lambda: api)
    main(["push", str(policies.adapter), "org/adapter", "--tag", "v0.1.0"])
    said = capsys.readouterr().out.partition("next: ")[2].strip()
    assert 'revision="v0.1.0"' in said
    first = put(api, policies.first)
    put(api, policies.second)
    whole = f"AutoModelForCausalLM.from_pretrained({REPO!r}, revision={first.commit!r})"
    (card,) = re.findall(r"```python\n(.+?)```", (policies.adapter / "README.md").read_text(), re.DOTALL)
    code = OPEN.format(
        ids=IDS,
        models=f"{whole}, {said}",
        adapter=str(policies.adapter),
        card=card,
        repo=REPO,
        commit=first.commit,
    )
    env = {**hub.env(tmp_path, OWNER), "OMP_NUM_THREADS": "1"}
    assert run(["-c", code, str(tmp_path / "logits")], env) == bpe_tokenizer().chat_template
    found = torch.load(tmp_path / "logits")
    for logits, folder in zip(found, (exports.first, exports.adapter, exports.adapter), strict=True):
        with torch.no_grad():
            wanted = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor(IDS)).logits
        assert torch.equal(logits, wanted)


def run(words: list[str], env: dict[str, str]) -> str:
    """What Python prints; it must end well."""
    done = subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
