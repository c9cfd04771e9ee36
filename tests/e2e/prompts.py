"""Prompts for the tests: English-like text as a tokenizer splits it, and random ids."""

import random
from collections.abc import Sequence

from tokenizers import Tokenizer

_SUBJECTS = (
    "The old lighthouse", "A careful engineer", "My neighbour's dog", "The committee", "Every third train",
    "The second violin", "A quiet reader", "The river", "Our youngest cousin", "The night watch",
)  # fmt: skip
_VERBS = (
    "remembers", "has never seen", "slowly crosses", "writes about", "would rather keep", "measured",
    "is looking for", "finally repaired", "cannot explain", "sells",
)  # fmt: skip
_OBJECTS = (
    "the bridge near the harbour", "seventeen small clocks", "a letter from 1894", "the weather of last spring",
    "what the others call progress", "a map without names", "the shortest way home", "two kinds of silence",
    "an umbrella made of glass", "the rules of the game",
)  # fmt: skip
_ENDS = (".", ", but nobody asks why.", "; the rest is arithmetic.", " (see page 42).", "!", ", says the teacher.")


class Prompts:
    """Makes prompts of exact lengths; the same seed gives the same prompt."""

    def __init__(self, tokenizer_json: str, vocab_size: int) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._vocab_size = vocab_size

    def text(self, num_tokens: int, seed: int) -> list[int]:
        """Return the first ``num_tokens`` tokens of some English-like text."""
        generator = random.Random(f"text {seed}")
        ids: list[int] = []
        while len(ids) < num_tokens:
            ids += self._tokenizer.encode(" ".join(self._sentence(generator) for _ in range(20))).ids
        return ids[:num_tokens]

    def ids(self, num_tokens: int, seed: int) -> list[int]:
        """Return random token ids."""
        generator = random.Random(f"ids {seed}")
        return [generator.randrange(self._vocab_size) for _ in range(num_tokens)]

    @staticmethod
    def _sentence(generator: random.Random) -> str:
        parts = (_SUBJECTS, _VERBS, _OBJECTS)
        return " ".join(generator.choice(part) for part in parts) + generator.choice(_ENDS)


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Return the first index at which two sequences differ, or None."""
    if left == right:
        return None
    pairs = zip(left, right, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
