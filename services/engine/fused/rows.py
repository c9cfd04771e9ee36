"""What stands between the matrix products of a decoder layer, by our own kernels (``rows.cpp``).

A row's result depends on that row alone; every intermediate result is rounded where transformers' code rounds it.
The tensors of a call are contiguous and of one dtype, float32 or bfloat16.
"""

import torch

from services.engine.kernels.library import DTYPES, GateCall, Kernels, NormCall, RotateCall


class RowOperators:
    """Norm, rotary embedding and gate; for one thread at a time."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        shared = {"parallel": kernels.parallel, "num_threads": kernels.num_threads}
        self._norm, self._rotate, self._gate = NormCall(**shared), RotateCall(**shared), GateCall(**shared)

    def norm(self, rows: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Return ``[..., width]`` divided by its root mean square, times ``weight`` ``[width]``."""
        output = torch.empty_like(rows)
        call, width = self._norm, rows.shape[-1]
        call.rows, call.weight, call.output = rows.data_ptr(), weight.data_ptr(), output.data_ptr()
        call.num_rows, call.width, call.epsilon = rows.numel() // width, width, epsilon
        call.dtype = DTYPES[rows.dtype]
        self._kernels.norm(call)
        return output

    def rotate(self, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Turn ``[num_rows, heads, width]`` in place by the angles of ``[num_rows, width]``, halves as pairs."""
        call = self._rotate
        call.rows, call.cos, call.sin = rows.data_ptr(), cos.data_ptr(), sin.data_ptr()
        call.num_rows, call.heads, call.width = rows.shape
        call.dtype = DTYPES[rows.dtype]
        self._kernels.rotate(call)

    def gate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return ``silu(gate) * up``, ``[..., width]``."""
        output = torch.empty_like(up)
        call, width = self._gate, up.shape[-1]
        call.gate, call.up, call.output = gate.data_ptr(), up.data_ptr(), output.data_ptr()
        call.num_rows, call.width, call.dtype = up.numel() // width, width, DTYPES[up.dtype]
        self._kernels.gate(call)
        return output
