"""drift-rollout sample as a user runs it, on a tiny model of our own."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from drift_rollout import Completion, ScriptedEngine
from drift_rollout.cli import main
from drift_rollout.engine import Request
from drift_rollout.engines.opening import EngineOptions
from drift_weights import from_table, read_folder
from tiny import bpe_tokenizer, save_policy, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = bpe_tokenizer()
    return save_policy(tmp_path_factory.mktemp("policy"), tokenizer, tiny_model(vocab=len(tokenizer)))


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{n} + 1", "answer": n + 1}) + "\n" for n in range(3)))
    return path


SMALL = ["--sampling.max_new_tokens", "5", "--protocol.max_turns", "2"]


def test_sample_writes_a_folder_and_goes_on_where_it_was(
    problems: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(["sample", str(problems), str(model), str(out), "--samples", "2", *SMALL])
    table, manifest = read_folder(out / "trajectories", "trajectories")
    first = list(from_table(table))
    assert [t.sample for t in first] == [0, 1] * 3
    assert {t.prompt[-1].content.split("State: ")[1].split("\n")[0] for t in first} == {
        "0 + 1",
        "1 + 1",
        "2 + 1",
    }
    assert manifest["rollout"]["sampling"] == {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 5}
    assert manifest["rollout"]["policy"] == first[0].policy
    main(["sample", str(problems), str(model), str(out), "--samples", "3", *SMALL])
    grown = list(from_table(read_folder(out / "trajectories", "trajectories")[0]))
    assert len(grown) == 9
    assert [t for t in grown if t.sample < 2] == first
    assert "3 problems × 3 samples = 9 trajectories" in capsys.readouterr().out


def test_another_seed_in_the_same_place_is_refused(
    problems: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sample", str(problems), str(model), str(tmp_path / "run"), "--samples", "1", *SMALL]
    main(arguments)
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--seed", "7"])
    assert stop.value.code == 2
    assert "seed: 0 before, 7 now" in capsys.readouterr().err


def test_a_file_and_a_prompt_of_ones_own(
    problems: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "rollout.yaml"
    config.write_text(
        f"problems: {problems}\nmodel: {model}\nout: {tmp_path / 'run'}\nsamples: 1\n"
        "prompt: {system: null, user: 'Solve {problem} now'}\n"
        "protocol: {max_turns: 1, feedback: Nope.}\nsampling: {max_new_tokens: 3}\n"
    )
    main(["sample", "--config", str(config)])
    made = list(from_table(read_folder(tmp_path / "run" / "trajectories", "trajectories")[0]))
    assert {t.prompt[0].content for t in made} == {f"Solve {n} + 1 now" for n in range(3)}
    assert {t.max_turns for t in made} == {1}


def test_unscored_dialogues_are_said(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of six fail at first; run again, they are sampled, and nothing else is."""
    asked = []

    def engine(options: EngineOptions, model: str, *, revision: str | None) -> ScriptedEngine:
        def script(request: Request) -> Completion:
            asked.append(request.id)
            if len(asked) in (2, 5):
                return Completion(id=request.id, text="", finish_reason="error", error="out of memory")
            return Completion(id=request.id, text="no answer")

        return ScriptedEngine(script)

    monkeypatch.setattr("drift_rollout.cli.open_engine", engine)
    arguments = ["sample", str(problems), "model", str(tmp_path / "run"), "--samples", "2"]
    arguments += ["--protocol.max_turns", "1"]
    main(arguments)
    *_, unscored, closing = capsys.readouterr().out.splitlines()
    assert unscored == "2 dialogues ended unscored; run again to verify or sample them again"
    assert closing.startswith("wrote ")
    main(arguments)
    assert len(asked) == 6 + 2
    assert "ended unscored" not in capsys.readouterr().out


def test_the_manifest_says_what_was_sampled(problems: Path, model: Path, tmp_path: Path) -> None:
    main(["sample", str(problems), str(model), str(tmp_path / "run"), "--samples", "1", *SMALL])
    _, manifest = read_folder(tmp_path / "run" / "trajectories", "trajectories")
    digest = hashlib.sha256(problems.read_bytes()).hexdigest()
    assert manifest["origin"] == {
        "model": model.name,
        "revision": None,
        "problems": {"name": "problems.jsonl", "sha256": digest},
        "engine": {"name": "transformers", "dtype": "auto"},
    }


