"""The engine's own forward pass on the device: decode steps and prompts, beside what the device could do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.gpu.device import best_s
from bench.gpu.shapes import Shape
from services.engine.kv_cache import KVCache
from services.engine.loading import LoadedModel, load_model
from services.engine.schedule import ScheduledSequence
from services.engine.selection import default_operators
from services.engine.transformers_model import TransformersModel
from services.kv.layout import DTYPE_BYTES, KVLayout


@dataclass(frozen=True)
class Limits:
    """What the device reached by itself."""

    copy_bytes_per_s: float
    matrix_flops_per_s: float


@dataclass(frozen=True)
class Load:
    """What is computed."""

    batches: tuple[int, ...] = (1, 16, 64)
    context: int = 1024
    """Tokens in the cache of each sequence that decodes."""
    prompt: int = 2048
    rounds: int = 10


class DeviceEngine:
    """One model over a cache with room for the largest load."""

    def __init__(
        self,
        shape: Shape,
        folder: Path,
        dtype: str,
        device: torch.device,
        load: Load,
        cache_folder: Path,
        *,
        exact: bool,
    ) -> None:
        self._shape = shape
        self._dtype = dtype
        self._device = device
        self._load = load
        operators = default_operators(
            device, getattr(torch, dtype), cache_folder=cache_folder, num_threads=torch.get_num_threads(), exact=exact
        )
        loaded = load_model(folder, dtype=dtype, operators=operators, device=device)
        self._block_size = loaded.block_size
        self._blocks_each = -(-(max(load.context + 1, load.prompt)) // loaded.block_size)
        self._model = _bound(loaded, self._blocks_each * max(load.batches))

    def figures(self, limits: Limits) -> Mapping[str, float]:
        """Return times in milliseconds, and what they are of the limits in per cent."""
        found = {}
        for batch in self._load.batches:
            step_s = self.decode_s(batch)
            floor_s = self.step_bytes(batch) / limits.copy_bytes_per_s
            found[f"decode_{batch}_ms"] = 1e3 * step_s
            found[f"decode_{batch}_floor_share"] = 100 * floor_s / step_s
        prompt_s = self.prefill_s()
        rate = self._shape.prefill_flops(self._load.prompt) / prompt_s
        found["prefill_ms"] = 1e3 * prompt_s
        found["prefill_matrix_share"] = 100 * rate / limits.matrix_flops_per_s
        return found

    def step_bytes(self, batch: int) -> int:
        """Return the bytes that a decode step has to read: all weights once, and the cache of each sequence."""
        elements = self._shape.num_read + batch * self._load.context * self._shape.kv_elements
        return elements * DTYPE_BYTES[self._dtype]

    def decode_s(self, batch: int) -> float:
        """Return seconds of a step in which ``batch`` sequences get a token."""
        context = self._load.context
        num_blocks = -(-(context + 1) // self._block_size)
        sequences = [
            ScheduledSequence([index + 1], context, self._table(index)[:num_blocks], True) for index in range(batch)
        ]
        return best_s(lambda: self._model.forward(sequences), self._device, self._load.rounds)

    def prefill_s(self) -> float:
        """Return seconds of one prompt, computed at once."""
        tokens = [1 + index % (self._shape.vocab - 1) for index in range(self._load.prompt)]
        num_blocks = -(-self._load.prompt // self._block_size)
        sequence = ScheduledSequence(tokens, 0, self._table(0)[:num_blocks], True)
        return best_s(lambda: self._model.forward([sequence]), self._device, self._load.rounds)

    def _table(self, index: int) -> list[int]:
        return list(range(index * self._blocks_each, (index + 1) * self._blocks_each))


def _bound(loaded: LoadedModel, num_blocks: int) -> TransformersModel:
    layout = KVLayout("bench", loaded.numerics_class, loaded.block_size, loaded.planes)
    return TransformersModel(loaded, KVCache(layout, num_blocks, loaded.device))
