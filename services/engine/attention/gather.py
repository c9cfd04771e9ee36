"""Attention by gathering each sequence's blocks and calling torch: any device, any option, no exactness.

For what the paged kernels of a GPU cannot do (sinks, differing widths), and for GPUs without such kernels.
"""

import torch

from services.engine.attention.backend import AttentionOptions
from services.engine.attention.batch import PackedBatch

BLOCK_SIZE = 16


class GatherAttention:
    """One ``scaled_dot_product_attention`` per sequence over a copy of its keys and values."""

    def __init__(self, block_size: int = BLOCK_SIZE) -> None:
        self._block_size = block_size

    @property
    def kernel_set(self) -> str:
        """Name of the arithmetic."""
        return "gather"

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._block_size

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
        """Attend sequence by sequence."""
        output = query.new_zeros(batch.num_padded_rows, query.shape[1], values.shape[3])
        starts = batch.query_starts.tolist()
        for index, context in enumerate(batch.context_lengths.tolist()):
            rows = slice(starts[index], starts[index + 1])
            table = batch.block_tables[index, : -(-context // batch.block_size)]
            output[rows] = _attend_one(
                query[rows].transpose(0, 1), _tokens(keys, table, context), _tokens(values, table, context), options
            ).transpose(0, 1)
        return output


def store_rows(batch: PackedBatch, rows: torch.Tensor, plane: torch.Tensor) -> None:
    """Copy ``rows`` to the batch's slots of ``plane`` in plain torch."""
    blocks, offsets = batch.slots // batch.block_size, batch.slots % batch.block_size
    plane[blocks, :, offsets] = rows[: batch.num_rows].to(plane.dtype)


def visible_keys(num_queries: int, context: int, options: AttentionOptions, device: torch.device) -> torch.Tensor:
    """Return the bool mask ``[num_queries, context]`` of a sequence's last ``num_queries`` tokens."""
    key = torch.arange(context, device=device)
    query = torch.arange(context - num_queries, context, device=device)[:, None]
    visible = key <= query
    if options.window is not None:
        visible &= key > query - options.window
    if options.chunk is not None:
        visible &= key // options.chunk == query // options.chunk
    return visible


def _tokens(plane: torch.Tensor, table: torch.Tensor, context: int) -> torch.Tensor:
    """Return ``[heads, context, width]``."""
    return plane[table].transpose(0, 1).flatten(1, 2)[:, :context]


def _attend_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: AttentionOptions
) -> torch.Tensor:
    """Return ``[heads, queries, value_width]``; the arguments have heads first, too."""
    visible = visible_keys(query.shape[1], keys.shape[1], options, query.device)
    if options.softcap is None and options.sinks is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query[None], keys[None], values[None], attn_mask=visible, scale=options.scaling, enable_gqa=True
        )[0]
    group = query.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(group, dim=0), values.repeat_interleave(group, dim=0)
    scores = torch.bmm(query.float(), keys.float().transpose(1, 2)) * options.scaling
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = scores.masked_fill(~visible, -torch.inf)
    if options.sinks is not None:
        sinks = options.sinks.float()[:, None, None].expand(-1, query.shape[1], 1)
        weights = torch.cat((scores, sinks), dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return torch.bmm(weights, values.float()).to(query.dtype)
