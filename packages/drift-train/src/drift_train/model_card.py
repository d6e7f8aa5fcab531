"""The model card of an exported policy: what it is, what made it, how well it did, how to ask it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from drift_weights.card.markdown import code, escaped, fence, number, table, visible
from drift_weights.folder import is_folder
from drift_weights.manifest import read_manifest
from drift_weights.names import check_repo_id
from drift_weights.repository import rollout_of

CARD = "README.md"
SCORES = "scores.json"
_PAPER = "[arXiv 2605.31455](https://arxiv.org/abs/2605.31455)"
_TAGS = ["drift", "self-correction", "multi-turn", "importance-weighting"]
_UNKNOWN = "unknown"
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
        "supervised fine-tuning on correction dialogues that the policy before training had with a "
        "verifier.",
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
    return {**policies[0], **_asked(file.parent / "trajectories")}


def _is_score(found: Any) -> bool:
    if not isinstance(found, dict) or not {"policy", "problems", "multi_at"} <= found.keys():
        return False
    rates = found["multi_at"]
    return isinstance(rates, list) and bool(rates) and all(_is_rate(rate) for rate in rates)


def _is_rate(found: Any) -> bool:
    names = ("value", "low", "high", "confidence")
    return isinstance(found, dict) and all(isinstance(found.get(name), int | float) for name in names)


def _asked(folder: Path) -> dict[str, Any]:
    """Name and sha256 of the problems that were asked, and the temperature of the answers."""
    if not is_folder(folder):
        return {}
    manifest = read_manifest(folder)
    problems = (manifest.get("origin") or {}).get("problems")
    sampling = (manifest.get("rollout") or {}).get("sampling") or {}
    return {
        "benchmark": problems if isinstance(problems, dict) else None,
        "temperature": sampling.get("temperature"),
    }


def _front(
    about: Mapping[str, Any], name: str, evaluation: Mapping[str, Any] | None, license: str | None
) -> ModelCardData:
    settings, data = about["hyper_parameters"], about.get("data") or {}
    # A folder's name means nothing to the Hub.
    base = settings["model"] if is_hub_id(settings["model"]) else None
    adapter = bool(about.get("adapter"))
    return ModelCardData(
        model_name=name,
        license=license,
        base_model=base,
        base_model_relation=None if base is None else "adapter" if adapter else "finetune",
        datasets=[data["path"]] if data.get("revision") else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=_TAGS,
        eval_results=None if evaluation is None else _results(evaluation),
    )


def _results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """The Hub's form of it."""
    benchmark = (evaluation.get("benchmark") or {}).get("name") or _UNKNOWN
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


def is_hub_id(source: str) -> bool:
    """Whether a policy's source is a name on the Hub, org/name or an old one like gpt2, and no folder."""
    if not source or Path(source).exists():
        return False
    try:
        check_repo_id(source if "/" in source else f"org/{source}")
    except ValueError:
        return False
    return True


