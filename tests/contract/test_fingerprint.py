"""The tokenizer's fingerprint names the tokenizer, not what it was last used for."""

from drift_weights.fingerprint import tokenizer_fingerprint
from tiny import bpe_tokenizer


def test_use_leaves_it_as_it_is() -> None:
    tokenizer = bpe_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["one", "one two three"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer) == before == tokenizer_fingerprint(bpe_tokenizer())


def test_another_template_or_vocabulary_is_another_tokenizer() -> None:
    tokenizer = bpe_tokenizer()
    others = [bpe_tokenizer(), bpe_tokenizer(), bpe_tokenizer(bos=True)]
    others[0].chat_template += " "
    others[1].add_tokens(["brand-new"])
    prints = {tokenizer_fingerprint(one) for one in [tokenizer, *others]}
    assert len(prints) == 4


def test_a_slow_tokenizer_has_one_too() -> None:
    class Slow:
        chat_template = "{{ messages }}"

        def __init__(self, words: list[str]) -> None:
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return {word: index for index, word in enumerate(self.words)}

    assert tokenizer_fingerprint(Slow(["a", "b"])) != tokenizer_fingerprint(Slow(["b", "a"]))
    assert tokenizer_fingerprint(Slow(["a"])) == tokenizer_fingerprint(Slow(["a"]))
