"""The toy world is what it says: exact answers, disjoint splits, an imperfect player."""

from itertools import combinations

import numpy as np
import pytest

from drift_rollout import ExactVerifier, RolloutConfig, sample
from toy_world import Splits, World, WorldConfig, make_model, make_tokenizer

SIZES = {"reference": 300, "rollout": 120, "validation": 40, "heldout": 100}


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig(seed=3))


@pytest.fixture(scope="module")
def splits(world: World) -> Splits:
    return world.splits(**SIZES)


def hints_of(problem) -> list[int]:
    return [int(word[1:]) for word in problem.messages[0].content.split()[1:]]


def test_the_answer_is_the_one_best_item(world: World, splits: Splits) -> None:
    for problem in splits.heldout:
        scores = []
        for item in range(24):
            score = world.prior[item]
            for hint in hints_of(problem):
                score *= world.likelihood[item][hint]
            scores.append(score)
        best = max(scores)
        assert scores.count(best) == 1
        assert problem.target == f"X{scores.index(best)}"


def test_each_item_has_six_typical_traits_and_one_is_mistaken(world: World) -> None:
    typical = world.likelihood > 0.1
    believed = world.believed > 0.1
    assert (typical.sum(axis=1) == 6).all()
    assert ((typical & ~believed).sum(axis=1) == 1).all()
    assert np.allclose(world.likelihood.sum(axis=1), 1)


def test_splits_share_no_set_of_hints(splits: Splits) -> None:
    parts = (splits.reference, splits.rollout, splits.validation, splits.heldout)
    sets = [{frozenset(hints_of(problem)) for problem in part} for part in parts]
    assert [len(found) for found in sets] == list(SIZES.values())
    for one, other in combinations(sets, 2):
        assert not one & other


def test_a_world_is_its_seed(world: World, splits: Splits) -> None:
    assert World(WorldConfig(seed=3)).splits(**SIZES) == splits
    assert World(WorldConfig(seed=4)).splits(**SIZES) != splits


def test_a_world_is_only_so_large(world: World) -> None:
    with pytest.raises(ValueError, match="rollout problems, 9000 wanted"):
        world.splits(**(SIZES | {"rollout": 9000}))


def test_the_player_is_imperfect_and_stubborn(world: World, splits: Splits) -> None:
    tokenizer = make_tokenizer(world.config)
    made = list(
        sample(splits.reference, world.player(tokenizer), ExactVerifier(), RolloutConfig(samples=2))
    )
    first_right = np.mean([t.turns[0].verdict == "correct" for t in made])
    assert 0.2 < first_right < 0.8
    assert np.mean([t.solved for t in made]) > first_right
    second = [t for t in made if t.length > 1]
    repeats = np.mean([t.turns[1].answer == t.turns[0].answer for t in second])
    assert repeats > world.config.stubborn
    assert all(tokenizer.unk_token_id not in t.token_ids for t in made)


def test_with_thoughts_answers_differ_in_length(splits: Splits) -> None:
    thinking = World(WorldConfig(seed=3, longest_thought=3))
    tokenizer = make_tokenizer(thinking.config)
    made = list(
        sample(splits.reference, thinking.player(tokenizer), ExactVerifier(), RolloutConfig(samples=1))
    )
    lengths = {end - start for t in made for start, end in t.response_spans}
    assert len(lengths) == 3
    assert all(turn.verdict != "malformed" for t in made for turn in t.turns)


def test_the_model_is_small(world: World) -> None:
    tokenizer = make_tokenizer(world.config)
    model = make_model(tokenizer)
    assert 100_000 < sum(p.numel() for p in model.parameters()) < 120_000
    assert model.config.tie_word_embeddings
