"""A transformers model over our paged KV cache: one packed batch per forward pass."""

from collections.abc import Sequence

import torch

from services.engine.attention.batch import PackedBatch
from services.engine.attention.interface import answering
from services.engine.attention.layers import PagedLayer, PagedPass
from services.engine.kv_cache import KVCache
from services.engine.loading import LoadedModel
from services.engine.schedule import ScheduledSequence
from services.errors import ConfigurationError, InternalError


class TransformersModel:
    """Implements ``services.engine.model.Model``."""

    def __init__(self, loaded: LoadedModel, cache: KVCache) -> None:
        """Bind a loaded model to its cache.

        Raises:
            ConfigurationError: the cache was laid out for another model or backend.
        """
        if cache.layout.planes != loaded.planes or cache.layout.block_size != loaded.block_size:
            raise ConfigurationError("the KV cache has another layout than the model")
        self.cache = cache
        self._loaded = loaded
        self._layers = self._bind()

    def forward(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Run the packed batch, write its KV into the cache.

        Returns:
            float32 logits ``[num_sampled_rows, vocab_size]`` in the order given.
        """
        batch = PackedBatch.of(
            sequences,
            self.cache.layout.block_size,
            num_blocks=self.cache.num_blocks,
            device=self.cache.device,
            row_multiple=self._loaded.row_multiple,
        )
        paged = PagedPass(self._layers, batch)
        with torch.inference_mode(), answering(paged):
            output = self._loaded.module(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.logit_rows,
            )
        if paged.num_answered != len(self._layers):
            raise InternalError(f"{paged.num_answered} of {len(self._layers)} layers attended")
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def zero_tail(self, block_id: int, num_tokens: int) -> None:
        """Zero the slots of a block from token ``num_tokens`` on, in every plane."""
        with torch.inference_mode():
            self.cache.zero_tail(block_id, num_tokens)

    def _bind(self) -> dict[int, PagedLayer]:
        planes = iter(self.cache.planes)
        return {
            plan.layer: PagedLayer(plan, tuple(next(planes) for _ in plan.planes), self._loaded.backend)
            for plan in self._loaded.layers
        }
