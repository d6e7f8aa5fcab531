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
import traceback
from dataclasses import asdict
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

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
from embedded import plain_logprobs
from rollout.engine_contract import CONTRACT, Check, Subject

NEAR = 1e-3
"""Between log-probabilities of float32 kernels, in nats."""
FREE = 160
"""Draws of up to 100 tokens: of 40 without seeds, 1 run in 25 saw no <|endoftext|>, the end of 8 in 100."""
CHECK_S = 120
"""Most seconds that a check of the contract may take."""


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


def contract(engine: Any, folder: str) -> dict[str, str]:
    """What each check of the contract found wrong; nothing if it holds. The last one closes the engine."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    subject = Subject(
        make=lambda: engine,
        keep=True,
        logprobs=lambda ids, sampled: plain_logprobs(model, ids, sampled),
        tolerance=NEAR,
        patience=30,
    )
    return {check.__name__.removeprefix("check_"): wrong(check, subject) for check in CONTRACT}


def wrong(check: Check, subject: Subject) -> str:
    """The traceback of a check that failed or did not end."""
    errors: list[BaseException] = []
    # In a daemon thread, so that one that hangs is given up.
    running = ThreadPool(1).apply_async(check, (subject,), error_callback=errors.append)
    running.wait(CHECK_S)
    if not running.ready():
        return f"it did not end within {CHECK_S} s"
    return "".join(traceback.format_exception(errors[0])) if errors else ""


def facts(engine: Any) -> dict[str, Any]:
    names = ("policy", "seeded", "concurrency", "capacity", "context_length")
    return {name: getattr(engine, name) for name in names}


def opened(plan: dict[str, Any], model: str = "policy", **how: Any) -> Any:
    """A VLLMEngine in float32 on one of the plan's models, as a command line opens it."""
    small: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 16}
    small |= {"enforce_eager": True, "extra": {"block_size": 32}}
    return open_engine(EngineOptions(name="vllm", vllm=VLLMOptions(**small, **how)), plan[model])


def everything(plan: dict[str, Any]) -> dict[str, Any]:
    """What engines must do: one on the policy, one with its adapter, one for the contract."""
    found: dict[str, Any] = {}
    prompts = plan["prompts"]
    engine = opened(plan)
    found["facts"] = facts(engine)
    found["greedy"] = greedy(engine, plan)
    hot = {"temperature": 0.7, "top_p": 0.8}
    found["hot"] = shown(answers(engine, [ask(name, ids, **hot) for name, ids in prompts.items()]))
    free = {"temperature": 1.0, "max_new_tokens": 100}
    found["free"] = shown(answers(engine, [ask(f"f{n}", prompts["short"], n, **free) for n in range(FREE)]))
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

    found["contract"] = contract(opened(plan, "stopping"), plan["stopping"])
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
