"""Matrix products by our own kernel (``linear.cpp``)."""

import torch

from services.engine.kernels.library import DTYPES, Kernels, LinearCall
from services.errors import InternalError


class NativeProducts:
    """One chain of float32 sums per output, in the order of the inner dimension, for any number of rows and threads."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply; an odd inner dimension in bfloat16 is filled up first.

        Raises:
            InternalError: rows, weight and bias differ in dtype or do not fit.
        """
        if not rows.dtype == weight.dtype == (weight if bias is None else bias).dtype:
            raise InternalError(f"a product of {rows.dtype} with weights in {weight.dtype}")
        if rows.dtype is torch.bfloat16 and weight.shape[1] % 2:
            rows, weight = (torch.nn.functional.pad(tensor, (0, 1)) for tensor in (rows, weight))
        if rows.shape[-1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
            raise InternalError(f"a product of rows {tuple(rows.shape)} with weights {tuple(weight.shape)}")
        rows, bias = rows.contiguous(), None if bias is None else bias.contiguous()
        weight = weight if weight.stride(1) == 1 else weight.contiguous()
        output = rows.new_empty(*rows.shape[:-1], weight.shape[0])
        call = LinearCall(
            rows=rows.data_ptr(),
            weight=weight.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            output=output.data_ptr(),
            parallel=self._kernels.parallel,
            weight_stride=weight.stride(0),
            num_rows=rows.numel() // rows.shape[-1],
            columns=weight.shape[0],
            inner=weight.shape[1],
            dtype=DTYPES[rows.dtype],
            num_threads=self._kernels.num_threads,
        )
        self._kernels.linear(call)
        return output
