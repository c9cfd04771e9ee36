"""What prompt lookup gains on a text that is summarised: the same tokens with guesses and without, in turn."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.rows.default_model import DefaultModel, Generated, encode

TEXT = (
    "The old lighthouse stands north of the harbour. It was built in 1894 by a careful engineer named Ada Brandt, "
    "who measured the rocks for three winters. The light can be seen from thirty kilometres away. In 1953 the keeper, "
    "Tomas Reed, rescued nine sailors from the wreck of the Marigold. Today the lighthouse is a museum, and visitors "
    "climb two hundred and four steps to the lamp room."
)
PROMPT = (
    "<|im_start|>user\nSummarise the following text in a few sentences, using its own words:\n"
    f"{TEXT}<|im_end|>\n<|im_start|>assistant\n"
)


class Summariser:
    """The default model on one thread."""

    def __init__(self) -> None:
        self._model = DefaultModel(num_threads=1)
        self._prompt = encode(PROMPT)

    def answer(self, num_guesses: int, max_tokens: int) -> Generated:
        """Return a greedy summary, timed in CPU time of this thread."""
        return self._model.generate(self._prompt, max_tokens, num_guesses=num_guesses, clock=time.thread_time)


@dataclass(frozen=True)
class SpeculationFigures:
    """Answers with guesses beside those without."""

    speedup: float
    """How many times faster the tokens come: the median of pairs."""
    same_tokens: float
    """How many of all tokens are the same, in per cent."""


def measure(*, num_guesses: int = 8, max_tokens: int = 80, rounds: int = 5) -> SpeculationFigures:
    """Answer with guesses and without, in turn."""
    summariser = Summariser()
    pairs = [(summariser.answer(0, max_tokens), summariser.answer(num_guesses, max_tokens)) for _ in range(rounds)]
    return SpeculationFigures(
        statistics.median(plain.seconds / guessed.seconds for plain, guessed in pairs),
        statistics.mean(100 * share_of_same(plain.token_ids, guessed.token_ids) for plain, guessed in pairs),
    )


def share_of_same(one: Sequence[int], other: Sequence[int]) -> float:
    """Return which share of the tokens is the same at the same place; of the longer answer, so that 1 means equal."""
    same = sum(ours == theirs for ours, theirs in zip(one, other, strict=False))
    return same / max(len(one), len(other))
