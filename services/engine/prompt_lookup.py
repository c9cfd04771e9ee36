"""Guesses the next tokens of a sequence from its own earlier text: prompt lookup.

A. Saxena: Prompt Lookup Decoding (2023). Summaries, corrections and code, which repeat what they were given, gain;
other text loses the rows of the guesses, which are few after they were wrong.
"""

from collections.abc import Sequence

_NGRAM_LENGTHS = (3, 2)
"""Longest first: what followed more of the same is the better guess."""
_FIRST_GUESS = 4


class PromptLookup:
    """Follows one sequence; finds where its last tokens stood before."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        """Where each n-gram that is not the last one ended most recently."""
        self._num_indexed = 0
        self._num_tokens = _FIRST_GUESS

    def guess(self, token_ids: Sequence[int], max_tokens: int) -> Sequence[int]:
        """Return at most ``max_tokens`` tokens that may follow ``token_ids``, which only grow from call to call."""
        self._index(token_ids)
        for length in _NGRAM_LENGTHS:
            end = self._ends.get(tuple(token_ids[-length:]))
            if end is not None:
                return token_ids[end : end + min(self._num_tokens, max_tokens)]
        return ()

    def judged(self, num_guessed: int, num_right: int) -> None:
        """Learn from a step: guess more after what was all right, and little more than what was right otherwise."""
        self._num_tokens = 2 * num_guessed if num_right == num_guessed else num_right + 1

    def _index(self, token_ids: Sequence[int]) -> None:
        for end in range(max(self._num_indexed, min(_NGRAM_LENGTHS)), len(token_ids)):
            for length in _NGRAM_LENGTHS:
                if end >= length:
                    self._ends[tuple(token_ids[end - length : end])] = end
        self._num_indexed = len(token_ids)
