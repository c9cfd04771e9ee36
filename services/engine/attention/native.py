"""CPU attention by our own kernel (``paged_attention.cpp``)."""

import torch

from services.engine.attention.backend import AttentionOptions
from services.engine.attention.batch import PackedBatch
from services.engine.kernels.library import DTYPES, AttentionCall, Kernels
from services.errors import ModelRefused

BLOCK_SIZE = 16


class NativeAttention:
    """Walks the block table per row in a fixed order, float32 sums; results do not depend on threads."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._batch: PackedBatch | None = None
        self._call = AttentionCall()

    @property
    def kernel_set(self) -> str:
        """Name of the arithmetic."""
        return self._kernels.name

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return BLOCK_SIZE

    def store(self, batch: PackedBatch, rows: torch.Tensor, plane: torch.Tensor) -> None:
        """Copy rows to their slots."""
        rows = rows.to(plane.dtype) if rows.stride(-1) == 1 else rows.to(plane.dtype).contiguous()
        size = plane.element_size()
        self._kernels.store(
            plane.data_ptr(),
            rows.data_ptr(),
            batch.slots.data_ptr(),
            batch.num_rows,
            rows.shape[1],
            rows.shape[2] * size,
            rows.stride(0) * size,
            rows.stride(1) * size,
            batch.block_size,
            plane.stride(0) * size,
        )

    def attend(
        self,
        batch: PackedBatch,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Attend over whole blocks, masked.

        Raises:
            ModelRefused: a dtype without a kernel.
        """
        if query.dtype != keys.dtype or keys.dtype not in DTYPES:
            raise ModelRefused(f"no CPU kernel for queries in {query.dtype} over a cache in {keys.dtype}")
        query = query if query.stride(-1) == 1 else query.contiguous()
        output = query.new_empty(batch.num_padded_rows, query.shape[1], values.shape[3])
        output[batch.num_rows :] = 0.0
        call = self._of(batch)
        self._describe(call, query, keys, values, options)
        call.output = output.data_ptr()
        self._kernels.attend(call)
        return output

    def _of(self, batch: PackedBatch) -> AttentionCall:
        """Return the call with the batch's part filled in; layers of one forward pass share it."""
        call = self._call
        if batch is not self._batch:
            self._batch = batch
            call.query_starts = batch.query_starts.data_ptr()
            call.context_lengths = batch.context_lengths.data_ptr()
            call.block_tables = batch.block_tables.data_ptr()
            call.table_stride = batch.block_tables.shape[1]
            call.num_sequences = batch.block_tables.shape[0]
            call.block_size = batch.block_size
            call.num_threads = self._kernels.num_threads
            call.parallel = self._kernels.parallel
        return call

    @staticmethod
    def _describe(
        call: AttentionCall, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: AttentionOptions
    ) -> None:
        call.query, call.keys, call.values = query.data_ptr(), keys.data_ptr(), values.data_ptr()
        call.query_row_stride, call.query_head_stride, _ = query.stride()
        block_stride, call.key_head_stride, call.key_token_stride, _ = keys.stride()
        call.block_bytes = block_stride * keys.element_size()
        _, call.value_head_stride, call.value_token_stride, _ = values.stride()
        call.q_heads, call.kv_heads = query.shape[1], keys.shape[1]
        call.key_width, call.value_width = keys.shape[3], values.shape[3]
        call.dtype = DTYPES[keys.dtype]
        call.scaling, call.softcap = options.scaling, options.softcap or 0.0
        call.window, call.chunk = options.window or 0, options.chunk or 0
        call.sinks = None if options.sinks is None else options.sinks.data_ptr()
