"""CPU attention by our own kernels (``paged_attention.cpp``), called through ctypes, which releases the GIL."""

import ctypes
from pathlib import Path

import torch

from services.engine.attention.backend import AttentionOptions
from services.engine.attention.batch import PackedBatch
from services.errors import ModelRefused

BLOCK_SIZE = 16
DTYPES = {torch.float32: 0, torch.bfloat16: 1}

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class _Call(ctypes.Structure):
    """``TandemAttention`` of ``paged_attention.cpp``."""

    _fields_ = (
        *((name, _POINTER) for name in ("query", "keys", "values", "output", "sinks", "query_starts")),
        *((name, _POINTER) for name in ("context_lengths", "block_tables", "parallel")),
        *((name, _LONG) for name in ("query_row_stride", "query_head_stride", "key_head_stride", "value_head_stride")),
        *((name, _LONG) for name in ("key_token_stride", "value_token_stride", "block_bytes", "table_stride")),
        *((name, _INT) for name in ("num_sequences", "q_heads", "kv_heads", "key_width", "value_width", "block_size")),
        *((name, _INT) for name in ("window", "chunk", "dtype", "num_threads")),
        *((name, _FLOAT) for name in ("scaling", "softcap")),
    )


class NativeAttention:
    """Walks the block table per row in a fixed order, float32 sums; results do not depend on ``num_threads``."""

    def __init__(self, library: Path, *, num_threads: int = 1) -> None:
        loaded = ctypes.CDLL(str(library))
        self._attend = loaded.tandem_attend
        self._attend.argtypes, self._attend.restype = (ctypes.POINTER(_Call),), None
        self._store = loaded.tandem_store
        self._store.argtypes, self._store.restype = (_POINTER, _POINTER, _POINTER, *(_LONG,) * 7), None
        loaded.tandem_instruction_set.restype = ctypes.c_char_p
        self.instruction_set: str = loaded.tandem_instruction_set().decode()
        self.num_threads = num_threads
        self._parallel = _openmp_parallel()
        self._batch: PackedBatch | None = None
        self._call = _Call()

    @property
    def kernel_set(self) -> str:
        """Name of the arithmetic."""
        return f"native-{self.instruction_set}"

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return BLOCK_SIZE

    def store(self, batch: PackedBatch, rows: torch.Tensor, plane: torch.Tensor) -> None:
        """Copy rows to their slots."""
        rows = rows.to(plane.dtype) if rows.stride(-1) == 1 else rows.to(plane.dtype).contiguous()
        size = plane.element_size()
        self._store(
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
        self._attend(call)
        return output

    def _of(self, batch: PackedBatch) -> _Call:
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
            call.num_threads = self.num_threads
            call.parallel = self._parallel if self.num_threads > 1 else None
        return call

    @staticmethod
    def _describe(
        call: _Call, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: AttentionOptions
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


def _openmp_parallel() -> int | None:
    """Return the address of ``GOMP_parallel`` in the OpenMP library that torch brought: its pool, not a second one."""
    bundled = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    if not bundled:
        return None
    return ctypes.cast(ctypes.CDLL(str(bundled[0])).GOMP_parallel, ctypes.c_void_p).value
