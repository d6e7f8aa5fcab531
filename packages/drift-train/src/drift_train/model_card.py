"""The model card of an exported policy: what it is, what made it, how well it did, how to ask it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from drift_weights.card.markdown import NOTHING, code, escaped, fence, number, table
from drift_weights.folder import is_folder
from drift_weights.manifest import read_manifest
from drift_weights.repository import rollout_of

CARD = "README.md"
SCORES = "scores.json"
_PAPER = "[arXiv 2605.31455](https://arxiv.org/abs/2605.31455)"
_TAGS = ["drift", "self-correction", "multi-turn", "importance-weighting"]
_SAID = {"loss": "w multiplies each row's loss", "resample": "rows are drawn by w", "none": "w = 1"}
_TURNS = {"terminal": "the last response of each dialogue", "all": "every response of each dialogue"}


def make_model_card(
    about: Mapping[str, Any],
    *,
    name: str,
    evaluation: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """README.md of a policy, from what its checkpoint says; what that does not know is said to be unknown.

    Args:
        about: the manifest of a checkpoint (`State.manifest`): hyper_parameters, step, data …
        name: of the policy.
        evaluation: what `load_evaluation` read.
        license: of the policy, as the Hub names it.
    """
    parts = [
        f"# {escaped(name)}",
        f"A language model trained to correct itself over several turns, with DRIFT ({_PAPER}): weighted "
        "supervised fine-tuning on the last turns of correction dialogues that the policy before training "
        "had with a verifier.",
        "## How it was made",
        table(("what", "in this model"), [*_base(about), *_data(about), *_training(about)]),
    ]
    if evaluation is not None:
        parts += ["## Evaluation", _evaluation(evaluation)]
    parts += ["## How to ask it", _usage(about)]
    front = _front(about, name, evaluation, license).to_yaml(line_break="\n")
    return f"---\n{front.strip()}\n---\n\n" + "\n\n".join(parts) + "\n"


def load_evaluation(path: Path) -> dict[str, Any]:
    """What `drift-eval run` or `score` wrote of one policy, and on which problems where that is there.

    Args:
        path: its folder, or its scores.json.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no scores, or those of several policies.
    """
    file = path / SCORES if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no {SCORES}; name the folder that drift-eval wrote")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    policies = found.get("policies") if isinstance(found, dict) else None
    if not isinstance(policies, list) or not all(_is_score(each) for each in policies) or not policies:
        raise ValueError(f"{file} holds no scores of drift-eval (policies, each with multi_at)")
    if len(policies) > 1:
        names = ", ".join(str(each["policy"]) for each in policies)
        raise ValueError(f"{file} scores {len(policies)} policies ({names}); give that of this one alone")
    return {**policies[0], "benchmark": _benchmark(file.parent / "trajectories")}


def _is_score(found: Any) -> bool:
    return isinstance(found, dict) and {"policy", "problems", "multi_at"} <= found.keys()


def _benchmark(folder: Path) -> dict[str, Any] | None:
    """Name and sha256 of the problems that were asked."""
    if not is_folder(folder):
        return None
    problems = (read_manifest(folder).get("origin") or {}).get("problems")
    return problems if isinstance(problems, dict) else None


def _front(
    about: Mapping[str, Any], name: str, evaluation: Mapping[str, Any] | None, license: str | None
) -> ModelCardData:
    settings, data = about["hyper_parameters"], about.get("data") or {}
    base = public_name(settings["model"])
    adapter = bool(about.get("adapter"))
    return ModelCardData(
        model_name=name,
        license=license,
        # A folder's name means nothing to the Hub.
        base_model=settings["model"] if base == settings["model"] else None,
        base_model_relation=None if base != settings["model"] else "adapter" if adapter else "finetune",
        datasets=[data["path"]] if data.get("revision") else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=_TAGS,
        eval_results=None if evaluation is None else _results(evaluation),
    )


def _results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """The Hub's form of it."""
    benchmark = (evaluation.get("benchmark") or {}).get("name") or "unknown"
    rates = evaluation["multi_at"]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=benchmark,
            dataset_name=benchmark,
            metric_type=f"multi@{k}",
            metric_name=f"multi@{k}",
            metric_value=rates[k - 1]["value"],
        )
        for k in sorted({1, len(rates)})
    ]


def public_name(source: str) -> str:
    """A Hub id as it is; of a folder its name alone."""
    return source if source.count("/") == 1 and not Path(source).exists() else Path(source).name


