"""What a layer asks of an attention implementation."""

from dataclasses import dataclass
from typing import Protocol

import torch

from services.engine.attention.batch import PackedBatch


@dataclass(frozen=True, eq=False)
class AttentionOptions:
    """How one layer attends, in every forward pass. Query ``q`` sees key ``k`` where ``k <= q`` and ..."""

    scaling: float
    window: int | None = None
    """... ``k > q - window``."""
    chunk: int | None = None
    """... ``k // chunk == q // chunk``."""
    softcap: float | None = None
    """Scores become ``softcap * tanh(score / softcap)``."""
    sinks: torch.Tensor | None = None
    """float32 ``[num_heads]``: one more score per head in the softmax, whose value is zero."""


class AttentionBackend(Protocol):
    """Writes and reads the paged cache. Results of a row depend on that row's sequence alone, bitwise, on CPU."""

    @property
    def kernel_set(self) -> str:
        """Name of the arithmetic: part of the numerics class."""

    @property
    def block_size(self) -> int:
        """Tokens per block of the cache."""

    def store(self, batch: PackedBatch, rows: torch.Tensor, plane: torch.Tensor) -> None:
        """Copy ``rows`` ``[>= batch.num_rows, heads, width]`` to the batch's slots of ``plane``.

        ``plane`` is a view ``[num_blocks, heads, block_size, width]``.
        """

    def attend(
        self,
        batch: PackedBatch,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Attend with ``query`` ``[batch.num_padded_rows, num_heads, key_width]`` to the stored planes.

        ``keys`` and ``values`` are views ``[num_blocks, kv_heads, block_size, width]``; slots that no token
        was stored to may hold anything, NaN included.

        Returns:
            ``[batch.num_padded_rows, num_heads, value_width]``, contiguous, in the query's dtype.
        """
