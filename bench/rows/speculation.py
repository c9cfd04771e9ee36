"""What prompt lookup gains on a text that is summarised: the same tokens with guesses and without, in turn."""

import statistics
import time

from bench.rows.default_model import DefaultModel, Generated, encode
from services.errors import InternalError

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


def measure(*, num_guesses: int = 8, max_tokens: int = 80, rounds: int = 5) -> float:
    """Return how many times faster the tokens come with guesses: the median of pairs.

    Raises:
        InternalError: they are not the same tokens.
    """
    summariser, ratios = Summariser(), []
    for _ in range(rounds):
        plain, guessed = summariser.answer(0, max_tokens), summariser.answer(num_guesses, max_tokens)
        if plain.token_ids != guessed.token_ids:
            raise InternalError("Guesses changed the tokens of a summary.")
        ratios.append(plain.seconds / guessed.seconds)
    return statistics.median(ratios)