def _base(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    settings = about["hyper_parameters"]
    commit = (about.get("policy_base") or {}).get("commit") or settings["revision"]
    at = f" at {code(commit)}" if commit else ", revision unknown"
    local = public_name(settings["model"]) != settings["model"]
    yield "Trained from", code(public_name(settings["model"])) + (" (a folder)" if local else at)


def _data(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data = about.get("data")
    if data is None:
        yield "Data", "unknown"
        return
    revision = f" at {code(data['revision'])}" if data.get("revision") else ""
    asked = f" ({code(data['asked'])})" if data.get("asked") and data["asked"] != data["revision"] else ""
    subset = f", {code(data['subset'])}" if data.get("subset") else ""
    yield "Data", f"{code(data['path'])}{revision}{asked}{subset}"
    counts = (number(data[key], ",") for key in ("examples", "prompts", "held_out"))
    yield "Examples", "{} of {} prompts; held out {}".format(*counts)
    weighting = (data.get("manifest") or {}).get("weighting") or {}
    said = [f"{sign} = {number(weighting.get(key))}" for sign, key in zip("βγλ", _KEYS, strict=True)]
    yield "Weights", ", ".join(said) if weighting else "β, γ, λ unknown"
    yield "Weighting", f"{code(data['weighting'])}: {_SAID[data['weighting']]}"
    yield "Loss on", f"{_TURNS[data['supervise']]} ({code(data['supervise'])})"


_KEYS = ("beta", "gamma", "lam")


def _training(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    settings, data = about["hyper_parameters"], about.get("data") or {}
    yield "Steps", number(about.get("step"), ",") + f" of {number(data.get('batch_size'), ',')} examples"
    rate = f"{number(settings['learning_rate'])}, {settings['schedule']}"
    yield "Learning rate", f"{rate}, warm-up {number(settings['warmup_share'])} of the steps"
    betas = ", ".join(number(beta) for beta in settings["betas"])
    clip = settings["gradient_clip"]
    limit = "no limit" if clip is None else f"at most {number(clip)}"
    yield "AdamW", f"weight decay {number(settings['weight_decay'])}, betas {betas}; gradient norm {limit}"
    yield "Loss of a response", f"{code(settings['reduction'])} over its tokens"
    if settings["lora"]:
        lora = settings["lora"]
        yield "LoRA", ", ".join(f"{key} {code(value)}" for key, value in lora.items())
    yield "Seed", number(data.get("seed"))
    devices = f", {number(about.get('world_size'))} devices" if about.get("world_size") else ""
    yield "Strategy", code(about.get("strategy")) + devices
    versions = [code(f"{name} {version}") for name, version in (about.get("made_by") or {}).items()]
    yield "Made by", ", ".join(versions) or NOTHING


def _evaluation(found: Mapping[str, Any]) -> str:
    benchmark = found.get("benchmark") or {}
    named = f"{code(benchmark['name'])}, sha256 {code(benchmark.get('sha256'))}" if benchmark else "unknown"
    lines = [
        f"Greedy, {number(found['problems'], ',')} problems (N), one dialogue each. Problems: {named}."
    ]
    for key, words in (("missing", "missing, counted as wrong"), ("unscored", "unscored")):
        if found.get(key):
            lines.append(f"{number(found[key], ',')} of them {words}.")
    rows = []
    for k, rate in enumerate(found["multi_at"], start=1):
        values = (number(100 * rate[key], ".1f") for key in ("value", "low", "high"))
        rows.append((f"multi@{k}", "{} [{}, {}]".format(*values)))
    confidence = found["multi_at"][0]["confidence"]
    heading = f"% [{confidence:.0%} Wilson]"
    return " ".join(lines) + "\n\n" + table(("solved within k turns", heading), rows, right=[heading])


def _usage(about: Mapping[str, Any]) -> str:
    protocol = _rollout(about).get("protocol") or {}
    feedback = protocol.get("feedback")
    turns = (
        f"It was trained on dialogues of at most {number(protocol.get('max_turns'))} turns, in which a "
        f"wrong answer was followed by the user's {code(feedback)}"
        if feedback
        else "After a wrong answer, append the feedback of its training's protocol, which is unknown here"
    )
    opened = "transformers and vLLM open this folder; the chat template is in it."
    if about.get("adapter"):
        opened = "An adapter: peft puts it on its base; `AutoModelForCausalLM.from_pretrained` does so too."
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'policy = AutoModelForCausalLM.from_pretrained(".")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    ]
    return f"{turns}. {opened}\n\n{fence(chr(10).join(lines), 'python')}"


def _rollout(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the data's manifest says of the rollout."""
    manifest = (about.get("data") or {}).get("manifest") or {}
    return (rollout_of(manifest) or {}).get("rollout") or {}
