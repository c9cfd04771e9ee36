"""A small loop in place of the scheduler: prefill in chunks, decode together, random blocks full of NaN."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from services.engine.kernels import build
from services.engine.kv_cache import KVCache
from services.engine.loading import LoadedModel, load_model
from services.engine.operators import Operators
from services.engine.schedule import ScheduledSequence
from services.engine.transformers_model import TransformersModel
from services.kv.layout import KVLayout

NUM_BLOCKS = 64
CPU = torch.device("cpu")


def native(cache_folder: Path, *, num_threads: int = 1) -> Operators:
    """Return our kernels for this host."""
    compiler = build.find_compiler()
    assert compiler is not None, "the tests need a C++ compiler"
    return Operators.native(build.build(cache_folder, compiler), num_threads=num_threads)


def bind(loaded: LoadedModel, *, num_blocks: int = NUM_BLOCKS) -> TransformersModel:
    """Return the model over a fresh cache in which every element is NaN."""
    layout = KVLayout("random", loaded.numerics_class, loaded.block_size, loaded.planes)
    cache = KVCache(layout, num_blocks, CPU)
    for plane in cache.planes:
        plane.fill_(torch.nan)
    return TransformersModel(loaded, cache)


def load(folder: Path, cache_folder: Path, dtype: str = "float32") -> LoadedModel:
    """Load with our kernels."""
    return load_model(folder, dtype=dtype, operators=native(cache_folder))


@dataclass
class Running:
    """A prompt on its way."""

    tokens: list[int]
    blocks: list[int]
    num_wanted: int
    num_computed: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.logits) >= self.num_wanted

    def next_piece(self, chunk: int) -> ScheduledSequence:
        end = min(len(self.tokens), self.num_computed + chunk)
        return ScheduledSequence(
            self.tokens[self.num_computed : end], self.num_computed, self.blocks, end == len(self.tokens)
        )


class Driver:
    """Runs several prompts through one model."""

    def __init__(
        self, model: TransformersModel, *, num_blocks: int = NUM_BLOCKS, block_size: int = 16, seed: int = 0
    ) -> None:
        self._model = model
        self._block_size = block_size
        self._free = list(range(num_blocks))
        random.Random(seed).shuffle(self._free)

    def sequence(self, prompt: Sequence[int], num_wanted: int) -> Running:
        """Return a prompt with blocks for everything it will hold."""
        count = -(-(len(prompt) + num_wanted) // self._block_size)
        return Running(list(prompt), [self._free.pop() for _ in range(count)], num_wanted)

    def step(self, sequences: Sequence[Running], chunk: int) -> None:
        """Compute one piece of each, all in one batch, and append the greedy token."""
        pieces = [sequence.next_piece(chunk) for sequence in sequences]
        rows = iter(self._model.forward(pieces))
        for sequence, piece in zip(sequences, pieces, strict=True):
            sequence.num_computed += len(piece.new_token_ids)
            if piece.needs_logits:
                logits = next(rows)
                sequence.logits.append(logits)
                sequence.tokens.append(int(logits.argmax()))

    def greedy(self, prompts: Sequence[Sequence[int]], num_tokens: int, *, chunk: int) -> list[list[int]]:
        """Serve all prompts, the next one joining while the others run; return the chosen tokens."""
        sequences = [self.sequence(prompt, num_tokens) for prompt in prompts]
        active = 1
        while not all(sequence.is_done for sequence in sequences):
            self.step([sequence for sequence in sequences[:active] if not sequence.is_done], chunk)
            active = min(len(sequences), active + 1)
        return [sequence.tokens[-num_tokens:] for sequence in sequences]
