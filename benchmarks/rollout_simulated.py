"""An engine of 1,024 slots with a clock of its own: what schedules cost, without a GPU and without noise.

A decode step takes 10 ms + 12 µs a request in a slot; prefill runs at 40,000 tokens a second, and the steps
wait for it. A response has lognormal length (median 200, σ 0.6, at most 512) and is right with probability
0.35, both drawn from the request's seed, so that every schedule meets the same dialogues.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from drift_rollout.engine import Completion, Request

SLOTS = 1024
CAPACITY = 4
"""Dialogues whose caches are kept, as a multiple of the slots."""
STEP, PER_SLOT = 0.010, 12e-6
PREFILL = 40_000.0
MEDIAN, SIGMA, MOST = 200, 0.6, 512
RIGHT = 0.35
PROMPT, FEEDBACK = 150, 20
"""Tokens of a first prompt, and of what stands between a response and the next."""
RIGHT_ANSWER, WRONG_ANSWER = "<answer> right </answer>", "<answer> wrong </answer>"


def drawn(seed: int) -> tuple[int, bool]:
    """Length and correctness of a response."""
    random = np.random.default_rng(seed)
    length = min(MOST, max(1, round(MEDIAN * math.exp(SIGMA * random.standard_normal()))))
    return length, bool(random.random() < RIGHT)


class SimulatedEngine:
    """Requests in, completions out, and the time that passed meanwhile.

    Args:
        slots: requests that are decoded at once.
    """

    policy = "simulated"
    tokenizer = None
    context_length = 1 << 20
    seeded = True

    def __init__(self, slots: int = SLOTS) -> None:
        self.concurrency = slots
        self.capacity = CAPACITY * slots
        self.seconds = 0.0
        self.decoded = 0
        """Tokens."""
        self.prefilled = 0
        """Tokens that were computed before a response could begin."""
        self.reusable = 0
        """Tokens of histories that were in the cache of the request before, or of the same prompt."""
        self.reused = 0
        self._slots = slots
        self._waiting: deque[Request] = deque()
        self._ends: list[tuple[int, int, Request, bool]] = []
        self._step = 0
        self._count = 0
        self._history: dict[str, int] = {}
        """Request → tokens of its prompt and response, for as long as it is not released."""
        self._dialogue: dict[str, int] = {}
        """Dialogue → tokens of its history, whoever remembers it."""
        self._prompts: set[str] = set()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue; continuations first, for their caches take room."""
        for request in requests:
            if request.continues:
                self._waiting.appendleft(request)
            else:
                self._waiting.append(request)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Run to the next end of a response, or for a time that nobody has to wait for."""
        self._admit()
        if not self._ends:
            return []
        steps = self._ends[0][0] - self._step
        self.seconds += steps * (STEP + PER_SLOT * len(self._ends))
        self.decoded += steps * len(self._ends)
        self._step += steps
        finished = []
        while self._ends and self._ends[0][0] == self._step:
            _, _, request, right = heapq.heappop(self._ends)
            text = RIGHT_ANSWER if right else WRONG_ANSWER
            finished.append(Completion(id=request.id, text=text))
        return finished

    def release(self, request_id: str) -> None:
        """Forget a cache."""
        self._history.pop(request_id, None)

    def close(self) -> None:
        """Nothing is held."""

    def _admit(self) -> None:
        """Fill the slots; what is prefilled keeps all of them waiting."""
        todo = 0
        while self._waiting and len(self._ends) < self._slots:
            request = self._waiting.popleft()
            todo += self._prefill(request)
            length, right = drawn(request.seed)
            self._count += 1
            heapq.heappush(self._ends, (self._step + length, self._count, request, right))
            self._history[request.id] += length
            self._dialogue[request.id.rpartition("/")[0]] = self._history[request.id]
        self.prefilled += todo
        self.seconds += todo / PREFILL

    def _prefill(self, request: Request) -> int:
        """Tokens that have to be computed, and what could have been kept."""
        dialogue, _, turn = request.id.rpartition("/")
        prompt = request.id.partition("/")[0]
        if turn == "1":
            kept = PROMPT - 1 if prompt in self._prompts else 0
            self._prompts.add(prompt)
            self._history[request.id] = PROMPT
            self.reusable += kept
            self.reused += kept
            return PROMPT - kept
        before = self._dialogue[dialogue]
        self._history[request.id] = before + FEEDBACK
        kept = self._history.pop(request.continues, 0) if request.continues else 0
        # The last token of a response is sampled, and not computed with.
        kept = max(0, kept - 1)
        self.reusable += before - 1
        self.reused += kept
        return before + FEEDBACK - kept
