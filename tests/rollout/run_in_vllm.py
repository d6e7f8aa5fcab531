"""Everything that is asked of vLLM, in one process: a plan as JSON in, what came out as JSON.

The plan names a policy's folder, an adapter's, and prompts; test_vllm_engine.py judges the answers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drift_rollout import (
    Completion,
    ExactVerifier,
    PromptTemplate,
    Protocol,
    RolloutConfig,
    make_problem,
    sample,
)
from drift_rollout.engine import Request, Sampling
from drift_rollout.engines.opening import EngineOptions, open_engine
from drift_rollout.engines.options import VLLMOptions


def ask(name: str, ids: list[int], seed: int = 0, **how: Any) -> Request:
    sampling = Sampling(**({"temperature": 0.0, "max_new_tokens": 12} | how))
    return Request(id=name, messages=(), token_ids=tuple(ids), sampling=sampling, seed=seed)


def answers(engine: Any, requests: list[Request]) -> dict[str, Completion]:
    """Submit, poll until all are answered, and release them."""
    engine.submit(requests)
    got: dict[str, Completion] = {}
    while len(got) < len(requests):
        batch = engine.poll()
        assert batch, "the engine went idle with requests unanswered"
        got |= {completion.id: completion for completion in batch}
    for request in requests:
        engine.release(request.id)
    return got


def shown(completions: dict[str, Completion]) -> dict[str, Any]:
    return {name: asdict(completion) for name, completion in completions.items()}


def dialogues(engine: Any, plan: dict[str, Any]) -> dict[str, Any]:
    """Whole correction dialogues; nothing that this policy says is right."""
    template = PromptTemplate(user=plan["user"], system=None)
    problems = [make_problem(template.render(text), "7") for text in plan["problems"]]
    config = RolloutConfig(
        samples=3, protocol=Protocol(max_turns=3), sampling=Sampling(max_new_tokens=plan["new_tokens"])
    )
    before = engine.cached_tokens
    found = [asdict(t) for t in sample(problems, engine, ExactVerifier(), config)]
    return {"trajectories": found, "cached": engine.cached_tokens - before}


def released(engine: Any, ids: list[int]) -> dict[str, Any]:
    """Cancel a long request, and give its id to a short one."""
    started = time.monotonic()
    engine.submit([ask("again", ids, max_new_tokens=200)])
    early = engine.poll(timeout=0.05)
    waited = time.monotonic() - started
    engine.release("again")
    idle = engine.poll()
    engine.submit([ask("again", ids, max_new_tokens=3)])
    got = engine.poll()
    engine.release("unknown")
    return {
        "early": len(early),
        "waited": waited,
        "idle": len(idle),
        "lengths": [len(completion.token_ids or ()) for completion in got],
        "late": len(engine.poll(timeout=0.5)),
        "unfinished": engine._engine.get_num_unfinished_requests(),
    }


def raised(function: Any, *arguments: Any) -> list[str]:
    try:
        function(*arguments)
    except (RuntimeError, ValueError) as error:
        return [type(error).__name__, str(error)]
    return []


def death(engine: Any, ids: list[int]) -> dict[str, Any]:
    """Kill the engine's process with a request under way."""
    engine.submit([ask("last", ids, max_new_tokens=200)])
    engine.poll(timeout=0.05)
    for process in multiprocessing.active_children():
        if process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
    started = time.monotonic()
    polled = raised(engine.poll)
    seconds = time.monotonic() - started
    submitted = raised(engine.submit, [ask("later", ids)])
    engine.release("last")
    engine.close()
    return {"polled": polled, "seconds": seconds, "submitted": submitted}


def facts(engine: Any) -> dict[str, Any]:
    names = ("policy", "seeded", "concurrency", "context_length")
    return {name: getattr(engine, name) for name in names}


def opened(plan: dict[str, Any], **how: Any) -> Any:
    """A VLLMEngine in float32 on the plan's policy, as a command line opens it."""
    small: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 16}
    small |= {"enforce_eager": True, "extra": {"block_size": 32}}
    return open_engine(EngineOptions(name="vllm", vllm=VLLMOptions(**small, **how)), plan["policy"])


def everything(plan: dict[str, Any]) -> dict[str, Any]:
    """What an engine must do, one on the policy and one with its adapter; the latter is killed."""
    found: dict[str, Any] = {}
    prompts = plan["prompts"]
    engine = opened(plan)
    found["facts"] = facts(engine)
    found["greedy"] = greedy(engine, plan)
    hot = {"temperature": 0.7, "top_p": 0.8}
    found["hot"] = shown(answers(engine, [ask(name, ids, **hot) for name, ids in prompts.items()]))
    free = {"temperature": 1.0, "max_new_tokens": 100}
    found["free"] = shown(answers(engine, [ask(f"f{n}", prompts["short"], n, **free) for n in range(40)]))
    found["refused"] = shown(
        answers(engine, [ask("long", [5] * 256), ask("none", []), ask("wide", [5] * 250)])
    )
    found["dialogues"] = dialogues(engine, plan)
    found["released"] = released(engine, prompts["short"])
    found["outside"] = raised(engine.submit, [ask("outside", [511, 512])])
    engine.close()
    found["children"] = [process.name for process in multiprocessing.active_children()]
    found["closed"] = raised(engine.submit, [ask("closed", [5])])

    engine = opened(plan, adapter=plan["adapter"])
    found["adapter"] = facts(engine)
    found["adapted"] = greedy(engine, plan)
    found["death"] = death(engine, prompts["short"])
    return found


def seeds(plan: dict[str, Any]) -> dict[str, Any]:
    """Sixteen draws of eight seeds, in two batches of different company."""
    engine = opened(plan)
    ids, how = plan["prompts"]["short"], {"temperature": 1.0, "max_new_tokens": 30}
    first = answers(engine, [ask(f"s{n}", ids, n, **how) for n in range(8)])
    again = answers(engine, [ask(f"s{n}", ids, n, **how) for n in reversed(range(8))])
    engine.close()
    return {"first": shown(first), "again": shown(again)}


def parallel(plan: dict[str, Any]) -> dict[str, Any]:
    """Greedy answers of two devices that share the layers, and of two copies of the model."""
    found = {}
    for option in ("tensor_parallel_size", "data_parallel_size"):
        engine = opened(plan, **{option: 2})
        found[option] = {"concurrency": engine.concurrency, "greedy": greedy(engine, plan)}
        engine.close()
    return found


def greedy(engine: Any, plan: dict[str, Any]) -> dict[str, Any]:
    return shown(answers(engine, [ask(name, ids) for name, ids in plan["prompts"].items()]))


def main() -> None:
    """The plan's file and the answers' file are the two words; vLLM's own lines go to stdout."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    checks = {"everything": everything, "seeds": seeds, "parallel": parallel}
    Path(sys.argv[2]).write_text(json.dumps(checks[plan["checks"]](plan)), encoding="utf-8")


if __name__ == "__main__":
    main()
