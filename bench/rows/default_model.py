"""The default model in this process, without a cluster."""

import math
from collections.abc import Callable, Sequence
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
from services.engine.schedule import ScheduledSequence
from services.engine.scheduler import Scheduler
from services.engine.selection import default_operators
from services.engine.transformers_model import TransformersModel
from services.engine.weights.sources import DEFAULT_MODEL, resolve_model
from services.kv.hashes import cache_seed
from services.kv.layout import KVLayout
from services.kv.sampling import SamplingParams

CACHE_DIR = Path("~/.cache/tandem").expanduser()
_CPU = torch.device("cpu")
_NUM_BLOCKS = 128


def model_folder(model: str = DEFAULT_MODEL) -> Path:
    """Return the folder of a model that ``tandem up --model`` takes, in bfloat16."""
    return resolve_model(model, cache_dir=CACHE_DIR, dtype="bfloat16", progress=lambda text, share: None).path


def encode(text: str) -> tuple[int, ...]:
    """Return the default model's tokens of a text."""
    return tuple(Tokenizer.from_file(str(model_folder() / "tokenizer.json")).encode(text).ids)


@dataclass(frozen=True)
class Generated:
    """A greedy continuation."""

    token_ids: Sequence[int]
    seconds: float
    """From the first token to the last."""


class DefaultModel:
    """The default model on so many threads of this process."""

    def __init__(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        operators = default_operators(
            _CPU, torch.bfloat16, cache_folder=CACHE_DIR / "kernels", num_threads=num_threads, exact=False
        )
        self._loaded: LoadedModel = load_model(model_folder(), dtype="bfloat16", operators=operators)

    def generate(
        self, prompt: Sequence[int], max_tokens: int, *, num_guesses: int = 0, clock: Callable[[], float]
    ) -> Generated:
        """Continue a prompt by exactly ``max_tokens`` tokens, timed by ``clock`` (seconds)."""
        limits = SchedulerConfig(
            num_blocks=_NUM_BLOCKS,
            block_size=self._loaded.block_size,
            context_length=1024,
            num_speculative_tokens=num_guesses,
        )
        engine = Engine(self._bound(), BatchSampler(), Scheduler(limits))
        params = SamplingParams(seed=0, max_tokens=max_tokens, temperature=0.0)
        engine.scheduler.add(NewRequest("request", tuple(prompt), params, cache_seed("bench", "")))
        token_ids = [token.token.token_id for token in engine.step().tokens]
        began_s = clock()
        while engine.scheduler.has_work:
            token_ids += [token.token.token_id for token in engine.step().tokens]
        return Generated(token_ids, clock() - began_s)

    def perplexity(self, token_ids: Sequence[int]) -> float:
        """Return the perplexity of all tokens but the first, each after those before it."""
        num_blocks = -(-len(token_ids) // self._loaded.block_size)
        text = ScheduledSequence(token_ids, 0, range(num_blocks), needs_logits=True, num_guessed=len(token_ids) - 1)
        logits = self._bound().forward([text])
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(token_ids[1:]))
        return math.exp(losses.item())

    def _bound(self) -> TransformersModel:
        loaded = self._loaded
        layout = KVLayout("bench", loaded.numerics_class, loaded.block_size, loaded.planes)
        return TransformersModel(loaded, KVCache(layout, _NUM_BLOCKS, _CPU))