def test_the_revision_reaches_the_engine(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def engine(options: EngineOptions, model: str, *, revision: str | None) -> ScriptedEngine:
        seen.append((model, revision, options.transformers.device))
        return ScriptedEngine(lambda request: Completion(id=request.id, text=""))

    monkeypatch.setattr("drift_rollout.cli.open_engine", engine)
    main(
        [
            "sample",
            str(problems),
            "a/b",
            str(tmp_path / "run"),
            "--revision",
            "v2",
            "--engine.transformers.device",
            "cpu",
        ]
    )
    assert seen == [("a/b", "v2", "cpu")]


WITHOUT_TORCH = """
import sys


class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")


sys.meta_path.insert(0, NoTorch())
from {cli} import main
main({arguments})
"""


@pytest.mark.parametrize(("cli", "command"), [("drift_rollout.cli", "sample"), ("drift_eval.cli", "run")])
def test_without_torch_it_says_what_to_install(
    problems: Path, tmp_path: Path, cli: str, command: str
) -> None:
    script = WITHOUT_TORCH.format(cli=cli, arguments=[command, str(problems), "model", str(tmp_path / "o")])
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("install drift-rollout[transformers]\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "group", "name"),
    [
        ("sample", "verifier", "math"),
        ("sample", "verifier", "package.module.Class"),
        ("sample", "engine", "vllm"),
        ("reverify", "verifier", "math"),
    ],
)
def test_a_name_alone_in_a_file_is_told_what_to_write(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, group: str, name: str
) -> None:
    config = tmp_path / "config.yaml"
    paths = {"sample": ["problems", "model", "out"], "reverify": ["old", "new"]}[command]
    config.write_text("".join(f"{path}: {problems}\n" for path in paths) + f"{group}: {name}\n")
    with pytest.raises(SystemExit) as stop:
        main([command, "--config", str(config)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: in a file {group} is a group of options: write {group}: {{name: {name}}} or the path of a "
        f"YAML file with such options, not {group}: {name}\n"
    )


@pytest.mark.parametrize("words", [["--config", "{}"], ["--config={}"]])
@pytest.mark.parametrize(
    ("group", "value", "shown"), [("verifier", "[math]", "['math']"), ("engine", "7", "7")]
)
def test_a_list_or_a_number_is_no_group(
    problems: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    group: str,
    value: str,
    shown: str,
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"problems: {problems}\nmodel: {problems}\nout: out\n{group}: {value}\n")
    with pytest.raises(SystemExit) as stop:
        main(["sample", *(word.format(config) for word in words)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {config}: {group} is a group of options, such as {group}: {{name: NAME}}, not {shown}\n"
    )


def test_the_options_of_a_verifier_may_stand_in_a_file_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "problems.csv").write_text("problem,answer\na?,B\n")
    (tmp_path / "verifier.yaml").write_text("name: choice\n")
    (tmp_path / "config.yaml").write_text(
        f"problems: {tmp_path / 'problems.csv'}\nmodel: no/such-model\nout: out\ncheck_gold: true\n"
        f"verifier: {tmp_path / 'verifier.yaml'}\n"
    )
    main(["sample", "--config", str(tmp_path / "config.yaml")])
    assert capsys.readouterr().out == "1 problems; every gold passes choice/2\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--prompt", "mine"], "'mine' is no template"),
        (["--samples", "0"], "samples must be at least 1"),
        (["--sampling.temperature", "-1"], "temperature must not be negative"),
        (["--question", "q"], "field 'q' is missing"),
        (["--verifier", "hope"], "verifier"),
        (["--verifier", "choice"], "the target of a choice must be one letter A-J, got '1'"),
        (["--verifier", "choice", "--dry-run"], "the target of a choice must be one letter"),
        (["--engine.name", "abacus"], "engine 'abacus' is none of transformers"),
        (["--engine.name", "no.such.Abacus"], "engine 'no.such.Abacus': No module named 'no'"),
        (["--engine.transformers.device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--engine.transformers.device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_mistakes_are_one_line(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(problems), "no/such-model", str(tmp_path / "run"), *change])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert says in message
    assert all(item.startswith("  ") for item in message.splitlines()[1:])
    assert not (tmp_path / "run").exists()
