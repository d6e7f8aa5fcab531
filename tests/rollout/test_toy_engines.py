"""One YAML on the toy world's problems, whose engine alone differs: the same dialogues come out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drift_rollout.cli import main
from drift_weights import Trajectory, from_table, read_folder
from drift_weights.cli import main as weights
from toy_world import World, WorldConfig
from vllm_environment import run_script

PROBLEMS, SAMPLES = 5, 3
YAML = """
problems: {folder}/problems.jsonl
model: {model}
out: {folder}/run
prompt: {{system: null, user: "{{problem}}"}}
verifier: {{name: exact}}
samples: 3
protocol: {{max_turns: 3}}
sampling: {{temperature: 0, max_new_tokens: 12}}
engine: {engine}
"""
ENGINES = {
    "transformers": "{name: transformers, transformers: {device: cpu}}",
    "openai": "{name: openai, openai: {base_url: URL}}",
    "ray": "{name: transformers, transformers: {device: cpu}, ray: {actors: 2, cpus_per_actor: 0}}",
    "vllm": "{name: vllm, vllm: {dtype: float32, max_model_len: 256, enforce_eager: true}}",
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


def in_vllm(python: str, config: Path) -> None:
    run_script(python, Path(__file__).with_name("sample_in_vllm.py"), config)


def here(config: Path) -> None:
    main(["sample", "--config", str(config)])


@pytest.fixture(scope="module")
def rolled(
    served: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, list[Trajectory]]]:
    """Runs the YAML with one of the engines, once; returns the trajectories, and the folder they are in."""
    url, model = served
    torch.set_num_threads(1)
    done: dict[str, Path] = {}

    def roll(engine: str, run: Callable[[Path], None] = here) -> tuple[Path, list[Trajectory]]:
        if engine not in done:
            folder = tmp_path_factory.mktemp(engine)
            write_problems(folder / "problems.jsonl")
            setting = ENGINES[engine].replace("URL", url)
            (folder / "run.yaml").write_text(YAML.format(folder=folder, model=model, engine=setting))
            run(folder / "run.yaml")
            done[engine] = folder / "run" / "trajectories"
        return done[engine], list(from_table(read_folder(done[engine], "trajectories")[0]))

    return roll


def write_problems(path: Path) -> None:
    """Riddles of which the served policy, whose first words are always the same, solves some."""
    world = World(WorldConfig())
    problems = world.splits(reference=0, rollout=PROBLEMS, validation=0, heldout=0).rollout
    rows = [{"problem": p.messages[0].content, "answer": p.target} for p in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def check(
    found: tuple[Path, list[Trajectory]], expected: list[Trajectory], out: Path, *, tokens: bool = True
) -> None:
    """A folder of whole groups of one policy, the dialogues of another engine, and weights of it."""
    folder, made = found
    assert len(made) == PROBLEMS * SAMPLES
    assert {t.sample for t in made} == set(range(SAMPLES))
    assert len({t.prompt_id for t in made}) == PROBLEMS
    assert len({t.policy for t in made}) == 1
    assert [(t.prompt_id, t.sample, t.turns, t.ended) for t in made] == [
        (t.prompt_id, t.sample, t.turns, t.ended) for t in expected
    ]
    if tokens:
        assert made[0].policy == expected[0].policy
        assert [t.token_ids for t in made] == [t.token_ids for t in expected]
    weights(["reweight", str(folder), str(out)])
    table, _ = read_folder(out, "weighted")
    assert table.num_rows == PROBLEMS * SAMPLES
    assert set(table["policy"].to_pylist()) == {made[0].policy}
    assert set(table["group_size"].to_pylist()) == {SAMPLES}
    assert sum(table["weight"].to_pylist()) == pytest.approx(PROBLEMS * SAMPLES)


@pytest.mark.parametrize("engine", ["transformers", "ray", "openai"])
def test_the_engine_alone_differs(rolled: Any, engine: str, tmp_path: Path, monkeypatch: Any) -> None:
    """By messages there are no ids, and nobody verified the policy's name."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _, expected = rolled("transformers")
    assert len({t.turns for t in expected}) > 1
    found = rolled(engine)
    check(found, expected, tmp_path / "weighted", tokens=engine != "openai")
    if engine == "openai":
        assert found[1][0].policy == "openai:policy"
        assert {t.token_ids for t in found[1]} == {None}


@pytest.mark.vllm
@pytest.mark.timeout(1500)
def test_vllm_alone_differs(rolled: Any, vllm_python: str, tmp_path: Path) -> None:
    found = rolled("vllm", lambda config: in_vllm(vllm_python, config))
    check(found, rolled("transformers")[1], tmp_path / "weighted")
