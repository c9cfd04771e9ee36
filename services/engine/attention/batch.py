"""The packed batch of one forward pass: rows of several sequences behind each other, as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from services.engine.schedule import ScheduledSequence
from services.errors import InternalError


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Rows ``0 .. num_rows - 1`` are tokens, sequence after sequence; rows up to ``num_padded_rows`` are padding.

    Padding rows write to no block and attend to nothing; their outputs are zero.
    """

    num_rows: int
    num_padded_rows: int
    block_size: int
    token_ids: torch.Tensor
    """int64 ``[num_padded_rows]``."""
    positions: torch.Tensor
    """int64 ``[num_padded_rows]``: each token's index in its sequence."""
    slots: torch.Tensor
    """int64 ``[num_rows]``: block id * block size + offset in the block."""
    query_starts: torch.Tensor
    """int32 ``[num_sequences + 1]``: first row of each sequence, then ``num_rows``."""
    context_lengths: torch.Tensor
    """int32 ``[num_sequences]``: tokens of each sequence after this pass."""
    block_tables: torch.Tensor
    """int32 ``[num_sequences, max_blocks]``, padded with block 0."""
    logit_rows: torch.Tensor
    """int64: the rows to sample from."""
    max_query_length: int
    max_context_length: int

    @classmethod
    def of(
        cls,
        sequences: Sequence[ScheduledSequence],
        block_size: int,
        *,
        num_blocks: int,
        device: torch.device,
        row_multiple: int = 1,
    ) -> "PackedBatch":
        """Pack ``sequences``, in order, padded to a multiple of ``row_multiple`` rows.

        Raises:
            InternalError: an empty sequence, or a block table that is too short or names a block outside of the pool.
        """
        lengths = np.array([len(sequence.new_token_ids) for sequence in sequences], dtype=np.int32)
        starts = np.array([sequence.start for sequence in sequences], dtype=np.int32)
        contexts = starts + lengths
        tables = _block_tables(sequences, contexts, block_size, num_blocks)
        ends = np.cumsum(lengths, dtype=np.int32)
        num_rows = int(ends[-1])
        num_padded_rows = padded(num_rows, row_multiple)
        token_ids = np.zeros(num_padded_rows, dtype=np.int64)
        token_ids[:num_rows] = [token for sequence in sequences for token in sequence.new_token_ids]
        positions = np.zeros(num_padded_rows, dtype=np.int64)
        positions[:num_rows] = np.arange(num_rows) + np.repeat(contexts - ends, lengths)
        at = positions[:num_rows]
        blocks = tables[np.repeat(np.arange(len(sequences)), lengths), at // block_size]
        wanted = [
            row for end, sequence in zip(ends, sequences, strict=True) for row in range(end - sequence.num_sampled, end)
        ]
        return cls(
            num_rows=num_rows,
            num_padded_rows=num_padded_rows,
            block_size=block_size,
            token_ids=torch.from_numpy(token_ids).to(device),
            positions=torch.from_numpy(positions).to(device),
            slots=torch.from_numpy(blocks.astype(np.int64) * block_size + at % block_size).to(device),
            query_starts=torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32)).to(device),
            context_lengths=torch.from_numpy(contexts).to(device),
            block_tables=torch.from_numpy(tables).to(device),
            logit_rows=torch.tensor(wanted, dtype=torch.int64, device=device),
            max_query_length=int(lengths.max()),
            max_context_length=int(contexts.max()),
        )


def padded(num_rows: int, multiple: int) -> int:
    """Return ``num_rows`` rounded up to a multiple of ``multiple``."""
    return -(-num_rows // multiple) * multiple


def _block_tables(
    sequences: Sequence[ScheduledSequence], contexts: np.ndarray, block_size: int, num_blocks: int
) -> np.ndarray:
    needed = -(-contexts // block_size)
    tables = np.zeros((len(sequences), int(needed.max())), dtype=np.int32)
    for row, (sequence, count) in enumerate(zip(sequences, needed, strict=True)):
        if len(sequence.block_table) < count or not sequence.new_token_ids:
            raise InternalError(f"sequence {row} of the batch: {len(sequence.block_table)} blocks, needs {count}")
        tables[row, :count] = sequence.block_table[:count]
    if tables.min() < 0 or tables.max() >= num_blocks:
        raise InternalError(f"a block table names a block outside of the pool of {num_blocks}")
    return tables