def _base(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    settings = about["hyper_parameters"]
    source = settings["model"]
    if not source:
        yield "Trained from", f"{_UNKNOWN}: a model built in memory"
    elif is_hub_id(source):
        commit = (about.get("policy_base") or {}).get("commit") or settings["revision"]
        yield "Trained from", code(source) + (f" at {code(commit)}" if commit else f", revision {_UNKNOWN}")
    else:
        # Where it lies is nobody's business.
        yield "Trained from", f"{code(os.path.basename(os.path.abspath(source)))} (a folder)"


def _data(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data = about.get("data")
    if data is None:
        yield "Data", _UNKNOWN
        return
    revision = f" at {code(data['revision'])}" if data.get("revision") else ""
    asked = f" ({code(data['asked'])})" if data.get("asked") and data["asked"] != data["revision"] else ""
    subset = f", {code(data['subset'])}" if data.get("subset") else ""
    yield "Data", f"{code(data['path'])}{revision}{asked}{subset}"
    counts = (number(data[key], ",") for key in ("examples", "prompts", "held_out"))
    yield "Examples", "{} of {} prompts; held out {}".format(*counts)
    weighting = (data.get("manifest") or {}).get("weighting") or {}
    said = [f"{sign} = {number(weighting.get(key))}" for sign, key in zip("βγλ", _KEYS, strict=True)]
    yield "Weights", ", ".join(said) if weighting else f"β, γ, λ {_UNKNOWN}"
    yield "Weighting", f"{code(data['weighting'])}: {_SAID[data['weighting']]}"
    yield "Loss on", f"{_TURNS[data['supervise']]} ({code(data['supervise'])})"


_KEYS = ("beta", "gamma", "lam")


def _training(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    settings, data = about["hyper_parameters"], about.get("data") or {}
    size = data.get("batch_size")
    of = f" of {number(size, ',')} examples" if size else ""
    yield "Steps", _known(about.get("step"), ",") + of
    rate = f"{number(settings['learning_rate'])}, {settings['schedule']}"
    yield "Learning rate", f"{rate}, warm-up {number(settings['warmup_share'])} of the steps"
    betas = ", ".join(number(beta) for beta in settings["betas"])
    clip = settings["gradient_clip"]
    limit = "no limit" if clip is None else f"at most {number(clip)}"
    yield "AdamW", f"weight decay {number(settings['weight_decay'])}, betas {betas}; gradient norm {limit}"
    yield "Loss of a response", f"{code(settings['reduction'])} over its tokens"
    if settings["lora"]:
        lora = settings["lora"]
        targets = ", ".join(map(code, lora["targets"] or ())) or "all linear layers but the head"
        values = [f"{key} {number(lora[key])}" for key in ("rank", "alpha", "dropout")]
        yield "LoRA", ", ".join([*values, f"on {targets}"])
    yield "Seed", _known(data.get("seed"))
    devices = about.get("world_size")
    on = "" if devices is None else f" on {number(devices)} device{'' if devices == 1 else 's'}"
    yield "Strategy", (code(about["strategy"]) if about.get("strategy") else _UNKNOWN) + on
    versions = [code(f"{name} {version}") for name, version in (about.get("made_by") or {}).items()]
    yield "Made by", ", ".join(versions) or _UNKNOWN


def _known(value: object, form: str = "g") -> str:
    return _UNKNOWN if value is None else number(value, form)


def _evaluation(found: Mapping[str, Any]) -> str:
    benchmark = found.get("benchmark") or {}
    named = _UNKNOWN
    if benchmark:
        named = f"{code(benchmark.get('name'))}, sha256 {code(benchmark.get('sha256'))}"
    lines = [
        f"{_answered(found.get('temperature'))}, {number(found['problems'], ',')} problems (N), one "
        f"dialogue each. Problems: {named}."
    ]
    if found.get("missing"):
        lines.append(f"{number(found['missing'], ',')} of them are missing, counted as wrong.")
    if found.get("unscored"):
        # What is left out is not among the N.
        how = "more could not be scored, left out"
        if found.get("unscored_as") != "omit":
            how = "of them could not be scored, counted as wrong"
        lines.append(f"{number(found['unscored'], ',')} {how}.")
    rows = []
    for k, rate in enumerate(found["multi_at"], start=1):
        values = (number(100 * rate[key], ".1f") for key in ("value", "low", "high"))
        rows.append((f"multi@{k}", "{} [{}, {}]".format(*values)))
    confidence = found["multi_at"][0]["confidence"]
    heading = f"% [{confidence:.0%} Wilson]"
    return " ".join(lines) + "\n\n" + table(("solved within k turns", heading), rows, right=[heading])


def _answered(temperature: object) -> str:
    if temperature is None:
        return f"Temperature {_UNKNOWN}"
    return "Greedy" if temperature == 0 else f"Temperature {number(temperature)}"


def _usage(about: Mapping[str, Any]) -> str:
    protocol = _rollout(about).get("protocol") or {}
    feedback = protocol.get("feedback")
    turns = (
        f"It was trained on dialogues of at most {_known(protocol.get('max_turns'))} turns, in which a "
        f"wrong answer was followed by the user's {code(feedback)}"
        if feedback
        else "After a wrong answer, append the feedback of its training's protocol, which is unknown here"
    )
    opened = "transformers and vLLM open this folder; the chat template is in it."
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'policy = AutoModelForCausalLM.from_pretrained(".")',
    ]
    if about.get("adapter"):
        # transformers alone would overlook the revision of the base.
        opened = "An adapter: peft puts it on its base."
        lines = [
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            'policy = AutoPeftModelForCausalLM.from_pretrained(".")',
        ]
    lines.append('tokenizer = AutoTokenizer.from_pretrained(".")')
    blocks = [f"{turns}. {opened}", fence("\n".join(lines), "python"), *_prompt(_rollout(about))]
    return "\n\n".join(blocks)


def _prompt(rollout: Mapping[str, Any]) -> Iterator[str]:
    """The template that the problems of its training were asked by, as far as the data say."""
    prompt = rollout.get("prompt")
    if not isinstance(prompt, Mapping):
        return
    for key, what in (("system", "The system message of its training"), ("user", "Problems were asked as")):
        text = prompt.get(key)
        if isinstance(text, str) and text.strip():
            yield f"{what}:"
            yield fence("\n".join(visible(line) for line in text.split("\n")))


def _rollout(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the data's manifest says of the rollout."""
    manifest = (about.get("data") or {}).get("manifest") or {}
    return (rollout_of(manifest) or {}).get("rollout") or {}
