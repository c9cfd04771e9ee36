"""What the engine needs of a model: one forward pass over a packed batch."""

from collections.abc import Sequence
from typing import Protocol

import torch

from services.engine.schedule import ScheduledSequence


class Model(Protocol):
    """A loaded model bound to its paged KV cache."""

    def forward(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Run the packed batch, write its KV into the cache.

        Returns:
            float32 logits ``[num_sampled_rows, vocab_size]`` in the order given.
        """

    def zero_tail(self, block_id: int, num_tokens: int) -> None:
        """Zero the slots of a block from token ``num_tokens`` on, in every plane."""
