"""The world "Riddle": small enough to train a policy from scratch in seconds, exact enough to believe.

A catalogue of items, each with a few typical traits. A problem names some traits; its answer is the
item with the highest posterior. The reference policy imitates a player who is wrong about a trait of
every item and often repeats himself after a rejection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drift_rollout.engine import Completion, Request, ScriptedEngine
from drift_rollout.problems import Problem, make_problem
from drift_rollout.prompts import PromptTemplate
from drift_rollout.protocol import FEEDBACK

TEMPLATE = PromptTemplate(system=None, user="Riddle: {problem}")
END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Setting H of the toy world; another seed is another world."""

    seed: int = 0
    items: int = 24
    traits: int = 24
    typical: int = 6
    """Typical traits an item."""
    hints: int = 4
    """Traits a problem names."""
    mistaken: int = 1
    """Typical traits of each item that the imitated player has wrong."""
    power: float = 1.5
    """He answers from his posterior to this power, renormalised."""
    stubborn: float = 0.25
    """Probability that he repeats his last answer after a rejection."""
    longest_thought: int = 0
    """He names up to so many items in <think> first; 0 leaves thinking out (all answers equally long)."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Disjoint sets of problems, drawn alike."""

    reference: tuple[Problem, ...]
    rollout: tuple[Problem, ...]
    validation: tuple[Problem, ...]
    heldout: tuple[Problem, ...]


class World:
    """One catalogue: who has which traits, how common each item is, and what the player believes."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        rng = np.random.default_rng([config.seed, 0])
        typical = [rng.choice(config.traits, config.typical, replace=False) for _ in range(config.items)]
        self.prior = np.arange(1, config.items + 1, dtype=np.float64) ** -0.7
        self.prior /= self.prior.sum()
        self.likelihood = self._likelihood(typical)
        self.believed = self._likelihood([self._mistake(rng, traits) for traits in typical])

    def answer(self, hints: Sequence[int]) -> int:
        """The item that maximises prior × likelihood: unique, since no two items are equally common."""
        return int(np.argmax(self._posterior(self.likelihood, hints)))

    def problem(self, hints: Sequence[int]) -> Problem:
        """A set of hints as a problem with its gold answer."""
        text = " ".join(f"t{hint}" for hint in hints)
        return make_problem(TEMPLATE.render(text), f"X{self.answer(hints)}")

    def splits(self, *, reference: int, rollout: int, validation: int, heldout: int) -> Splits:
        """Draw hint sets as the world produces them, and split them by a hash of the unordered set.

        Raises:
            ValueError: a split wants more sets than its share of the world holds.
        """
        wanted = {"reference": reference, "rollout": rollout, "test": validation + heldout}
        drawn: dict[str, list[Problem]] = {name: [] for name in wanted}
        for hints in self._hint_sets():
            name = _split_of(hints)
            if len(drawn[name]) < wanted[name]:
                drawn[name].append(self.problem(hints))
        for name, count in wanted.items():
            if len(drawn[name]) < count:
                raise ValueError(f"the world has {len(drawn[name])} {name} problems, {count} wanted")
        # Sets come commonest first; by hash both halves of `test` are equally hard.
        test = sorted(drawn["test"], key=lambda p: hashlib.sha256(p.prompt_id.encode()).digest())
        return Splits(
            reference=tuple(drawn["reference"]),
            rollout=tuple(drawn["rollout"]),
            validation=tuple(test[:validation]),
            heldout=tuple(test[validation:]),
        )

    def player(self, tokenizer: PreTrainedTokenizerFast) -> ScriptedEngine:
        """The imperfect player as an engine; his transcripts are what the reference policy learns."""

        def respond(request: Request) -> Completion:
            rng = np.random.default_rng(request.seed)
            hints = [int(word[1:]) for word in request.messages[0].content.split()[1:]]
            earlier = [m.content for m in request.messages if m.role == "assistant"]
            if earlier and rng.random() < self.config.stubborn:
                text = earlier[-1]
            else:
                text = self._draw(rng, hints)
            ids = tuple(tokenizer(f"{text} {END}", add_special_tokens=False)["input_ids"])
            return Completion(id=request.id, text=text, token_ids=ids)

        return ScriptedEngine(respond, tokenizer=tokenizer, policy="player", concurrency=64, batch=64)

    def _draw(self, rng: np.random.Generator, hints: Sequence[int]) -> str:
        belief = self._posterior(self.believed, hints) ** self.config.power
        belief /= belief.sum()
        thoughts = ""
        if self.config.longest_thought:
            count = int(rng.integers(1, self.config.longest_thought + 1))
            named = rng.choice(len(belief), count, p=belief)
            thoughts = "<think> " + " ".join(f"X{item}" for item in named) + " </think> "
        return f"{thoughts}<answer> X{rng.choice(len(belief), p=belief)} </answer>"

    def _posterior(self, likelihood: NDArray[np.float64], hints: Sequence[int]) -> NDArray[np.float64]:
        product = self.prior * likelihood[:, list(hints)].prod(axis=1)
        return np.asarray(product / product.sum(), dtype=np.float64)

    def _likelihood(self, typical: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        table = np.full((self.config.items, self.config.traits), 0.15 / self.config.traits)
        for item, traits in enumerate(typical):
            table[item, traits] += 0.85 / self.config.typical
        return table

    def _mistake(self, rng: np.random.Generator, traits: NDArray[np.int64]) -> NDArray[np.int64]:
        others = np.setdiff1d(np.arange(self.config.traits), traits)
        believed = traits.copy()
        wrong = rng.choice(self.config.typical, self.config.mistaken, replace=False)
        believed[wrong] = rng.choice(others, self.config.mistaken, replace=False)
        return believed

    def _hint_sets(self) -> Iterator[tuple[int, ...]]:
        """Every hint set once, in the order in which a random draw from the world would meet it."""
        sets = list(combinations(range(self.config.traits), self.config.hints))
        share = np.array([(self.prior * self.likelihood[:, s].prod(axis=1)).sum() for s in sets])
        rng = np.random.default_rng([self.config.seed, 1])
        # Exponential clocks: sorting by them is sampling without replacement by share.
        clock = rng.exponential(size=len(sets)) / share
        for index in np.argsort(clock):
            yield tuple(int(hint) for hint in rng.permutation(sets[index]))


def make_tokenizer(config: WorldConfig) -> PreTrainedTokenizerFast:
    """Words are tokens; the turn end is the only stop token."""
    specials = ["<|pad|>", END, "<|system|>", "<|user|>", "<|assistant|>"]
    words = ["<unk>", "<answer>", "</answer>", "<think>", "</think>", "Riddle:", *FEEDBACK.split()]
    words += [f"t{n}" for n in range(config.traits)] + [f"X{n}" for n in range(config.items)]
    vocabulary = {word: index for index, word in enumerate(specials + words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token="<|pad|>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": specials[2:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of about 0.11M parameters; torch's global generator decides its weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _split_of(hints: Sequence[int]) -> str:
    text = " ".join(str(hint) for hint in sorted(hints))
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    return "reference" if share < 0.60 else "rollout" if share < 0.85 else "test"
