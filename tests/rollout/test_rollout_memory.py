"""A rollout of the paper's size stays as small as it was at its beginning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.own_engine import ENVIRONMENT

SCRIPT = """
import json, sys
from pathlib import Path
import psutil
from drift_rollout import Completion, ExactVerifier, RolloutConfig, ScriptedEngine, make_problem
from drift_rollout.problems import problem_set
from drift_rollout.run import rollout
from drift_weights import Message
from tiny import bpe_tokenizer

problems, samples, tokens = (int(word) for word in sys.argv[2:])
words = "so we try the next case and see that it does not hold either, " * (tokens // 15)

class Forgetting(ScriptedEngine):
    # The scripted one keeps every request for its tests.
    def submit(self, requests):
        super().submit(requests)
        self.requests.clear()
    def release(self, request_id):
        super().release(request_id)
        self.released.clear()

def answer(request):
    ids = tuple((request.seed + n) % 250 for n in range(tokens))
    text = f"{words}<answer> {request.seed % 3} </answer>"
    logprobs = tuple(-0.001 * n for n in range(tokens))
    return Completion(id=request.id, text=text, token_ids=ids, logprobs=logprobs)

engine = Forgetting(answer, tokenizer=bpe_tokenizer(), concurrency=64, batch=64)
asked = [(Message(role="user", content=f"question {n}"),) for n in range(problems)]
chosen = [make_problem(messages, str(n % 3)) for n, messages in enumerate(asked)]
memory, done, total = {}, 0, problems * samples

def finished(batch):
    global done
    done += len(batch)
    for share in (0.1, 0.5, 1.0):
        if done >= share * total and share not in memory:
            memory[share] = psutil.Process().memory_info().rss

out = Path(sys.argv[1])
rollout(problem_set(chosen, source="here"), engine, ExactVerifier(), RolloutConfig(samples=samples), out,
        on_finished=finished)
memory["exported"] = psutil.Process().memory_info().rss
memory["journal"] = (out / "journal.sqlite").stat().st_size
print(json.dumps(memory))
"""


def measured(out: Path, problems: int, samples: int, tokens: int) -> dict[str, int]:
    """Bytes of memory at 10 %, at half and at the end of the sampling and of the export; of the journal."""
    words = [str(out), *map(str, (problems, samples, tokens))]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_memory_stays_flat(tmp_path: Path) -> None:
    """1,800 × 16 trajectories of 300 tokens a turn: what is sampled, 400 MB, does not stay in memory."""
    found = measured(tmp_path / "run", 1800, 16, 300)
    print({name: f"{size / 1e6:,.0f} MB" for name, size in found.items()})  # noqa: T201
    assert found["journal"] > 300e6
    assert found["1.0"] - found["0.1"] < 20e6
    assert found["exported"] - found["1.0"] < 250e6, "an export holds 512 trajectories at once"
