"""CPU attention in plain torch, for hosts without a C++ compiler and as the yardstick of the other backends.

Bitwise row-invariant by construction: every product has the same shape, and a token's row lies at its
position modulo the tile, so what else is in the batch changes neither shapes nor places.
"""

import torch

from services.engine.attention.backend import AttentionOptions
from services.engine.attention.batch import PackedBatch
from services.engine.attention.gather import store_rows

BLOCK_SIZE = 16
QUERY_TILE = 16
KEY_TILE = 128


class ReferenceAttention:
    """Online softmax over fixed tiles of ``QUERY_TILE`` positions by ``KEY_TILE`` keys, in float32."""

    @property
    def kernel_set(self) -> str:
        """Name of the arithmetic."""
        return "reference"

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return BLOCK_SIZE

    def store(self, batch: PackedBatch, rows: torch.Tensor, plane: torch.Tensor) -> None:
        """Copy rows to their slots."""
        store_rows(batch, rows, plane)

    def attend(
        self,
        batch: PackedBatch,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Attend tile by tile."""
        output = query.new_zeros(batch.num_padded_rows, query.shape[1], values.shape[3])
        starts = batch.query_starts.tolist()
        for index, context in enumerate(batch.context_lengths.tolist()):
            first_row, end_row = starts[index], starts[index + 1]
            position = context - (end_row - first_row)
            while position < context:
                count = min(QUERY_TILE - position % QUERY_TILE, context - position)
                rows = slice(first_row, first_row + count)
                tile = _Tile(query[rows], position, keys.shape[1], values.shape[3], options)
                for start in range(tile.first_key // KEY_TILE * KEY_TILE, position + count, KEY_TILE):
                    table = batch.block_tables[
                        index, start // batch.block_size : -(-(start + KEY_TILE) // batch.block_size)
                    ]
                    present = min(context - start, KEY_TILE)
                    tile.add(start, _gather(keys, table, present), _gather(values, table, present))
                output[rows] = tile.result()
                first_row, position = first_row + count, position + count
        return output


class _Tile:
    """The rows of up to ``QUERY_TILE`` neighbouring tokens, all heads: ``[kv_heads, group * QUERY_TILE, width]``."""

    def __init__(
        self, query: torch.Tensor, position: int, kv_heads: int, value_width: int, options: AttentionOptions
    ) -> None:
        count, heads, width = query.shape
        self._options = options
        self._kv_heads, self._group = kv_heads, heads // kv_heads
        self._rows = slice(position % QUERY_TILE, position % QUERY_TILE + count)
        laid = torch.zeros(heads, QUERY_TILE, width)
        laid[:, self._rows] = query.transpose(0, 1).float()
        self._query = laid.view(kv_heads, self._group * QUERY_TILE, width)
        base = position - position % QUERY_TILE
        self._positions = torch.arange(base, base + QUERY_TILE).repeat(self._group)[None, :, None]
        self._max = torch.full((kv_heads, self._group * QUERY_TILE, 1), -1e30)
        self._total = torch.zeros_like(self._max)
        if options.sinks is not None:
            self._max = options.sinks.float().repeat_interleave(QUERY_TILE).view_as(self._max)
            self._total = torch.ones_like(self._max)
        self._sum = torch.zeros(kv_heads, self._group * QUERY_TILE, value_width)
        self.first_key = _first_key(position, options)

    def add(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take in the keys at ``start``: float32 ``[kv_heads, KEY_TILE, width]`` each."""
        scores = torch.bmm(self._query, keys.transpose(1, 2)) * self._options.scaling
        if self._options.softcap is not None:
            scores = torch.tanh(scores / self._options.softcap) * self._options.softcap
        visible = self._visible(torch.arange(start, start + KEY_TILE)[None, None, :])
        scores = scores.masked_fill(~visible, -torch.inf)
        new_max = torch.maximum(self._max, scores.amax(dim=-1, keepdim=True))
        factor = torch.exp(self._max - new_max)
        weights = torch.exp(scores - new_max)
        self._sum = self._sum * factor + torch.bmm(weights, values)
        self._total = self._total * factor + weights.sum(dim=-1, keepdim=True)
        self._max = new_max

    def result(self) -> torch.Tensor:
        """Return ``[tokens, heads, value_width]``; + 0.0 turns -0 into 0."""
        full = (self._sum / self._total + 0.0).view(self._kv_heads * self._group, QUERY_TILE, -1)
        return full[:, self._rows].transpose(0, 1)

    def _visible(self, keys: torch.Tensor) -> torch.Tensor:
        visible = keys <= self._positions
        if self._options.window is not None:
            visible &= keys > self._positions - self._options.window
        if self._options.chunk is not None:
            visible &= keys // self._options.chunk == self._positions // self._options.chunk
        return visible


def _first_key(position: int, options: AttentionOptions) -> int:
    first = 0 if options.window is None else max(0, position - options.window + 1)
    return first if options.chunk is None else max(first, position // options.chunk * options.chunk)


def _gather(plane: torch.Tensor, table: torch.Tensor, num_present: int) -> torch.Tensor:
    """Return ``KEY_TILE`` tokens of ``plane`` as float32 ``[heads, KEY_TILE, width]``, zero beyond ``num_present``."""
    gathered = plane[table].transpose(0, 1).float().flatten(1, 2)
    result = torch.zeros(plane.shape[1], KEY_TILE, plane.shape[3])
    result[:, :num_present] = gathered[:, :num_present]
    return result
