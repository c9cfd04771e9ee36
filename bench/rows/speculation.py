"""What prompt lookup gains on a text that is summarised: the same tokens with guesses and without, in turn."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from services.engine.engine import Engine
from services.engine.kv_cache import KVCache
from services.engine.limits import SchedulerConfig
from services.engine.loading import LoadedModel, load_model
from services.engine.request import NewRequest
from services.engine.sampler import BatchSampler
from services.engine.scheduler import Scheduler
from services.engine.selection import default_operators
from services.engine.transformers_model import TransformersModel
from services.engine.weights.sources import resolve_model
from services.errors import InternalError
from services.kv.hashes import cache_seed
from services.kv.layout import KVLayout
from services.kv.sampling import SamplingParams

CACHE_DIR = Path("~/.cache/tandem").expanduser()
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
_CPU = torch.device("cpu")
_NUM_BLOCKS = 128


@dataclass(frozen=True)
class Answer:
    """One summary."""

    token_ids: Sequence[int]
    seconds: float
    """CPU time of this thread, from the first token to the last."""


class Summariser:
    """The default model on one thread, without a cluster."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        folder = resolve_model("smollm2", cache_dir=CACHE_DIR, dtype="bfloat16", progress=lambda text, share: None).path
        operators = default_operators(
            _CPU, torch.bfloat16, cache_folder=CACHE_DIR / "kernels", num_threads=1, exact=False
        )
        self._loaded: LoadedModel = load_model(folder, dtype="bfloat16", operators=operators)
        self._prompt = tuple(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(PROMPT).ids)

    def answer(self, num_guesses: int, max_tokens: int) -> Answer:
        """Return a greedy summary."""
        loaded = self._loaded
        layout = KVLayout("bench", loaded.numerics_class, loaded.block_size, loaded.planes)
        model = TransformersModel(loaded, KVCache(layout, _NUM_BLOCKS, _CPU))
        limits = SchedulerConfig(
            num_blocks=_NUM_BLOCKS,
            block_size=loaded.block_size,
            context_length=1024,
            num_speculative_tokens=num_guesses,
        )
        engine = Engine(model, BatchSampler(), Scheduler(limits))
        params = SamplingParams(seed=0, max_tokens=max_tokens, temperature=0.0)
        engine.scheduler.add(NewRequest("summary", self._prompt, params, cache_seed("bench", "")))
        token_ids = [token.token.token_id for token in engine.step().tokens]
        began_s = time.thread_time()
        while engine.scheduler.has_work:
            token_ids += [token.token.token_id for token in engine.step().tokens]
        return Answer(token_ids, time.thread_time() - began_s)


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
