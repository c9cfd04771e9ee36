"""The compiled kernels as Python calls: ctypes, which releases the GIL, over memory that tensors own."""

import ctypes
import hashlib
from pathlib import Path
from typing import Any

import torch

from services.engine.kernels.build import sources

DTYPES = {torch.float32: 0, torch.bfloat16: 1}

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class AttentionCall(ctypes.Structure):
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


class LinearCall(ctypes.Structure):
    """``TandemLinear`` of ``linear.h``."""

    _fields_ = (
        *((name, _POINTER) for name in ("rows", "weight", "bias", "addend", "output", "parallel")),
        *((name, _LONG) for name in ("weight_stride", "num_rows", "columns", "inner")),
        *((name, _INT) for name in ("dtype", "output_dtype", "num_threads")),
    )


class PackedLinearCall(ctypes.Structure):
    """``TandemPackedLinear`` of ``packed.cpp``."""

    _fields_ = (("product", LinearCall), ("scales", _POINTER), ("quants", _POINTER), ("quant_bits", _INT))


class NormCall(ctypes.Structure):
    """``TandemNorm`` of ``rows.cpp``."""

    _fields_ = (
        *((name, _POINTER) for name in ("rows", "weight", "output", "parallel")),
        *((name, _LONG) for name in ("num_rows", "width")),
        ("epsilon", _FLOAT),
        *((name, _INT) for name in ("dtype", "num_threads")),
    )


class RotateCall(ctypes.Structure):
    """``TandemRotate`` of ``rows.cpp``."""

    _fields_ = (
        *((name, _POINTER) for name in ("rows", "cos", "sin", "parallel")),
        *((name, _LONG) for name in ("num_rows", "heads", "width")),
        *((name, _INT) for name in ("dtype", "num_threads")),
    )


class GateCall(ctypes.Structure):
    """``TandemGate`` of ``rows.cpp``."""

    _fields_ = (
        *((name, _POINTER) for name in ("gate", "up", "output", "parallel")),
        *((name, _LONG) for name in ("num_rows", "width")),
        *((name, _INT) for name in ("dtype", "num_threads")),
    )


class Kernels:
    """One library, and how many threads its kernels use; results do not depend on ``num_threads``."""

    def __init__(self, library: Path, *, num_threads: int = 1) -> None:
        loaded = ctypes.CDLL(str(library))
        self.attend = _function(loaded.tandem_attend, AttentionCall)
        self.linear = _function(loaded.tandem_linear, LinearCall)
        known = hasattr(loaded, "tandem_packed_linear")
        self.packed_linear = _function(loaded.tandem_packed_linear, PackedLinearCall) if known else None
        """None where the host has no AVX-512 with bfloat16."""
        self.norm = _function(loaded.tandem_norm, NormCall)
        self.rotate = _function(loaded.tandem_rotate, RotateCall)
        self.gate = _function(loaded.tandem_gate, GateCall)
        self.store = loaded.tandem_store
        self.store.argtypes, self.store.restype = (_POINTER, _POINTER, _POINTER, *(_LONG,) * 7), None
        loaded.tandem_instruction_set.restype = ctypes.c_char_p
        self.instruction_set: str = loaded.tandem_instruction_set().decode()
        self.num_threads = num_threads
        self.parallel = _openmp_parallel() if num_threads > 1 else None

    @property
    def name(self) -> str:
        """Name of the arithmetic, e.g. ``native-avx512_bf16-1f0c5a72``: other sources may give other bits."""
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources())).hexdigest()
        return f"native-{self.instruction_set}-{digest[:8]}"


def _function(symbol: Any, call: type[ctypes.Structure]) -> Any:
    symbol.argtypes, symbol.restype = (ctypes.POINTER(call),), None
    return symbol


def _openmp_parallel() -> int | None:
    """Return the address of ``GOMP_parallel`` in the OpenMP library that torch brought: its pool, not a second one."""
    bundled = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    if not bundled:
        return None
    return ctypes.cast(ctypes.CDLL(str(bundled[0])).GOMP_parallel, ctypes.c_void_p).value
